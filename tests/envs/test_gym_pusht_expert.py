"""The demonstrator of gym-pusht: the board that it plans on is the simulation's, and it needs no observation."""

from collections.abc import Iterator
from math import atan2, cos, sin
from typing import Any

import gymnasium
import numpy as np
import pytest

from asd_envs.dubins import Pose
from asd_envs.gym_pusht import GymPushTEnv
from asd_envs.gym_pusht_expert import BOARD, CENTRE_Y, LEAD, MIDDLE, PIXEL, GymPushTExpert
from asd_envs.pusht import PUSHER_RADIUS, rotation
from asd_envs.pusht_expert import drive


@pytest.fixture
def env() -> Iterator[GymPushTEnv]:
    env = gymnasium.make("asd/GymPushT-keypoints-v0")
    env.reset(seed=0)
    bare = env.unwrapped
    assert isinstance(bare, GymPushTEnv)
    yield bare
    env.close()


def place(simulation: Any, block: Pose, pusher: np.ndarray) -> None:
    """Put block and pusher somewhere, at rest; both as the board has them."""
    simulation.block.angle = block[2]
    middle = np.array(block[:2]) / PIXEL + MIDDLE
    simulation.block.position = (middle - rotation(block[2]) @ (0, CENTRE_Y)).tolist()
    simulation.agent.position = (pusher / PIXEL + MIDDLE).tolist()
    simulation.agent.velocity = (0, 0)
    simulation.space.reindex_shapes_for_body(simulation.block)


def pose(simulation: Any) -> Pose:
    """Read where the block is, as the board has it."""
    block = simulation.block
    x, y = (np.array(block.local_to_world(block.center_of_gravity)) - MIDDLE) * PIXEL
    return float(x), float(y), float(block.angle)


def test_the_board_is_the_simulation(env: GymPushTEnv) -> None:
    simulation = env.inner
    assert simulation.block.center_of_gravity == (0, CENTRE_Y)
    assert simulation.block.moment / simulation.block.mass * PIXEL**2 == pytest.approx(BOARD.gyration**2)
    corners = np.array([v for shape in simulation.block.shapes for v in shape.get_vertices()]) - [0, CENTRE_Y]
    assert {tuple(np.round(each * PIXEL, 6)) for each in corners} == {tuple(np.round(c, 6)) for c in BOARD.corners}
    (pusher,) = simulation.agent.shapes
    assert pusher.radius * PIXEL == pytest.approx(PUSHER_RADIUS)
    place(simulation, BOARD.goal, np.array([0.2, 0.2]))
    assert simulation._get_coverage() == pytest.approx(1)
    place(simulation, (BOARD.goal[0] + 0.01, BOARD.goal[1], BOARD.goal[2] + 0.1), np.array([0.2, 0.2]))
    assert simulation._get_coverage() == pytest.approx(BOARD.coverage(pose(simulation)))
    assert simulation.success_threshold == BOARD.success


@pytest.mark.parametrize("beside", [-0.04, 0.0, 0.05])
def test_the_quasi_static_model_foresees_the_simulation(env: GymPushTEnv, beside: float) -> None:
    simulation, block = env.inner, (0.05, -0.03, 1.0)
    place(simulation, block, np.array(block[:2]) + rotation(block[2]) @ (beside, BOARD.contact_y))
    for _ in range(10):
        block, beside = drive(block, beside, 0.007, beside, BOARD.gyration)
        target = (np.array(block[:2]) + rotation(block[2]) @ (beside, BOARD.contact_y)) / PIXEL + MIDDLE
        pusher = np.array(simulation.agent.position)
        env.step((pusher + LEAD * (target - pusher)).astype(np.float32))
    found = pose(simulation)
    assert found[:2] == pytest.approx(block[:2], abs=0.005)  # of 0.07 m; the servo drifts on by 3 mm
    assert atan2(sin(found[2] - block[2]), cos(found[2] - block[2])) == pytest.approx(0, abs=0.1)


def test_frames_are_enough() -> None:
    """The same actions whatever is observed, and what the encoder may learn to predict is where the block is."""
    envs = [gymnasium.make(f"asd/GymPushT-{observed}-v0") for observed in ("keypoints", "pixels", "state")]
    seen = [env.reset(seed=4)[0] for env in envs]
    experts = [GymPushTExpert(env.unwrapped) for env in envs if isinstance(env.unwrapped, GymPushTEnv)]
    for _ in range(3):
        actions = [expert.act(each) for expert, each in zip(experts, seen, strict=True)]
        for action in actions:
            assert (action == actions[0]).all()
        seen = [env.step(action.astype(np.float32))[0] for env, action in zip(envs, actions, strict=True)]
        np.testing.assert_array_equal(envs[1].get_wrapper_attr("environment_state"), seen[0]["environment_state"])
    assert len(experts) == 3


def test_the_expert_recovers_from_noise() -> None:
    """With the noise of the demonstrations; not always, as only episodes that succeed are learned from."""
    env = gymnasium.make("asd/GymPushT-keypoints-v0")
    bare = env.unwrapped
    assert isinstance(bare, GymPushTEnv)
    expert, solved = GymPushTExpert(bare), 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        observation, info = env.reset(seed=seed)
        done = False
        while not done:
            action = expert.act(observation) + 0.02 * MIDDLE * rng.standard_normal(2)
            observation, _, terminated, truncated, info = env.step(np.clip(action, 0, 512).astype(np.float32))
            done = terminated or truncated
        solved += info["success"]
    assert solved >= 6
