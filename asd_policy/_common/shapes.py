"""Check values from JSON against type annotations, for files that anybody may have written or changed."""

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST = 2**53
"""Largest count, which floats still hold exactly."""
_LARGEST_FLOAT = 1e100  # so that sums of squares are finite
_ROUNDING = 1e-9  # of computed values to their limits
Share = Annotated[float, (0.0, 1.0)]
Count = Annotated[int, (0, LARGEST)]


def check_shape(value: Any, kind: Any, name: str) -> None:
    """Refuse a value that is not of a type.

    Args:
        value: As `json.loads` returns it.
        kind: A type, or `Annotated[type, (least, most)]`, `X | None`, `list`, `tuple` or `dict` of such; a dataclass or
            TypedDict stands for an object with its keys, and may have more of them if it is a TypedDict.
        name: What to call the value.

    Raises:
        ValueError: It is of another type; the message names the place, the value and the type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Required, NotRequired):  # which `_keys` has seen
        check_shape(value, arguments[0], name)
    elif origin is Annotated:
        check_shape(value, arguments[0], name)
        low, high = arguments[1]
        _demand(low - _ROUNDING <= value <= high + _ROUNDING, value, f"in {low:g} … {high:g}", name)
    elif origin in (Union, UnionType):
        (some,) = (each for each in arguments if each is not NoneType)
        if value is not None:
            check_shape(value, some, name)
    elif origin in (list, tuple):
        _demand(isinstance(value, list | tuple), value, "a list", name)
        kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        _demand(len(value) == len(kinds), value, f"of {len(kinds)} entries", name)
        for index, (each, some) in enumerate(zip(value, kinds, strict=True)):
            check_shape(each, some, f"{name}[{index}]")
    elif origin is dict:
        _demand(isinstance(value, dict), value, "an object", name)
        for key, each in value.items():
            check_shape(each, arguments[1], f"{name}.{key:.40}")
    elif is_typeddict(kind) or is_dataclass(kind):
        _demand(isinstance(value, dict), value, "an object", name)
        hints, needed = _keys(kind)
        for key in hints:
            if key in value:
                check_shape(value[key], hints[key], f"{name}.{key}")
            elif key in needed:
                raise ValueError(f"{name} lacks {key!r}")
        if is_dataclass(kind) and (unknown := [key for key in value if key not in hints]):
            raise ValueError(f"{name} has {unknown[0]!r:.40}, which is unknown")
    elif kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool)
        _demand(right and abs(value) <= _LARGEST_FLOAT, value, "a number", name)  # which NaN and infinity are not
    elif kind is int:
        right = isinstance(value, int) and not isinstance(value, bool)
        _demand(right and abs(value) < 2**63, value, "an integer of 64 bits", name)
    else:
        _demand(isinstance(value, kind), value, {str: "text", bool: "true or false"}[kind], name)


@lru_cache
def _keys(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """List the types of an object's keys, and the keys that it must have."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, kind.__required_keys__
    return hints, frozenset(each.name for each in fields(kind) if each.default is MISSING)


def _demand(right: bool, value: Any, wanted: str, name: str) -> None:
    if not right:
        raise ValueError(f"{name} is {value!r:.60}, not {wanted}")
