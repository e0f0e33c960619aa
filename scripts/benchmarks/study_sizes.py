"""What does a plan cost beside the network, by its size? Time and memory."""

import math
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.progress import track

import asd_policy
from asd_policy.samplers import make_sampler
from study_common import Results, console, markdown_table

EVENTS = ((16, 2), (16, 4), (32, 8), (64, 14), (16, 200), (16, 516))
"""Plans (horizon, action_dim): of bundled checkpoints, of LeRobot's default horizon with two arms, and of networks that
generate observations beside their actions."""
SPECS = ("ddpm", "asd:window=16,draft=picard", "asd:window=16", "asd:window=32")
_SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def measure(plans: int, threads: int, results: Results) -> list[dict[str, Any]]:
    """Measure one record per size and sampler, each in a process of its own.

    Args:
        plans: To time, after the first.
        threads: Of torch.
        results: Where records are kept.
    """
    records = []
    for event, spec in track([(e, s) for e in EVENTS for s in SPECS], "sizes", console=console):

        def run(event: tuple[int, int] = event, spec: str = spec) -> dict[str, Any]:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                return pool.submit(_plan, event, spec, plans, threads).result()

        records.append(results.once(f"{event} {spec}", run))
    return records


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Format the table."""
    rows = [
        [
            f"{record['event'][0]} × {record['event'][1]} = {math.prod(record['event'])}",
            f"`{record['spec']}`",
            f"{record['rounds']:.1f}",
            f"{record['median_ms']:.1f}",
            f"{record['least_ms']:.1f}",
            f"{record['median_ms'] / record['rounds']:.2f}",
            f"{record['p95_ms']:.1f}",
            f"{record['memory_mib']:.0f}",
        ]
        for record in records
    ]
    header = ["plan", "sampler", "rounds", "CPU ms, median", "least", "a round", "wall p95 ms", "memory MiB"]
    return markdown_table(header, rows)


def _plan(event: tuple[int, int], spec: str, plans: int, threads: int) -> dict[str, Any]:
    """Time plans of one size in this process."""
    torch.set_num_threads(threads)
    function = asd_policy.accelerate_fn(_network, _SCHEDULER, spec)
    make_sampler(spec).prepare(torch.device("cpu"))  # the compiler itself needs 100 MiB, whatever the plan
    before = _peak_mib()
    beside, rounds, longest = [], [], []
    for plan in range(plans + 1):
        start = time.process_time()
        stats = function((1, *event), executed=event[0] // 2 if plan else None).stats
        assert stats.network_seconds is not None
        beside.append(1e3 * (time.process_time() - start))
        longest.append(1e3 * (stats.seconds - stats.network_seconds))
        rounds.append(stats.rounds[0])
    return {
        "event": event,
        "spec": spec,
        "plans": plans,
        "rounds": float(np.mean(rounds[1:])),
        "median_ms": float(np.median(beside[1:])),
        "least_ms": float(np.min(beside[1:])),
        "p95_ms": float(np.percentile(longest[1:], 95)),
        "memory_mib": _peak_mib() - before,
    }


def _network(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
    """Predict in almost no time, and so that drafts are refused and a plan takes many rounds."""
    return 0.3 * x


def _peak_mib() -> float:
    """Read the most memory that this process had [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
