"""The files of an evaluation, made up: for pages, tables and comparisons of them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy._common.files import write_json
from asd_policy.evaluation.reports.page_plots import Results
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import Journal
from asd_policy.policy.plan import PlanRecord

STEPS = 100


HOSTILE = "<script>alert('$x$ & y')</script>"


SPECS = ("ddpm", "ddim:10", "asd:window=8,draft=frozen,verify=reflection", "asd:window=32,draft=response,verify=block")


def sampler(spec: str, **changes: Any) -> Results:
    """Return what results.json says of a sampler."""
    speculates, rounds = spec.startswith("asd"), {"ddpm": 100, "ddim:10": 10, SPECS[3]: 8}.get(spec, 20)
    drafted = [0.9] * (STEPS - 1) + [None]
    verdict = {"margin": 0.1, "p_value": 0.012, "equivalent": True, "power": 0.83}
    return {
        "spec": spec, "exact": spec != "ddim:10", "steps": STEPS, "episodes": 8,
        "window": int(spec[11:].split(",")[0]) if speculates else 1,
        "failed": 0, "success_rate": 0.75, "success_ci95": [0.41, 0.93],
        "return_mean": 0.75, "return_ci95": [0.4, 1.1], "paired_difference_ci95": [-0.2, 0.2],
        "reward_difference": {"mean": 0.0, "ci95": [-0.1, 0.1]}, "equivalence": None if spec == "ddpm" else verdict,
        "modes": {HOSTILE: 4, "0-1": 2}, "mode_entropy": 0.64, "plans": 32, "rounds_mean": rounds, "rounds_p95": rounds,
        "nfe_mean": 150.0, "acceptance_length_mean": STEPS / rounds, "algorithmic_speedup": STEPS / rounds,
        "wall_clock_speedup": 40 / rounds if speculates else 1.0, "overhead_fraction": 0.1,
        "acceptance_by_step": drafted if speculates else None,
        "latency_ms": {"mean": 50.0, "p50": 50.0, "p95": 60.0, "p99": 70.0, "max": 80.0},
    } | changes  # fmt: skip


def results(*samplers: Results, **changes: Any) -> Results:
    """Return a results.json object of eval."""
    return {
        "version": 1, "command": "eval", "policy": f"runs/{HOSTILE}", "env": "asd/Avoid-v0", "seed": 3, "episodes": 8,
        "envs": 2, "workers": 2, "device": "A GPU", "torch_device": "cuda:1", "backend": "onnx", "dtype": "float32",
        "package": "0.1.0", "commit": "0123456789abcdef", "torch": "2.13.0", "started": "2026-01-02T03:04:05+00:00",
        "complete": True, "environment_steps_per_second": 812.34, "episodes_per_second": 2.31,
        "samplers": list(samplers or map(sampler, SPECS)),
    } | changes  # fmt: skip


def episodes(specs: tuple[str, ...] = SPECS) -> list[Episode]:
    random = np.random.default_rng(0)
    done = []
    for index, spec in itertools.product(range(8), specs):
        rounds = {"ddpm": [100] * 4, "ddim:10": [10] * 4}.get(spec) or random.integers(5, 12, 4).tolist()
        plans = tuple(
            PlanRecord(
                at=8 * number,
                rounds=count,
                nfe=150,
                window=8,
                batch=2,
                seconds=0.004 * count,
                network_seconds=0.003 * count,
                refused=None,
                unjudged=None,
            )
            for number, count in enumerate(rounds)
        )
        error = f"RuntimeError: {HOSTILE}" if (index, spec) == (2, "ddpm") else None
        done.append(Episode(spec, index, error is None, 1.0, 32, "0-1", error, plans))
    return done


def save(folder: Path, record: Results, done: Sequence[Episode]) -> Path:
    journal = Journal.start(folder, {})
    for episode in done:
        journal.add(episode)
    journal.close()
    write_json(folder / "results.json", record)
    return folder
