"""From the words of a command line to a command; what describes none is refused in one line with what was meant."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

import tyro

import asd_policy
from asd_policy._common.names import did_you_mean
from asd_policy.cli.commands import COMMANDS
from asd_policy.errors import SpecError, colourless
from asd_policy.samplers import SAMPLERS

PROGRAM = "asd-policy"
COMPLETION = "--completion"
"""What asks for a shell's completion of the words, as a script."""
SHELLS = ("bash", "zsh", "fish")


def parse(arguments: Sequence[str]) -> Any:
    """Parse the words of a command line into a command.

    Args:
        arguments: Without the program's name.

    Raises:
        SpecError: They describe none.
        SystemExit: They ask for help or for a shell's completion, which is printed.
    """
    words = list(arguments)
    if words[:1] == [COMPLETION]:
        _print_completion(words[1:])
    _check_command(words)
    _check_options(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _understand(words)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    raise SpecError(f"{_fold(said.getvalue())}; see {_help_of(words)}")


def _understand(words: Sequence[str]) -> Any:
    about = (asd_policy.__doc__ or "").splitlines()[0]
    more = f"{PROGRAM} --version prints the version, {COMPLETION} {'|'.join(SHELLS)} what a shell completes."
    description = f"{about} Samplers: {', '.join(SAMPLERS)}. {more}"
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=PROGRAM, description=description, args=words)


def _print_completion(shells: Sequence[str]) -> NoReturn:
    """Print the script with which a shell completes a command line.

    Raises:
        SpecError: There is no such shell.
        SystemExit: It is printed.
    """
    if len(shells) != 1 or shells[0] not in SHELLS:
        raise SpecError(f"{COMPLETION} takes one of {', '.join(SHELLS)}; given {' '.join(shells) or 'none'}")
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        _understand(["--tyro-print-completion", *shells])
    for line in script.getvalue().splitlines():
        # Help of several lines: the script's reader would take each of them for a word.
        print(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC = ") else line)
    raise SystemExit(0)


def _help_of(words: Sequence[str]) -> str:
    """Name the command that explains what these words can be."""
    return f"{PROGRAM} {words[0]} --help" if words and words[0] in COMMANDS else f"{PROGRAM} --help"


def _check_command(words: Sequence[str]) -> None:
    """Refuse a command that does not exist.

    Raises:
        SpecError: It does not.
    """
    there = f"there are {', '.join(COMMANDS)}; see {_help_of(())}"
    if not words:
        raise SpecError(f"no command is given; {there}")
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        raise SpecError(f"no command {words[0]!r}{did_you_mean(words[0], COMMANDS)}; {there}")


def _check_options(words: Sequence[str]) -> None:
    """Refuse an option that the command does not have.

    Raises:
        SpecError: It does not have one.
    """
    command = COMMANDS.get(words[0])
    names = [] if command is None else [field.name.replace("_", "-") for field in fields(command)]
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if not word.startswith("--") or name.removeprefix("no-") in names or name in ("", "help"):
            continue
        whose = PROGRAM if command is None else words[0]
        meant = did_you_mean(name, names or ("help", "version", "completion"), "--")
        raise SpecError(f"{whose} has no option --{name}{meant}; see {_help_of(words)}")


def _fold(box: str) -> str:
    """Fold tyro's boxed message into one line, without its title, help texts and guesses."""
    lines = [line.strip("│╭╮╰╯ ") for line in colourless(box).splitlines()]
    _, *parts = (part for part in (each.strip() for each in re.split(r"[─-]{4,}", " ".join(lines))) if part)
    kept = [part for part in parts if not re.match(r"For full|Argument help|Perhaps you", part)]
    message = re.sub(r"(--[\w-]+) [A-Z]+ .*?\(required\)", r"\1", " ".join("; ".join(kept).split()))
    message = re.sub(r"\b([A-Z]+) [A-Z].*?\(required\)", r"\1", message).replace("Unrecognized options", "not known")
    message = re.sub(r" \(applied to [\w -]+\)| Arguments are applied.*?matter\.", "", message)
    message = re.sub(r"Error parsing (--[\w-]+): .*", _misfit, message)
    return message.rstrip(".")


def _misfit(found: re.Match[str]) -> str:
    """Say of a value that is not of its option's type what it is and what is wanted."""
    kinds = re.search(r"no type matching (?:{None}\|)?(\w+)|invalid literal for (int)|to (float):", found[0])
    value = re.search(r"instantiated from \[(.*?)\]|(?:base 10|to float): (.*)$", found[0])
    if kinds is None or value is None:
        return found[0]
    kind = (kinds[1] or kinds[2] or kinds[3]).lower()
    wanted = {"int": "a whole number", "float": "a number"}.get(kind, kind)
    return f"{found[1]} {value[1] or value[2]} is not {wanted}"
