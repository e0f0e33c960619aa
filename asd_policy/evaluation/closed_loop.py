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
from asd_policy.evaluation.states import CALIBRATION_PLANS, TRIAL_PLANS, States
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.observation import given_by
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, as_it_ran

Advance = Callable[[], object]
WARM_UP_PLANS = 3
_CALIBRATION_SEED = 0
_LEARNING = 1  # spawn key of the noise of plans to learn from


def prepare_planners(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int = 1) -> list[Policy]:
    """Check that policy and environment fit, and make one planner per sampler, warmed up.

    Planners learn here and nowhere else, so that an episode depends on its seeds alone.

    Args:
        policy: With the network.
        env: The environment.
        samplers: What to plan with.
        batch: Most plans made together. A deadline needs to know how long so many plans take, and each smaller number.

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
            with given_by(_name(env)):
                planner.select_action(moment.observation)
        if planner.sampler.learns:
            calibrate(planner, env, CALIBRATION_PLANS)
        if batch > 1 and planner.sampler.chooses:
            _try_together(planner, moment.observation, batch)
        planner.experience.freeze()
        for size in range(2, batch + 1) if planner.deadline_ms is not None else ():
            planner.warm_up(size)
    return planners


def _name(env: Env) -> str:
    return "the environment" if env.spec is None else env.spec.id


def _try_together(planner: Policy, observation: Any, size: int) -> None:
    """Let a planner try its settings on plans for `size` robots; these plans are too much alike to learn from."""
    planner.experience.learning = False
    for index in range(TRIAL_PLANS):
        if index and not planner.experience.undecided:
            break
        _plan_together(planner, observation, size)


def _plan_together(planner: Policy, observation: Any, size: int) -> None:
    """Plan for `size` robots that see the same."""
    rows = range(size)
    planner.reset_batch(rows)
    for row in rows:
        planner.observe(row, observation)
    planner.act(rows)


def resolve_samplers(policy: Policy, env: Env, samplers: Sequence[Sampler], batch: int) -> dict[str, Sampler]:
    """Let samplers choose the settings that are left to them, once they have learned.

    A choice follows measured times, which are never the same twice. Made here, it is one choice for all episodes,
    whichever process runs them, and it can be written down.

    Args:
        policy: With the network.
        env: The environment.
        samplers: What to plan with.
        batch: Plans that are made together.

    Returns:
        The samplers as they will run, by the specs that were asked for.

    Raises:
        AsdError: As `prepare_planners`.
    """
    choosing = [sampler for sampler in samplers if sampler.chooses]
    ran = {sampler.spec: sampler for sampler in samplers}
    for planner in prepare_planners(policy, env, choosing, batch) if choosing else ():
        (moment,) = InProcess(lambda: env).reset([0])
        _plan_together(planner, moment.observation, batch)
        ran[planner.sampler.spec] = as_it_ran(planner.sampler, planner.plans[0].stats.spec)
    return ran


def calibrate(
    planner: Policy, env: Env, plans: int, seed: int = _CALIBRATION_SEED, advance: Advance = lambda: None
) -> None:
    """Roll out a planner until it has learned and chosen enough, in episodes that no evaluation runs.

    An episode that fails teaches what it had planned by then.

    Args:
        planner: The policy that learns.
        env: The environment.
        plans: How many plans the experience needs, earlier ones included. A sampler that has a setting to choose may
            make `TRIAL_PLANS` more.
        seed: Of the episodes.
        advance: Called after each episode.

    Raises:
        AsdError: As `run_group`.
    """
    seed = learning_seed(seed)
    for index in itertools.count():
        before = planner.experience.plans
        trying = planner.experience.undecided and before < plans + TRIAL_PLANS
        if before >= plans and not trying:
            return
        list(run_group(planner, InProcess(lambda: env), [index], seed))
        advance()
        if planner.experience.plans == before:
            return  # with a window of 1 there is nothing to learn


def learning_seed(seed: int) -> int:
    """Derive the seed of the plans to learn from out of the user's seed.

    The two differ: an evaluation must not meet the noise that its drafts were fitted to. That would be peeking.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(_LEARNING,)).generate_state(1, np.uint64)[0])


def run_episode(pilot: Pilot, env: Env, index: int, seed: int) -> Episode:
    """Run one episode; the pilot's robot keeps its plans.

    Args:
        pilot: A policy, or one by a clock.
        env: The environment.
        index: Of the episode.
        seed: Of the evaluation. It and the index fix the seeds of environment and planner.

    Raises:
        EnvError: The environment raised, showed numbers that are not finite, or does not report success.
        DenoiserError: The network failed.
    """
    (episode,) = run_group(pilot, InProcess(lambda: env), [index], seed)
    if episode.error is not None:
        raise EnvError(f"episode {index}: {episode.error}")
    return episode


def collect_states(planner: Policy, env: Env, count: int, seed: int) -> States:
    """Collect states from closed-loop episodes, in random order so that the first few are of many episodes.

    An episode of more than `PLANS_KEPT` plans gives the states of the latest ones.

    Args:
        planner: The policy that acts, and so decides which states there are.
        env: The environment.
        count: How many states; episodes are run to their end.
        seed: Of episodes and order.

    Raises:
        AsdError: As `run_episode`.
    """
    conds, last_plans, owners = [], [], []
    for index in itertools.count():
        run_episode(planner, env, index, seed)
        kept = planner.plans
        starts = [torch.zeros_like(kept[0].sample), *(planner.move_on(plan.sample) for plan in kept[:-1])]
        lost = int(planner.robots[0].records[0].at > 0)  # the plan before the first one kept is lost
        conds += [plan.cond for plan in kept[lost:]]
        last_plans += starts[lost:]
        owners += [index] * (len(kept) - lost)
        if len(owners) >= count:
            break
    order = np.random.default_rng(seed).permutation(len(owners))[:count]
    rows = torch.as_tensor(order, device="cpu")
    return States(torch.cat(conds)[rows], torch.cat(last_plans)[rows], np.asarray(owners)[order])
