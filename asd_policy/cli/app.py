"""The command line `asd-policy`: reads options, shows progress, and turns errors into one line and a status."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

from asd_policy._common.extras import needed
from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.errors import AsdError, MissingPackageError, colourless, one_line

BAD_INPUT = 2
"""Exit status of an error."""
VERSION = ["--version"]
"""What asks for the version alone."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check did not hold, 2 bad usage or input, 130 interrupted."""
    warnings.formatwarning = lambda message, *_, **__: f"asd-policy: warning: {one_line(colourless(str(message)))}\n"
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] != VERSION:
        try:
            with _ended_by_interrupts(), needed("the command line", "eval"):
                import_module("asd_policy.cli.commands")  # with torch: seconds in which there is nothing to lose
        except MissingPackageError as error:
            sys.exit(_fail(error))
    status = run(words)
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
    if list(arguments[:1]) == VERSION:
        print(f"asd-policy {PACKAGE_VERSION}")
        return 0
    try:
        from asd_policy.cli.parsing import parse

        command = parse(arguments)
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
    """Let a supervisor that ends a job, and a terminal that is closed, stop a command as Ctrl-C: with its results."""
    in_main = threading.current_thread() is threading.main_thread()  # handlers are for it alone
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [each for each in ends if in_main and signal.getsignal(each) is signal.SIG_DFL]  # not under nohup
    for each in ours:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _stop() -> int:
    print("asd-policy: interrupted", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def _is_interrupt(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C is behind an error: in the middle of an import it looks like a missing package."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(error: Exception) -> int:
    print(f"asd-policy: {one_line(str(error))}", file=sys.stderr)
    return BAD_INPUT
