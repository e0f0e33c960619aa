"""asd/Intercept-v0: its physics, its reward, and what late actions cost (`scripts/benchmarks/late_actions.py`)."""

import importlib
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from asd_envs.intercept import (
    DISTANCE,
    PADDLE_Y,
    PAUSE,
    PUCKS,
    REACH,
    RESTITUTION,
    SERVE_Y,
    InterceptEnv,
    InterceptExpert,
    Serve,
    draw_serve,
    predict_crossing,
)

SCRIPTS = Path(__file__).parents[2] / "scripts/benchmarks"


@pytest.fixture
def env() -> Iterator[InterceptEnv]:
    env = InterceptEnv()
    env.reset(seed=0)
    yield env
    env.close()


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("late_actions")


def serve(env: InterceptEnv, *pucks: Serve) -> None:
    """Begin an episode with these pucks."""
    env.reset(seed=0)
    env._serves = list(pucks)
    env._serve()


def play(env: InterceptEnv, target: float) -> tuple[list[float], list[dict[str, Any]], dict[str, Any]]:
    """Hold one target to the end of the episode; return rewards, observations and the last info."""
    rewards, observations = [], []
    while True:
        observation, reward, terminated, _, info = env.step(np.array([target]))
        rewards.append(reward)
        observations.append(observation)
        if terminated:
            return rewards, observations, info


def straight(x: float) -> Serve:
    return Serve(x=x, across=0.0, along=-1.3, damping=100.0)


def test_predicted_crossings() -> None:
    assert predict_crossing(0.1, PADDLE_Y + 0.5, 0.0, -1.0) == (0.1, 0)
    assert predict_crossing(0.1, PADDLE_Y + 0.5, 0.2, -1.0) == (pytest.approx(0.2), 0)
    # 0.18 m to the wall at 0.28 m take 0.3 s; the other 0.2 s go back.
    assert predict_crossing(0.1, PADDLE_Y + 0.5, 0.6, -1.0) == (pytest.approx(0.28 - 0.2 * 0.6 * RESTITUTION), 1)
    assert predict_crossing(-0.1, PADDLE_Y + 0.5, -0.6, -1.0) == (pytest.approx(-0.28 + 0.2 * 0.6 * RESTITUTION), 1)
    assert predict_crossing(0.28, PADDLE_Y + 2.0, -1.4, -1.0)[1] == 3
    # In a wall, as a puck is while it turns: the bounce counts from here.
    assert predict_crossing(0.281, PADDLE_Y + 0.1, 1.0, -1.0) == (pytest.approx(0.28 - 0.1 * RESTITUTION), 1)


@pytest.mark.parametrize(("damping", "left"), [(40.0, 0.91), (100.0, RESTITUTION), (160.0, 0.69)])
@pytest.mark.parametrize("across", [-1.8, -0.7, 0.4, 1.3])
def test_walls_leave_what_is_documented(env: InterceptEnv, damping: float, left: float, across: float) -> None:
    serve(env, Serve(x=0.2 * np.sign(across), across=across, along=-1.2, damping=damping), straight(0.0))
    observed = [env.step(np.zeros(1))[0]["environment_state"] for _ in range(7)]
    after = next(state for state in observed if state[2] * across < 0 and abs(state[0]) < 0.28)
    assert -after[2] / across == pytest.approx(left, abs=0.03)
    assert after[3] == pytest.approx(-1.2)


def test_serves_are_what_is_documented() -> None:
    rng, last, dampings = np.random.default_rng(0), 0.0, []
    for _ in range(300):
        drawn = draw_serve(rng, last)
        x, bounces = drawn.crossing
        assert 1 <= bounces <= 2
        assert abs(x) <= REACH
        assert DISTANCE[0] <= abs(x - last) <= DISTANCE[1]
        assert 0.5 < (SERVE_Y - PADDLE_Y) / -drawn.along <= 0.65
        dampings.append(drawn.damping)
        last = x
    assert np.ptp(dampings) > 100


