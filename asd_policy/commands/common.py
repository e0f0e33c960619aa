"""What the commands share."""

import json
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from asd_policy.backends import BACKENDS
from asd_policy.backends.base import DTYPES
from asd_policy.errors import RunError, SpecError
from asd_policy.journal import NAME, RESULTS

DONE, DIFFERS, INTERRUPTED = 0, 1, 130
"""Exit statuses; that of bad usage or input is the command line's."""
FAILED = DIFFERS
"""Exit status of an evaluation in which an episode failed."""

BackendOption = Annotated[
    str,
    tyro.conf.arg(
        help=f"What runs the network: {' | '.join(BACKENDS)} | auto (as tuned), with options such as "
        f"torch-eager:dtype={DTYPES[1]} or torch-replicas:devices=cuda:0+cuda:1."
    ),
]
"""The option `--backend`."""


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that is too small.

    Raises:
        SpecError: It is.
    """
    if value < least:
        raise SpecError(f"--{name} {value} is not {least} or more")


def check_folder(folder: Path, command: str) -> None:
    """Refuse a folder that holds what another command has left: a command replaces its own results only.

    Raises:
        RunError: It does.
    """
    path = folder / RESULTS
    if (folder / NAME).exists():
        raise RunError(f"{folder} holds a run of asd-policy eval: name another --out")
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != command:
        raise RunError(f"{path} is not of asd-policy {command}: name another --out")


def check_margin(margin: float) -> None:
    """Refuse a margin of equivalence that is none.

    Raises:
        SpecError: It is.
    """
    if not 0 < margin < 1:
        raise SpecError(f"--margin {margin:g} is not between 0 and 1")


def progress_bar(console: Console, *more: ProgressColumn) -> Progress:
    """Return a progress bar that counts, with more columns behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
        console=console,
    )
