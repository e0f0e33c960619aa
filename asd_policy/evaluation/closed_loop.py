"""Seeded closed-loop rollouts of a policy in a gymnasium environment, and what they add up to."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy._common.statistics import entropy, latency, mean_interval, paired_difference, wilson
from asd_policy.errors import EnvError
from asd_policy.evaluation.comparison import MARGIN, equivalence, pair, reward_difference
from asd_policy.evaluation.rollout.environments import Env, check_fit
from asd_policy.evaluation.rollout.episodes import Episode, run_group
from asd_policy.evaluation.rollout.timing import summarize_timing
from asd_policy.evaluation.rollout.vector import InProcess
from asd_policy.evaluation.states import CALIBRATION_PLANS, States
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.types import PlanRecord, overhead_fraction

Advance = Callable[[], object]
WARM_UP_PLANS = 3
_CALIBRATION_SEED = 0
_LEARNING = 1  # spawn key of the noise of plans to learn from


def prepare(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int = 1) -> list[Policy]:
    """Return one planner per sampler, warmed up, after a look at whether policy and environment fit.

    What a planner learns, it learns here: after that an episode depends on its seeds alone.

    Args:
        policy: Whose network plans.
        env: Where.
        samplers: What to plan with.
        batch: Plans that may be made together: a deadline needs to know how long so many take, and each number below.

    Raises:
        DenoiserError: The network is not one that can be sampled from, see `Policy.check`.
        EnvError: The environment's actions are not the policy's, it does not report success, or cannot be reset.
        ObservationError: Its observations are not the policy's.
        SpecError: A sampler's options do not fit the policy's chain.
    """
    check_fit(policy, env)
    policy.check()
    planners = [policy.with_sampler(sampler) for sampler in samplers]
    (moment,) = InProcess(lambda: env).reset([0])
    if moment.end is not None and moment.end.error is not None:
        raise EnvError(moment.end.error)
    for planner in planners:
        planner.warm_up()
        for _ in range(WARM_UP_PLANS):
            planner.reset(seed=0)
            planner.select_action(moment.observation)
        if planner.sampler.learns:
            calibrate(planner, env, CALIBRATION_PLANS)
        planner.experience.freeze()
        for size in range(2, batch + 1) if planner.deadline_ms is not None else ():
            planner.warm_up(size)
    return planners


def _plan_together(planner: Policy, observation: Any, size: int) -> None:
    """Plan for so many robots that see the same."""
    rows = range(size)
    planner.reset_batch(rows)
    for row in rows:
        planner.observe(row, observation)
    planner.act(rows)


def settle(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int) -> dict[str, Sampler]:
    """Return samplers as they will run, by their specs: what is left to them is chosen, once they have learned.

    A choice follows measured times, which are never the same twice. Made here it is one for all episodes, whichever
    process runs them, and can be written down.

    Args:
        policy: Whose network plans.
        env: Where.
        samplers: What to plan with.
        batch: Plans that are made together.

    Raises:
        AsdError: As `prepare`.
    """
    choosing = [sampler for sampler in samplers if sampler.chooses]
    ran = {sampler.spec: sampler for sampler in samplers}
    for planner in prepare(policy, env, choosing) if choosing else ():
        (moment,) = InProcess(lambda: env).reset([0])
        _plan_together(planner, moment.observation, batch)
        ran[planner.sampler.spec] = make_sampler(planner.plans[0].stats.spec)
    return ran


def calibrate(
    planner: Policy, env: Env, plans: int, seed: int = _CALIBRATION_SEED, advance: Advance = lambda: None
) -> None:
    """Roll a planner out until its experience has so many plans, in episodes of no evaluation.

    An episode that fails has taught what it had planned by then.

    Args:
        planner: Who learns.
        env: Where.
        plans: How many to have, those from before included.
        seed: Of the episodes.
        advance: Called after each episode.

    Raises:
        AsdError: As `run_group`.
    """
    seed = learning_seed(seed)
    for index in itertools.count():
        before = planner.experience.plans
        if before >= plans:
            return
        list(run_group(planner, InProcess(lambda: env), [index], seed))
        advance()
        if planner.experience.plans == before:
            return  # with a window of 1 there is nothing to learn


def learning_seed(seed: int) -> int:
    """Return the seed of plans to learn from, given the user's: another one.

    An evaluation with the same seed must not meet the noise that its drafts were fitted to: that would be peeking.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(_LEARNING,)).generate_state(1, np.uint64)[0])


def run_episode(pilot: Pilot, env: Env, index: int, seed: int) -> Episode:
    """Run one episode; its plans are left with the pilot's robot.

    Args:
        pilot: A policy, or who controls with one by a clock.
        env: Where.
        index: Of the episode.
        seed: Of the evaluation: it and the index fix the environment's and the planner's seeds.

    Raises:
        EnvError: The environment raised, showed numbers that are not finite, or does not report success.
        DenoiserError: The network failed.
    """
    (episode,) = run_group(pilot, InProcess(lambda: env), [index], seed)
    if episode.error is not None:
        raise EnvError(f"episode {index}: {episode.error}")
    return episode


