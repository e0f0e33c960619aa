"""What does a plan take on this machine, against the best sequential sampler it can run?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from asd_policy.backends import make_backend
from asd_policy.chain import GaussianChain
from asd_policy.denoiser import Denoiser, encode
from asd_policy.evaluate import CALIBRATION_PLANS
from asd_policy.experience import Experience
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.base import Past
from asd_policy.types import SpeculationStats, overhead_fraction
from study_common import CALIBRATION_SEED, Results, States, Subject, console, markdown_table

WARM_UP_PLANS = 2
_RESAMPLES = 2000


@dataclass(frozen=True)
class Contender:
    """A sampler on a network as some backend runs it."""

    name: str
    sampler: Sampler
    denoiser: Denoiser


class RowByRow:
    """A denoiser whose batch is not free: it evaluates one row after the other, so latency is linear in the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Wrap a denoiser."""
        self._denoiser = denoiser

    def encode(self, cond: Tensor) -> Tensor:
        """Encode conditioning [B, …] as the denoiser wants it; that is once per plan."""
        return encode(self._denoiser, cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate the rows of x [N, *event] at timesteps [N], one call for each."""
        conds = [None] * len(x) if cond is None else cond.split(1)
        rows = zip(x.split(1), timestep.split(1), conds, strict=True)
        return torch.cat([self._denoiser(*row) for row in rows])


def contenders(subject: Subject, compiled: bool) -> list[Contender]:
    """Return the sequential baselines and the default sampler on a checkpoint's network."""
    denoiser = subject.policy.denoiser
    found = [
        Contender("ddpm, eager", make_sampler("ddpm"), denoiser),
        Contender("asd, eager", make_sampler("asd"), denoiser),
    ]
    if compiled:
        compiled_policy = subject.policy.with_backend(make_backend("torch-compile"))
        found.append(
            Contender("ddpm, torch.compile", make_sampler("ddpm"), compiled_policy.denoiser),
        )
    return found


def row_by_row(subject: Subject) -> list[Contender]:
    """Return sequential and default sampler on a network whose latency is linear in its batch."""
    denoiser = RowByRow(subject.policy.denoiser)
    return [
        Contender("ddpm, row by row", make_sampler("ddpm"), denoiser),
        Contender("asd, row by row", make_sampler("asd"), denoiser),
    ]


def measure(
    subject: Subject, found: Sequence[Contender], plans: int, seed: int, results: Results, key: str
) -> list[dict[str, Any]]:
    """Return one record per contender: their plans interleaved, at batch 1, on the same states and tapes.

    Args:
        subject: The checkpoint and its states.
        found: What to measure; the first is the baseline.
        plans: How many each, at most the number of states.
        seed: Of the tapes.
        results: Where the record is kept.
        key: Its key there.
    """

    def run() -> dict[str, Any]:
        experiences = [
            prepare(contender, subject, seed)
            for contender in track(found, f"warming up, {subject.name}", console=console)
        ]
        stats: list[list[SpeculationStats]] = [[] for _ in found]
        states = subject.states.first(plans)
        for index in track(range(len(states)), f"wall clock, {subject.name}", console=console):
            for turn in range(len(found)):  # another one first each time
                which = (index + turn) % len(found)
                stats[which].append(
                    plan(found[which], subject.policy.chain, states, index, experiences[which], seed + index)
                )
        baseline = seconds_of(stats[0])
        return {
            "contenders": [summarize(contender, plans, baseline) for contender, plans in zip(found, stats, strict=True)]
        }

    return results.once(f"{subject.name} {key}", run)["contenders"]


def prepare(contender: Contender, subject: Subject, seed: int) -> Experience:
    """Warm a contender up and let it learn, as `asd-policy eval` does; it learns no more after that."""
    experience = Experience()
    count = CALIBRATION_PLANS if contender.sampler.learns else WARM_UP_PLANS
    for index in range(min(count, len(subject.calibration))):
        number = seed + CALIBRATION_SEED + index
        plan(contender, subject.policy.chain, subject.calibration, index, experience, number)
    experience.freeze()
    return experience


def plan(
    contender: Contender, chain: GaussianChain, states: States, index: int, experience: Experience, seed: int
) -> SpeculationStats:
    """Return what one plan took, for state `index`."""
    last_plan = states.last_plan[index : index + 1]
    result = contender.sampler.sample(
        contender.denoiser,
        chain,
        last_plan.shape,
        states.cond[index : index + 1],
        torch.Generator().manual_seed(seed),
        past=Past(last_plan, experience),
    )
    return result.stats


def seconds_of(plans: Sequence[SpeculationStats]) -> npt.NDArray[np.float64]:
    """Return the latency of each plan [s]."""
    return np.array([stats.seconds for stats in plans])


def summarize(
    contender: Contender, plans: Sequence[SpeculationStats], baseline: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return latency and ratios of one contender; `baseline` has the seconds of the first one's plans."""
    seconds = seconds_of(plans)
    # Pairs are resampled: the plans of one turn ran within a second of each other.
    picks = np.random.default_rng(0).integers(len(plans), size=(_RESAMPLES, len(plans)))
    ratios = baseline[picks].mean(1) / seconds[picks].mean(1)
    return {
        "name": contender.name,
        "n": len(plans),
        "window": max(stats.window for stats in plans),
        "rounds_mean": float(np.mean([stats.rounds[0] for stats in plans])),
        "nfe_mean": float(np.mean([stats.nfe[0] for stats in plans])),
        "overhead_fraction": overhead_fraction(plans, float(seconds.sum())),
        "mean_ms": float(1e3 * seconds.mean()),
        **{f"p{q}_ms": float(1e3 * np.percentile(seconds, q)) for q in (50, 95, 99)},
        "max_ms": float(1e3 * seconds.max()),
        "speedup": float(baseline.mean() / seconds.mean()),
        "speedup_ci95": [float(bound) for bound in np.percentile(ratios, (2.5, 97.5))],
        "speedup_of_medians": float(np.median(baseline) / np.median(seconds)),
    }


def markdown(tables: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """Return one table of all checkpoints, each with its contenders."""
    header = ["checkpoint", "contender", "window", "rounds", "nfe", "mean ms", "p50 / p95 / p99 / max ms"]
    header += ["× baseline, means [95 %]", "× baseline, medians", "outside the network"]
    rows = []
    for name, records in tables:
        for index, r in enumerate(records):
            low, high = r["speedup_ci95"]
            rows.append(
                [
                    f"`{name}`" if index == 0 else "",
                    r["name"],
                    str(r["window"]),
                    f"{r['rounds_mean']:.1f}",
                    f"{r['nfe_mean']:.0f}",
                    f"{r['mean_ms']:.0f}",
                    " / ".join(f"{r[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
                    f"{r['speedup']:.2f} [{low:.2f}, {high:.2f}]",
                    f"{r['speedup_of_medians']:.2f}",
                    f"{100 * r['overhead_fraction']:.0f} %",
                ]
            )
    return markdown_table(header, rows) + f"\nn = {tables[0][1][0]['n']} plans for each row.\n"
