"""What samplers are called in tables, plots and messages: short, and no two samplers alike.

| spec | name |
|---|---|
| `asd` | asd |
| `asd:window=32,draft=response,verify=block` | asd θ=32 |
| `asd:window=16,draft=picard,verify=block` | asd θ=16 picard |
| `asd:window=8,draft=frozen,verify=reflection` | paper's asd θ=8 |
| `ddim:10` | ddim-10 ≈ |

≈ marks what is approximate. The full spec is in results.json.
"""

import re
from collections.abc import Mapping
from typing import Any

from asd_policy.samplers.asd.autotune import DEFAULT

_SYMBOLS = {"window": "θ", "eta": "η"}
_PAPER = ("frozen", "reflection")
"""Draft and coupling of ASD as published (arXiv 2505.03983)."""
_CHOSEN = "auto"


def short_name(spec: str, exact: bool = True) -> str:
    """Name a sampler for people.

    Args:
        spec: As `Sampler.spec`, or as a user writes it.
        exact: Whether it is; others are marked.
    """
    name, _, rest = spec.partition(":")
    options = _options(rest)
    words = _of_asd(options) if name == "asd" else _of_others(name, options)
    return " ".join((*words, *(() if exact else ("≈",))))


def shown_name(result: Mapping[str, Any]) -> str:
    """Name a sampler of results.json in tables and plots."""
    return short_name(result["spec"], result.get("exact", True))


def reference_of(results: Mapping[str, Any]) -> str:
    """Find the spec of the sequential sampler that a results.json object compares the others with."""
    return results.get("reference", "ddpm")


def name_at_any_window(spec: str) -> str:
    """Name a line of a plot against the window: that of all samplers which differ in a window that is given alone."""
    return short_name(re.sub(r"window=\d+", "window=…", spec))


def _options(rest: str) -> dict[str, str]:
    """List the options of a spec by name; a bare value has no name."""
    named = (item.rpartition("=") for item in rest.split(",") if item)
    return {name: value for name, _, value in named}


def _of_asd(options: dict[str, str]) -> list[str]:
    """Name `asd` by what is not its default; a bare value is the window."""
    window = options.get("window", options.get("", _CHOSEN))
    pair = options.get("draft", _CHOSEN), options.get("verify", _CHOSEN)
    if window != _CHOSEN:  # what is left to it is then the default, not chosen
        pair = tuple(own if own != _CHOSEN else usual for own, usual in zip(pair, DEFAULT.pair, strict=True))
    paper = pair == _PAPER
    words = ["paper's asd" if paper else "asd", *([] if window == _CHOSEN else [f"θ={window}"])]
    usual = (_CHOSEN, _CHOSEN) if window == _CHOSEN else DEFAULT.pair
    return words if paper else words + [own for own, common in zip(pair, usual, strict=True) if own != common]


def _of_others(name: str, options: dict[str, str]) -> list[str]:
    """Name any other sampler by its options; a bare value belongs to the name."""
    bare = options.pop("", None)
    first = name if bare is None else f"{name}-{bare}"
    return [first, *(f"{_SYMBOLS.get(option, option)}={value}" for option, value in options.items())]
