"""Checks of numbers that come from robots, servers and users, and of those that go to robots.

What comes in is copied once, because drivers fill the same memory again and again; what goes out is checked in float32.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common.arrays import to_numpy
from asd_policy.errors import AsdError, ObservationError


def as_numbers(value: Any, what: str, kind: type[AsdError] = ObservationError) -> npt.NDArray[Any]:
    """Convert real numbers to an array of NumPy's, which may share their memory.

    Args:
        value: An array of any strides, byte order and precision, a tensor anywhere, or nested lists.
        what: Name of the value, for messages.
        kind: Of the error.

    Raises:
        AsdError: It is no array, has masked entries, or entries that are no real numbers.
    """
    try:
        if hasattr(value, "detach") and value.is_floating_point() and value.dtype.itemsize < 4:
            value = value.float()  # NumPy has no bfloat16
        array = to_numpy(value)
    except Exception as error:  # an array's own conversion may raise anything
        raise kind(f"{what} is no array: {type(error).__name__}: {error}") from None
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise kind(f"{what} is an array of {array.dtype}, not of real numbers")
    if np.ma.is_masked(value):
        raise kind(f"{what} has masked entries")
    return array


def finite(values: npt.NDArray[Any], what: str, kind: type[AsdError] = ObservationError) -> npt.NDArray[np.float32]:
    """Convert numbers to float32, in an array of its own.

    Args:
        values: Real numbers of any precision.
        what: Name of the values, for messages.
        kind: Of the error.

    Raises:
        AsdError: A number is NaN or infinity, or becomes infinity in float32.
    """
    with np.errstate(over="ignore"):
        narrow = np.array(values, np.float32)
    bad = np.argwhere(~np.isfinite(narrow))
    if len(bad):
        place = tuple(bad[0].tolist())
        value, how = values[place], "" if not np.isfinite(values[place]) else " in 32 bits"
        raise kind(f"{what} holds NaN or infinity{how}: {value:g} at {list(place)}")
    return narrow


def clipped(action: npt.ArrayLike, space: Any) -> npt.NDArray[Any]:
    """Clip an action [action_dim] to an environment's action space, a Box.

    An unnormalised one may overshoot the demonstrations' range by a rounding error.
    """
    return np.clip(action, space.low, space.high).astype(space.dtype)
