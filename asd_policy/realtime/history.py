"""The last observations, in memory of their own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy.errors import ObservationError

Parts = dict[str | None, npt.NDArray[Any]]
"""An observation's arrays by their keys; that of an observation which is one array by None."""


class History:
    """Keeps copies, for a robot's driver may use its buffers again.

    Memory is allocated for the first observations only; those that follow are copied into it, and must have their form.
    """

    def __init__(self, length: int) -> None:
        """Begin.

        Args:
            length: Observations to keep.
        """
        self._ring: list[Parts] = []
        self._handed: list[Parts] = []
        self._length = length
        self._added = 0
        self.count = 0
        """Observations since the last `clear`, at most `length`."""

    def add(self, observation: Any) -> None:
        """Copy an observation.

        Raises:
            ObservationError: It is no array, has other keys, shapes or types than the first, or a value that is not
                finite.
        """
        parts = _parts(observation)
        for key, value in parts.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ObservationError(f"{_name(key)} holds NaN or infinity: {value.tolist()}")
        if self._ring:
            _check_form(parts, self._ring[0])
        if len(self._ring) < self._length:
            self._ring.append({key: value.copy() for key, value in parts.items()})
        else:
            _copy(parts, self._ring[self._added % self._length])
        self._added += 1
        self.count = min(self.count + 1, self._length)

    def clear(self) -> None:
        """Begin anew: what was seen before is no part of a history any more."""
        self.count = 0

    @property
    def latest(self) -> Any:
        """The last observation that was added, also before a `clear`; None before the first."""
        return _observation(self._ring[(self._added - 1) % self._length]) if self._added else None

    def hand_over(self) -> list[Any]:
        """Return the last `count` observations, oldest first; they stay as they are until the next call of this."""
        while len(self._handed) < self.count:
            self._handed.append({key: value.copy() for key, value in self._ring[0].items()})
        for place in range(self.count):
            _copy(self._ring[(self._added - self.count + place) % self._length], self._handed[place])
        return [_observation(parts) for parts in self._handed[: self.count]]


def _parts(observation: Any) -> Parts:
    values = observation if isinstance(observation, Mapping) else {None: observation}
    parts: Parts = {}
    for key, value in values.items():
        try:
            parts[key] = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ObservationError(f"{_name(key)} is no array: {error}") from None
    return parts


def _observation(parts: Parts) -> Any:
    return parts[None] if None in parts else parts


def _copy(source: Parts, target: Parts) -> None:
    for key, value in source.items():
        np.copyto(target[key], value)


def _check_form(parts: Parts, first: Parts) -> None:
    if parts.keys() != first.keys():
        raise ObservationError(f"the observation has {sorted(map(_name, parts))}, the first had {_names(first)}")
    for key, value in parts.items():
        if value.shape != first[key].shape or value.dtype != first[key].dtype:
            raise ObservationError(
                f"{_name(key)} is {value.dtype} {value.shape}, in the first observation it was "
                f"{first[key].dtype} {first[key].shape}"
            )


def _name(key: str | None) -> str:
    return "the observation" if key is None else f"observation {key!r}"


def _names(parts: Parts) -> list[str]:
    return sorted(map(_name, parts))
