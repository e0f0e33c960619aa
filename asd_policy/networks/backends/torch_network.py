"""A network as PyTorch runs it, shared by the backends of PyTorch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import BackendError, DenoiserError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.backends.few_points import FEW, for_few_points
from asd_policy.networks.backends.film import FilmNetwork, film_of, in_dtype
from asd_policy.networks.backends.precision import computable, full_float32
from asd_policy.networks.backends.torch_options import FLOAT32, TorchBackend
from asd_policy.networks.denoiser import Denoiser

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class TorchDenoiser:
    """A network in a dtype, an `EncodingDenoiser`. Points and predictions keep their own dtype."""

    def __init__(self, network: nn.Module, job: Job, dtype: torch.dtype, few: int | None) -> None:
        """Prepare a network, which stays as it is; weights that need another dtype are copied.

        Args:
            network: On the job's device.
            job: The calls to prepare for.
            dtype: To compute in.
            few: As for `for_few_points`.
        """
        self._weights = Weights(network)
        self._device = job.device
        self._dtype = dtype
        film = film_of(network, job, dtype)
        if film is not None:
            film.network = for_few_points(film.network, few)
        self.core: nn.Module = in_dtype(network, dtype) if film is None else film
        """The module, called with points, timesteps and encoded conditioning in the dtype."""
        self.run: Call = self.core
        """The function that runs it."""

    def encode(self, cond: Tensor) -> Tensor:
        """Encode conditioning [B, cond_dim] once per plan, for the calls: [B, E].

        Raises:
            BackendError: The network's weights were moved or changed after it was prepared.
        """
        self._weights.check()
        if not isinstance(self.core, FilmNetwork):
            return cond
        with torch.inference_mode(), full_float32(self._device):
            return self.core.encode(cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict at points x [N, *event] and timesteps [N] with encoded conditioning [N, E]; in the dtype of x.

        Raises:
            BackendError: As `encode`, which is not called where there is no conditioning.
            DenoiserError: A timestep is not in the noise schedule, or the conditioning is not encoded.
        """
        if cond is None:
            self._weights.check()
        with torch.inference_mode(), full_float32(self._device):
            encoded = None if cond is None else cond.to(self._dtype)
            try:
                return self.run(x.to(self._dtype), timestep, encoded).to(x.dtype)
            except IndexError:
                low, high = int(timestep.min()), int(timestep.max())
                raise DenoiserError(f"no timesteps {low} … {high} in the network's noise schedule") from None


def try_out(denoiser: TorchDenoiser, job: Job, points: int) -> None:
    """Call a denoiser on some points, all zero."""
    x = torch.zeros((points, *job.event), dtype=torch.float32, device=job.device)
    cond = denoiser.encode(x.new_zeros((points, job.cond_dim)))
    timestep = torch.full((points,), job.chain.timesteps[0].item(), device=job.device)
    denoiser(x, timestep, cond)


def torch_denoiser(network: Denoiser, job: Job, backend: TorchBackend, few: int | None = FEW) -> TorchDenoiser:
    """Prepare a PyTorch network in a backend's dtype; a dtype other than float32 is tried out.

    Args:
        network: A module of PyTorch, on the job's device.
        job: The calls to prepare for.
        backend: For the dtype.
        few: As for `for_few_points`.

    Raises:
        BackendError: It is not a module of PyTorch's, not on the job's device, or cannot run in the dtype there.
    """
    module, dtype = checked_module(network, job.device, backend), getattr(torch, backend.dtype)
    denoiser = TorchDenoiser(module, job, dtype, few)
    try_in_dtype(lambda: try_out(denoiser, job, 1), job.device, backend)
    return denoiser


def checked_module(network: object, device: torch.device, backend: TorchBackend) -> nn.Module:
    """Refuse what a backend of PyTorch cannot run on a device.

    Raises:
        BackendError: It is not a module of PyTorch's, or not on the device.
    """
    if not isinstance(network, nn.Module):
        raise BackendError(f"{backend.spec} runs modules of PyTorch, and the network is a {type(network).__name__}")
    for parameter in network.parameters():
        if indexed(parameter.device) != indexed(device):
            raise BackendError(
                f"the network is on {parameter.device}, and the policy plans on {device}; load the policy with "
                f"device={str(parameter.device)!r}"
            )
    return network


def try_in_dtype(call: Callable[[], object], device: torch.device, backend: TorchBackend) -> None:
    """Try out a call, where a backend's dtype is other than float32.

    Raises:
        BackendError: It cannot be computed in the dtype there.
    """
    if backend.dtype == FLOAT32:
        return
    try:
        call()
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        valid = ", ".join(computable(device))
        raise BackendError(f"{backend.spec} cannot run on {device}: {reason}; {valid} can be computed there") from None


def indexed(device: torch.device) -> torch.device:
    """Add the number to a device: a GPU that is named without one is the current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class Weights:
    """Checks that a network's weights are still those that something was computed from."""

    def __init__(self, network: nn.Module) -> None:
        # Found through their modules, because moving a network may replace the parameters.
        self._places = [
            (owner, name)
            for module in network.modules()
            for owner in (module._parameters, module._buffers)
            for name in owner
        ]
        self._before = self._state()
        self._devices = {tensor.device for tensor in self._tensors()}

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy what it needs, after a check that the weights are still the prepared ones."""
        self.check()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the copied weights, at their own addresses."""
        self.__dict__.update(state)
        self._before = self._state()

    def check(self) -> None:
        """Raise BackendError if they are not."""
        if self._state() == self._before:
            return
        devices = {tensor.device for tensor in self._tensors()}
        if devices != self._devices:
            before, after = (", ".join(sorted(map(str, each))) for each in (self._devices, devices))
            raise BackendError(
                f"the network was moved from {before} to {after} after it was prepared; load the policy again, with "
                f"device={after!r}"
            )
        raise BackendError(
            "the network's weights were changed after it was prepared; policy.with_backend(policy.backend) prepares "
            "it anew"
        )

    def _tensors(self) -> Iterator[Tensor]:
        """Yield parameters and buffers, such as the statistics of batch normalisation."""
        for owner, name in self._places:
            tensor = owner[name]
            if tensor is not None:
                yield tensor

    def _state(self) -> list[tuple[int, int]]:
        """List each tensor's address and how often it was written to (inference tensors do not count that)."""
        return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in self._tensors()]
