"""The demonstrator of Push-T: it pushes on the T's bar alone, and so steers the block as one steers a car."""

from dataclasses import dataclass
from functools import cached_property
from math import atan2, cos, pi, sin

import numpy as np
import numpy.typing as npt
from shapely import LineString, MultiPoint, Point, Polygon, get_coordinates

from asd_envs import dubins
from asd_envs.dubins import Pose
from asd_envs.pusht import BAR_HALF_WIDTH, CORNERS, GOAL_POSE, PUSHER_RADIUS, REACH, SUCCESS_COVERAGE, outline, rotation

Array = npt.NDArray[np.float64]

CLEARANCE = 0.01  # [m] between pusher and block on the way around it
SLACK = 0.006  # [m] by which the pusher may miss the place from which it pushes
FORWARD = pi / 2  # [rad] from the block's x axis, along the bar, to where a push on the bar's outside drives it
MAX_STEER = 0.05  # [m] off the middle of the bar
SLIDE = 0.012  # [m] per step along the bar
PUSH = 0.007  # [m] per step that the block is driven
WALK = 0.02  # [m] per step on the way around the block
LOOK_AHEAD = 0.035  # [m]
RUNWAY = 0.05  # [m] in front of the goal, to which the paths lead
ROOM = 0.165  # [m] from the middle of the workspace in x and y: a block here does not reach the walls


@dataclass(frozen=True, eq=False)
class Board:
    """One Push-T: its T, and where the T is to go."""

    corners: Array
    """Of the T in the block's frame [8, 2] [m]: origin in the centre of mass, y from the bar to the stem's end."""
    goal: Pose
    success: float
    """Coverage from which on the task is solved."""
    gyration: float
    """Radius of gyration of the T about its centre of mass [m]."""
    turn_radius: float
    """Of planned paths [m]; the tightest turn is gyration² / MAX_STEER."""

    @cached_property
    def contact_y(self) -> float:
        """Level, y in the block's frame, of a pusher that touches the bar's outside [m]."""
        return float(self.corners[:, 1].min()) - PUSHER_RADIUS

    @cached_property
    def hull(self) -> Polygon:
        """What the pusher's centre goes around, in the block's frame: the T's convex hull and CLEARANCE."""
        hull = MultiPoint(self.corners).convex_hull.buffer(PUSHER_RADIUS + CLEARANCE, join_style="mitre")
        assert isinstance(hull, Polygon)
        return hull

    @cached_property
    def around(self) -> Polygon:
        """The hull and a millimetre."""
        around = self.hull.buffer(0.001, join_style="mitre")
        assert isinstance(around, Polygon)
        return around

    def coverage(self, pose: Pose) -> float:
        """Compute the share of the goal's area that the block covers at a pose, 0 … 1."""
        goal = outline(self.goal, self.corners)
        return goal.intersection(outline(pose, self.corners)).area / goal.area


MUJOCO = Board(CORNERS, GOAL_POSE, SUCCESS_COVERAGE, gyration=0.0439, turn_radius=0.05)
"""That of `asd/PushT-v0`."""


def drive(block: Pose, beside: float, advance: float, steer: float, gyration: float) -> tuple[Pose, float]:
    """Compute block and pusher after one step of pushing the bar, by the quasi-static model.

    A force at x on the bar's outside drives the block forward and turns it by x / gyration² to the left for each metre:
    contacts have no friction, and the table's limit surface is an ellipsoid (K. M. Lynch, "The mechanics of fine
    manipulation by pushing", 1992).

    Args:
        block: Its pose.
        beside: x of the pusher in the block's frame [m].
        advance: How far to push [m], less the farther the pusher has to slide first.
        steer: Where on the bar to push, x in the block's frame [m].
        gyration: Of the board [m].

    Returns:
        The block's pose, and x of the pusher in its frame [m].
    """
    off = steer - beside
    slid = beside + max(-SLIDE, min(SLIDE, off))
    advance *= max(0.15, 1 - abs(off) / 0.04)
    turned = block[2] + advance * (beside + slid) / 2 / gyration**2
    heading = (turned + block[2]) / 2 + FORWARD
    return (block[0] + advance * cos(heading), block[1] + advance * sin(heading), turned), slid


def pursue(block: Pose, x: float, y: float, gyration: float) -> float:
    """Choose where on the bar to push [m] so that the block's arc leads through x, y [m] (pure pursuit)."""
    dx, dy = x - block[0], y - block[1]
    right = cos(block[2]) * dx + sin(block[2]) * dy
    curvature = -2 * right / (dx * dx + dy * dy)
    return max(-MAX_STEER, min(MAX_STEER, curvature * gyration**2))


