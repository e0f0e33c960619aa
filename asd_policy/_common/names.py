"""Names in other people's files: known ones, misspelt ones, and those that only a newer library knows."""

import warnings
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from asd_policy.errors import AsdError

_LONGEST = 100  # [characters] of a name that is looked at; difflib's time grows like their square
_MOST = 200  # unknown names, each of which is compared with all known ones
_CLOSE = 0.85  # of difflib's ratio: a letter too few or too many in seven


def unknown_names(given: Iterable[str], known: Collection[str], where: str, error: type[AsdError]) -> list[str]:
    """List the unknown names; refuse a misspelt known one, because its default would be taken in silence.

    Args:
        given: The names.
        known: The names that have a meaning.
        where: The place of the names, for messages.
        error: Type of the error to raise.

    Raises:
        AsdError: Of the type `error`: a name is close to a known one, or there are hundreds that are unknown.
    """
    unknown = [name for name in given if name not in known]
    if len(unknown) > _MOST:
        raise error(f"{where} has {len(unknown)} names that are not known, more than {_MOST}")
    plain = {name.lower(): name for name in known}
    for name in unknown:
        for close in get_close_matches(name.lower()[:_LONGEST], plain, n=1, cutoff=_CLOSE):
            raise error(f"{where} has {name!r}, which is not known; did you mean {plain[close]!r}?")
    return unknown


def did_you_mean(word: str, known: Collection[str], lead: str = "") -> str:
    """Write which known name a misspelt one may stand for, to go on a message; nothing where none is like it.

    Args:
        word: As it was given.
        known: The names that there are.
        lead: What stands before a name where it is used, such as "--".
    """
    plain = {name.lower(): name for name in known}
    return "".join(
        f" (did you mean {lead + plain[close]!r}?)" for close in get_close_matches(word.lower()[:_LONGEST], plain, n=1)
    )


def unknown_note(unknown: Collection[str], where: str) -> tuple[str, ...]:
    """Write a note on unknown names; none where there are none."""
    shown = ", ".join(name[:_LONGEST] for name in list(unknown)[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    return (f"{where} has names that are not known here and are not looked at: {shown}{more}",) if unknown else ()


def warn_of_unknown(unknown: Collection[str], where: str) -> None:
    """Warn of unknown names, once for the same ones."""
    for note in unknown_note(unknown, where):
        warnings.warn(note, stacklevel=2)
