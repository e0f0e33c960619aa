"""What the commands share: exit statuses, the console, JSON on stdout, progress bars, checks of options."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from asd_policy.cli.advice import check_writable
from asd_policy.errors import RunError, SpecError
from asd_policy.evaluation.rollout.journal import NAME, RESULTS
from asd_policy.networks.backends import BACKENDS
from asd_policy.networks.backends.base import DTYPES
from asd_policy.policy.law import CHAINS
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler

DONE, DIFFERS, INTERRUPTED = 0, 1, 130
"""Exit statuses; `app.BAD_INPUT` is that of bad usage or input."""
FAILED = DIFFERS
"""Exit status of an evaluation in which an episode failed."""

BackendOption = Annotated[
    str | None,
    tyro.conf.arg(
        help=f"What runs the network: {' | '.join(BACKENDS)} | auto (as tuned), with options such as "
        f"torch-eager:dtype={DTYPES[1]} or torch-replicas:devices=cuda:0+cuda:1. By default the checkpoint's own: "
        "torch-eager, or onnx for an exported file."
    ),
]
"""The option `--backend`."""

ChainOption = Annotated[
    str,
    tyro.conf.arg(
        help=f"Whose plans: {' | '.join(CHAINS)}. checkpoint: those of the file's own scheduler; of DDIM without "
        "noise that is ddim:n. trained: those of the DDPM chain that its network was trained for, on which "
        "asd is exact. On a file with DDPM they are the same. stochastic:eta=1, of a flow alone: a chain with noise, "
        "which has a law of its own and on which asd is exact; a flow's own plans are euler:n."
    ),
]
"""The option `--chain`."""

FixedCropOption = Annotated[
    bool,
    tyro.conf.arg(
        help="Crop frames in the middle where the checkpoint's library crops them at random when it plans. Plans then "
        "have another law than the library's, on which asd is exact; without this such a checkpoint is refused."
    ),
]
"""The option `--fixed-crop`."""

SamplersOption = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        help="Sampler specs: ddpm | asd | asd:window=16,draft=frozen,verify=reflection, and approximate ddim:10 | "
        "dpmsolver:10 | euler:10 | paradigms:window=16,tol=0.1 | parallel:tol=0.03; for a policy of tokens: tokens | "
        "tokens:window=16,draft=frozen,verify=sequence. By default ddpm and asd; where the checkpoint's own DDIM runs, "
        "or Euler's steps of a flow, that alone; of a policy of tokens, tokens and tokens:window=16."
    ),
]
"""The option `--samplers`."""


def check_specs(specs: Sequence[str]) -> None:
    """Refuse specs of samplers that do not exist, before anything is loaded.

    Raises:
        SpecError: One does not.
    """
    for spec in specs:
        make_sampler(spec)


def choose_samplers(policy: Policy, specs: Sequence[str]) -> list[Sampler]:
    """Make the samplers that were asked for, each once; where none were, those of the default.

    Args:
        policy: As loaded.
        specs: Of the option `--samplers`.

    Raises:
        SpecError: A spec does not exist.
    """
    if not specs:
        specs = (policy.reference.spec, *([] if policy.law.fast is None else [policy.law.fast.spec]))
    return list(dict.fromkeys(make_sampler(spec) for spec in specs))


_REDIRECTED_WIDTH = 140  # [columns] of what goes to a file, which has no width of its own
_WIDE = 130  # [columns] of a terminal with room for everything
_LINE_EVERY = 20.0  # [s] between lines of progress that goes to a file
_STREAMS = _STDIN, _STDOUT, _STDERR = 0, 1, 2  # file descriptors
_results: TextIO | None = None  # where `print_json` writes while stdout is for nothing else


def make_console() -> Console:
    """Make a console on stderr that takes text as it is: paths and errors of other packages may look like markup."""
    console = Console(stderr=True, markup=False, emoji=False)
    if console.is_terminal or "COLUMNS" in os.environ or any(map(os.isatty, _STREAMS)):  # as in 2>&1 | tee log
        return console
    return Console(stderr=True, markup=False, emoji=False, width=_REDIRECTED_WIDTH)


def print_json(results: dict[str, Any]) -> None:
    """Print a command's results as one JSON object on stdout."""
    print(json.dumps(results), file=_results, flush=True)


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Send all that is printed to stderr, also by libraries and other processes, except by `print_json`."""
    global _results
    stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        _results = stdout
        try:
            stdout.flush()
            is_file = stdout.fileno() == _STDOUT
        except (AttributeError, OSError, ValueError):  # closed, or none of a process's own, as in a test
            is_file = False
        if is_file:
            kept = os.dup(_STDOUT)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, _STDOUT)
            stack.callback(stdout.flush)
            os.dup2(_STDERR, _STDOUT)
            _results = stack.enter_context(open(kept, "w", encoding="utf-8", closefd=False))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _results = None


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that is too small.

    Raises:
        SpecError: It is.
    """
    if value < least:
        raise SpecError(f"--{name} {value} is not {least} or more")


def check_folder(folder: Path, command: str) -> None:
    """Refuse a folder with the results of another command, which replaces only its own, or that cannot be written.

    Raises:
        RunError: It does.
    """
    check_writable(folder)
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
    """Refuse a margin of equivalence that is out of range.

    Raises:
        SpecError: It is.
    """
    if not 0 < margin < 1:
        raise SpecError(f"--margin {margin:g} is not between 0 and 1")


def progress_bar(console: Console) -> Progress:
    """Make a progress bar whose counter is never cut: what is being done stands last, and wraps in the room left.

    Without a terminal it prints lines.
    """
    return _Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=10 if console.width < _WIDE else 40),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, overflow="fold")),
        console=console,
        expand=True,
    )


class _Progress(Progress):
    """A progress bar that a log file can follow, where a bar is drawn only at its end: there it prints lines."""

    _told = 0.0

    def start(self) -> None:
        """Begin."""
        self._told = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count on."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if self.console.is_terminal or time.monotonic() - self._told < _LINE_EVERY:
            return
        self._told = time.monotonic()
        task = self._tasks[task_id]
        self.console.print(f"{task.completed:g} of {task.total:g}: {task.description}", soft_wrap=True)