def collect(planner: Policy, env: Env, count: int, seed: int) -> States:
    """Return states from closed-loop episodes, in random order so that the first few are of many episodes.

    Of an episode of more than `PLANS_KEPT` plans they are those of the latest.

    Args:
        planner: Rolls out, and so decides which states there are.
        env: Where.
        count: How many; all episodes are finished.
        seed: Of episodes and order.

    Raises:
        AsdError: As `run_episode`.
    """
    conds, last_plans, owners = [], [], []
    for index in itertools.count():
        run_episode(planner, env, index, seed)
        kept = planner.plans
        starts = [torch.zeros_like(kept[0].sample), *(planner.move_on(plan.sample) for plan in kept[:-1])]
        lost = int(planner.robots[0].records[0].at > 0)  # the plan before the first one kept is not known
        conds += [plan.cond for plan in kept[lost:]]
        last_plans += starts[lost:]
        owners += [index] * (len(kept) - lost)
        if len(owners) >= count:
            break
    order = np.random.default_rng(seed).permutation(len(owners))[:count]
    rows = torch.as_tensor(order, device="cpu")
    return States(torch.cat(conds)[rows], torch.cat(last_plans)[rows], np.asarray(owners)[order])


def summarize(
    samplers: Mapping[str, Sampler],
    episodes: Sequence[Episode],
    steps: int,
    margin: float = MARGIN,
    hz: float | None = None,
) -> list[dict[str, Any]]:
    """Return the `samplers` list of results.json (see docs/guide/evaluation.md) for what has finished.

    Args:
        samplers: From `settle`, in the order of the list.
        episodes: In any order, with the specs that were asked for.
        steps: Length K of the policy's chain.
        margin: Difference of success rates that would not matter, for the verdict of equivalence.
        hz: Control steps in a second of the clock that went on while plans were made; None where there was none.
    """
    ordered = sorted(episodes, key=lambda episode: episode.index)
    by_spec = {spec: [episode for episode in ordered if episode.spec == spec] for spec in samplers}
    reference = by_spec.get("ddpm", [])
    return [
        _summary(spec, samplers[spec], done, reference, steps, margin, hz) for spec, done in by_spec.items() if done
    ]


def _summary(
    spec: str,
    sampler: Sampler,
    done: list[Episode],
    reference: list[Episode],
    steps: int,
    margin: float,
    hz: float | None,
) -> dict[str, Any]:
    plans = [plan for episode in done for plan in episode.plans]
    returns = [each.total_reward for each in done if each.error is None and each.total_reward is not None]
    modes = Counter(episode.mode for episode in done if episode.mode is not None)
    pairs = pair(reference, done)
    successes = [(own.success, other.success) for other, own in pairs]
    return {
        "spec": spec,
        "ran": sampler.spec,
        "exact": sampler.exact and all(plan.exact for plan in plans),
        "steps": steps,
        "episodes": len(done),
        "failed": sum(episode.error is not None for episode in done),
        "success_rate": float(np.mean([episode.success for episode in done])),
        "success_ci95": wilson(sum(episode.success for episode in done), len(done)),
        "return_mean": float(np.mean(returns)) if returns else None,
        "return_ci95": mean_interval(returns),
        "paired_difference_ci95": paired_difference(*zip(*successes, strict=True)) if pairs else None,
        "reward_difference": reward_difference(pairs),
        "equivalence": equivalence(pairs, margin) if pairs and done is not reference else None,
        "modes": dict(sorted(modes.items())),
        "mode_entropy": entropy(modes),
        "timing": None if hz is None else summarize_timing(done, hz),
        "plans": len(plans),
        "cut_plans": sum(plan.cut for plan in plans),
        **_costs(plans, [plan for episode in reference for plan in episode.plans], steps),
    }


def _costs(plans: list[PlanRecord], reference: list[PlanRecord], steps: int) -> dict[str, Any]:
    """Return what plans cost, next to those of the reference; None for all of it where no episode came to a plan."""
    if not plans:
        return dict.fromkeys(_COSTS)
    rounds = [plan.rounds for plan in plans]
    seconds = np.array([plan.seconds for plan in plans])
    speedup = steps / float(np.mean(rounds))
    reference_seconds = [plan.seconds for plan in reference]
    costs = (
        Counter(plan.window for plan in plans).most_common(1)[0][0],
        float(np.mean(rounds)),
        float(np.percentile(rounds, 95)),
        float(np.mean([plan.nfe for plan in plans])),
        speedup,
        speedup,
        float(np.mean(reference_seconds) / seconds.mean()) if reference_seconds else None,
        overhead_fraction(plans, float(seconds.sum())),
        latency(seconds),
        _acceptance(plans, steps),
    )
    return dict(zip(_COSTS, costs, strict=True))


_COSTS = ("window", "rounds_mean", "rounds_p95", "nfe_mean", "acceptance_length_mean", "algorithmic_speedup",
          "wall_clock_speedup", "overhead_fraction", "latency_ms", "acceptance_by_step")  # fmt: skip


def _acceptance(plans: list[PlanRecord], steps: int) -> list[float | None] | None:
    """Return for each step k the share of its drafts that stood, None where none was judged; None without drafts."""
    judged, refused = np.zeros((2, steps), int)
    for plan in plans:
        if plan.refused is not None and plan.unjudged is not None:
            refused[list(plan.refused)] += 1
            judged += 1
            judged[list(plan.unjudged)] -= 1
    if not judged.any():
        return None
    return [float(1 - r / j) if j else None for r, j in zip(refused, judged, strict=True)]
