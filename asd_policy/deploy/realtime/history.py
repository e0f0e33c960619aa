"""Keep copies of the last observations."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common.arrays import NUMPY
from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import ObservationError
from asd_policy.policy.observation import Shapes, given_by, read_observation


class History:
    """The last observations, copied, because a robot's driver may use its buffers again."""

    def __init__(self, length: int, shapes: Shapes | None = None) -> None:
        """Begin.

        Args:
            length: Observations to keep.
            shapes: Shape of each feature that the planner reads: other features are ignored. None for a planner that
                does not tell: its observations are kept as they come, and all numbers in them must be finite and keep
                the shape that they have in the first.
        """
        self._shapes = shapes
        self._kept: deque[Any] = deque(maxlen=length)
        self._first: Any = None
        self.latest: Any = None
        """The last observation that was added, as it came but for its arrays, which are copies; also before a `clear`.
        None before the first."""

    def add(self, observation: Any) -> None:
        """Copy an observation.

        Raises:
            ObservationError: What the planner reads of it is missing, has a wrong shape, or is no finite real number.
        """
        with given_by("read_observation"):
            seen = _copied(observation)
            if self._shapes is not None:
                kept = read_observation(seen, self._shapes, NUMPY)
            else:
                kept, first = seen, seen if self._first is None else self._first
                _check_form(seen, first)
                self._first = first
        self._kept.append(kept)
        self.latest = seen

    def clear(self) -> None:
        """Begin anew: earlier observations are no longer part of a history."""
        self._kept.clear()

    def hand_over(self) -> list[Any]:
        """Copy the last observations, oldest first."""
        return [_copied(each) for each in self._kept]


def _copied(observation: Any) -> Any:
    """Copy an observation's numbers to arrays of its own; whatever else is in it stays as it is.

    Raises:
        ObservationError: It is neither a mapping nor numbers.
    """
    if not isinstance(observation, Mapping):
        return as_numbers(observation, _name(None)).copy()
    copies = dict(observation)
    for key, value in observation.items():
        try:
            copies[key] = as_numbers(value, _name(key)).copy()
        except ObservationError:  # such as a text: its reader checks it
            continue
    return copies


def _check_form(observation: Any, first: Any) -> None:
    """Refuse numbers that are not finite, or not in the shape of the first observation's."""
    parts, known = _numbers(observation), _numbers(first)
    if parts.keys() != known.keys():
        raise ObservationError(f"the observation has {_names(parts)}, the first had {_names(known)}")
    for key, value in parts.items():
        if value.dtype.kind == "f":
            finite(value, _name(key))
        if value.shape != known[key].shape:
            raise ObservationError(
                f"{_name(key)} is {value.dtype} {value.shape}, in the first observation it was "
                f"{known[key].dtype} {known[key].shape}"
            )


def _numbers(observation: Any) -> dict[Any, npt.NDArray[Any]]:
    """List the arrays of an observation by their keys; an observation that is an array has the key None."""
    parts = observation if isinstance(observation, Mapping) else {None: observation}
    return {key: value for key, value in parts.items() if isinstance(value, np.ndarray)}


def _name(key: Any) -> str:
    return "the observation" if key is None else f"observation {key!r}"


def _names(parts: Mapping[Any, Any]) -> list[str]:
    return sorted(map(_name, parts))
