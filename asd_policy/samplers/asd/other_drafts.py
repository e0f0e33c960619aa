"""Drafts from outside this package: given as objects, or by the entry-point group `asd_policy.drafts`.

Such an entry point names a `Draft`; its own name is the draft's in specs. The rounds of these drafts run as
`engine.Round` has them: the compiled forms know the drafts of this package alone. `auto` chooses none of them.
"""

import re

from asd_policy._common.plugins import load_objects
from asd_policy.errors import SpecError
from asd_policy.samplers.asd.draft import DRAFTS, Draft

GROUP = "asd_policy.drafts"
_NAME = re.compile(r"[\w.-]+")
_given: set[str] = set()  # names in DRAFTS of those that came as objects; another process does not know them


def check_draft(name: str) -> None:
    """Find a draft by its name, those of other distributions included.

    Raises:
        SpecError: There is none of this name.
    """
    if name in DRAFTS:
        return
    theirs, failures = load_objects(GROUP, lambda draft: isinstance(draft, Draft), "a Draft")
    for each, draft in theirs.items():
        DRAFTS.setdefault(each, draft)
    if name not in DRAFTS:
        raise SpecError("; ".join([f"draft={name} is not one of auto, {', '.join(DRAFTS)}", *failures]))


def register(draft: Draft) -> str:
    """Give a draft its name in specs, for this process: its `name`, or its class's.

    Raises:
        SpecError: It cannot be a name, or another draft has it.
    """
    for name, known in DRAFTS.items():
        if known is draft:
            return name
    name = draft.name or type(draft).__name__
    if not _NAME.fullmatch(name) or name == "auto":
        raise SpecError(f"a draft cannot be called {name!r} in a spec: give it a `name` of letters, digits, . _ and -")
    if name not in DRAFTS:
        _given.add(name)
        DRAFTS[name] = draft
    elif not _same(DRAFTS[name], draft):
        raise SpecError(f"another draft is called {name!r} already: give this one a `name` of its own")
    return name


def portable(name: str | None) -> str | Draft | None:
    """Give what another process finds the draft by: its name, or the draft itself where it came as an object."""
    return DRAFTS[name] if name in _given else name


def _same(one: Draft, other: Draft) -> bool:
    """Tell whether two drafts do the same: one that came back from a pickle is another object."""
    return type(one) is type(other) and vars(one) == vars(other)
