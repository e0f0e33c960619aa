"""A call's points, split over replicas of the network."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.backends.precision import full_float32
from asd_policy.networks.backends.torch_network import TorchDenoiser, indexed, torch_denoiser
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.denoiser import Denoiser


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
        self._devices = _find_devices(backend, devices)
        if self._devices[0] != indexed(job.device):
            raise BackendError(
                f"{backend.spec} begins with {self._devices[0]}, and the policy is on {job.device}: begin with that "
                f"or load the policy with device={str(self._devices[0])!r}"
            )
        first = torch_denoiser(network, job, backend)
        self._replicas = [first]
        for device in self._devices[1:]:
            there = network
            if isinstance(network, nn.Module) and device != self._devices[0]:
                there = copy.deepcopy(network).to(device)
            self._replicas.append(torch_denoiser(there, replace(job, device=device), backend))

    def encode(self, cond: Tensor) -> Tensor:
        """Encode conditioning [B, cond_dim] once per plan, by the first replica: [B, E]."""
        return self._replicas[0].encode(cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict at points x [N, *event] and timesteps [N] with encoded conditioning [N, E], a part per replica."""
        parts = zip(
            self._replicas,
            self._devices,
            x.tensor_split(len(self._replicas)),
            timestep.tensor_split(len(self._replicas)),
            [None] * len(self._replicas) if cond is None else cond.tensor_split(len(self._replicas)),
            strict=True,
        )
        kind = x.device.type
        autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

        def predict(
            replica: TorchDenoiser, device: torch.device, x: Tensor, timestep: Tensor, cond: Tensor | None
        ) -> Tensor:
            with torch.autocast(*autocast):  # a new thread has none
                there = (x.to(device), timestep.to(device), None if cond is None else cond.to(device))
                return replica(*there).to(x.device)

        # PyTorch's settings are shared by all threads, so no thread may change or restore them.
        with full_float32(x.device), torch.inference_mode():
            threads = _threads(len(self._replicas))
            running = [threads.submit(predict, *part) for part in parts if len(part[2])]
            return torch.cat([each.result() for each in running])


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Start threads, once. PyTorch releases the interpreter inside an operation, so that theirs overlap."""
    return ThreadPoolExecutor(count, thread_name_prefix="torch-replicas")


def _find_devices(backend: TorchBackend, names: Sequence[str] | None) -> list[torch.device]:
    """Find the devices to use.

    Raises:
        BackendError: One is not there.
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
    return found
