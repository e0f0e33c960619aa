"""The seam for networks: whatever predicts noise, sample or velocity is called as `denoiser(x, timestep, cond)`."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy._common.clock import DeviceClock, collect_imports
from asd_policy.errors import DenoiserError


class Denoiser(Protocol):
    """A diffusion model's network. Each row's output depends on that row alone, and on nothing random.

    One with an attribute `takes_numpy` that is true may be called with NumPy's arrays where samples are tensors in the
    host's memory, and then returns NumPy's: what ONNX Runtime does anyway, without tensors around it. It keeps none of
    them: their memory is the next call's.
    """

    def __call__(self, x: Array, timestep: Array, cond: Array | None, /) -> Array:
        """Predict what the chain's `prediction_type` says.

        Args:
            x: Points of the chain [N, *event].
            timestep: Diffusion timesteps [N], int64; of a flow that has times in 0 … 1, these, in the points' dtype.
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

    def encode(self, cond: Array, /) -> Array:
        """Encode conditioning once per plan; calls get rows of this in its place.

        Args:
            cond: Conditioning of the samples [B, *cond_event].

        Returns:
            One row for each sample, [B, E], on the same device.
        """
        ...


def encode(denoiser: Denoiser, cond: Array) -> Array:
    """Encode conditioning for a denoiser's calls; where it encodes none, this is the conditioning itself.

    Raises:
        DenoiserError: `encode` did not return a tensor with a row for each sample.
    """
    encoder = getattr(denoiser, "encode", None)  # `isinstance` of a protocol takes many times as long
    if encoder is None:
        return cond
    encoded = encoder(cond)
    if not isinstance(encoded, type(cond)) or encoded.ndim == 0 or len(encoded) != len(cond):
        shape = tuple(encoded.shape) if isinstance(encoded, type(cond)) else type(encoded).__name__
        raise DenoiserError(
            f"the network encoded the conditioning of {len(cond)} samples as {shape}, not as so many rows"
        )
    return encoded


@dataclass
class Meter:
    """Counts a network's calls, and the time inside them; on a GPU by its own clock, so that no call waits for it."""

    device: Device = NUMPY
    """Where the network runs."""
    calls: int = 0
    """Of the network."""
    points: int = 0
    """That these evaluated."""

    def __post_init__(self) -> None:
        """Find out whether the device has a clock of its own, once and not in every call."""
        on_gpu = not arrays.is_host(self.device) and self.device.type == "cuda"
        self._clock = DeviceClock(self.device) if on_gpu else None
        self._seconds, self._spans = 0.0, list[tuple[Any, Any]]()

    @property
    def seconds(self) -> float:
        """Time inside the network [s]; waits for a GPU to come to the end of it."""
        if self._clock is None:
            return self._seconds
        return self._seconds + sum(sum(self._clock.seconds(span)) for span in self._spans)

    def count(self, calls: int, points: int) -> None:
        """Count calls; replays of a recording are counted by who replays it."""
        self.calls += calls
        self.points += points

    def start(self) -> Any:
        """Note this instant, for `stop`."""
        return time.perf_counter() if self._clock is None else self._clock.tick()

    def stop(self, start: Any) -> None:
        """Add the time since `start` to `seconds`."""
        if self._clock is None:
            self._seconds += time.perf_counter() - start
        else:
            self._spans.append((start, self._clock.tick()))


def check_form(output: Array, x: Array) -> None:
    """Refuse what is not floating-point numbers in the shape of the network's input.

    Raises:
        DenoiserError: It is not.
    """
    if not isinstance(output, type(x)):
        wanted = "a NumPy array" if arrays.device_of(x) == NUMPY else "a tensor"
        raise DenoiserError(f"the network returned a {type(output).__name__}, not {wanted}")
    if output.dtype != x.dtype and not arrays.namespace(output).isdtype(output.dtype, "real floating"):
        raise DenoiserError(f"the network returned {output.dtype}, not floating-point numbers")
    if output.shape != x.shape:
        raise DenoiserError(
            f"the network returned shape {tuple(output.shape)} for an input of shape {tuple(x.shape)}; "
            "they must be equal"
        )


def check_deterministic(denoiser: Denoiser, x: Array, timestep: Array, cond: Array | None) -> tuple[int, int]:
    """Refuse a network that breaks the contract of `Denoiser`: its plans would have no law that a sampler could keep.

    Three calls: twice the same, as dropout left on would show, and a row in the middle alone, as batch normalisation
    left in training mode would, or a network that takes the timestep of the first row for all.

    Args:
        denoiser: The network.
        x: Points [N, *event], two rows or more that differ.
        timestep: Their timesteps [N].
        cond: Their conditioning [N, …], encoded where the network encodes it, or None.

    Returns:
        How many calls that took, and points.

    Raises:
        DenoiserError: The output is not a floating-point tensor of the shape of `x`, or not finite, or two equal calls
            differ, or a row depends on its neighbours.
    """
    output = denoiser(x, timestep, cond)
    check_form(output, x)
    if not arrays.is_finite(output):
        bad = int((~arrays.namespace(output).isfinite(output)).sum())
        raise DenoiserError(f"the network returned NaN or infinity: {bad} of {math.prod(output.shape)} values")
    scale = float(abs(output).max())
    change = float(abs(denoiser(x, timestep, cond) - output).max())
    # Kernels may add up in another order from call to call; dropout changes far more.
    if change > 100 * float(arrays.namespace(output).finfo(output.dtype).eps) * scale:
        raise DenoiserError(
            f"two equal calls of the network differ by {change:.2g} (its largest output is {scale:.2g}); "
            "is dropout left on? Call .eval()"
        )
    row = slice(len(x) // 2, len(x) // 2 + 1)
    alone = denoiser(x[row], timestep[row], None if cond is None else cond[row])
    change = float(abs(alone - output[row]).max())
    # Another batch may run other kernels, in TensorFloat-32 with three digits; batch statistics change far more.
    if change > 0.01 * scale:
        raise DenoiserError(
            f"the network's output for a row differs by {change:.2g} with and without other rows beside it "
            f"(its largest output is {scale:.2g}); is batch normalisation in training mode? Call .eval(). Or does it "
            "take one timestep for all rows?"
        )
    return 3, 2 * len(x) + 1


def check_on_noise(
    denoiser: Denoiser,
    timesteps: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    event: Sequence[int],
    cond: Array | None,
    device: Device | str,
) -> tuple[int, int]:
    """Call a network a few times, on noise, to see whether it is one that can be sampled from.

    Args:
        denoiser: The network.
        timesteps: Those of its chain [K].
        event: Shape of one sample.
        cond: Conditioning [B, …] like that of its calls, or None.
        device: Where it is.

    Returns:
        How many calls that took, and points.

    Raises:
        DenoiserError: As `check_deterministic`.
    """
    collect_imports()
    noise = np.random.default_rng(0).standard_normal((3, *event), np.float32)
    whole = timesteps.dtype.kind == "i"
    steps = arrays.asarray(timesteps[[0, len(timesteps) // 2, -1]], device, None if whole else "float32")
    with arrays.no_gradients(device):
        rows = None if cond is None else encode(denoiser, cond)[np.arange(3) % len(cond)]
        return check_deterministic(denoiser, arrays.asarray(noise, device), steps, rows)
