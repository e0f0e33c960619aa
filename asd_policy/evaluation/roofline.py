"""What a device and a network can do at best: the bounds that every sampler is measured against.

They are one network call at each number of points, the K calls of the sequential sampler, and the least time that the
device could take for a call. That time is the larger of two: the call's floating-point operations at the rate of the
device's own matrix product, as PyTorch has it, and its weights, read once, at the device's own copy bandwidth. A
network that fits into a cache, or a backend with a faster matrix product, can be faster than that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asd_policy._common import arrays
from asd_policy._common.clock import Clock
from asd_policy.errors import BackendError
from asd_policy.evaluation.states import random_conditioning
from asd_policy.networks.denoiser import Denoiser, encode
from asd_policy.networks.recording import OutOfDeviceMemory, launcher_of
from asd_policy.policy.policy import Policy

Advance = Callable[[str, int, int], object]
"""Called with what is being done, how many are done, and how many there are."""
POINTS = (1, 2, 4, 8, 16, 32, 64)
"""Points of a row that calls are timed with, as far as the chain has steps."""
BLOCKS, CALLS = 3, 5
"""How often each number of points has its turn, and timed calls in a row in each turn; the median of all counts."""
_WARM_UP_CALLS = 16
"""Of a turn, not timed: the first ten or so find caches full of another network, or of other numbers of points."""
_LEAST_WARM_UP_CALLS, _WARM_UP_SECONDS = 2, 0.1  # a network whose calls take long has weights that no cache holds
_MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns of the timed matrix product
_COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes of the timed copy: more than caches hold
_REPEATS = 5  # of both; the fastest counts


@dataclass(frozen=True)
class Work:
    """What one network call computes and moves."""

    points: int
    """Rows of its batch."""
    flops: int
    """Floating-point operations of its matrix products and convolutions, a multiplication and an addition each."""
    bytes: int
    """What its operations read and write, weights included, each operation by itself, as eager PyTorch runs it."""


@dataclass(frozen=True)
class Network:
    """A network's size and work, in the precision that it was loaded in."""

    parameters: int
    weight_bytes: int
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Ceiling:
    """The bounds, as measured."""

    steps: int
    """Length K of the chain."""
    calls: dict[str, dict[int, list[float]]]
    """Seconds of each timed network call by backend and number of points."""
    dtypes: dict[str, str]
    """What each backend computes in."""
    network: Network | None
    """None where the network is no PyTorch module, so that its operations cannot be counted."""
    flops_per_second: dict[str, float]
    """Of a large matrix product, by dtype."""
    bytes_per_second: float
    """Of a large copy, bytes read and bytes written together."""

    def call_seconds(self, backend: str, points: float) -> float:
        """Interpolate what a network call on so many points takes on a backend [s]."""
        measured = self.calls[backend]
        return float(np.interp(points, list(measured), [np.median(seconds) for seconds in measured.values()]))

    def record(self) -> dict[str, Any]:
        """Build the `ceiling` of results.json."""
        first = {backend: min(calls) for backend, calls in self.calls.items()}
        return {
            "flops_per_second": self.flops_per_second,
            "bytes_per_second": self.bytes_per_second,
            "network": self.network and asdict(self.network),
            "backends": [
                {
                    "backend": backend,
                    "dtype": self.dtypes[backend],
                    "call_ms": 1e3 * self.call_seconds(backend, first[backend]),
                    "sequential_ms": 1e3 * self.steps * self.call_seconds(backend, first[backend]),
                    "curve": [self._point(backend, points) for points in calls],
                }
                for backend, calls in self.calls.items()
            ],
        }

    def _point(self, backend: str, points: int) -> dict[str, Any]:
        """Build one point of a backend's curve, with the bounds that the device sets."""
        found = {
            "points": points,
            "call_ms": 1e3 * self.call_seconds(backend, points),
            "call_min_ms": 1e3 * min(self.calls[backend][points]),
            "n": len(self.calls[backend][points]),
        }
        bounds: dict[str, float | None] = dict.fromkeys(("compute_ms", "weights_ms", "traffic_ms", "of_limit"))
        work = next((each for each in self.network.work if each.points == points), None) if self.network else None
        if self.network and work:
            dtype = self.dtypes[backend]
            shrink = _dtype(dtype).itemsize / torch.float32.itemsize
            compute = 1e3 * work.flops / self.flops_per_second[dtype]
            weights = 1e3 * shrink * self.network.weight_bytes / self.bytes_per_second
            bounds = {
                "compute_ms": compute,
                "weights_ms": weights,
                "traffic_ms": 1e3 * shrink * work.bytes / self.bytes_per_second,
                "of_limit": max(compute, weights) / found["call_ms"],
            }
        return found | bounds


