"""Samplers by name, and the spec grammar `name`, `name:value`, `name:option=value,option=value`."""

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from asd_policy.errors import SpecError
from asd_policy.samplers.asd import Asd
from asd_policy.samplers.base import Sampler
from asd_policy.samplers.ddim import Ddim
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.dpmsolver import DpmSolver
from asd_policy.samplers.paradigms import Paradigms

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": Ddpm,
    "ddim": Ddim,
    "dpmsolver": DpmSolver,
    "paradigms": Paradigms,
    "asd": Asd,
}
"""Every sampler by its name in a spec. A bare value stands for a sampler's first option: `ddim:10`."""


def make_sampler(spec: str) -> Sampler:
    """Make a sampler from its spec.

    Args:
        spec: Such as `ddpm`, `ddim:10`, `paradigms:tol=0.1`, `asd` or `asd:window=16,draft=picard`.

    Raises:
        SpecError: An unknown name or option, or a value that is not of the option's type or out of range.
    """
    name, _, rest = spec.partition(":")
    if name not in SAMPLERS:
        raise SpecError(f"no sampler {name!r} in {spec!r}; there are {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    hints = get_type_hints(sampler)
    options = [field.name for field in fields(sampler)]  # pyright: ignore[reportArgumentType]  # all are dataclasses
    values: dict[str, object] = {}
    for position, item in enumerate(rest.split(",") if rest else []):
        option, equals, text = item.partition("=")
        if not equals and position == 0 and options:
            option, text = options[0], item
        if option not in options:
            raise SpecError(f"no option {option!r} in {spec!r}; {name} has {', '.join(options) or 'none'}")
        if option in values:
            raise SpecError(f"option {option!r} is given twice in {spec!r}")
        try:
            values[option] = _read(hints[option], text)
        except ValueError:
            kinds = " or ".join(kind.__name__ for kind in get_args(hints[option]) or [hints[option]])
            kinds = kinds.replace("NoneType", "auto")
            raise SpecError(f"{option}={text} in {spec!r} is not of type {kinds}") from None
    return sampler(**values)


def _read(hint: Any, text: str) -> object:
    """Read an option's value; where it may be None, that is written auto.

    Raises:
        ValueError: It is not of the hinted type.
    """
    kinds = get_args(hint)
    if not kinds:
        return hint(text)
    return None if text == "auto" else kinds[0](text)
