"""Checkpoint formats of other distributions, by the entry-point group `asd_policy.checkpoint_formats`.

An entry point names a `Format` object; its own name is the format's name in messages.
"""

from collections.abc import Mapping
from pathlib import Path

from asd_policy._common import plugins
from asd_policy.checkpoints.base import Format

GROUP = "asd_policy.checkpoint_formats"


def load_plugins() -> tuple[dict[str, Format], list[str]]:
    """Load the formats of the installed plugins by name, and the error of each plugin that fails."""
    return plugins.load_objects(GROUP, lambda form: isinstance(form, Format), "a Format")


def find_plugin(path: Path, formats: Mapping[str, Format], failures: list[str]) -> tuple[str, Format] | None:
    """Find the first plugin that knows a path: its name and format, if any; add to `failures` what fails."""
    for name, form in formats.items():
        try:
            if form.detect(path):
                return name, form
        except Exception as error:
            failures.append(f"the plugin {name!r} does not work: detect raises {type(error).__name__}: {error}")
    return None
