"""How many episodes a second run on 1, 2, … Ray workers? Prints a table for docs/results/workers.md.

    python scripts/benchmarks/worker_speed.py --policy checkpoints/avoid --env asd/Avoid-v0 --workers 1 2 4

Times begin when all workers have loaded the policy. The numbers of workers take turns, so that a drift of the machine
meets all alike.
"""

import contextlib
import io
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from asd_policy import cli
from asd_policy._common.hardware import hardware


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policy: str
    """Checkpoint: a path, or a Hub id."""
    env: str
    """Gymnasium id."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers."""
    samplers: tuple[str, ...] = ("ddpm", "asd:window=32")
    """Sampler specs."""
    episodes: int = 40
    """Episodes for each sampler in each run."""
    runs: int = 3
    """Runs for each number of workers."""
    envs: int = 1
    """Environments side by side in each worker."""


def evaluate(options: Options, workers: int, out: Path) -> dict[str, Any]:
    """Run an evaluation and read its results."""
    words = ["eval", "--policy", options.policy, "--env", options.env, "--samplers", *options.samplers]
    words += ["--episodes", str(options.episodes), "--envs", str(options.envs), "--workers", str(workers)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.run([*words, "--json", "--out", str(out)])
    if status != 0:
        raise SystemExit(status)
    return json.loads(printed.getvalue())


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    found: dict[int, list[dict[str, Any]]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs):
            for workers, results in found.items():
                results.append(evaluate(options, workers, Path(folder) / f"{run}-{workers}"))
    print("| workers | episodes/s | least … most | environment steps/s | against the first |")
    print("|---|---|---|---|---|")
    first = None
    for workers, results in found.items():
        rates = [result["episodes_per_second"] for result in results]
        steps = statistics.median(result["environment_steps_per_second"] for result in results)
        median = statistics.median(rates)
        first = first or median
        span = f"{min(rates):.2f} … {max(rates):.2f}"
        print(f"| {workers} | {median:.2f} | {span} | {steps:.0f} | {median / first:.2f}× |")
    print(
        f"\n{hardware(torch.device('cpu'))}; torch {torch.__version__}; {options.env}, {', '.join(options.samplers)}, "
        f"{options.episodes} episodes of each, {options.envs} environments a worker; median of {options.runs} runs"
    )


if __name__ == "__main__":
    main()
