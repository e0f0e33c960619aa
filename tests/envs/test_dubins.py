"""Dubins paths: they end where they should, are as short as they can be, and turn no tighter than asked for."""

from math import pi

import numpy as np
import pytest

from asd_envs import dubins
from asd_envs.dubins import Pose

RADIUS = 0.05


def random_pose(rng: np.random.Generator) -> Pose:
    x, y, heading = rng.uniform([-0.2, -0.2, -4], [0.2, 0.2, 4])
    return float(x), float(y), float(heading)


def test_every_path_ends_at_the_goal() -> None:
    rng = np.random.default_rng(0)
    words = set()
    for _ in range(500):
        start, goal = random_pose(rng), random_pose(rng)
        for path in dubins.paths(start, goal, RADIUS):
            words.add(tuple(sign for sign, _ in path))
            x, y, heading = dubins.along(start, path, RADIUS, dubins.length(path))
            assert (x, y) == pytest.approx(goal[:2], abs=1e-6)
            assert np.cos(heading - goal[2]) == pytest.approx(1, abs=1e-9)
    assert words == {(1, 0, 1), (-1, 0, -1), (1, 0, -1), (-1, 0, 1), (-1, 1, -1), (1, -1, 1)}


@pytest.mark.parametrize(
    ("goal", "length"),
    [
        ((0.3, 0.0, 0.0), 0.3),
        ((0.0, 2 * RADIUS, pi), pi * RADIUS),  # a half circle to the left
        ((0.0, -2 * RADIUS, -pi), pi * RADIUS),  # and to the right
        ((RADIUS, RADIUS, pi / 2), pi / 2 * RADIUS),
        ((0.0, 0.0, pi), (2 * pi / 3 + 5 * pi / 3) * RADIUS),  # about-turn: 60°, 300°, 60°
        ((-0.3, 0.0, 0.0), 2 * pi * RADIUS + 0.3),  # straight back: two half circles, and straight
    ],
)
def test_known_lengths(goal: Pose, length: float) -> None:
    shortest, *others = dubins.paths((0.0, 0.0, 0.0), goal, RADIUS)
    assert dubins.length(shortest) == pytest.approx(length)
    assert all(dubins.length(other) >= dubins.length(shortest) for other in others)


def test_a_pose_reached_needs_no_path() -> None:
    assert dubins.length(dubins.paths((0.1, -0.2, 1.0), (0.1, -0.2, 1.0), RADIUS)[0]) == pytest.approx(0, abs=1e-6)


def test_beyond_its_end_a_path_goes_straight_on() -> None:
    assert dubins.along((0.0, 0.0, pi / 2), [(0, 0.1)], RADIUS, 0.25) == pytest.approx((0.0, 0.25, pi / 2))
