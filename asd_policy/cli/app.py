"""The command line `asd-policy`: reads options, shows progress, and turns errors into one line and a status."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

import asd_policy
from asd_policy._common.extras import needed
from asd_policy.errors import AsdError, MissingPackageError, SpecError, one_line

BAD_INPUT = 2
"""Exit status of an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check did not hold, 2 bad usage or input, 130 interrupted."""
    warnings.formatwarning = lambda message, *_, **__: f"asd-policy: warning: {one_line(_colourless(str(message)))}\n"
    try:
        with _ended_by_interrupts(), needed("the command line", "eval"):
            import_module("asd_policy.cli.commands")  # with torch: seconds in which there is nothing to lose
    except MissingPackageError as error:
        sys.exit(_fail(error))
    status = run(sys.argv[1:] if arguments is None else list(arguments))
    # The results are out. What libraries still hold in a buffer, or print at their end, does not belong to them.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.exit(status)


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the process at once: raised in the middle of an import, it could look like any error."""

    def end(*_: Any) -> NoReturn:
        os._exit(_stop())

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where interrupts are ignored, as in a shell's background
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    try:
        command = _parse(arguments)
    except KeyboardInterrupt:
        return _stop()
    except AsdError as error:
        return _fail(error)
    from asd_policy.cli.common import make_console, stdout_for_results

    alone = stdout_for_results() if getattr(command, "json", False) else contextlib.nullcontext()
    try:
        with alone, _terminated_as_interrupted():
            return command.run(make_console())
    except KeyboardInterrupt:
        return _stop()
    except (AsdError, OSError) as error:
        if _is_interrupt(error):
            return _stop()
        if command.debug:
            raise
        return _fail(error)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, which supervisors send to end a job, stop a command as Ctrl-C does: with its results."""
    in_main = threading.current_thread() is threading.main_thread()  # handlers are for it alone
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop() -> int:
    print("asd-policy: interrupted", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def _is_interrupt(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C is behind an error: in the middle of an import it looks like a missing package."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _parse(arguments: Sequence[str]) -> Any:
    """Parse the arguments into a command.

    Raises:
        SpecError: They describe none; the message is tyro's box of text, folded into one line.
    """
    import tyro

    from asd_policy.cli.commands import COMMANDS
    from asd_policy.samplers import SAMPLERS

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="asd-policy",
                description=f"{asd_policy.__doc__} Samplers: {', '.join(SAMPLERS)}.",
                args=list(arguments),
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    raise SpecError(_fold(said.getvalue()))


def _colourless(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _fold(box: str) -> str:
    """Fold tyro's boxed message into one line, without its title, help texts and guesses."""
    lines = [line.strip("│╭╮╰╯ ") for line in _colourless(box).splitlines()]
    parts = [part.strip() for part in re.split(r"─{4,}", " ".join(lines))]
    kept = [part for part in parts if part and not re.match(r"─ |For full|Argument help|Perhaps you", part)]
    message = re.sub(r"(--[\w-]+) [A-Z]+ .*?\(required\)", r"\1", " ".join("; ".join(kept).split()))
    message = re.sub(r" \(applied to [\w -]+\)| Arguments are applied.*?matter\.", "", message)
    return f"{message.rstrip('.')}; see asd-policy --help"


def _fail(error: Exception) -> int:
    print(f"asd-policy: {one_line(str(error))}", file=sys.stderr)
    return BAD_INPUT
