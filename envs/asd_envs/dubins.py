"""Shortest forward paths of a car between two poses (L. E. Dubins, American Journal of Mathematics 79, 1957)."""

from math import acos, atan2, cos, hypot, inf, pi, sin, sqrt

Pose = tuple[float, float, float]
"""x [m], y [m], heading or yaw [rad]."""
Path = list[tuple[int, float]]
"""Parts in order: 1 for a left turn, 0 for straight on, -1 for a right turn; and the part's length [m]."""


def paths(start: Pose, goal: Pose, radius: float) -> list[Path]:
    """List the paths of all of Dubins' words that lead from one pose to another, the shortest first.

    The closed forms are those of A. M. Shkel and V. Lumelsky, Robotics and Autonomous Systems 34, 2001.

    Args:
        start: Where the path begins.
        goal: Where it ends.
        radius: Of its turns [m].
    """
    dx, dy = goal[0] - start[0], goal[1] - start[1]
    d, direction = hypot(dx, dy) / radius, atan2(dy, dx)
    a, b = start[2] - direction, goal[2] - direction
    sa, sb, ca, cb, cab = sin(a), sin(b), cos(a), cos(b), cos(a - b)
    words: list[tuple[tuple[int, int, int], tuple[float, float, float]]] = []
    square = 2 + d * d - 2 * cab + 2 * d * (sa - sb)
    if square >= 0:
        turn = atan2(cb - ca, d + sa - sb)
        words.append(((1, 0, 1), (turn - a, sqrt(square), b - turn)))
    square = 2 + d * d - 2 * cab + 2 * d * (sb - sa)
    if square >= 0:
        turn = atan2(ca - cb, d - sa + sb)
        words.append(((-1, 0, -1), (a - turn, sqrt(square), turn - b)))
    square = -2 + d * d + 2 * cab + 2 * d * (sa + sb)
    if square >= 0:
        turn = atan2(-ca - cb, d + sa + sb) - atan2(-2, sqrt(square))
        words.append(((1, 0, -1), (turn - a, sqrt(square), turn - b)))
    square = -2 + d * d + 2 * cab - 2 * d * (sa + sb)
    if square >= 0:
        turn = atan2(ca + cb, d - sa - sb) - atan2(2, sqrt(square))
        words.append(((-1, 0, 1), (a - turn, sqrt(square), b - turn)))
    cosine = (6 - d * d + 2 * cab + 2 * d * (sa - sb)) / 8
    if abs(cosine) <= 1:
        middle = 2 * pi - acos(cosine)
        first = a - atan2(ca - cb, d - sa + sb) + middle / 2
        words.append(((-1, 1, -1), (first, middle, a - b - first + middle)))
    cosine = (6 - d * d + 2 * cab + 2 * d * (sb - sa)) / 8
    if abs(cosine) <= 1:
        middle = 2 * pi - acos(cosine)
        first = -a - atan2(ca - cb, d + sa - sb) + middle / 2
        words.append(((1, -1, 1), (first, middle, b - a - first + middle)))
    found = [
        [(sign, radius * (_turn(part) if sign else part)) for sign, part in zip(signs, parts, strict=True)]
        for signs, parts in words
    ]
    return sorted(found, key=length)


def _turn(angle: float) -> float:
    """Reduce an angle to 0 … 2π; one that is below 0 by a rounding error becomes 0, not a full circle."""
    return max((angle + 1e-6) % (2 * pi) - 1e-6, 0.0)


def length(path: Path) -> float:
    """Compute the length of a path [m]."""
    return sum(part for _, part in path)


def along(start: Pose, path: Path, radius: float, distance: float) -> Pose:
    """Compute the pose after `distance` [m] of a path, straight on beyond its end."""
    x, y, heading = start
    for sign, part in [*path, (0, inf)]:
        part = min(part, distance)
        turned = heading + sign * part / radius
        if sign:
            x += sign * radius * (sin(turned) - sin(heading))
            y -= sign * radius * (cos(turned) - cos(heading))
        else:
            x, y = x + part * cos(heading), y + part * sin(heading)
        heading = turned
        distance -= part
    return x, y, heading
