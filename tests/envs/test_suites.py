"""The adapters of other people's suites: when they say success, and what they say of what is not there."""

import sys
from collections.abc import Callable
from ctypes.util import find_library
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import pytest

import asd_envs  # noqa: F401  registers the environments
from asd_envs.registration import SUITES
from support.suite_cases import case

Solve = Callable[[Any], object]


def move_goal(inner: Any) -> None:
    """Put a Fetch task's goal where the object is, or the gripper where there is none."""
    inner.goal = inner._get_obs()["achieved_goal"]


def move_exit(inner: Any) -> None:
    """Put a maze's goal where the agent is."""
    inner.goal = inner.data.qpos[:2].copy()


def open_door(inner: Any) -> None:
    inner.data.qpos[inner.door_hinge_addrs] = 1.5


def drive_nail(inner: Any) -> None:
    inner.data.joint("nail_dir").qpos[:] = 0.09


def turn_target(inner: Any) -> None:
    """Want the pen as it lies."""
    inner.model.body_quat[inner.target_obj_body_id] = inner.data.xquat[inner.obj_body_id]


def fetch_target(inner: Any) -> None:
    inner.model.site_pos[inner.target_obj_site_id] = inner.data.xpos[inner.obj_body_id]


def do_chores(inner: Any) -> None:
    indices = import_module("gymnasium_robotics.envs.franka_kitchen.kitchen_env").OBS_ELEMENT_INDICES
    for task, goal in inner.goal.items():
        inner.data.qpos[indices[task]] = goal


def place_block(inner: Any) -> None:
    inner.block.angle = float(inner.goal_pose[2])
    inner.block.position = inner.goal_pose[:2].tolist()


def lift_cube(inner: Any) -> None:
    inner.sim.data.set_joint_qpos("cube_joint0", np.array([0.3, 0.3, 1.2, 1, 0, 0, 0]))


def pay_in_full(inner: Any) -> None:
    """Have the task report its last stage: to hold the cube takes a policy."""
    inner._env.task.get_reward = lambda physics: 4


SOLVERS: dict[str, Solve] = {
    "asd/Fetch-Reach-v0": move_goal,
    "asd/Fetch-Push-v0": move_goal,
    "asd/Fetch-Slide-v0": move_goal,
    "asd/Fetch-PickAndPlace-v0": move_goal,
    "asd/PointMaze-UMaze-v0": move_exit,
    "asd/AntMaze-UMaze-v0": move_exit,
    "asd/Adroit-Door-v0": open_door,
    "asd/Adroit-Hammer-v0": drive_nail,
    "asd/Adroit-Pen-v0": turn_target,
    "asd/Adroit-Relocate-v0": fetch_target,
    "asd/Kitchen-Complete-v0": do_chores,
    "asd/Kitchen-Mixed-v0": do_chores,
    "asd/GymPushT-keypoints-v0": place_block,
    "asd/Robosuite-Lift-v0": lift_cube,
    "asd/Aloha-TransferCube-v0": pay_in_full,
}


@pytest.mark.parametrize("env_id, solve", [case(*item) for item in SOLVERS.items()])
def test_success_is_told_where_it_is(env_id: str, solve: Solve) -> None:
    env: Any = gymnasium.make(env_id)
    _, info = env.reset(seed=3)
    idle = np.zeros(env.action_space.shape, env.action_space.dtype)
    assert not info["success"]
    assert not env.step(idle)[4]["success"]
    solve(env.unwrapped.inner)
    assert env.step(idle)[4]["success"]
    env.close()


def test_mazes_end_at_the_goal() -> None:
    env: Any = gymnasium.make("asd/PointMaze-UMaze-v0")
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.float32))[1:3] == (0.0, False)
    move_exit(env.unwrapped.inner)
    assert env.step(np.zeros(2, np.float32))[1:3] == (1.0, True)


def test_kitchen_counts_what_is_done() -> None:
    env: Any = gymnasium.make("asd/Kitchen-Complete-v0")
    _, info = env.reset(seed=0)
    assert info == {"completed": 0, "success": False}
    inner = env.unwrapped.inner
    chores, inner.goal = inner.goal, {"kettle": inner.goal["kettle"]}
    do_chores(inner)
    inner.goal = chores
    _, reward, terminated, _, info = env.step(np.zeros(9, np.float32))
    assert (reward, terminated, info) == (1.0, False, {"completed": 1, "success": False})
    assert env.reset()[1]["completed"] == 0