def test_serves_do_not_depend_on_what_is_done(env: InterceptEnv) -> None:
    seen = []
    for target in (-REACH, REACH):
        env.reset(seed=3)
        _, observations, _ = play(env, target)
        states = [observation["environment_state"] for observation in observations]
        seen.append([state[2:] for state in states if state[1] == SERVE_Y])
    assert len(seen[0]) == len(seen[1]) == PUCKS - 1
    np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize(("offset", "reward"), [(0.0, 1.0), (0.03, 0.5), (-0.045, 0.25)])
def test_reward_falls_with_the_distance_from_the_centre(env: InterceptEnv, offset: float, reward: float) -> None:
    serve(env, *[straight(0.1 + offset)] * PUCKS)
    rewards, _, info = play(env, 0.1)
    assert [value for value in rewards if value] == [pytest.approx(reward, abs=0.01)] * PUCKS
    assert info == {"success": True, "intercepted": PUCKS}


def test_a_missed_puck_pays_nothing_and_the_next_one_comes(env: InterceptEnv) -> None:
    serve(env, straight(-0.2), straight(0.1), straight(-0.2))
    rewards, observations, info = play(env, 0.1)
    assert [value for value in rewards if value] == [pytest.approx(1.0, abs=0.01)]
    assert info == {"success": False, "intercepted": 1}
    caught = int(np.argmax(rewards))
    along = [observation["environment_state"][3] for observation in observations]
    assert all(speed > 0 for speed in along[caught : caught + PAUSE - 1])  # bounced off the paddle
    assert observations[caught + PAUSE - 1]["environment_state"][1] == SERVE_Y
    assert rewards[-1] == 0.0


def test_the_paddle_keeps_its_speed_limit(env: InterceptEnv) -> None:
    serve(env, straight(-0.2), straight(-0.2))
    speeds, positions = [], []
    for _ in range(12):
        paddle, speed = env.step(np.array([REACH]))[0]["agent_pos"]
        positions.append(paddle)
        speeds.append(speed)
    assert 0.65 < max(speeds) < 0.71
    assert positions[-1] == pytest.approx(REACH, abs=1e-3)
    assert max(positions) < REACH + 0.002


def test_the_expert_holds_still_where_no_puck_is_coming() -> None:
    paddle = np.array([0.12, 0.3])
    for puck in ([0.0, 0.3, 0.5, 0.7], [0.0, -0.04, 0.5, -1.3]):
        action = InterceptExpert().act({"agent_pos": paddle, "environment_state": np.array(puck)})
        assert action.tolist() == [0.12]


def test_late_actions_cost_reward(script: ModuleType) -> None:
    env = gymnasium.make("asd/Intercept-v0")
    expert, delays = InterceptExpert(), (0, 1, 2, 4, 8)
    outcomes = np.array([[script.run_episode(env, expert, delay, seed) for seed in range(100)] for delay in delays])
    returns, successes = outcomes.mean(1).T
    assert successes[0] >= 0.95
    assert returns[0] > 2.7
    assert (np.diff(returns) < -0.05).all(), returns
    assert returns[2] < 0.95 * returns[0]  # 100 ms
    assert returns[3] < 0.8 * returns[0]  # 200 ms
    assert successes[3] < 0.85
    env.close()


def test_late_actions_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["late_actions.py", "--delays", "0", "8", "--episodes", "3"])
    script.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| delay [ms] | return [95 %] | success % [95 %] |"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 0", "| 400"]
    for words, message in (
        (["--episodes", "1"], "--episodes 1 is not 2 or more"),
        (["--delays", "2", "-1"], "--delays 2 -1 are not numbers of steps from 0 on"),
    ):
        monkeypatch.setattr(sys, "argv", ["late_actions.py", *words])
        with pytest.raises(SystemExit, match=message):
            script.main()


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = gymnasium.make("asd/Intercept-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    first, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    second = env.step(np.array([REACH]))[0]
    assert set(first) == {"agent_pos", "pixels"}
    assert env.observation_space.contains(first)
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    changed = (first["pixels"] != second["pixels"]).any(-1)
    assert 10 < changed.sum() < 0.1 * changed.size  # puck and paddle, and nothing else, have moved
    assert np.asarray(env.render()).shape == (480, 480, 3)
    env.close()
