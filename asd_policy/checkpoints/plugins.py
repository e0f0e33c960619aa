"""Checkpoint formats of other distributions, by the entry-point group `asd_policy.checkpoint_formats`.

An entry point names a `Format` object; its own name is the format's name in messages.
"""

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from asd_policy.checkpoints.base import Format

GROUP = "asd_policy.checkpoint_formats"


def plugin_names() -> list[str]:
    """Return the names of the installed plugins' formats; nothing of them is imported."""
    return sorted(point.name for point in entry_points(group=GROUP))


def find_plugin(path: Path) -> tuple[tuple[str, Format] | None, list[str]]:
    """Ask the installed plugins for the format of a path.

    One that fails keeps no other from being asked.

    Args:
        path: The checkpoint.

    Returns:
        The first name and format that knows the path, if any, and for each plugin that failed before it what happened.
    """
    failures: list[str] = []
    for name, found in _ask(path):
        if isinstance(found, Format):
            return (name, found), failures
        failures.append(f"the plugin {name!r} does not work: {found}")
    return None, failures


def _ask(path: Path) -> Iterator[tuple[str, Format | str]]:
    """Yield each plugin that knows the path, and the error of each that fails."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        origin = f"{point.name} = {point.value}"
        try:
            form = point.load()
            if not isinstance(form, Format):
                yield point.name, f"{origin} is a {type(form).__name__}, not a Format"
            elif form.detect(path):
                yield point.name, form
        except Exception as error:  # other people's code: whatever it raises must not stop the formats after it
            yield point.name, f"{origin} raises {type(error).__name__}: {error}"
