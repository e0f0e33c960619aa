"""The one model seam: whatever predicts noise, sample or velocity is called as `denoiser(x, timestep, cond)`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy.errors import DenoiserError


class Denoiser(Protocol):
    """A diffusion model's network. Each row's output depends on that row alone, and on nothing random."""

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None, /) -> Tensor:
        """Predict what the chain's `prediction_type` says.

        Args:
            x: Points of the chain [N, *event].
            timestep: Diffusion timesteps [N], int64.
            cond: Conditioning [N, *cond_event], or None for an unconditional model.

        Returns:
            Predictions [N, *event].
        """
        ...


@runtime_checkable
class EncodingDenoiser(Denoiser, Protocol):
    """A denoiser that computes once per plan what depends on the conditioning alone.

    `Sampler.sample` calls `encode` once, and `__call__` then with rows of what it returned: any of them, in any order.
    """

    def encode(self, cond: Tensor, /) -> Tensor:
        """Return what calls are to be given in the place of conditioning.

        Args:
            cond: Conditioning of the samples [B, *cond_event].

        Returns:
            One row for each sample, [B, E], on the same device.
        """
        ...


def encode(denoiser: Denoiser, cond: Tensor) -> Tensor:
    """Return what a denoiser's calls are to be given: encoded conditioning, or, if it encodes none, the same.

    Raises:
        DenoiserError: `encode` did not return a tensor with a row for each sample.
    """
    if not isinstance(denoiser, EncodingDenoiser):
        return cond
    encoded = denoiser.encode(cond)
    if not isinstance(encoded, Tensor) or encoded.ndim == 0 or len(encoded) != len(cond):
        shape = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
        raise DenoiserError(
            f"the network encoded the conditioning of {len(cond)} samples as {shape}, not as so many rows"
        )
    return encoded


class MeteredDenoiser:
    """Calls a denoiser and adds up the time inside it.

    On a GPU the clock is read after the kernels have run: each call then waits for them, which a sampler that
    reports `network_seconds` has to accept.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        """Wrap a denoiser for the length of one `sample` call, with the autocast that is on now for the device."""
        self._denoiser = denoiser
        self._device = device
        kind = device.type
        self._autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.seconds = 0.0

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate the denoiser on N points; the result has the dtype of `x`, whatever the network computes in.

        Raises:
            DenoiserError: Its output is not a tensor of floating-point numbers in the shape of its input.
        """
        with self._timed():
            output = self._denoiser(x, timestep, cond)
        check_form(output, x)
        return output.to(x.dtype)

    def encode(self, cond: Tensor | None) -> Tensor | None:
        """Encode conditioning [B, …] where the denoiser does that.

        Raises:
            DenoiserError: As the function `encode`.
        """
        if cond is None:
            return None
        with self._timed():
            return encode(self._denoiser, cond)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        with self._autocast:
            yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - start


def check_form(output: Tensor, x: Tensor) -> None:
    """Refuse what is not floating-point numbers in the shape of the network's input.

    Raises:
        DenoiserError: It is not.
    """
    if not isinstance(output, Tensor):
        raise DenoiserError(f"the network returned a {type(output).__name__}, not a tensor")
    if not output.is_floating_point():
        raise DenoiserError(f"the network returned {output.dtype}, not floating-point numbers")
    if output.shape != x.shape:
        raise DenoiserError(
            f"the network returned shape {tuple(output.shape)} for an input of shape {tuple(x.shape)}; "
            "they must be equal"
        )


def check_deterministic(denoiser: Denoiser, x: Tensor, timestep: Tensor, cond: Tensor | None) -> None:
    """Refuse a network that breaks the contract of `Denoiser`; what it would plan has no law to keep.

    Three calls: twice the same, as dropout left on would show, and the first row alone, as batch normalisation left
    in training mode would.

    Args:
        denoiser: The network.
        x: Points [N, *event], two rows or more that differ.
        timestep: Their timesteps [N].
        cond: Their conditioning [N, …], encoded where the network encodes it, or None.

    Raises:
        DenoiserError: The output is not a floating-point tensor of the shape of `x`, or not finite, or two equal calls
            differ, or a row depends on its neighbours.
    """
    output = denoiser(x, timestep, cond)
    check_form(output, x)
    if not bool(torch.isfinite(output).all()):
        bad = int((~torch.isfinite(output)).sum())
        raise DenoiserError(f"the network returned NaN or infinity: {bad} of {output.numel()} values")
    scale = float(output.abs().max())
    change = float((denoiser(x, timestep, cond) - output).abs().max())
    # Kernels may add up in another order from call to call; dropout changes far more.
    if change > 100 * torch.finfo(output.dtype).eps * scale:
        raise DenoiserError(
            f"two equal calls of the network differ by {change:.2g} (its largest output is {scale:.2g}); "
            "is dropout left on? Call .eval()"
        )
    alone = denoiser(x[:1], timestep[:1], None if cond is None else cond[:1])
    change = float((alone[0] - output[0]).abs().max())
    # Another batch may run other kernels, in TensorFloat-32 with three digits; batch statistics change far more.
    if change > 0.01 * scale:
        raise DenoiserError(
            f"the network's output for a row differs by {change:.2g} with and without other rows beside it "
            f"(its largest output is {scale:.2g}); is batch normalisation in training mode? Call .eval()"
        )


def check_on_noise(
    denoiser: Denoiser,
    timesteps: npt.NDArray[np.int64],
    event: Sequence[int],
    cond: Tensor | None,
    device: torch.device,
) -> None:
    """Call a network a few times, on noise, to see whether it is one that can be sampled from.

    Args:
        denoiser: The network.
        timesteps: Those of its chain [K].
        event: Shape of one sample.
        cond: Conditioning [B, …] of the kind that it will be given, or None.
        device: Where it is.

    Raises:
        DenoiserError: As `check_deterministic`.
    """
    x = torch.randn((3, *event), generator=torch.Generator().manual_seed(0)).to(device)
    steps = torch.as_tensor(timesteps[[0, len(timesteps) // 2, -1]], device=device)
    with torch.inference_mode():
        rows = None if cond is None else encode(denoiser, cond)[torch.arange(3) % len(cond)]
        check_deterministic(denoiser, x, steps, rows)


def check_finite(sample: Tensor) -> None:
    """Refuse a sample with NaN or infinities in it.

    One look at the end of a plan is enough: the samplers end whatever the network returns, and a value that is
    not finite stays so along the chain.

    Raises:
        DenoiserError: The sample is not finite.
    """
    if not bool(torch.isfinite(sample).all()):
        bad = int((~torch.isfinite(sample)).sum())
        raise DenoiserError(f"the network returned NaN or infinity: {bad} of {sample.numel()} sampled values")
