"""Normalisation of observations and actions: affine, and built as LeRobot's processors define it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.errors import CheckpointError
from asd_policy.samplers.compiled import STEPS, loops_for

EPSILON = 1e-8  # LeRobot's `eps`: the range a constant feature is given


@dataclass(frozen=True)
class Affine:
    """The map x → (x − origin) · gain + shift of one feature, and its inverse."""

    origin: Array
    """Shape [feature_dim], in the feature's own unit."""
    gain: Array
    """Shape [feature_dim]; never 0."""
    shift: Array
    """Shape [feature_dim]."""

    def normalize(self, x: Array) -> Array:
        """Map values [..., feature_dim] from physical units."""
        mapped = self._in_loops("normalize_rows", x)
        if mapped is None:
            origin, gain, shift = self._parts_for(x)
            with np.errstate(all="ignore"):  # as PyTorch, which does not warn
                mapped = (x - origin) * gain + shift
        return mapped

    def unnormalize(self, x: Array) -> Array:
        """Map values [..., feature_dim] back to physical units."""
        mapped = self._in_loops("unnormalize_rows", x)
        if mapped is None:
            origin, gain, shift = self._parts_for(x)
            with np.errstate(all="ignore"):
                mapped = (x - shift) / gain + origin
        return mapped

    def _in_loops(self, loop: str, x: Array) -> Array | None:
        """Map few numbers by one compiled loop, to the same bits; None where that cannot be.

        Around a network's calls, which leave nothing of Python in the processor's caches, three operations on arrays
        take longer than a plan's noise.
        """
        seen = arrays.in_numpy(x)
        if not isinstance(seen, np.ndarray):
            return None  # first of all: on a GPU the map stays there
        rows = self._rows
        if seen.dtype != rows.dtype or seen.shape[-1:] != rows.shape[1:]:
            return None
        loops = loops_for(STEPS, x)
        if loops is None:
            return None
        made = np.empty(seen.shape, seen.dtype)
        values = seen if seen.flags.carray else seen.copy()  # for memory of another kind numba would compile it anew
        getattr(loops, loop)(values.reshape(-1, rows.shape[1]), rows, made.reshape(-1, rows.shape[1]))
        return arrays.as_like(made, x)

    @cached_property
    def _rows(self) -> npt.NDArray[Any]:
        """The map in one block of the host's memory, [3, feature_dim]."""
        return np.stack([arrays.to_numpy(each) for each in self._parts])

    def _parts_for(self, x: Array) -> Iterable[Array]:
        """Give the map's arrays in the library of x; NumPy's may be a view of a tensor, as `arrays.in_numpy` makes."""
        parts: Any = self._rows if isinstance(x, np.ndarray) else self._parts
        return parts

    @property
    def _parts(self) -> tuple[Array, Array, Array]:
        return self.origin, self.gain, self.shift

    @classmethod
    def in_a_row(cls, maps: "Sequence[Affine]") -> "Affine":
        """Make the map of several features that stand one after the other, as of one feature."""
        xp = arrays.namespace(maps[0].origin)
        return cls(*(xp.concatenate(parts) for parts in zip(*(each._parts for each in maps), strict=True)))

    def to(self, device: Device) -> "Affine":
        """Copy the map to another device."""
        return Affine(*(arrays.asarray(part, device) for part in self._parts))


def make_affine(mode: str, statistics: dict[str, Array], feature: str, dim: int) -> Affine:
    """Build the map of one feature from its statistics.

    Args:
        mode: MIN_MAX (to [-1, 1]), MEAN_STD or IDENTITY.
        statistics: Tensors [dim] by name: `min` and `max`, or `mean` and `std`.
        feature: The feature's name, for messages.
        dim: Its length.

    Raises:
        CheckpointError: The mode is unknown, or a statistic is missing, misshapen, no floating-point number or
            not finite.
    """
    import torch  # statistics are tensors; a map that is made needs none of it

    def statistic(name: str) -> Array:
        if name not in statistics:
            raise CheckpointError(
                f"normalisation {mode} of {feature!r} needs the statistic {name!r}; "
                f"the checkpoint has {sorted(statistics) or 'none'}"
            )
        value = arrays.checked_float32(statistics[name], f"statistic {name!r} of {feature!r}")
        if tuple(value.shape) != (dim,):
            raise CheckpointError(f"statistic {name!r} of {feature!r} has shape {tuple(value.shape)}, not ({dim},)")
        return value

    if mode == "MIN_MAX":
        low = statistic("min")
        width = statistic("max") - low
        if not bool(((width >= 0) & torch.isfinite(width)).all()):
            raise CheckpointError(f"statistic 'max' of {feature!r} is below 'min', or too far above it")
        width = torch.where(width == 0, torch.full_like(width, EPSILON), width)
        return Affine(low, 2 / width, -torch.ones_like(low))
    if mode == "MEAN_STD":
        deviation = statistic("std")
        if not bool((deviation >= 0).all()):
            raise CheckpointError(f"statistic 'std' of {feature!r} is negative")
        return Affine(statistic("mean"), 1 / (deviation + EPSILON), torch.zeros_like(deviation))
    if mode == "IDENTITY":
        zeros = torch.zeros(dim, dtype=torch.float32)
        return Affine(zeros, torch.ones_like(zeros), zeros)
    raise CheckpointError(f"normalisation mode {mode!r} of {feature!r} is not one of MIN_MAX, MEAN_STD, IDENTITY")
