"""The `LinearNormalizer` of Diffusion Policy (`model/common/normalizer.py`): x · scale + offset for each field."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from asd_policy._common.arrays import checked_float32
from asd_policy.errors import CheckpointError
from asd_policy.policy.normalisation import Affine

ACTION = "action"
PREFIX = "normalizer.params_dict."
_STATISTICS = ("min", "max", "mean", "std")  # of the data that it was fitted to; it does not compute with them
_PARTS = ("scale", "offset", *(f"input_stats.{name}" for name in _STATISTICS))


class Normalizer:
    """The maps of a policy's fields."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Keep tensors by their names after `PREFIX`, and the file's name for messages."""
        self._tensors, self._source = tensors, source

    def check(self, fields: Collection[str]) -> None:
        """Refuse other fields than these and the action.

        Raises:
            CheckpointError: There are some.
        """
        for key in self._tensors:
            field, _, part = key.partition(".")
            if field not in (*fields, ACTION) or part not in _PARTS:
                known = " and ".join(repr(name) for name in (*fields, ACTION))
                raise CheckpointError(f"{self._source}: the normaliser has {key!r}; only {known} are known")

    def affine(self, field: str, dim: int, frame: bool = False) -> Affine:
        """Read the map of a field.

        Args:
            field: Its name.
            dim: Numbers in its last axis; the colours of a camera.
            frame: Whether it is a camera, whose colours have one map.

        Raises:
            CheckpointError: It is missing, misshapen or not finite, or its scale is 0.
        """
        parts = {}
        for name in ("scale", "offset"):
            key = f"{field}.{name}"
            if key not in self._tensors:
                raise CheckpointError(
                    f"{self._source}: the normaliser has no {key}; was the policy saved before its training?"
                )
            value = checked_float32(self._tensors[key], f"{self._source}: {PREFIX}{key}")
            if tuple(value.shape) not in ((1,), (1,) if frame else (dim,)):
                shape = (1,) if frame else (dim,)
                raise CheckpointError(f"{self._source}: {PREFIX}{key} has shape {tuple(value.shape)}, not {shape}")
            if name == "scale" and not bool(torch.isfinite(1 / value).all()):
                raise CheckpointError(f"{self._source}: {PREFIX}{key} holds a scale of 0, or one next to it")
            parts[name] = value.expand(dim).clone()
        return Affine(torch.zeros_like(parts["offset"]), parts["scale"], parts["offset"])