class PushTExpert:
    """Walks behind the bar, drives the block along a Dubins path to a runway before the goal, and straight in.

    It plans anew from each observation. Frictionless contact lets the pusher slide along the bar while it pushes, and
    where it pushes is how the block is steered.
    """

    def __init__(self, board: Board = MUJOCO) -> None:
        """Make one for a board."""
        self.board = board

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; it keeps no state and chooses nothing at random."""

    def act(self, observation: dict[str, Array]) -> Array:
        """Choose the pusher's target position [m]."""
        x, y, cosine, sine, beside, level = map(float, observation["environment_state"])
        block, contact = (x, y, atan2(sine, cosine)), self.board.contact_y
        advance, steer = self._finish(block, beside) or (PUSH, self._cruise(block))
        if abs(beside) <= BAR_HALF_WIDTH and -CLEARANCE - SLACK < level - contact < SLACK:  # behind the bar
            block, beside = drive(block, beside, advance, steer, self.board.gyration)
            target = np.array([beside, contact])
        else:
            target = self._walk(np.array([beside, level]), np.array([steer, contact - CLEARANCE - 0.001]))
        return np.clip(block[:2] + rotation(block[2]) @ target, -REACH, REACH)

    def _cruise(self, block: Pose) -> float:
        """Choose where to push for the shortest path to the runway that keeps off the walls."""
        start = (block[0], block[1], block[2] + FORWARD)
        goal_x, goal_y, yaw = self.board.goal
        heading, radius = yaw + FORWARD, self.board.turn_radius
        goal = (goal_x - RUNWAY * cos(heading), goal_y - RUNWAY * sin(heading), heading)

        def excursion(path: dubins.Path) -> float:
            poses = (dubins.along(start, path, radius, at) for at in np.arange(0, dubins.length(path), 0.02))
            return max((max(abs(x), abs(y)) for x, y, _ in poses), default=0.0)

        found = dubins.paths(start, goal, radius)
        path = next((path for path in found if excursion(path) < ROOM), None) or min(found, key=excursion)
        x, y, _ = dubins.along(start, path, radius, LOOK_AHEAD)
        return pursue(block, x, y, self.board.gyration)

    def _finish(self, block: Pose, beside: float) -> tuple[float, float] | None:
        """Choose how far and where to push to follow the goal's line, if the model says that this will succeed."""
        remaining, steer = self._line(block)
        if not -0.004 < remaining < 0.12:
            return None
        # Far off, more can go wrong.
        needed = self.board.success + (1 - self.board.success) * (0.1 + 0.4 * min(1.0, remaining / 0.05))
        now = None
        while remaining > -0.004:
            advance = max(0.002, min(PUSH, remaining / 4))
            now = now or (advance, steer)
            block, beside = drive(block, beside, advance, steer, self.board.gyration)
            remaining, steer = self._line(block)
            if remaining < 0.006 and self.board.coverage(block) > needed:
                return now
        return None

    def _line(self, block: Pose) -> tuple[float, float]:
        """Compute how far along the goal's heading the goal is [m], and where to push to get onto that line."""
        (x, y, yaw), (bx, by, _) = self.board.goal, block
        fx, fy = cos(yaw + FORWARD), sin(yaw + FORWARD)
        remaining = (x - bx) * fx + (y - by) * fy
        ahead = LOOK_AHEAD - remaining
        return remaining, pursue(block, x + ahead * fx, y + ahead * fy, self.board.gyration)

    def _walk(self, pusher: Array, goal: Array) -> Array:
        """Choose a point one step ahead on the shortest way to a point behind the bar; all in the block's frame [m]."""
        points = [goal]
        if self.board.hull.buffer(-0.002).intersects(LineString([pusher, goal])):
            points = self._around(pusher, goal)
        target, ahead = pusher, WALK
        for point in points:
            leg = point - target
            distance = float(np.linalg.norm(leg))
            if distance >= ahead:
                return target + leg / distance * ahead
            target, ahead = point, ahead - distance
        return target

    def _around(self, pusher: Array, goal: Array) -> list[Array]:
        """Find the shorter way around the ring, which is half of the convex hull of ring, pusher and goal."""
        if self.board.around.contains(Point(pusher)):
            edge = self.board.around.exterior
            pusher = np.array(edge.interpolate(edge.project(Point(pusher))).coords[0])
        ring = get_coordinates(self.board.hull)[:-1]
        loop = get_coordinates(MultiPoint([*ring, pusher, goal]).convex_hull)[:-1]
        loop = np.roll(loop, -np.linalg.norm(loop - pusher, axis=1).argmin(), axis=0)
        end = int(np.linalg.norm(loop - goal, axis=1).argmin())
        ways = [loop[: end + 1], np.concatenate([loop[:1], loop[: end - 1 : -1]])]
        return list(min(ways, key=lambda way: LineString(way).length))
