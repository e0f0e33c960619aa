"""What does a plan take on this machine, against the best sequential sampler it can run?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from asd_policy._common.clock import clock_of
from asd_policy.evaluation.benchmark import (
    Contender,
    baselines,
    interleave,
    summarize_plans,
    warm_up_contender,
)
from asd_policy.networks.backends import Backend, Job, make_backend
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from study_common import Results, Subject, console, markdown_table


@dataclass(frozen=True)
class RowByRow(Backend):
    """A backend whose batch is not free: it evaluates one row after the other, so latency is linear in the batch."""

    @property
    def spec(self) -> str:
        """Its name in tables."""
        return "row by row"

    @property
    def dtype(self) -> str:
        """That of the checkpoint's network."""
        return "float32"

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Split each call of the network into one for each row."""

        def one_by_one(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            conds = [None] * len(x) if cond is None else cond.split(1)
            rows = zip(x.split(1), timestep.split(1), conds, strict=True)
            return torch.cat([network(*row) for row in rows])

        return one_by_one


def contenders(subject: Subject, backends: Sequence[str], windows: Sequence[int]) -> list[Contender]:
    """Make samplers on each backend of a checkpoint's network: sequential, of few steps, default, of fixed windows."""
    fixed = [f"asd:window={window}" for window in windows if window <= len(subject.policy.chain)]
    samplers = ("ddpm", "ddim:10", "asd", *fixed)
    return [enter(subject, sampler, make_backend(backend)) for backend in backends for sampler in samplers]


def row_by_row(subject: Subject) -> list[Contender]:
    """Make the sequential and the default sampler on a network whose latency is linear in its batch."""
    return [enter(subject, sampler, RowByRow()) for sampler in ("ddpm", "asd")]


def enter(subject: Subject, sampler: str, backend: Backend) -> Contender:
    """Make a sampler on a backend that has learned nothing yet, as `asd-policy eval` begins."""
    policy = subject.policy.with_backend(backend).with_sampler(make_sampler(sampler))
    policy.experience = Experience()
    return Contender(policy)


def measure(
    subject: Subject, found: Sequence[Contender], plans: int, seed: int, results: Results, key: str
) -> list[dict[str, Any]]:
    """Measure one record per contender: their plans interleaved, at batch 1, on the same states and tapes.

    Args:
        subject: The checkpoint and its states.
        found: What to measure.
        plans: How many each, at most the number of states.
        seed: Of the tapes.
        results: Where the record is kept.
        key: Its key there.
    """

    def run() -> dict[str, Any]:
        for contender in track(found, f"warming up, {subject.name}", console=console):
            warm_up_contender(contender, subject.calibration, 1, seed)
        states = subject.states.first(plans)
        clock = clock_of(subject.policy.device)
        measured = interleave(found, states, 1, len(states), seed, clock)
        timings = list(track(measured, f"wall clock, {subject.name}", total=len(states), console=console))
        by_contender = list(zip(found, zip(*timings, strict=True), strict=True))
        best, eager = baselines(by_contender)
        records = [
            {"name": f"{_short(contender)}, {contender.policy.backend.spec.partition(':')[0]}"}
            | {"auto": contender.policy.sampler.chooses, "backend": contender.policy.backend.spec}
            | summarize_plans(took, best and best[1], eager and eager[1])
            for contender, took in by_contender
        ]
        return {"contenders": records}

    return results.once(f"{subject.name} {key}", run)["contenders"]


def _short(contender: Contender) -> str:
    """Name a sampler in a table."""
    sampler = contender.policy.sampler
    if isinstance(sampler, Asd):
        return "asd" if sampler.window is None else f"asd θ={sampler.window}"
    return sampler.spec if sampler.exact else f"{sampler.spec.partition(',')[0]} (approximate)"


def _against_best_fixed(records: Sequence[dict[str, Any]], record: dict[str, Any]) -> str:
    """Compare the default's mean with that of the best fixed window on its backend."""
    fixed = [
        each["latency_ms"]["mean"] for each in records if each["backend"] == record["backend"] and "θ" in each["name"]
    ]
    return f"{record['latency_ms']['mean'] / min(fixed):.2f}" if record["auto"] and fixed else ""


def _setting(record: dict[str, Any]) -> str:
    """Write the window, and draft and verifier where they are not those of a fixed window."""
    ran = make_sampler(record["ran"])
    if isinstance(ran, Asd) and ran != Asd(ran.window):
        return f"{record['window']}, {ran.draft_name} + {ran.verify}"
    return str(record["window"])


def markdown(tables: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """Format one table of all checkpoints, each with its contenders."""
    header = ["checkpoint", "contender", "window", "rounds", "nfe", "mean ms", "p50 / p95 / p99 / max ms"]
    header += ["× best sequential, means [95 %]", "medians", "× eager sequential [95 %]", "outside the network"]
    header += ["mean / best fixed θ's", "p95 / p50"]
    rows = []
    for name, records in tables:
        for index, r in enumerate(records):
            latency = r["latency_ms"]
            rows.append(
                [
                    f"`{name}`" if index == 0 else "",
                    r["name"],
                    _setting(r),
                    f"{r['rounds_mean']:.1f}",
                    f"{r['nfe_mean']:.0f}",
                    f"{latency['mean']:.0f}",
                    " / ".join(f"{latency[key]:.0f}" for key in ("p50", "p95", "p99", "max")),
                    _ratio(r["wall_clock_speedup"], r["wall_clock_speedup_ci95"]),
                    f"{r['wall_clock_speedup_of_medians']:.2f}",
                    _ratio(r["speedup_over_eager"], r["speedup_over_eager_ci95"]),
                    f"{100 * r['overhead_fraction']:.1f} %",
                    _against_best_fixed(records, r),
                    f"{latency['p95'] / latency['p50']:.2f}",
                ]
            )
    return markdown_table(header, rows) + f"\nn = {tables[0][1][0]['plans']} plans for each row.\n"


def _ratio(value: float | None, interval: Sequence[float] | None) -> str:
    """Format a ratio with its interval; a single plan has none."""
    if value is None:
        return "–"
    low, high = interval or (math.nan, math.nan)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
