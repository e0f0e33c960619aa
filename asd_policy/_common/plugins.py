"""What other distributions add to a registry, by an entry-point group.

Other people's code may raise anything: a plugin that fails is named, and the others are still used.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any


def load_objects(group: str, fits: Callable[[Any], bool], wanted: str) -> tuple[dict[str, Any], list[str]]:
    """Load what the installed distributions name in a group.

    Args:
        group: Of entry points.
        fits: Tells whether an object is of the kind that the group is for.
        wanted: That kind, for messages.

    Returns:
        The objects by the names of their entry points, and what is wrong with each plugin that does not work.
    """
    found: dict[str, Any] = {}
    failures: list[str] = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        plugin = f"the plugin {point.name!r} does not work: {point.value}"
        try:
            loaded = point.load()
            fitting = fits(loaded)
        except Exception as error:
            failures.append(f"{plugin} raises {type(error).__name__}: {error}")
            continue
        if fitting:
            found[point.name] = loaded
        else:
            failures.append(f"{plugin} is a {type(loaded).__name__}, not {wanted}")
    return found, failures
