"""Samplers by name."""

from asd_policy._common.specs import parse_spec
from asd_policy.samplers.asd.sampler import Asd
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
"""Every sampler by its name in a spec."""


def make_sampler(spec: str) -> Sampler:
    """Make a sampler from its spec.

    Args:
        spec: Such as `ddpm`, `ddim:10`, `paradigms:tol=0.1`, `asd` or `asd:window=16,draft=picard`.

    Raises:
        SpecError: An unknown name or option, or a value that is not of the option's type or out of range.
    """
    return parse_spec("sampler", spec, SAMPLERS)
