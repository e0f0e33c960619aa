"""Measure the rounds of one trained policy by draft and window, and what its response leaves unexplained.

    python scripts/benchmarks/trained_rounds.py --policy runs/pick64 --env asd/MetaWorld-pick-place-v0

States are those that the policy meets in closed loop; every setting plans the same states on the same tapes.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import numpy.typing as npt
import torch
import tyro

from asd_policy import load_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from study_common import (
    CALIBRATION_SEED,
    ROLL_OUT,
    Counts,
    Subject,
    clustered_error,
    count,
    load,
    markdown_table,
    provenance,
)


@dataclass(frozen=True)
class Options:
    """Measure the rounds of one trained policy by draft and window, and what its response leaves unexplained."""

    policy: Path
    """The checkpoint."""
    env: str
    """Its environment."""
    recorded: Path | None = None
    """A robomimic .hdf5 whose observations the policy sees one after the other, whatever it does; else it acts."""
    states: int = 48
    """States to plan from."""
    calibration: int = 64
    """States of other episodes to learn the response from."""
    windows: tuple[int, ...] = (16, 32, 64, 100)
    """Points θ of a round."""
    settings: tuple[str, ...] = (
        "draft=frozen,verify=reflection",
        "draft=picard,verify=reflection",
        "draft=response,verify=block",
    )
    """Draft and verifier of each row of the table."""
    seed: int = 0
    """Of episodes and tapes."""
    threads: int = 1
    """Of torch."""


class Recording(gymnasium.Env[Any, Any]):
    """The observations of recorded episodes, one episode after the other, whatever the actions."""

    def __init__(self, file: Path, env: gymnasium.Env[Any, Any]) -> None:
        """Read them; spaces are those of the environment that they are of."""
        self.observation_space, self.action_space = env.observation_space, env.action_space
        with h5py.File(file) as opened:
            episodes: Any = opened["data"]
            self._episodes = [
                {name: np.asarray(values, np.float64) for name, values in episodes[name]["obs"].items()}
                for name in episodes
            ]
        self._next, self._step = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        self._now, self._step = self._episodes[self._next % len(self._episodes)], 0
        self._next += 1
        return self._observe(), {"success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show the next observation."""
        self._step += 1
        ended = self._step + 1 == len(next(iter(self._now.values())))
        return self._observe(), 0.0, False, ended, {"success": False}

    def _observe(self) -> dict[str, Any]:
        return {name: values[self._step] for name, values in self._now.items()}


def load_recorded(options: Options) -> Subject:
    """Load a checkpoint and let it plan at recorded observations; the first episodes are to learn from."""
    assert options.recorded is not None
    planner = load_policy(options.policy, ROLL_OUT)
    env = Recording(options.recorded, make_env(options.env))
    learned_from = closed_loop.collect_states(planner, env, options.calibration, options.seed + CALIBRATION_SEED)
    planner.experience.freeze()
    measured = closed_loop.collect_states(planner, env, options.states, options.seed)
    return Subject(options.policy.name, options.env, planner, measured, learned_from, planner.experience)


class Watched(Experience):
    """An experience that adds up, by step, the energy of x̂0's changes and of what a given response misses of them."""

    def __init__(self, response: Experience) -> None:
        super().__init__(learning=True)
        self._response = response
        self.changed: list[npt.NDArray[np.float64]] = []
        self.missed: list[npt.NDArray[np.float64]] = []

    def learn(
        self, committed: CommittedPaths, chain: GaussianChain, pair: tuple[str, str], horizon: int | None
    ) -> None:
        """Add the committed paths of a batch of plans."""
        points, x0_pred = committed.points, committed.x0_pred
        response = self._response.response(points.device, points.dtype)
        assert response is not None
        tables = chain.tables(points.device, points.dtype)
        noise = points[:, 1:] - (tables.a[:-1, None] * x0_pred[:, :-1] + tables.b[:-1, None] * points[:, :-1])
        change = x0_pred.diff(dim=1)
        missed = change - response.gain[1:] * noise
        scale = (tables.a / tables.sigma)[1:-1, None].double()  # the last step has no noise, and no draft to refuse
        for kept, values in ((self.changed, change), (self.missed, missed)):
            kept.append((scale * values[:, :-1]).square().sum(-1).mean(0).numpy())


def speed(counts: Counts, subject: Subject) -> str:
    """Format K / mean rounds with its 95 % interval, evaluations / K, and the 95th percentile of rounds."""
    steps, mean = len(subject.policy.chain), float(counts.rounds.mean())
    _, reach = clustered_error(counts.rounds, subject.states.episode)
    low, high = steps / (mean + reach), steps / max(mean - reach, 1.0)
    tail = np.percentile(counts.rounds, 95)
    return f"{steps / mean:.1f} [{low:.1f}, {high:.1f}] · {counts.nfe.mean() / steps:.2f} · {tail:.0f}"


def grid(subject: Subject, options: Options) -> str:
    """Measure every setting at every window; return the table."""
    policy, rows = subject.policy, []
    windows = tuple(dict.fromkeys(min(window, len(policy.chain)) for window in options.windows))
    for setting in options.settings:
        cells = []
        for window in windows:
            sampler = make_sampler(f"asd:window={window},{setting}")
            counts = count(policy.denoiser, policy.chain, sampler, subject.states, subject.experience, options.seed)
            cells.append(speed(counts, subject))
            print(setting, window, cells[-1], file=sys.stderr, flush=True)
        rows.append([f"`{setting}`", *cells])
    return markdown_table(["", *map(str, windows)], rows)


def explained(subject: Subject, seed: int) -> str:
    """Measure how far a one-step draft is from its target, with the response and without; return the table."""
    policy, watched = subject.policy, Watched(subject.experience)
    count(policy.denoiser, policy.chain, make_sampler(ROLL_OUT), subject.calibration, watched, seed + CALIBRATION_SEED)
    changed, missed = np.mean(watched.changed, 0), np.mean(watched.missed, 0)
    last = len(policy.chain) - 2
    steps = [step for step in (10, 30, 50, 70, 80, 90, 93, 95, 97, last) if step <= last]
    rows = [
        ["‖v‖ of x̂0 held for a step", *(f"{changed[step - 1] ** 0.5:.2f}" for step in steps)],
        ["‖v‖ with the response", *(f"{missed[step - 1] ** 0.5:.2f}" for step in steps)],
        ["explained", *(f"{100 * (1 - missed[step - 1] / changed[step - 1]):.0f} %" for step in steps)],
    ]
    return markdown_table(["step", *map(str, steps)], rows)


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    subject = (
        load_recorded(options)
        if options.recorded
        else load(options.policy, options.env, options.states, options.calibration, options.seed)
    )
    episodes = len(np.unique(subject.states.episode))
    size = subject.policy.event[0] * subject.policy.event[1]
    print(grid(subject, options))
    print(explained(subject, options.seed))
    print(
        f"D = {size}; n = {len(subject.states)} states from {episodes} episodes; the response has learned from "
        f"{subject.experience.plans} plans. {provenance(shlex.join(['python', *sys.argv]), options.seed)}"
    )


if __name__ == "__main__":
    main()
