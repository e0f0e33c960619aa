"""What does a late action cost in asd/Intercept-v0? The expert or a policy, its actions executed some steps late.

python scripts/benchmarks/late_actions.py
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import tyro

import asd_policy
from asd_envs import Expert, make_expert
from asd_policy._common.statistics import mean_interval, wilson

STEP_MS = 50
Observation = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Options:
    """What does a late action cost in asd/Intercept-v0?"""

    policy: Path | None = None
    """Checkpoint of the policy that acts; without one, the expert acts."""
    sampler: str = "ddpm"
    """What the policy plans with."""
    delays: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Control steps of 50 ms between an observation and the action chosen on it."""
    episodes: int = 100
    """Episodes for each delay."""
    seed: int = 0
    """Seed of the first episode; every delay gets the same serves."""


class PolicyAsExpert:
    """A policy behind the methods of an expert."""

    def __init__(self, policy: asd_policy.Policy) -> None:
        self._policy = policy

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._policy.reset(seed=int(rng.integers(2**31)))

    def act(self, observation: Observation) -> npt.NDArray[np.float64]:
        """Choose the target position [m]."""
        return self._policy.select_action(observation).astype(np.float64)


def run_episode(env: gymnasium.Env[Any, Any], actor: Expert, delay: int, seed: int) -> tuple[float, bool]:
    """Run an episode with every action `delay` steps after it was chosen; return its return and success.

    Until the first one arrives, the action is to stay where the paddle starts, at 0.
    """
    actor.reset(np.random.default_rng(seed))
    observation, info = env.reset(seed=seed)
    waiting = deque([np.zeros(1)] * delay)
    total, done = 0.0, False
    while not done:
        waiting.append(actor.act(observation))
        observation, reward, terminated, truncated, info = env.step(waiting.popleft())
        total += float(reward)
        done = terminated or truncated
    return total, bool(info["success"])


def main() -> None:
    """Print a line for each delay."""
    options = tyro.cli(Options, description=__doc__)
    if options.episodes < 2:
        raise SystemExit(f"--episodes {options.episodes} is not 2 or more")
    if min(options.delays, default=-1) < 0:
        raise SystemExit(f"--delays {' '.join(map(str, options.delays))} are not numbers of steps from 0 on")
    env = gymnasium.make("asd/Intercept-v0")
    actor = make_expert(env)
    if options.policy is not None:
        actor = PolicyAsExpert(asd_policy.load_policy(options.policy, options.sampler))
    print("| delay [ms] | return [95 %] | success % [95 %] |\n|---|---|---|")
    for delay in options.delays:
        seeds = range(options.seed, options.seed + options.episodes)
        returns, successes = zip(*(run_episode(env, actor, delay, seed) for seed in seeds), strict=True)
        interval = mean_interval(returns)
        assert interval is not None  # of two episodes and more there is one
        low, high = interval
        worst, best = wilson(sum(successes), len(successes))
        print(
            f"| {delay * STEP_MS} | {np.mean(returns):.2f} [{low:.2f}, {high:.2f}] "
            f"| {100 * np.mean(successes):.0f} [{100 * worst:.0f}, {100 * best:.0f}] |"
        )


if __name__ == "__main__":
    main()
