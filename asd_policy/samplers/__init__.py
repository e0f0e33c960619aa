"""Samplers by name; those of other distributions come by the entry-point group `asd_policy.samplers`.

Such an entry point names a subclass of `Sampler`, a frozen dataclass of its options; its own name is the sampler's in
specs. A `Sampler` that nobody has registered can be given as it is, wherever a spec can.
"""

from dataclasses import is_dataclass
from inspect import isabstract
from typing import Any

from asd_policy._common.plugins import load_objects
from asd_policy._common.specs import parse_spec
from asd_policy.errors import SpecError
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import Sampler
from asd_policy.samplers.ddim import Ddim
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.dpmsolver import DpmSolver
from asd_policy.samplers.euler import Euler
from asd_policy.samplers.paradigms import Paradigms
from asd_policy.samplers.parallel import Parallel
from asd_policy.samplers.tokens import Tokens

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": Ddpm,
    "ddim": Ddim,
    "dpmsolver": DpmSolver,
    "euler": Euler,
    "paradigms": Paradigms,
    "parallel": Parallel,
    "asd": Asd,
    "tokens": Tokens,
}
"""Every sampler of this package by its name in a spec."""
OF_TOKENS = tuple(name for name, made in SAMPLERS.items() if issubclass(made, Tokens))
OF_STEPS = tuple(name for name in SAMPLERS if name not in OF_TOKENS)
"""Those that sample tokens, and those that sample a chain of Gaussian steps."""
GROUP = "asd_policy.samplers"


def make_sampler(spec: str | Sampler) -> Sampler:
    """Make a sampler from its spec.

    Args:
        spec: Such as `ddpm`, `ddim:10`, `paradigms:tol=0.1`, `asd` or `asd:window=16,draft=picard`; or a sampler, which
            is returned as it is.

    Raises:
        SpecError: An unknown name or option, or a value that is not of the option's type or out of range.
    """
    if isinstance(spec, Sampler):
        return spec
    if not isinstance(spec, str):
        raise SpecError(f"{spec!r:.80} is no sampler: give a spec such as 'asd:window=16', or a Sampler")
    if spec.partition(":")[0] in SAMPLERS:
        return parse_spec("sampler", spec, SAMPLERS)
    theirs, failures = load_objects(GROUP, _is_sampler, "a dataclass that implements Sampler")
    try:
        return parse_spec("sampler", spec, SAMPLERS | theirs)
    except SpecError as error:
        raise SpecError("; ".join([str(error), *failures])) from None


def as_it_ran(sampler: Sampler, spec: str) -> Sampler:
    """Make the sampler that a plan was made as, where it had something to choose.

    Args:
        sampler: What was asked for.
        spec: Of the plan's `SpeculationStats`.
    """
    return sampler if spec == sampler.spec else make_sampler(spec)


def _is_sampler(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Sampler) and is_dataclass(found) and not isabstract(found)
