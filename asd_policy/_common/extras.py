"""What is installed by an extra of this package, and the one line that says so where it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from asd_policy.errors import AsdError, MissingPackageError


def install(extra: str) -> str:
    """Write the command that installs an extra; it also holds where this package came from a checkout."""
    return f"pip install 'asd-policy[{extra}]'"


@contextmanager
def needed(what: str, extra: str, error: type[AsdError] = MissingPackageError) -> Iterator[None]:
    """Say what installs a package that is missing, around its import.

    Args:
        what: What cannot be done without, for the message.
        extra: The extra that installs it.
        error: Type of the error to raise.

    Raises:
        AsdError: Of the type `error`: an import in the block found no such package.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise error(f"{what} needs {missing.name}: {install(extra)}") from None


def module(name: str, what: str, extra: str) -> Any:
    """Import a module of a package that an extra installs; arguments as of `needed`.

    Raises:
        MissingPackageError: It is not installed.
    """
    with needed(what, extra):
        return import_module(name)
