"""The contract of the environments, over every registered id, and Avoid's own promises."""

import warnings
from collections.abc import Iterator
from ctypes.util import find_library
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils.env_checker import check_env

import asd_envs
from asd_envs.avoid import HOMOTOPY_CLASSES, AvoidExpert, gap_centre, gap_of
from asd_envs.registration import OWN_TASKS, SUITES
from support.suite_cases import case

IDS = sorted(env_id for env_id in gymnasium.registry if env_id.startswith("asd/"))
OWN = [f"asd/{name}-v0" for name in OWN_TASKS]
# One task of each suite but Kitchen, whose meshes take a software renderer many seconds.
RENDERED = [*OWN, *(f"asd/{each.name}-{next(iter(each.tasks))}-v0" for each in SUITES if each.name != "Kitchen")]
SOLVED = [
    *OWN,
    "asd/GymPushT-keypoints-v0",
    *(f"asd/MetaWorld-{task}-v0" for task in ("pick-place", "peg-insert-side", "reach", "push")),
]

Env = gymnasium.Env[Any, Any]


@pytest.fixture(params=map(case, IDS), scope="module")
def env(request: pytest.FixtureRequest) -> Iterator[Env]:
    env = gymnasium.make(request.param)
    yield env
    env.close()


def rollout(env: Env, seed: int, steps: int = 5) -> list[Any]:
    """Return the observations of a few random steps."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    assert isinstance(info["success"], bool)
    seen: list[Any] = [observation]
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    for _ in range(steps):
        action = rng.uniform(space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = env.step(action)
        assert isinstance(reward, float) and np.isfinite(reward)
        assert isinstance(info["success"], bool)
        seen.append(observation)
        if terminated or truncated:
            break
    return seen


def parts(observation: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an observation by their keys."""
    return observation if isinstance(observation, dict) else {"": observation}


def test_there_are_all_of_them() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert sorted(f"{task}-v3" for task in asd_envs.METAWORLD_TASKS) == sorted(ALL_V3_ENVIRONMENTS)
    adapted = {f"asd/{suite.name}-{task}-v0" for suite in SUITES for task in suite.tasks}
    assert set(IDS) == {*OWN, *adapted}


# What gymnasium's own test suite lets pass too: positions in suites are unbounded, actions in metres or pixels.
ADVICE = (
    "-infinity. This is probably too low",
    "infinity. This is probably too high",
    "symmetric and normalized space",
)


def test_check_env(env: Env) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    said = [str(warning.message) for warning in caught]
    assert not [text for text in said if not any(advice in text for advice in ADVICE)]
    assert env.spec is not None
    if env.spec.id in OWN:
        assert not [text for text in said if "infinity" in text]


def test_contract(env: Env) -> None:
    first, again, other = rollout(env, 1), rollout(env, 1), rollout(env, 2)
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        for key, value in parts(a).items():
            np.testing.assert_array_equal(value, parts(b)[key], err_msg=f"{key} is not deterministic")
    for observation in first:
        assert env.observation_space.contains(observation)
        assert all(np.isfinite(value).all() for value in parts(observation).values())
    for a, b in zip(first, first[1:], strict=False):
        for key, value in parts(a).items():
            assert not np.shares_memory(value, parts(b)[key])
    starts = [parts(seen[0]) for seen in (first, other)]
    assert any((starts[0][key] != starts[1][key]).any() for key in starts[0]), "the start is not randomised"
    for key in parts(first[0]):
        values = np.stack([parts(observation)[key] for observation in (*first, *other)])
        assert np.ptp(values, axis=0).max() > 0, f"{key} is constant"


def test_documented(env: Env) -> None:
    text = type(env.unwrapped).__doc__ or ""
    for heading in ("Action space", "Observation space", "Reward", "Start and end", "Info", "Version history"):
        assert f"## {heading}" in text
    assert "| Unit |" in text


@pytest.mark.parametrize("env_id", [case(env_id) for env_id in SOLVED])
def test_experts_solve(env_id: str) -> None:
    env = gymnasium.make(env_id)
    expert = asd_envs.make_expert(env)
    for seed in range(5):
        expert.reset(np.random.default_rng(seed))
        observation, info = env.reset(seed=seed)
        done = False
        while not done:
            action = expert.act(observation).astype(env.action_space.dtype)
            assert env.action_space.contains(action)
            observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        assert info["success"], f"seed {seed}"
    env.close()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no Meta-World task 'juggle'; there are assembly, basketball"):
        gymnasium.make("asd/MetaWorld-reach-v0", task="juggle")
    with pytest.raises(ValueError, match="no expert for"):
        asd_envs.make_expert(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="no homotopy class '2-0-0'"):
        AvoidExpert("2-0-0")


# Avoid


def run_expert(env: Env, homotopy_class: str, seed: int) -> dict[str, Any]:
    expert = AvoidExpert(homotopy_class)
    expert.reset(np.random.default_rng(seed))
    observation, info = env.reset(seed=seed)
    done = False
    while not done:
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        done = terminated or truncated
    return info


def test_the_expert_takes_every_class() -> None:
    env = gymnasium.make("asd/Avoid-v0")
    assert len(HOMOTOPY_CLASSES) == 24
    for homotopy_class in HOMOTOPY_CLASSES:
        for seed in range(3):
            info = run_expert(env, homotopy_class, seed)
            assert info == {"success": True, "collision": False, "homotopy_class": homotopy_class}


