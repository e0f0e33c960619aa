"""Seeded closed-loop rollouts of a policy in a gymnasium environment, and what they add up to."""

import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from asd_policy.errors import EnvError
from asd_policy.policy import Policy
from asd_policy.samplers import Sampler
from asd_policy.states import CALIBRATION_PLANS, States
from asd_policy.statistics import entropy, latency, mean_interval, paired_difference, wilson
from asd_policy.types import Plan, overhead_fraction

Env = gymnasium.Env[Any, Any]
Advance = Callable[[], object]
ENTRY_POINT_GROUP = "asd_policy.environments"
WARM_UP_PLANS = 3
_CALIBRATION_SEED = 0
_LEARNING = 1  # spawn key of the noise of plans to learn from


@dataclass(frozen=True)
class Episode:
    """One finished rollout."""

    sampler: Sampler
    index: int
    """Episodes of equal index have the same environment seed and the same planning seed."""
    success: bool
    total_reward: float
    steps: int
    """Control steps taken."""
    mode: str | None
    """The environment's `info["homotopy_class"]` at the end of a success, if it tells one."""
    plans: tuple[Plan, ...]


def make_env(env_id: str, render_mode: str | None = None) -> Env:
    """Make an environment by its gymnasium id.

    A namespace such as `asd/` is registered by the module that an installed distribution names for it under the
    entry-point group `asd_policy.environments`; `module:id` imports a module itself, as gymnasium does.

    Args:
        env_id: Such as "asd/Avoid-v0".
        render_mode: For `gymnasium.make`.

    Raises:
        EnvError: No such environment, or it cannot be made here.
    """
    namespace = env_id.split("/")[0]
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == namespace:
            point.load()
    # Not every environment takes a render mode, so none is passed where none is wanted.
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gymnasium.make(env_id, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, gymnasium.error.UnregisteredEnv):
            raise EnvError(f"cannot make environment {env_id!r}: {reason}") from None
        known = sorted(i for i in gymnasium.registry if i.startswith(f"{namespace}/"))
        names = {i.partition("/")[0] for i in gymnasium.registry if "/" in i}
        names |= {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
        namespaces = [f"{name}/…" for name in sorted(names)]
        raise EnvError(
            f"no environment {env_id!r}; there are " + ", ".join(known or [*namespaces, "and gymnasium's own"])
        ) from None


def prepare(policy: Policy, env: Env, samplers: Sequence[Sampler]) -> list[Policy]:
    """Return one planner per sampler, warmed up, after a look at whether policy and environment fit.

    What a planner learns, it learns here: after that an episode depends on its seeds alone.

    Args:
        policy: Whose network plans.
        env: Where.
        samplers: What to plan with.

    Raises:
        DenoiserError: The network is not one that can be sampled from, see `Policy.check`.
        EnvError: The environment's actions are not the policy's.
        ObservationError: Its observations are not.
        SpecError: A sampler's options do not fit the policy's chain.
    """
    check_fit(policy, env)
    policy.check()
    planners = [policy.with_sampler(sampler) for sampler in samplers]
    observation, _ = env.reset(seed=0)
    for planner in planners:
        for _ in range(WARM_UP_PLANS):
            planner.reset(seed=0)
            planner.select_action(observation)
        if planner.sampler.learns:
            calibrate(planner, env, CALIBRATION_PLANS)
        planner.experience.freeze()
    return planners


def check_fit(policy: Policy, env: Env) -> None:
    """Refuse an environment whose actions are not the policy's.

    Raises:
        EnvError: They are not.
    """
    shape = env.action_space.shape
    if not isinstance(env.action_space, gymnasium.spaces.Box) or shape != (policy.action_dim,):
        raise EnvError(
            f"the policy's actions have shape ({policy.action_dim},), the environment's action space is "
            f"{env.action_space}"
        )


def calibrate(
    planner: Policy, env: Env, plans: int, seed: int = _CALIBRATION_SEED, advance: Advance = lambda: None
) -> None:
    """Roll a planner out until its experience has so many plans, in episodes of no evaluation.

    Args:
        planner: Who learns.
        env: Where.
        plans: How many to have, those from before included.
        seed: Of the episodes.
        advance: Called after each episode.

    Raises:
        AsdError: As `rollouts`.
    """
    seed = learning_seed(seed)
    for index in itertools.count():
        before = planner.experience.plans
        if before >= plans:
            return
        _run_episode(planner, env, index, seed)
        advance()
        if planner.experience.plans == before:
            return  # with a window of 1 there is nothing to learn


def learning_seed(seed: int) -> int:
    """Return the seed of plans to learn from, given the user's: another one.

    An evaluation with the same seed must not meet the noise that its drafts were fitted to: that would be peeking.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(_LEARNING,)).generate_state(1, np.uint64)[0])


def rollouts(planners: Sequence[Policy], env: Env, episodes: int, seed: int) -> Iterator[Episode]:
    """Run episodes, each with every planner before the next, so that a drift of the machine meets them all.

    Args:
        planners: From `prepare`.
        env: Where.
        episodes: How many for each planner.
        seed: Of the evaluation: it and an episode's index fix the environment's and the planner's seeds.

    Yields:
        Finished episodes, planners in order within an index.

    Raises:
        EnvError: The environment does not report success.
    """
    for index in range(episodes):
        for planner in planners:
            yield _run_episode(planner, env, index, seed)


def collect(planner: Policy, env: Env, count: int, seed: int) -> States:
    """Return states from closed-loop episodes, in random order so that the first few are of many episodes.

    Args:
        planner: Rolls out, and so decides which states there are.
        env: Where.
        count: How many; all episodes are finished.
        seed: Of episodes and order.

    Raises:
        AsdError: As `rollouts`.
    """
    conds, last_plans, owners = [], [], []
    for episode in rollouts([planner], env, count, seed):
        last_plan = torch.zeros_like(episode.plans[0].sample)
        for plan in episode.plans:
            conds.append(plan.cond)
            last_plans.append(last_plan)
            owners.append(episode.index)
            last_plan = planner.move_on(plan.sample)
        if len(owners) >= count:
            break
    order = np.random.default_rng(seed).permutation(len(owners))[:count]
    rows = torch.as_tensor(order)
    return States(torch.cat(conds)[rows], torch.cat(last_plans)[rows], np.asarray(owners)[order])


def _run_episode(planner: Policy, env: Env, index: int, seed: int) -> Episode:
    env_seed, noise_seed = (int(word) for word in np.random.SeedSequence([seed, index]).generate_state(2))
    planner.reset(seed=noise_seed)
    observation, info = env.reset(seed=env_seed)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)  # `prepare` has seen to it
    total, steps, done = 0.0, 0, False
    while not done:
        # Unnormalised actions may overshoot the demonstrations' range by a rounding error.
        action = np.clip(planner.select_action(observation), space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        steps += 1
        done = terminated or truncated
    if "success" not in info:
        raise EnvError(f"the environment reports no info['success'] at the end of an episode, only {sorted(info)}")
    success = bool(info["success"])
    mode = info.get("homotopy_class") if success else None
    return Episode(planner.sampler, index, success, total, steps, mode, tuple(planner.plans))


def summarize(samplers: Sequence[Sampler], episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Return the `samplers` list of results.json (see the README) for what has finished, in the order given."""
    by_sampler = {sampler: [e for e in episodes if e.sampler == sampler] for sampler in samplers}
    reference = next((done for sampler, done in by_sampler.items() if sampler.spec == "ddpm"), [])
    return [_summary(sampler, done, reference) for sampler, done in by_sampler.items() if done]


def _summary(sampler: Sampler, done: list[Episode], reference: list[Episode]) -> dict[str, Any]:
    plans = [plan for episode in done for plan in episode.plans]
    rounds = [plan.stats.rounds[0] for plan in plans]
    seconds = np.array([plan.seconds for plan in plans])
    steps = plans[0].stats.steps
    returns = [episode.total_reward for episode in done]
    modes = Counter(episode.mode for episode in done if episode.mode is not None)
    pairs = [(a.success, b.success) for a, b in zip(done, reference, strict=False)]
    reference_seconds = [plan.seconds for episode in reference for plan in episode.plans]
    return {
        "spec": sampler.spec,
        "exact": sampler.exact,
        "steps": steps,
        "window": Counter(plan.stats.window for plan in plans).most_common(1)[0][0],
        "episodes": len(done),
        "success_rate": float(np.mean([episode.success for episode in done])),
        "success_ci95": wilson(sum(episode.success for episode in done), len(done)),
        "return_mean": float(np.mean(returns)),
        "return_ci95": mean_interval(returns),
        "paired_difference_ci95": paired_difference(*zip(*pairs, strict=True)) if pairs else None,
        "modes": dict(sorted(modes.items())),
        "mode_entropy": entropy(modes),
        "plans": len(plans),
        "rounds_mean": float(np.mean(rounds)),
        "rounds_p95": float(np.percentile(rounds, 95)),
        "nfe_mean": float(np.mean([plan.stats.nfe[0] for plan in plans])),
        "acceptance_length_mean": steps / float(np.mean(rounds)),
        "algorithmic_speedup": steps / float(np.mean(rounds)),
        "wall_clock_speedup": float(np.mean(reference_seconds) / seconds.mean()) if reference_seconds else None,
        "overhead_fraction": overhead_fraction([plan.stats for plan in plans], float(seconds.sum())),
        "latency_ms": latency(seconds),
    }


def record_video(policy: Policy, env_id: str, samplers: Sequence[Sampler], seed: int, folder: Path) -> list[Path]:
    """Write an mp4 of episode 0 for each sampler.

    Raises:
        EnvError: The environment cannot render here, or imageio with ffmpeg is not installed.
    """
    try:
        imageio = importlib.import_module("imageio.v3")
        importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise EnvError(f"--video needs {error.name}: pip install 'asd-policy[envs]'") from None
    env = make_env(env_id, render_mode="rgb_array")
    written = []
    for sampler in samplers:
        recorder = gymnasium.wrappers.RenderCollection(env, pop_frames=False)
        try:
            _run_episode(policy.with_sampler(sampler), recorder, 0, seed)
        except Exception as error:  # every renderer raises errors of its own
            raise EnvError(f"{env_id} cannot be rendered here: {error}; without a screen set MUJOCO_GL=egl") from error
        path = folder / f"{sampler.spec.replace(':', '-').replace(',', '-')}.mp4"
        fps = env.metadata.get("render_fps", 30)
        imageio.imwrite(path, np.stack(recorder.frame_list), fps=fps, plugin="FFMPEG", codec="libx264")
        written.append(path)
    env.close()
    return written
