"""Groups of episodes: the same whoever runs them and with whom, and what becomes of one that goes wrong."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.errors import EnvError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.environments import MAX_STEPS, make_env, open_env
from asd_policy.evaluation.rollout.episodes import Episode, run_group
from asd_policy.evaluation.rollout.runner import Group, LocalRunner, groups
from asd_policy.evaluation.rollout.vector import Envs, make_envs
from asd_policy.policy.plan import PlanRecord
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler

SEED = 5
SPEC = "asd:window=5,draft=response,verify=block"
AVOID = "asd/Avoid-v0"


def untimed(episodes: list[Episode]) -> list[Episode]:
    """Sort episodes, and drop their times."""
    ordered = sorted(episodes, key=lambda each: (each.spec, each.index))
    return [
        replace(each, plans=tuple(replace(plan, seconds=0.0, network_seconds=None) for plan in each.plans))
        for each in ordered
    ]


@pytest.fixture(scope="module")
def planner(small_checkpoint: Path) -> Policy:
    policy = asd_policy.load_policy(small_checkpoint)
    (planner,) = closed_loop.prepare_planners(policy, make_env("faulty_envs:faulty/None-v0"), [make_sampler(SPEC)])
    return planner


@pytest.fixture(scope="module")
def three() -> Iterator[Envs]:
    """Three environments in processes of their own."""
    envs = make_envs(partial(make_env, AVOID), 3)
    yield envs
    envs.close()


def test_groups() -> None:
    found = list(groups(["a", "b"], 5, 2))
    assert found == [Group(spec, indices) for indices in ((0, 1), (2, 3), (4,)) for spec in "ab"]
    assert list(groups(["a"], 2, 1)) == [Group("a", (0,)), Group("a", (1,))]


def test_side_by_side_are_the_same_episodes(planner: Policy, three: Envs) -> None:
    """Each with the seeds of its own; only the batches of their plans differ, and by them the rounding."""
    alone = make_envs(partial(make_env, AVOID), 1)
    expected = untimed(list(LocalRunner({SPEC: planner}, alone, SEED).run(groups([SPEC], 5, 1))))
    found = untimed(list(LocalRunner({SPEC: planner}, three, SEED).run(groups([SPEC], 5, 3))))
    alone.close()
    assert [each.index for each in found] == list(range(5))
    assert [plan.batch for plan in expected[0].plans] == [1] * len(expected[0].plans)
    assert [plan.batch for plan in found[0].plans][:1] == [3]
    for one, other in zip(expected, found, strict=True):
        assert (one.success, one.steps, one.mode, len(one.plans)) == (
            other.success,
            other.steps,
            other.mode,
            len(other.plans),
        )
        assert one.total_reward == pytest.approx(other.total_reward, abs=1e-3)
        assert [plan.at for plan in other.plans] == [8 * number for number in range(len(other.plans))]


def test_groups_in_any_order(planner: Policy, three: Envs) -> None:
    """To the bit: nothing of one group is left for the next."""
    work = list(groups([SPEC], 8, 3))
    runner = LocalRunner({SPEC: planner}, three, SEED)
    first = untimed(list(runner.run(work)))
    random.Random(0).shuffle(work)
    assert untimed(list(runner.run(reversed(work)))) == untimed(list(runner.run(work))) == first


def test_a_short_group_leaves_rows_alone(planner: Policy, three: Envs) -> None:
    """Also after a group that was given up in the middle."""
    whole = untimed(list(run_group(planner, three, [6, 7], SEED)))
    next(run_group(planner, three, [0, 1, 2], SEED))
    assert untimed(list(run_group(planner, three, [6, 7], SEED))) == whole
    assert {plan.batch for each in whole for plan in each.plans} <= {1, 2}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("fault", "message", "steps"),
    [
        ("reset", "the environment raised RuntimeError: the door is stuck", 0),
        ("raise", "the environment raised RuntimeError: the gripper fell off", 9),
        ("reward", "the reward of step 10 is nan", 10),
        ("observation", "holds NaN or infinity", 10),
        ("shape", "shape (6,)", 10),
        ("die", "the environment's process ended with exit code 3", 9),
    ],
)
def test_an_episode_that_goes_wrong(fault: str, message: str, steps: int, count: int, planner: Policy) -> None:
    """It has failed, and says why; the others are what they are without it."""
    if fault == "die" and count == 1:
        pytest.skip("an environment that ends the process it is in ends the evaluation's")
    envs = make_envs(partial(make_env, f"faulty_envs:faulty/{fault.capitalize()}-v0"), count)
    episodes = sorted(
        LocalRunner({SPEC: planner}, envs, SEED).run(groups([SPEC], 6, count)), key=lambda each: each.index
    )
    envs.close()
    assert [each.index for each in episodes] == list(range(6))
    failed = [each for each in episodes if each.error is not None]
    assert 0 < len(failed) < 6
    for each in failed:
        assert each.error is not None and message in each.error
        assert not each.success
        assert each.steps in (steps, 9)  # where the process sees the fault, the step does not arrive
    sound = make_envs(partial(make_env, "faulty_envs:faulty/None-v0"), 1)
    without = list(LocalRunner({SPEC: planner}, sound, SEED).run(groups([SPEC], 6, 1)))
    for each, expected in zip(episodes, without, strict=True):
        if each.error is None:
            assert (each.success, each.steps, len(each.plans)) == (True, 20, 3)
            assert each.total_reward == pytest.approx(expected.total_reward, abs=1e-3)


def test_episodes_as_json() -> None:
    plan = PlanRecord(
        at=8, rounds=7, nfe=140, window=32, batch=2, seconds=0.25, network_seconds=None, refused=(3, 90), unjudged=(31,)
    )
    for episode in (
        Episode(SPEC, 3, True, 1.5, 40, "1-0-1", None, (plan, replace(plan, refused=None, unjudged=None))),
        Episode("ddpm", 0, False, None, 0, None, "the environment raised RuntimeError: no", ()),
    ):
        values = episode.to_json()
        assert Episode.from_json(values) == episode
        assert values["return"] == episode.total_reward


def odd(name: str, count: int, **options: Any) -> Envs:
    return make_envs(partial(make_env, f"faulty_envs:faulty/Odd-{name}-v0", **options), count)


def _seed_all() -> None:
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)


def test_an_episode_draws_its_own_numbers_from_global_generators(planner: Policy) -> None:
    """Of NumPy, torch and Python: the same in any grouping, all distinct; and nobody else's are touched."""
    returns = []
    for count in (1, 3):
        _seed_all()
        envs = odd("random", count)
        episodes = list(LocalRunner({SPEC: planner}, envs, SEED).run(groups([SPEC], 5, count)))
        drawn = random.random(), np.random.normal(), torch.rand(()).item()
        envs.close()
        _seed_all()
        assert drawn == (random.random(), np.random.normal(), torch.rand(()).item())
        returns.append([each.total_reward for each in sorted(episodes, key=lambda each: each.index)])
    assert returns[0] == returns[1]
    assert len(set(returns[0])) == 5


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_in_arrays_of_one_element(count: int, planner: Policy) -> None:
    """A reward and a success of shape (1,) are what they hold."""
    envs, plain = odd("vector", count), make_envs(partial(make_env, "faulty_envs:faulty/None-v0"), count)
    for episode, expected in zip(
        run_group(planner, envs, [0], SEED), run_group(planner, plain, [0], SEED), strict=True
    ):
        assert (episode.success, episode.error) == (True, None)
        assert episode.total_reward == expected.total_reward
    envs.close()
    plain.close()


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_in_arrays_of_two(count: int, planner: Policy) -> None:
    """A reward fails its episode, and a success says nothing of any."""
    envs = odd("rewards", count)
    (episode,) = run_group(planner, envs, [0], SEED)
    envs.close()
    assert (episode.success, episode.error) == (False, "the reward has shape (2,), where one number is needed")
    envs = odd("successes", count)
    with pytest.raises(EnvError, match=r"^info\['success'\] has shape \(2,\), where one number is needed$"):
        list(run_group(planner, envs, [0], SEED))
    envs.close()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("options", "steps"), [({}, MAX_STEPS), ({"max_steps": 30}, 30)])
def test_an_endless_episode_is_cut(options: dict[str, int], steps: int, count: int, planner: Policy) -> None:
    """At the user's limit, or at the one for environments that declare none."""
    envs = odd("endless", count, **options)
    (episode,) = run_group(planner, envs, [0], SEED)
    envs.close()
    assert (episode.steps, episode.success, episode.error) == (steps, True, None)


def test_an_error_of_closing_costs_nothing(planner: Policy) -> None:
    with pytest.warns(UserWarning, match="raised RuntimeError: the viewer is gone when it was closed"):
        odd("close", 1).close()
    with (
        pytest.warns(UserWarning, match="raised RuntimeError when it was closed: the viewer is gone"),
        open_env("faulty_envs:faulty/Odd-close-v0"),
    ):
        pass


def test_a_temporary_folder_with_a_long_name(tmp_path: Path) -> None:
    """A socket's name has room for 107 bytes, and the processes of environments are asked through one."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    script = (
        "from functools import partial; from asd_policy.evaluation.rollout.environments import make_env; "
        "from asd_policy.evaluation.rollout.vector import make_envs; "
        "envs = make_envs(partial(make_env, 'asd/Avoid-v0'), 2); "
        "print(len(envs.reset([0, 1]))); envs.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
