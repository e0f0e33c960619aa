"""How many control steps of each environment fit into a second? Prints the table of docs/results/environment_speed.md.

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmarks/env_speed.py --write docs/results/environment_speed.md

CPU time of one process, not wall time, so that waiting on a busy machine does not count. Actions are drawn uniformly,
and an episode that ends begins anew outside the measured time.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import tyro

import asd_envs  # noqa: F401  registers the environments
from asd_policy._common.arrays import NUMPY
from asd_policy._common.files import atomic_file
from asd_policy._common.hardware import hardware

BEGIN, END = "<!-- table: scripts/benchmarks/env_speed.py -->", "<!-- /table -->"
BLOCK = 10  # control steps timed at once
PACKAGES = ("mujoco", "gymnasium", "metaworld", "gymnasium-robotics", "gym-pusht", "robosuite", "gym-aloha")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    envs: tuple[str, ...] = ()
    """Ids; all of this package's if none is given, but for those whose suite is not installed."""
    blocks: int = 20
    """Blocks of 10 steps for each."""
    resets: int = 3
    """Resets timed for each."""
    write: Path | None = None
    """Document in which to replace the table."""


@dataclass(frozen=True)
class Speed:
    """What was measured of an environment."""

    rates: Sequence[float]
    """Control steps per second of CPU time, block by block."""
    resets: Sequence[float]
    """CPU time of each reset [ms]."""

    def row(self, env_id: str) -> str:
        """Format a line of the table."""
        low, middle, high = statistics.quantiles(self.rates, n=4)
        return f"| `{env_id}` | {middle:,.0f} | {low:,.0f} … {high:,.0f} | {statistics.median(self.resets):,.1f} |"


def measure(env: gymnasium.Env[Any, Any], blocks: int, resets: int) -> Speed:
    """Time blocks of steps and resets."""
    env.reset(seed=0)
    env.action_space.seed(0)
    reset_times, rates = [], []
    for _ in range(resets):
        start = time.process_time()
        env.reset()
        reset_times.append(1e3 * (time.process_time() - start))
    for _ in range(blocks):
        taken = 0.0
        for _ in range(BLOCK):
            action = env.action_space.sample()
            start = time.process_time()
            _, _, terminated, truncated, _ = env.step(action)
            taken += time.process_time() - start
            if terminated or truncated:
                env.reset()
        rates.append(BLOCK / taken)
    return Speed(rates, reset_times)


def main(options: Options) -> None:
    """Measure one environment after the other."""
    lines = ["| environment | steps/s | quartiles | reset ms |", "|---|---|---|---|"]
    for env_id in options.envs or sorted(each for each in gymnasium.registry if each.startswith("asd/")):
        try:
            env = gymnasium.make(env_id)
        except ImportError as error:
            print(f"{env_id} left out: {error}", file=sys.stderr)
            continue
        lines.append(measure(env, options.blocks, options.resets).row(env_id))
        print(lines[-1], file=sys.stderr)
        env.close()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name.replace("-", "_")))
    note = (
        f"{hardware(NUMPY)}, one of them; {packages}; CPU time, median and quartiles of {options.blocks} blocks of "
        f"{BLOCK} steps, median of {options.resets} resets."
    )
    table = "\n".join([*lines, "", note])
    if options.write is None:
        print(table)
        return
    text = options.write.read_text()
    head, rest = text.split(BEGIN)
    with atomic_file(options.write) as path:
        path.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main(tyro.cli(Options))
