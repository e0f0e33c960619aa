"""Does `asd_policy.ControlLoop` grow or drift over an hour? Prints a table in Markdown for docs/results/soak.md.

    python scripts/benchmarks/soak.py --policy checkpoints/avoid --env asd/Avoid-v0
    python scripts/benchmarks/soak.py --policy checkpoints/avoid --env asd/Avoid-v0 --real --minutes 5

An hour of ticks in virtual time: the loop's threads are the real ones, its clock jumps to the next deadline, and a plan
takes `--latency` of it. With `--real` the clock is the machine's. Drift is how far the deadline of a tick, or the tick,
is from start + tick / hz.
"""

import gc
import os
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import gymnasium
import psutil
import torch
import tyro

from asd_policy import ControlLoop, LoopOptions, load_policy
from asd_policy._common.hardware import hardware
from asd_policy.deploy.realtime.timebase import RealTime, VirtualTime
from asd_policy.evaluation.rollout.environments import make_env


@dataclass(frozen=True)
class Options:
    """What to run."""

    policy: str
    """Checkpoint: a path, or a Hub id."""
    env: str
    """Gymnasium id."""
    sampler: str = "asd:window=16"
    """Sampler spec."""
    backend: str = "onnx"
    """What runs the network."""
    hz: float = 50.0
    """Rate [Hz]."""
    minutes: float = 60.0
    """Length, in the loop's time [min]."""
    latency: float = 50.0
    """Of every plan in virtual time [ms]."""
    real: bool = False
    """Run in the machine's time."""
    samples: int = 12
    """Lines of the table."""
    trace: bool = True
    """Have Python count what it has allocated, which makes it several times slower."""


class Meter(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Prints time and memory at some steps."""

    def __init__(self, env: gymnasium.Env[Any, Any], every: int, clock: VirtualTime | RealTime) -> None:
        """Begin.

        Args:
            env: The environment.
            every: Steps from one line to the next.
            clock: The loop's.
        """
        super().__init__(env)
        self._every, self._clock, self._steps = every, clock, 0
        self._begin: float | None = None

    def step(self, action: Any) -> Any:
        """Print, if it is time to, and step."""
        if self._steps % self._every == 0:
            gc.collect()
            resident = psutil.Process().memory_info().rss / 1e6
            traced = f"{tracemalloc.get_traced_memory()[0] / 1e6:.3f}" if tracemalloc.is_tracing() else "–"
            now = self._clock.now()
            self._begin = now if self._begin is None else self._begin
            minutes = (now - self._begin) / 60
            print(
                f"| {self._steps} | {minutes:.2f} | {resident:.1f} | {traced} | {len(gc.get_objects())} |",
                flush=True,
            )
        self._steps += 1
        return super().step(action)


def main() -> None:
    """Run, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    ticks = round(60 * options.minutes * options.hz)
    clock = RealTime() if options.real else VirtualTime(options.latency / 1e3)
    env = Meter(make_env(options.env), max(1, ticks // options.samples), clock)
    policy = load_policy(options.policy, options.sampler, backend=options.backend)
    policy.reset(seed=0)
    loop = ControlLoop.for_env(
        policy, env, options.hz, LoopOptions(ticks=ticks, patience=10.0, late_limit=10**9), clock, 0
    )
    print("| step | minutes of the loop | resident [MB] | Python's [MB] | objects |\n|---|---|---|---|---|")
    if options.trace:
        tracemalloc.start()
    start = time.perf_counter()
    telemetry = loop.run()
    seconds = time.perf_counter() - start
    env.close()
    print(f"\n{telemetry}")
    print(
        f"\n{hardware(torch.device('cpu'))}; torch {torch.__version__}; {options.sampler}, {options.backend}, "
        f"one thread; {ticks} ticks at {options.hz:g} Hz in {seconds / 60:.1f} min; load average "
        f"{os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
