"""Checkpoint formats of other distributions, by the entry-point group `asd_policy.checkpoint_formats`.

An entry point names a `Format` object; its own name is the format's name in messages. Other people's code may raise
anything: a plugin that fails is named, and the others are still used.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from asd_policy.checkpoints.base import Format

GROUP = "asd_policy.checkpoint_formats"


def load_plugins() -> tuple[dict[str, Format], list[str]]:
    """Load the formats of the installed plugins by name, and the error of each plugin that fails."""
    formats: dict[str, Format] = {}
    failures: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        plugin = f"the plugin {point.name!r} does not work: {point.value}"
        try:
            form = point.load()
        except Exception as error:
            failures.append(f"{plugin} raises {type(error).__name__}: {error}")
            continue
        if isinstance(form, Format):
            formats[point.name] = form
        else:
            failures.append(f"{plugin} is a {type(form).__name__}, not a Format")
    return formats, failures


def find_plugin(path: Path, formats: Mapping[str, Format], failures: list[str]) -> tuple[str, Format] | None:
    """Find the first plugin that knows a path: its name and format, if any; add to `failures` what fails."""
    for name, form in formats.items():
        try:
            if form.detect(path):
                return name, form
        except Exception as error:
            failures.append(f"the plugin {name!r} does not work: detect raises {type(error).__name__}: {error}")
    return None
