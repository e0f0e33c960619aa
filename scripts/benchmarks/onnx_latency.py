"""What does a call of ONNX Runtime cost on one thread of a CPU: by points, by how convolutions are written, by options?

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmarks/onnx_latency.py --policy checkpoints/metaworld-pick-place

CPU time, not wall time: it is the same on a busy machine, and on one thread the two are equal on a quiet one. The calls
of all variants take turns, so that other load on the machine meets all alike.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro

from asd_policy._common.hardware import hardware
from asd_policy.checkpoints import load_policy
from asd_policy.networks.backends import Job, make_backend
from asd_policy.networks.backends.onnx_export import example, export_for_cpu, export_network
from asd_policy.networks.backends.onnx_network import OnnxNetwork
from asd_policy.networks.backends.onnx_session import import_onnxruntime, session_options
from asd_policy.networks.denoiser import Denoiser, encode
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig

onnxruntime = import_onnxruntime()
POINTS = (1, 2, 4, 8, 16, 32, 64)
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policy: str
    """Checkpoint of a network, or of the observations and actions of a larger one."""
    down_dims: tuple[int, ...] = ()
    """Measure a U-Net with these channels and random weights in the place of the checkpoint's."""
    points: tuple[int, ...] = POINTS
    """Points in a call."""
    seconds: float = 1.0
    """Time for each variant at each number of points [s]."""


def no_spinning(options: Any) -> None:
    """Let idle threads sleep."""
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")


# Changes of `SessionOptions`; with one thread none made a difference beyond noise.
CHANGES: dict[str, Change] = {
    "no graph optimisation": lambda options: setattr(
        options, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    ),
    "no memory arena": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    "no memory pattern": lambda options: setattr(options, "enable_mem_pattern", False),
    "no spinning": no_spinning,
    "two threads between nodes": lambda options: setattr(options, "inter_op_num_threads", 2),
}


IN_A_ROW = 8
"""Calls of a turn that are timed, after one that is not."""


def session(content: bytes, change: Change = lambda options: None) -> OnnxNetwork:
    """Open a session on one thread, with changed options."""
    options = session_options(1)
    change(options)
    opened = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return OnnxNetwork([opened], ("cpu", 0))


def measure(networks: dict[str, Denoiser], job: Job, points: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Measure median and half the interquartile range of the CPU time of a call of each network [ms].

    They take turns of some calls in a row, as a plan makes them: after another network a call finds its weights, and
    much else, no longer in the caches.
    """
    x, timestep, cond = example(job, points, torch.Generator().manual_seed(0))
    calls = {name: partial(each, x, timestep, encode(each, cond)) for name, each in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(networks)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            call()
            for _ in range(IN_A_ROW):
                start = time.thread_time()
                call()
                times[name].append(1e3 * (time.thread_time() - start))

    def summary(values: list[float]) -> tuple[float, float]:
        low, middle, high = statistics.quantiles(values, n=4)
        return middle, (high - low) / 2

    return {name: summary(values) for name, values in times.items()}


def table(networks: dict[str, Denoiser], job: Job, points: Sequence[int], seconds: float) -> None:
    """Print the measurements as a table in Markdown."""
    columns = {each: measure(networks, job, each, seconds) for each in points}
    print("| points | " + " | ".join(map(str, points)) + " |")
    print("|" + "---|" * (len(points) + 1))
    for name in networks:
        cells = ["{:.2f} ± {:.2f}".format(*columns[each][name]) for each in points]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def rounding(networks: dict[str, Denoiser], exact: torch.nn.Module, job: Job, points: Sequence[int]) -> None:
    """Print how far predictions are from those in double precision, in units of these: both root mean squares."""
    print("| points | " + " | ".join(map(str, points)) + " |")
    print("|" + "---|" * (len(points) + 1))
    cells: dict[str, list[str]] = {name: [] for name in networks}
    for each in points:
        x, timestep, cond = example(job, each, torch.Generator().manual_seed(0))
        expected = exact(x.double(), timestep, cond.double())
        for name, network in networks.items():
            wrong = network(x, timestep, encode(network, cond)) - expected
            cells[name].append(f"{float(wrong.square().mean().sqrt() / expected.square().mean().sqrt()):.1e}")
    for name, row in cells.items():
        print(f"| {name} | " + " | ".join(row) + " |")
    print()


def main(options: Options) -> None:
    """Export the network in all ways, and measure."""
    policy = load_policy(options.policy)
    network, job = policy.network, policy.job
    if options.down_dims:
        torch.manual_seed(0)
        config = UnetConfig(job.event[-1], job.cond_dim, options.down_dims)
        network = ConditionalUnet1d(config).eval().requires_grad_(False)
    assert isinstance(network, torch.nn.Module)
    parameters = sum(each.numel() for each in network.parameters())
    print(
        f"{parameters:,} parameters, {job.event[0]} steps; CPU time of a call [ms], median ± half the quartiles' range"
    )
    print(f"{hardware(job.device)}; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}\n")
    plain = export_network(network, job).whole().SerializeToString()
    forms = [form.whole().SerializeToString() for form in export_for_cpu(network, job)]
    lowered, fewer = forms[0], forms[-1]
    ways: dict[str, Denoiser] = {
        "PyTorch, eager": network,
        "ONNX Runtime, convolutions as exported": session(plain),
        "ONNX Runtime, matrix products": session(lowered),
        "ONNX Runtime, fewer products": session(fewer),
        "the backend": make_backend("onnx:threads=1").prepare(network, job),
    }
    with torch.inference_mode():
        table(ways, job, options.points, options.seconds)
        rounding(ways, copy.deepcopy(network).double(), job, options.points)
        changed: dict[str, Denoiser] = {name: session(lowered, change) for name, change in CHANGES.items()}
        table({"as the backend has them": session(lowered), **changed}, job, (1, 32), options.seconds)


if __name__ == "__main__":
    main(tyro.cli(Options))
