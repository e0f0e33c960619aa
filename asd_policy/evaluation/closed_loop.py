"""Seeded closed-loop rollouts of a policy in a gymnasium environment, and what its samplers learn before them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.errors import EnvError
from asd_policy.evaluation.rollout.environments import Env, check_fit
from asd_policy.evaluation.rollout.episodes import Episode, run_group
from asd_policy.evaluation.rollout.vector import InProcess
from asd_policy.evaluation.states import CALIBRATION_PLANS, States
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler

Advance = Callable[[], object]
WARM_UP_PLANS = 3
_CALIBRATION_SEED = 0
_LEARNING = 1  # spawn key of the noise of plans to learn from


def prepare_planners(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int = 1) -> list[Policy]:
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


def resolve_samplers(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int) -> dict[str, Sampler]:
    """Return samplers as they will run, by their specs: what is left to them is chosen, once they have learned.

    A choice follows measured times, which are never the same twice. Made here it is one for all episodes, whichever
    process runs them, and can be written down.

    Args:
        policy: Whose network plans.
        env: Where.
        samplers: What to plan with.
        batch: Plans that are made together.

    Raises:
        AsdError: As `prepare_planners`.
    """
    choosing = [sampler for sampler in samplers if sampler.chooses]
    ran = {sampler.spec: sampler for sampler in samplers}
    for planner in prepare_planners(policy, env, choosing) if choosing else ():
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


def collect_states(planner: Policy, env: Env, count: int, seed: int) -> States:
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
