"""What does a call of PyTorch cost on one thread of a CPU, with convolutions and with matrix products in their place?

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmarks/few_points.py --policies checkpoints/intercept

Prints a table of docs/results/network_calls.md: medians of calls in a row, as plans make them, by their number of
points. The ways to compute take turns. To compile takes minutes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from asd_policy._common.hardware import hardware
from asd_policy.checkpoints import load_policy
from asd_policy.networks.backends import Job
from asd_policy.networks.backends.onnx_export import example
from asd_policy.networks.backends.torch_compile import TorchCompile
from asd_policy.networks.backends.torch_compiled import Compiled
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.backends.torch_network import torch_denoiser
from asd_policy.networks.denoiser import Denoiser
from study_common import markdown_table

TURNS, IN_A_ROW = 5, 8
"""Turns of each way, and calls of a turn, of which the first two are not timed."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policies: tuple[str, ...]
    """Checkpoints of networks."""
    points: tuple[int, ...] = (1, 4, 8, 12, 16, 24, 32, 64)
    """Points in a call."""


def ways(network: Denoiser, job: Job) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Make the network run with convolutions alone and with products alone, as it is and compiled."""
    made: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
    for backend in (TorchEager(), TorchCompile()):
        for kind, few in (("convolutions", 0), ("products", None)):
            denoiser = torch_denoiser(network, job, backend, few)
            if isinstance(backend, TorchCompile):
                denoiser.run = Compiled(denoiser.core, backend.spec)
            made[f"{backend.spec}, {kind}"] = lambda x, timestep, cond, denoiser=denoiser: denoiser(
                x, timestep, denoiser.encode(cond)
            )
    return made


def measure(call: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    """Time calls in a row [ms]."""
    seconds = []
    for _ in range(IN_A_ROW):
        start = time.perf_counter()
        call(*inputs)
        seconds.append(1e3 * (time.perf_counter() - start))
    return seconds[2:]


def main(options: Options) -> None:
    """Measure, and print."""
    rows = []
    for name in options.policies:
        policy = load_policy(name)
        made = ways(policy.network, policy.job)
        medians: dict[str, list[float]] = {way: [] for way in made}
        for points in options.points:
            inputs = example(policy.job, points, torch.Generator().manual_seed(0))
            took: dict[str, list[float]] = {way: [] for way in made}
            for _ in range(TURNS):
                for way, call in made.items():
                    took[way] += measure(call, inputs)
            for way in made:
                medians[way].append(statistics.median(took[way]))
        rows += [[f"`{name.rpartition('/')[2]}`", way, *(f"{each:.2f}" for each in medians[way])] for way in made]
    print(markdown_table(["checkpoint", "way", *(f"{points} points" for points in options.points)], rows))
    print(f"Milliseconds, medians of n = {TURNS * (IN_A_ROW - 2)} calls. {hardware(torch.device('cpu'))};", end=" ")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(tyro.cli(Options))
