"""Does a policy look? Success with its camera's frames, with another episode's, and with grey ones.

python scripts/benchmarks/other_frames.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

import asd_policy
from asd_policy._common.statistics import wilson
from asd_policy.evaluation.closed_loop import run_episode
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.policy.observation import PIXELS

Env = gymnasium.Env[Any, Any]
OWN, OTHER, GREY = "its own", "the first of another episode", "grey"


@dataclass(frozen=True)
class Options:
    """Does a policy look? Success with its camera's frames, with another episode's, and with grey ones."""

    policy: Path = Path("checkpoints/avoid-pixels")
    """Checkpoint of the policy."""
    env: str = "asd/AvoidPixels-v0"
    """Environment that shows `pixels`."""
    sampler: str = "ddim:10"
    """What the policy plans with."""
    episodes: int = 50
    """Episodes for each kind of frames."""
    seed: int = 0
    """Of the evaluation; every kind of frames gets the same starts."""


class OtherFrames(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that shows frames which are not its own."""

    def __init__(self, env: Env, shown: str) -> None:
        """Show `shown`: another episode's frame, or grey."""
        super().__init__(env)
        self._shown = shown
        self._frame: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Look at another episode's first frame, then begin this one."""
        other, _ = self.env.reset(seed=None if seed is None else seed + 1_000_003)
        self._frame = other[PIXELS] if self._shown == OTHER else np.full_like(other[PIXELS], 128)
        observation, info = self.env.reset(seed=seed, options=options)
        return {**observation, PIXELS: self._frame}, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, and hide what it looks like."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return {**observation, PIXELS: self._frame}, reward, terminated, truncated, info


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    policy = asd_policy.load_policy(options.policy, options.sampler)
    print("| frames | success % [95 %] |\n|---|---|")
    for shown in (OWN, OTHER, GREY):
        env = make_env(options.env)
        env = env if shown == OWN else OtherFrames(env, shown)
        found = [run_episode(policy, env, index, options.seed).success for index in range(options.episodes)]
        env.close()
        low, high = wilson(sum(found), len(found))
        print(f"| {shown} | {100 * np.mean(found):.0f} [{100 * low:.0f}, {100 * high:.0f}] |", flush=True)


if __name__ == "__main__":
    main()