def measure_ceiling(
    policies: Sequence[Policy], batch: int, clock: Clock, advance: Advance = lambda doing, done, total: None
) -> Ceiling:
    """Measure calls on each backend, the network's work, and the device.

    Args:
        policies: One network and chain, on one device, each on another backend.
        batch: Rows of a plan; calls have a multiple of them.
        clock: Of the device.
        advance: Called before each turn of a number of points.

    Raises:
        AsdError: A network failed, or the device has too little memory.
    """
    policy = policies[0]
    points = [batch * count for count in POINTS if count <= len(policy.job.chain)]
    dtypes = {each.backend.spec: each.backend.dtype for each in policies}
    try:
        with torch.inference_mode():
            return Ceiling(
                steps=policy.steps,
                calls=time_calls(policies, points, clock, advance),
                dtypes=dtypes,
                network=measure_network(policy, points),
                flops_per_second={
                    dtype: matmul_rate(policy.device, dtype, clock) for dtype in dict.fromkeys(dtypes.values())
                },
                bytes_per_second=copy_rate(policy.device, clock),
            )
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"a network call on {points[-1]} points is out of memory: {str(error).splitlines()[0]}; use a smaller batch"
        ) from None


def time_calls(
    policies: Sequence[Policy], points: Sequence[int], clock: Clock, advance: Advance = lambda doing, done, total: None
) -> dict[str, dict[int, list[float]]]:
    """Time network calls by backend and number of points [s], as plans make them: in a row on so many points.

    A call after one on another number of points, or of another backend, can take several times as long. Turns are
    interleaved, so that what else the machine does meets all alike.
    """
    calls = {
        (policy.backend.spec, count): replayed(policy.denoiser, network_call(policy.denoiser, policy, count))
        for policy in policies
        for count in points
    }
    seconds: dict[str, dict[int, list[float]]] = {
        policy.backend.spec: {count: [] for count in points} for policy in policies
    }
    for block in range(BLOCKS):
        for turn, ((backend, count), call) in enumerate(calls.items()):
            advance("measuring the ceiling", block * len(calls) + turn, BLOCKS * len(calls))
            _warm_up(call)
            seconds[backend][count] += [_time(call, clock) for _ in range(CALLS)]
    return seconds


def measure_network(policy: Policy, points: Sequence[int]) -> Network | None:
    """Measure a policy's network as loaded: its size, and its work at each number of points."""
    network = policy.network
    if not isinstance(network, nn.Module):
        return None
    weights = list(network.parameters())
    return Network(
        parameters=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.numel() * weight.itemsize for weight in weights),
        work=tuple(measure_work(network_call(network, policy, count), count) for count in points),
    )


def measure_work(call: Callable[[], object], points: int) -> Work:
    """Count what a call of PyTorch operations computes and moves."""
    from torch.utils.flop_counter import FlopCounterMode  # brings torch's compiler in

    traffic = Traffic()
    with FlopCounterMode(display=False) as counter, traffic:
        call()
    return Work(points, counter.get_total_flops(), traffic.bytes)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in _tensors((args, kwargs, result)))
        return result


def matmul_rate(device: torch.device, dtype: str, clock: Clock) -> float:
    """Measure the floating-point operations per second of a large matrix product."""
    size = _MATRIX[device.type]
    left, right = (torch.randn((size, size), device=device).to(_dtype(dtype)) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: left @ right, clock)


def copy_rate(device: torch.device, clock: Clock) -> float:
    """Measure the bytes per second that a large copy reads and writes."""
    source = torch.zeros(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / _fastest(lambda: target.copy_(source), clock)


def network_call(denoiser: Denoiser, policy: Policy, points: int) -> Callable[[], object]:
    """Prepare a network call on `points` points, all at the chain's first step."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = arrays.normals((points, *policy.job.event), generator, generator.device).to(policy.device)
    timestep = torch.full((points,), policy.job.chain.timesteps[0].item(), device=policy.device)
    cond = random_conditioning(policy, points, seed=0)
    cond = encode(denoiser, cond)  # what a backend does once for a plan is no part of a call
    return lambda: denoiser(x, timestep, cond)


def replayed(denoiser: Denoiser, call: Callable[[], object]) -> Callable[[], object]:
    """Record a call where a backend's calls are recorded, as plans make them; else give the call itself.

    Raises:
        BackendError: The device has too little memory for the recording.
    """
    launcher = launcher_of(denoiser)
    if launcher is None:
        return call
    try:
        replay = launcher.record(call)
    except OutOfDeviceMemory:
        raise BackendError("the device has no memory to record a network call; use a smaller batch") from None

    def launch() -> None:
        with launcher.queue():
            replay()
        launcher.settle()

    return launch


def _warm_up(call: Callable[[], object]) -> None:
    start = time.perf_counter()
    for made in range(_WARM_UP_CALLS):
        if made >= _LEAST_WARM_UP_CALLS and time.perf_counter() - start > _WARM_UP_SECONDS:
            return
        call()


def _time(call: Callable[[], object], clock: Clock) -> float:
    start = clock.tick()
    call()
    (seconds,) = clock.seconds([start, clock.tick()])
    return seconds


def _fastest(call: Callable[[], object], clock: Clock) -> float:
    call()
    return min(_time(call, clock) for _ in range(_REPEATS))


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _tensors(values: Any) -> list[Tensor]:
    """List the tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
