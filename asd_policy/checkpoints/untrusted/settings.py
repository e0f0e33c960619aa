"""Read an untrusted configuration value by value: each is there and has its type, or an error names it.

A value `${a.b}` stands for the one at a.b of the whole configuration, `${.a}` and `${..a}` for a neighbour's, as in
omegaconf. A resolver (`${eval:…}`, `${oc.env:…}`) would run something, so it stays text.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from asd_policy.checkpoints.untrusted.pickles import Record, StoredTensor
from asd_policy.errors import CheckpointError

MOST = 100_000
"""The largest size or count that is accepted of a policy, unless a caller gives another."""
MOST_CAMERAS, MOST_PIXELS = 64, 4096
"""Cameras of a policy, and pixels of a side of a frame: nothing in the weights bounds these."""
_REQUIRED = object()
_LARGE = 1e30  # larger than any measured quantity, and still safe to compute with in float32
_SHOWN = 60  # [characters] of a wrong value in a message
_INTERPOLATION = re.compile(r"\$\{(\.*)([\w-]+(?:\.[\w-]+)*)\}")
_MAX_HOPS = 20  # from one interpolation to the next
_LONGEST = 200  # [characters] of one
Way = tuple[Mapping[str, Any], ...]
"""Sections, each in the one before."""


def unwrap(value: Any) -> Any:
    """Read what an omegaconf node holds, the nodes in it still wrapped; any other value stays as it is.

    omegaconf 2 (`BaseContainer`, `ValueNode`) keeps a container's children in `_content` and a leaf's value in `_val`.
    """
    if not (isinstance(value, Record) and value.kind.startswith("omegaconf.") and isinstance(value.state, dict)):
        return value
    return value.state.get("_val" if value.kind.startswith("omegaconf.nodes.") else "_content")


class Settings:
    """A section of a configuration: JSON, or omegaconf's nodes as `pickles` reads them."""

    def __init__(self, values: Any, name: str, source: str, way: Way = ()) -> None:
        """Open a section.

        Args:
            values: The section.
            name: Its dotted path, for messages; empty for the whole configuration.
            source: The file, for messages.
            way: The sections around it, the whole configuration first, for interpolations to look in.

        Raises:
            CheckpointError: It is no mapping.
        """
        opened = unwrap(values)
        self._name, self._source = name, source
        if not isinstance(opened, Mapping):
            raise CheckpointError(f"{source}: {name or 'its content'} is {_show(opened)}, not a mapping")
        if not all(isinstance(key, str) for key in opened):
            raise CheckpointError(f"{source}: {name or 'its content'} has keys that are no names")
        self._values: Mapping[str, Any] = opened
        self._way = (*way, self._values)

    def section(self, name: str) -> "Settings":
        """Open a section of this one."""
        value, way = self._resolve(self._stored(name, _REQUIRED), name)
        return Settings(value, self._path(name), self._source, way)

    def sections(self, name: str) -> list["Settings"]:
        """Open the sections in a list."""
        entries = self._check(name, _REQUIRED, lambda value: isinstance(value, list), "a list")
        return [
            Settings(entry, f"{self._path(name)}[{number}]", self._source, self._way)
            for number, entry in enumerate(entries)
        ]

    def whole(self, name: str) -> "Settings":
        """Open a section that is a configuration of its own: interpolations in it begin there."""
        return Settings(self._get(name, _REQUIRED), self._path(name), self._source)

    def find(self, name: str) -> "Settings":
        """Open a section of this one, to describe what there is; an empty one where there is none."""
        value, way = self._resolve(self._stored(name, None), name)
        return Settings(value if isinstance(value, Mapping) else {}, self._path(name), self._source, way)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def only(self, names: Collection[str]) -> None:
        """Refuse values under other names.

        Raises:
            CheckpointError: There are some.
        """
        surplus = [name for name in self if name not in names]
        if surplus:
            raise CheckpointError(
                f"{self._source}: {self._path(surplus[0])} is not known here; known are {', '.join(sorted(names))}"
            )

    def plain(self) -> dict[str, Any]:
        """List all values: scalars and lists of them as they are, a description of others, such as sections."""
        room = MOST  # entries: a list that many values share would be copied for each

        def listed(name: str) -> Any:
            nonlocal room
            value = self._get(name, None)
            room -= len(value) if isinstance(value, list) else 1
            return _plain(self._list(value, name)) if room >= 0 else _show(value)

        return {name: listed(name) for name in self._values}

    def text(self, name: str, default: Any = _REQUIRED, most: int = 1000) -> str:
        """Read a string of at most so many characters."""
        kind = f"a string of {most} characters at most"
        return self._check(name, default, lambda value: isinstance(value, str) and len(value) <= most, kind)

    def names(self, name: str) -> list[str]:
        """Read a list of strings."""

        def valid(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

        return self._check(name, _REQUIRED, valid, "a list of names")

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """Read True or False."""
        return self._check(name, default, lambda value: isinstance(value, bool), "true or false")

    def count(self, name: str, default: Any = _REQUIRED, least: int = 1, most: int = MOST) -> Any:
        """Read an integer in a range; a default of None makes null valid."""
        kind = f"an integer in {least} … {most}"
        return self._check(name, default, lambda value: type(value) is int and least <= value <= most, kind)

    def counts(self, name: str, default: Any = _REQUIRED, most: int = MOST) -> tuple[int, ...]:
        """Read a list of positive integers, of `most` entries at most."""

        def valid(value: Any) -> bool:
            entries = value if isinstance(value, list | tuple) else ()
            return 1 <= len(entries) <= most and all(type(entry) is int and 1 <= entry <= MOST for entry in entries)

        return tuple(self._check(name, default, valid, f"a list of 1 … {most} integers in 1 … {MOST}"))

    def number(self, name: str, default: Any = _REQUIRED, least: float = 0.0, most: float = _LARGE) -> float:
        """Read a number in a range."""

        def valid(value: Any) -> bool:
            return type(value) in (int, float) and least <= value <= most

        return float(self._check(name, default, valid, f"a number in {least:g} … {most:g}"))

    def sides(self, name: str, default: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Read a height and a width [pixels]; None where they are null."""

        def valid(value: Any) -> bool:
            sides = value if isinstance(value, list | tuple) else ()
            return len(sides) == 2 and all(type(side) is int and 1 <= side <= MOST_PIXELS for side in sides)

        kind = f"null or [height, width] in 1 … {MOST_PIXELS}"
        value = self._check(name, default, lambda value: value is None or valid(value), kind)
        return None if value is None else (value[0], value[1])

    def row(self, name: str, dim: int | None, nonzero: bool = False) -> Tensor:
        """Read a list of one list of finite numbers as a tensor [dim], float32.

        Args:
            name: Of the value.
            dim: How many numbers; None for any.
            nonzero: Whether 0 is none.
        """

        def valid(value: Any) -> bool:
            if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and value[0]):
                return False
            least = 1 / _LARGE if nonzero else 0
            if any(type(number) not in (int, float) or not least <= abs(number) < _LARGE for number in value[0]):
                return False
            return dim is None or len(value[0]) == dim

        size = "a positive number of" if dim is None else dim
        kind = f"a list of one list of {size} finite {'nonzero ' if nonzero else ''}numbers"
        return torch.tensor(self._check(name, _REQUIRED, valid, kind)[0], dtype=torch.float32)

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """List the tensors in this section, not yet read from the archive; other values are left out."""
        return {name: value for name, value in self._values.items() if isinstance(value, StoredTensor)}

    def stored_tensor(self, name: str) -> StoredTensor:
        """Find a tensor, not yet read from the archive."""
        return self._check(name, _REQUIRED, lambda value: isinstance(value, StoredTensor), "a tensor")

    def _check(self, name: str, default: Any, valid: Any, kind: str) -> Any:
        value = self._list(self._get(name, default), name)
        if value is default or valid(value):
            return value
        raise CheckpointError(f"{self._source}: {self._path(name)} is {_show(value)}, not {kind}")

    def _get(self, name: str, default: Any) -> Any:
        return self._resolve(self._stored(name, default), name)[0]

    def _stored(self, name: str, default: Any) -> Any:
        value = unwrap(self._values.get(name, default))
        if value is _REQUIRED:
            raise CheckpointError(f"{self._source} has no {self._path(name)}")
        return value

    def _resolve(self, given: Any, name: str) -> tuple[Any, Way]:
        """Resolve an interpolation to its value, and the sections around that; any other value stays as it is.

        Raises:
            CheckpointError: It leads to another interpolation, and so on without an end.
        """
        value, way = given, self._way
        for _ in range(_MAX_HOPS):
            match = _INTERPOLATION.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST else None
            if match is None:
                return value, way
            found = _follow(*match.groups(), way)
            if found is None:
                return given, self._way
            value, way = found
        raise CheckpointError(
            f"{self._source}: {self._path(name)} is {_show(given)}, which leads from one interpolation to the next "
            f"more than {_MAX_HOPS} times"
        )

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name

    def _list(self, value: Any, name: str) -> Any:
        return [self._resolve(unwrap(item), name)[0] for item in value] if isinstance(value, list) else value


def _follow(dots: str, path: str, way: Way) -> tuple[Any, Way] | None:
    """Follow a path to its value, and the sections around it; None where there is none.

    Args:
        dots: How far up from the innermost section the path begins, one for there; none for the whole configuration.
        path: Names, joined by dots.
        way: The sections around the interpolation, the whole configuration first.
    """
    way = way[: max(len(way) - len(dots) + 1, 0)] if dots else way[:1]
    *sections, last = path.split(".")
    for section in sections if way else ():
        inner = unwrap(way[-1].get(section))
        if not isinstance(inner, Mapping):
            return None
        way = (*way, inner)
    return (unwrap(way[-1][last]), way) if way and last in way[-1] else None


def _plain(value: Any) -> Any:
    if isinstance(value, list) and all(_is_scalar(entry) for entry in value):
        return value
    return value if _is_scalar(value) else _show(value)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _SHOWN
    return value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)


def _show(value: Any) -> str:
    """Describe any value briefly; one that may be huge, or hold itself, by its type alone."""
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    if isinstance(value, Record):
        return f"a {value.kind}"
    return repr(value) if _is_scalar(value) else f"a {type(value).__name__}"
