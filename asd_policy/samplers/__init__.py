"""Samplers by name, and the spec grammar `name`, `name:value`, `name:option=value,option=value`."""

from dataclasses import fields
from typing import get_type_hints

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
            values[option] = hints[option](text)
        except ValueError:
            raise SpecError(f"{option}={text} in {spec!r} is not of type {hints[option].__name__}") from None
    return sampler(**values)
