"""Rollouts: seeds, pairing, what samplers learn before them, environments that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import asd_policy
from asd_policy.errors import EnvError, ObservationError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.environments import MAX_STEPS, make_env, step_limit
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.runner import LocalRunner, groups
from asd_policy.evaluation.rollout.vector import InProcess
from asd_policy.policy import episode_state as control
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd import autotune as choice
from asd_policy.samplers.asd.experience import Experience

SPECS = ("ddpm", "asd:window=1", "asd:window=5", "ddim:2")


def prepared(checkpoint: Path, specs: tuple[str, ...] = SPECS) -> list[Policy]:
    env = make_env("asd/Avoid-v0")
    return closed_loop.prepare_planners(asd_policy.load_policy(checkpoint), env, [make_sampler(spec) for spec in specs])


def run(checkpoint: Path, episodes: int = 2, seed: int = 0, specs: tuple[str, ...] = SPECS) -> list[Episode]:
    planners = prepared(checkpoint, specs)
    by_spec = {planner.sampler.spec: planner for planner in planners}
    runner = LocalRunner(by_spec, InProcess(lambda: make_env("asd/Avoid-v0")), seed)
    return list(runner.run(groups(list(by_spec), episodes, envs=1)))


def signature(episode: Episode) -> Episode:
    """Drop an episode's times; the reward distinguishes one path from another, to the last bit."""
    return replace(episode, plans=tuple(replace(plan, seconds=0.0, network_seconds=None) for plan in episode.plans))


def test_episodes_are_reproducible(checkpoint: Path) -> None:
    first, second, other = run(checkpoint), run(checkpoint), run(checkpoint, seed=1)
    assert [signature(e) for e in first] == [signature(e) for e in second]
    assert [signature(e) for e in first] != [signature(e) for e in other]


def test_samplers_meet_the_same_seeds(checkpoint: Path) -> None:
    """Window 1 is DDPM: with equal seeds its whole episode is the same, and no episode equals the next."""
    episodes = run(checkpoint)
    assert [(e.spec.split(":")[0], e.index) for e in episodes] == [
        (name, index) for index in range(2) for name in ("ddpm", "asd", "asd", "ddim")
    ]
    for ddpm, one in ((episodes[0], episodes[1]), (episodes[4], episodes[5])):
        assert signature(ddpm) == replace(signature(one), spec="ddpm")
    assert episodes[0].total_reward != episodes[4].total_reward


def test_an_episode_does_not_depend_on_those_before(checkpoint: Path) -> None:
    alone = run(checkpoint, specs=("asd:window=5",))
    among = [e for e in run(checkpoint, episodes=3) if e.spec.startswith("asd:window=5")]
    assert [signature(e) for e in alone] == [signature(e) for e in among[:2]]