def test_fetch_observes_what_the_suite_does() -> None:
    """Each of its numbers once, and the goal."""
    env: Any = gymnasium.make("asd/Fetch-Push-v0")
    observation, _ = env.reset(seed=0)
    raw = env.unwrapped.inner._get_obs()
    ours = np.concatenate([observation["agent_pos"], observation["environment_state"]])
    assert sorted(ours) == sorted([*raw["observation"], *raw["desired_goal"]])
    np.testing.assert_array_equal(observation["environment_state"][-3:], raw["desired_goal"])
    np.testing.assert_array_equal(observation["agent_pos"][:3], raw["observation"][:3])


@pytest.mark.parametrize("env_id", [case(f"asd/Robosuite-{task}-v0") for task in ("Lift", "Transport")])
def test_robosuite_has_the_names_of_each_library(env_id: str) -> None:
    env: Any = gymnasium.make(env_id)
    observation, _ = env.reset(seed=0)
    arms = [
        f"robot{arm}_{key}"
        for arm in range(1 + ("Transport" in env_id))
        for key in ("eef_pos", "eef_quat", "gripper_qpos")
    ]
    assert set(observation) == {"object", *arms, "obs", "agent_pos", "environment_state"}
    vector = np.concatenate([observation[key] for key in ("object", *arms)])  # the order of Diffusion Policy's configs
    np.testing.assert_array_equal(observation["obs"], vector)
    np.testing.assert_array_equal(observation["environment_state"], observation["object"])
    np.testing.assert_array_equal(observation["agent_pos"], vector[len(observation["object"]) :])
    env.close()


@pytest.mark.parametrize("env_id", [case("asd/Robosuite-Lift-v0")])
def test_robosuite_leaves_the_global_generator_alone(env_id: str) -> None:
    env: Any = gymnasium.make(env_id)
    np.random.seed(3)
    expected = np.random.uniform(size=2)
    np.random.seed(3)
    drawn = [np.random.uniform()]
    env.reset(seed=0)
    assert [*drawn, np.random.uniform()] == expected.tolist()
    env.close()


@pytest.mark.parametrize("env_id", [case("asd/Aloha-TransferCube-v0")])
def test_aloha_acts_within_its_actuators(env_id: str) -> None:
    """The pose that an episode starts in can be commanded, as it cannot within the suite's own −1 … 1."""
    env: Any = gymnasium.make(env_id)
    observation, _ = env.reset(seed=0)
    start = observation["agent_pos"].astype(np.float32)
    assert env.action_space.contains(start)
    assert not env.unwrapped.inner.action_space.contains(start)
    env.close()


@pytest.mark.parametrize(
    "env_id, module, extra",
    [
        ("asd/MetaWorld-reach-v0", "metaworld.env_dict", "metaworld"),
        ("asd/Fetch-Reach-v0", "gymnasium_robotics", "robotics"),
        ("asd/PointMaze-UMaze-v0", "gymnasium_robotics", "robotics"),
        ("asd/AntMaze-UMaze-v0", "gymnasium_robotics", "robotics"),
        ("asd/Adroit-Pen-v0", "gymnasium_robotics", "robotics"),
        ("asd/Kitchen-Mixed-v0", "gymnasium_robotics", "robotics"),
        ("asd/GymPushT-state-v0", "gym_pusht", "pusht"),
        ("asd/Robosuite-Lift-v0", "robosuite", "robosuite"),
        ("asd/Aloha-Insertion-v0", "gym_aloha", "aloha"),
    ],
)
def test_a_missing_extra_is_named(env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} cannot be imported \(.*\): pip install 'asd-policy\[{extra}\]'"):
        gymnasium.make(env_id)


@pytest.mark.parametrize("env_id", [f"asd/{suite.name}-{next(iter(suite.tasks))}-v0" for suite in SUITES])
def test_an_unknown_task_lists_those_there_are(env_id: str) -> None:
    with pytest.raises(ValueError, match=r"^no [\w-]+ task 'juggle'; there are [\w-]+, [\w-]+"):
        gymnasium.make(env_id, task="juggle")


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
@pytest.mark.parametrize("env_id", [case("asd/Aloha-TransferCube-v0")])
def test_aloha_shows_its_camera(env_id: str) -> None:
    env = gymnasium.make(env_id, obs_type="pixels_agent_pos")
    first, again = (env.reset(seed=1)[0] for _ in range(2))
    assert env.observation_space.contains(first) and set(first) == {"pixels", "agent_pos"}
    np.testing.assert_array_equal(first["pixels"]["top"], again["pixels"]["top"])
    assert first["pixels"]["top"].shape == (480, 640, 3) and first["pixels"]["top"].std() > 10
    env.close()
