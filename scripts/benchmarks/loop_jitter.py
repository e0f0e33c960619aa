"""How punctual is `asd_policy.ControlLoop` while a policy plans? Tables for docs/results/control_loop.md.

    python scripts/benchmarks/loop_jitter.py --policy checkpoints/avoid --env asd/Avoid-v0

The environment gives observations and is not stepped, because the loop alone is measured. It is reset, and shown as it
is, in every case. Under load there is a busy process for each CPU, at the loop's own niceness.
"""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro

from asd_policy import ControlLoop, LoopOptions, ProcessPlanner, Telemetry, load_policy
from asd_policy._common.hardware import hardware, versions
from asd_policy.deploy.realtime.planner import PolicyPlanner
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.plan import Horizons
from asd_policy.policy.planner import Planned, Planner


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policy: str
    """Checkpoint: a path, or a Hub id."""
    env: str
    """Gymnasium id, for an observation."""
    samplers: tuple[str, ...] = ("ddpm", "ddim:10", "asd:window=16")
    """Sampler specs that plan."""
    backend: str = "onnx"
    """What runs the network."""
    hz: tuple[float, ...] = (50.0, 100.0, 500.0)
    """Rates [Hz]."""
    seconds: float = 10.0
    """Length of each run [s]."""
    priority: int = 10
    """SCHED_FIFO priority of the runs that have one; 0 for no such runs."""
    loads: tuple[bool, ...] = (False, True)
    """Without, and with busy processes."""


class Nothing:
    """Plans nothing, at once: the loop alone."""

    def __init__(self, horizons: Horizons, action_dim: int) -> None:
        self.horizons, self.action_dim = horizons, action_dim

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan zeros."""
        return Planned(np.zeros((self.horizons.horizon, self.action_dim), np.float32), 1)


def load(options: Options, sampler: str) -> Any:
    """Load the policy, on one thread."""
    torch.set_num_threads(1)
    return load_policy(options.policy, sampler, backend=options.backend)


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Keep every CPU busy."""
    count = (os.cpu_count() or 1) if wanted else 0
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(planner: Any, observation: Any, hz: float, options: Options, priority: int | None) -> Telemetry:
    """Run a loop whose actions go nowhere."""
    ticks = max(2, round(options.seconds * hz))
    chosen = LoopOptions(late_limit=ticks + 1, ticks=ticks, patience=1.0, priority=priority)
    return ControlLoop(planner, lambda: observation, lambda action: None, hz, chosen).run()


def row(name: str, hz: float, loaded: bool, telemetry: Telemetry) -> str:
    """Format a line of the table."""
    late, period, plan = telemetry.lateness_ms, telemetry.period_ms, telemetry.plan_ms
    assert late is not None and period is not None and plan is not None
    deadlines = telemetry.ticks + telemetry.missed
    return (
        f"| {name} | {hz:g} | {'busy' if loaded else '–'} | {late.p50:.2f} / {late.p99:.2f} / {late.max:.1f} "
        f"| {period.p50:.2f} / {period.p99:.2f} / {period.max:.1f} "
        f"| {100 * telemetry.missed / deadlines:.2f} | {100 * telemetry.stale / telemetry.ticks:.1f} "
        f"| {plan.p50:.0f} / {plan.p99:.0f} | {telemetry.plans} |"
    )


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    env = make_env(options.env)
    observation, _ = env.reset(seed=0)
    env.close()
    form = load(options, "ddpm")
    cases: list[tuple[str, Callable[[], contextlib.AbstractContextManager[Planner]]]] = [
        ("no policy", lambda: contextlib.nullcontext(Nothing(form.horizons, form.action_dim)))
    ]
    for sampler in options.samplers:
        own = functools.partial(load, options, sampler)
        cases.append((f"`{sampler}`, thread", lambda own=own: contextlib.nullcontext(PolicyPlanner(own()))))
        cases.append((f"`{sampler}`, process", lambda own=own: ProcessPlanner(own)))
    print(
        "| planner | Hz | load | lateness p50 / p99 / max [ms] | period p50 / p99 / max [ms] | missed % | stale % "
        "| plan p50 / p99 [ms] | plans |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, make in cases:
        with make() as planner:
            for priority in (None, options.priority) if options.priority else (None,):
                for loaded in options.loads:
                    for hz in options.hz:
                        with busy(loaded):
                            telemetry = measure(planner, observation, hz, options, priority)
                        print(row(name + (", FIFO" if priority else ""), hz, loaded, telemetry), flush=True)
    cpu = torch.device("cpu")
    print(
        f"\n{hardware(cpu)}; torch {torch.__version__}, onnxruntime {versions(cpu)['onnxruntime']}; {options.policy}, "
        f"{options.backend}, one thread; {options.seconds:g} s a row; load average {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