def test_what_is_learned_from_is_not_evaluated(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed for both: a draft fitted to the noise that will judge it would peek."""
    seeds: list[int] = []
    policy = asd_policy.load_policy(checkpoint)
    planner = policy.with_sampler(make_sampler("asd:window=5"))
    env = make_env("asd/Avoid-v0")
    begin = planner.reset_batch
    monkeypatch.setattr(planner, "reset_batch", lambda told: (seeds.extend(told), begin(told)))
    closed_loop.calibrate(planner, env, planner.experience.plans + 1, seed=3)
    learned = set(seeds)
    for index in range(3):
        closed_loop.run_episode(planner, env, index, seed=3)
    assert learned and learned.isdisjoint(seeds[len(learned) :])


def test_what_is_chosen_is_chosen_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the batch that will be planned together; episodes are then those of the sampler that was chosen."""
    policy, env = asd_policy.load_policy(checkpoint), make_env("asd/Avoid-v0")
    ddpm, asd, fixed = samplers = [make_sampler(spec) for spec in ("ddpm", "asd", "asd:window=5")]

    def costs(settings: list[choice.Setting], _: Experience, batch: int, __: int) -> dict[choice.Setting, float]:
        return {each: abs(batch * each.window - 9) + 99 * (each.pair != choice.DEFAULT.pair) for each in settings}

    with monkeypatch.context() as patch:
        patch.setattr(choice, "expected_costs", costs)
        alone, together = (closed_loop.resolve_samplers(policy, env, samplers, batch) for batch in (1, 3))
    for settled in (alone, together):
        assert list(settled) == [sampler.spec for sampler in samplers]
        assert (settled[ddpm.spec], settled[fixed.spec]) == (ddpm, fixed)
    chosen = alone[asd.spec]
    assert chosen.spec.startswith("asd:window=8,")  # the longest of a chain of 10 steps
    assert together[asd.spec].spec.startswith("asd:window=3,")
    planners = closed_loop.prepare_planners(policy, env, [chosen, make_sampler(chosen.spec)])
    one, other = (signature(closed_loop.run_episode(planner, env, 0, 0)) for planner in planners)
    assert one == other and {plan.window for plan in one.plans} == {8}


def test_unknown_environments() -> None:
    with pytest.raises(
        EnvError, match=r"'asd/Avoid-v7'; the nearest are asd/Avoid-v0, .* there are .*asd/MetaWorld-… \(50\)"
    ):
        make_env("asd/Avoid-v7")
    with pytest.raises(EnvError, match=r"no environment 'nobody/Task-v0'; there are .*asd/…"):
        make_env("nobody/Task-v0")
    with pytest.raises(EnvError, match="cannot make environment 'no_such_module:Task-v0'"):
        make_env("no_such_module:Task-v0")
    with pytest.raises(EnvError, match="cannot make environment 'not an id"):
        make_env("not an id/")


def test_environments_that_do_not_fit(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    samplers = [make_sampler("ddpm")]
    with pytest.raises(EnvError, match=r"the policy's actions have shape \(2,\), the environment's action space is"):
        closed_loop.prepare_planners(policy, gymnasium.make("asd/MetaWorld-reach-v0"), samplers)
    with pytest.raises(EnvError, match="action space is Discrete"):
        closed_loop.prepare_planners(policy, gymnasium.make("CartPole-v1"), samplers)
    with pytest.raises(ObservationError, match=r"has shape \(10,\)"):
        closed_loop.prepare_planners(policy, gymnasium.make("Reacher-v5"), samplers)


def test_an_environment_without_success(checkpoint: Path) -> None:
    class Silent(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, {k: v for k, v in info.items() if k != "success"}

    policy = asd_policy.load_policy(checkpoint)
    env = Silent(make_env("asd/Avoid-v0"))
    (planner,) = closed_loop.prepare_planners(policy, env, [make_sampler("ddpm")])
    with pytest.raises(EnvError, match=r"no info\['success'\] at the end of an episode, only \['collision', "):
        closed_loop.run_episode(planner, env, 0, 0)


@pytest.mark.parametrize(
    ("env_id", "wanted", "limit"),
    [
        ("asd/Avoid-v0", None, None),
        ("asd/Avoid-v0", 50, 50),
        ("faulty_envs:faulty/None-v0", None, MAX_STEPS),
        ("faulty_envs:faulty/None-v0", 2000, 2000),
    ],
)
def test_limits_of_steps(env_id: str, wanted: int | None, limit: int | None) -> None:
    env = make_env(env_id, max_steps=wanted)
    assert step_limit(env, wanted) == limit
    env.close()


def test_an_episode_has_all_its_plans(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the robot remembers the latest only."""
    policy, env = asd_policy.load_policy(checkpoint, "ddim:2"), make_env("faulty_envs:faulty/None-v0")
    whole = closed_loop.run_episode(policy, env, 0, seed=3)
    monkeypatch.setattr(control, "PLANS_KEPT", 1)
    again = closed_loop.run_episode(policy, env, 0, seed=3)
    env.close()
    assert [plan.at for plan in again.plans] == [plan.at for plan in whole.plans] == [0, 8, 16]
    assert len(policy.plans) == 1


@pytest.mark.parametrize(("kept", "env_id"), [(control.PLANS_KEPT, "asd/Avoid-v0"), (2, "faulty_envs:faulty/None-v0")])
def test_collected_states_are_the_moments_of_planning(
    kept: int, env_id: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the plan before, moved on to it; none at an episode's start."""
    policy, env = asd_policy.load_policy(checkpoint, "ddim:2"), make_env(env_id)
    with monkeypatch.context() as patch:
        patch.setattr(control, "PLANS_KEPT", kept)
        states = closed_loop.collect_states(policy, env, 5, seed=3)
    assert len(states) == 5
    met = {}
    for index in range(5):
        closed_loop.run_episode(policy, env, index, seed=3)
        before = torch.zeros_like(policy.plans[0].sample)
        for plan in policy.plans:
            met[index, plan.cond] = before
            before = policy.move_on(plan.sample)
    env.close()
    for cond, last_plan, index in zip(states.cond, states.last_plan, states.episode, strict=True):
        (before,) = [found for (episode, told), found in met.items() if episode == index and torch.equal(told[0], cond)]
        assert torch.equal(last_plan, before[0])


def test_no_plan_of_an_evaluation_times_anything(checkpoint: Path) -> None:
    """Nor do those before it that see the environment: that is done without one."""
    (planner,) = prepared(checkpoint, ("asd",))
    env = make_env("asd/Avoid-v0")
    closed_loop.run_episode(planner, env, 0, 0)
    assert planner.plans
    assert {plan.stats.trial_calls for plan in planner.plans} == {0}
