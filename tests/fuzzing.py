"""What the fuzz tests share: how much they try (more by scripts/maintenance/fuzz.py), and what there is to damage."""

import os
from collections.abc import Iterator
from typing import Any

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
"""Times as many damaged inputs as in a run of the whole suite."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))
