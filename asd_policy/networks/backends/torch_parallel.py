"""A call's points, split over replicas of the network."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.precision import full_float32
from asd_policy.networks.backends.torch_network import indexed, torch_denoiser
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.backends.torch_sensor import torch_sensor
from asd_policy.networks.denoiser import Denoiser

T = TypeVar("T")


class Replicas:
    """A network on several devices, as an `EncodingDenoiser`. Its predictions are on the device of the points."""

    def __init__(self, network: Denoiser, job: Job, backend: TorchBackend, devices: Sequence[str] | None) -> None:
        """Copy the network to every device but the first, where it is already.

        Args:
            network: The network, on the first device.
            job: The calls to prepare for.
            backend: For its dtype, and its spec in messages.
            devices: Torch devices, such as cuda:0, the first being the job's; None for every GPU.

        Raises:
            BackendError: A device is not there, the first is not the job's, or the network cannot be computed on one.
        """
        self._devices = _find_devices(backend, devices, job.device)
        self._replicas = [
            torch_denoiser(each, replace(job, device=device), backend)
            for each, device in _copies(network, self._devices)
        ]

    def encode(self, cond: Tensor) -> Tensor:
        """Encode conditioning [B, cond_dim] once per plan, by the first replica: [B, E]."""
        return self._replicas[0].encode(cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict at points x [N, *event] and timesteps [N] with encoded conditioning [N, E], a part per replica."""
        return _split(self._replicas, self._devices, (x, timestep, cond))


class SensorReplicas:
    """A sensor's network on several devices. Its features are on the device of what is encoded."""

    def __init__(self, network: Encode, job: SensorJob, backend: TorchBackend, devices: Sequence[str] | None) -> None:
        """Copy the network, as `Replicas` does."""
        self._devices = _find_devices(backend, devices, job.device)
        self._replicas = [
            torch_sensor(each, replace(job, device=device), backend) for each, device in _copies(network, self._devices)
        ]

    def __call__(self, seen: Tensor) -> Tensor:
        """Encode what it has seen [N, *shape] as features [N, size], a part per replica."""
        return _split(self._replicas, self._devices, (seen,))

    def check(self) -> None:
        """Refuse weights that were moved or changed, as a call does."""
        for replica in self._replicas:
            replica.check()


def _copies(network: T, devices: Sequence[torch.device]) -> Iterator[tuple[T, torch.device]]:
    """Yield a network for each device: itself on the first, where it is already, and where it can be shared."""
    for device in devices:
        there: Any = network
        if isinstance(network, nn.Module) and device != devices[0]:
            there = copy.deepcopy(network).to(device)
        yield there, device


def _split(
    replicas: Sequence[Callable[..., Tensor]], devices: Sequence[torch.device], inputs: Sequence[Tensor | None]
) -> Tensor:
    """Call each replica with a part of the rows, in a thread of its own, and join what they return."""
    count = len(replicas)
    first = inputs[0]
    assert first is not None
    parts = [[None] * count if each is None else each.tensor_split(count) for each in inputs]
    kind = first.device.type
    autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def call(replica: Callable[..., Tensor], device: torch.device, part: Sequence[Tensor | None]) -> Tensor:
        with torch.autocast(*autocast):  # a new thread has none
            there = (None if each is None else each.to(device) for each in part)
            return replica(*there).to(first.device)

    # PyTorch's settings are shared by all threads, so no thread may change or restore them.
    with full_float32(first.device), torch.inference_mode():
        rows = zip(replicas, devices, zip(*parts, strict=True), strict=True)
        running = [_threads(count).submit(call, *each) for each in rows if each[2][0] is not None and len(each[2][0])]
        return torch.cat([each.result() for each in running])


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Start threads, once. PyTorch releases the interpreter inside an operation, so that theirs overlap."""
    return ThreadPoolExecutor(count, thread_name_prefix="torch-replicas")


def _find_devices(backend: TorchBackend, names: Sequence[str] | None, first: torch.device) -> list[torch.device]:
    """Find the devices to use.

    Raises:
        BackendError: One is not there, or they do not begin with `first`, where the policy is.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if names is None and not gpus:
        raise BackendError(f"{backend.spec} wants GPUs and there are none: name its devices, such as devices=cpu+cpu")
    found = []
    for name in gpus if names is None else names:
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError):  # a build of torch without CUDA asserts
            raise BackendError(
                f"no device {name!r} here for {backend.spec}; there are {', '.join(['cpu', *gpus])}"
            ) from None
        found.append(indexed(device))
    if found[0] != indexed(first):
        raise BackendError(
            f"{backend.spec} begins with {found[0]}, and the policy is on {first}: begin with that or load the policy "
            f"with device={str(found[0])!r}"
        )
    return found