def test_the_expert_draws_classes_evenly() -> None:
    expert, rng = AvoidExpert(), np.random.default_rng(0)
    drawn = set()
    for _ in range(300):
        expert.reset(rng)
        drawn.add(expert._gaps)
    assert len(drawn) == 24


def hold(env: Env, target: npt.ArrayLike, steps: int) -> Any:
    """Command one target for some steps or to the end of the episode; return what the last step did."""
    outcome = env.step(np.array(target))
    for _ in range(steps - 1):
        if not outcome[2]:
            outcome = env.step(np.array(target))
    return outcome


def test_touching_a_pillar_fails() -> None:
    env = gymnasium.make("asd/Avoid-v0")
    observation, _ = env.reset(seed=0)
    pillar = (observation["environment_state"][0], 0.1)  # the single one of the first row
    _, reward, terminated, _, info = hold(env, pillar, 50)
    assert terminated
    assert info == {"success": False, "collision": True, "homotopy_class": ""}
    assert reward == 0.0


def test_gaps_and_their_centres_agree() -> None:
    for row in range(3):
        for gap in range(row + 2):
            assert gap_of(gap_centre(gap, row, 0.02), row, 0.02) == gap
        assert gap_of(-5.0, row, 0.0) == 0
        assert gap_of(5.0, row, 0.0) == row + 1


def test_a_row_crossed_back_is_forgotten() -> None:
    env = gymnasium.make("asd/Avoid-v0")
    env.reset(seed=0)
    way = [(-0.1, 0.0), (-0.1, 0.16), (-0.1, 0.0), (0.1, 0.0), (0.1, 0.16)]
    reached = [hold(env, point, 12) for point in way]
    assert [info["homotopy_class"] for *_, info in reached] == ["", "0", "", "", "1"]
    assert not any(terminated for _, _, terminated, *_ in reached)
    assert reached[-1][0]["agent_pos"][:2] == pytest.approx(way[-1], abs=0.01)


def test_the_finish_pays_one() -> None:
    env = gymnasium.make("asd/Avoid-v0")
    expert = AvoidExpert("0-0-0")
    expert.reset(np.random.default_rng(0))
    observation, _ = env.reset(seed=0)
    rewards, done = [], False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(expert.act(observation))
        rewards.append(reward)
        done = terminated or truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert len(rewards) < 100


def test_rows_of_the_pixel_task_are_displaced_farther_than_a_gap_is_wide() -> None:
    """Without the pixels, where the gaps are cannot be known."""
    env = gymnasium.make("asd/Avoid-v0", displacement=0.06)
    space = env.observation_space
    assert isinstance(space, gymnasium.spaces.Dict)
    seen = np.stack([env.reset(seed=seed)[0]["environment_state"] for seed in range(50)])
    assert np.abs(seen).max(0) == pytest.approx([0.06] * 3, abs=0.005)
    assert all(space["environment_state"].contains(each) for each in seen)
    assert gymnasium.spec("asd/AvoidPixels-v0").kwargs["displacement"] == 0.06


@pytest.mark.parametrize("homotopy_class", ["0-0-0", "1-2-3", "0-2-0", "1-0-3"])
def test_the_expert_of_the_pixel_task_takes_the_outermost_ways(homotopy_class: str) -> None:
    env = gymnasium.make("asd/Avoid-v0", displacement=0.06)
    for seed in range(5):
        assert run_expert(env, homotopy_class, seed) == {
            "success": True, "collision": False, "homotopy_class": homotopy_class
        }  # fmt: skip


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_the_pixel_task_shows_every_pillar_without_a_variable_that_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # so that it is afterwards what it was
        monkeypatch.delenv(name)
    env = gymnasium.make("asd/AvoidPixels-v0")
    for seed in range(20):
        frame = env.reset(seed=seed)[0]["pixels"].astype(int)
        assert frame.shape == (64, 64, 3)
        red = (frame[..., 0] > 120) & (frame[..., 1] < 100)
        assert 150 < red.sum() < 500  # six pillars of 7 × 7 pixels from above
        edge = np.concatenate([red[0], red[-1], red[:, 0], red[:, -1]])
        assert not edge.any(), "a pillar leaves the frame"
    env.close()


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
@pytest.mark.parametrize("env_id", OWN)
def test_own_environments_show_images(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = gymnasium.make(env_id, obs_type="pixels_agent_pos")
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    first, again = env.reset(seed=0)[0], env.reset(seed=0)[0]
    later = env.step(space.high)[0]
    env.close()
    assert set(first) == {"agent_pos", "pixels"} and env.observation_space.contains(first)
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    assert first["pixels"].std() > 10
    assert (first["pixels"] != later["pixels"]).any()


@pytest.mark.parametrize("env_id", OWN)
def test_unknown_observations_are_refused(env_id: str) -> None:
    with pytest.raises(ValueError, match="no obs_type 'pixels'; there are state, pixels_agent_pos"):
        gymnasium.make(env_id, obs_type="pixels")


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
@pytest.mark.parametrize("env_id", [case(env_id) for env_id in RENDERED])
def test_renders_rgb_array(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = gymnasium.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    assert isinstance(image, np.ndarray)
    assert image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 240
    assert image.dtype == np.uint8
    assert image.std() > 10
    env.close()
