"""What the user asks for in environment variables, for policies that are loaded under their own type."""

import os
from dataclasses import dataclass

from asd_policy import SpecError
from asd_policy.networks.backends import make_backend
from asd_policy.policy.law import CHECKPOINT, check_chain
from asd_policy.samplers import make_sampler

SAMPLER, CHAIN, BACKEND = "ASD_POLICY_SAMPLER", "ASD_POLICY_CHAIN", "ASD_POLICY_BACKEND"
OFF = "off"
_CHECKS = {SAMPLER: make_sampler, CHAIN: check_chain, BACKEND: make_backend}


@dataclass(frozen=True)
class Settings:
    """How policies are to plan."""

    sampler: str
    """Spec of a sampler, or `OFF` for LeRobot's own loop."""
    chain: str
    """Whose law plans have: "checkpoint" or "trained"."""
    backend: str | None
    """Spec of what runs the network; None for the best that fits."""
    asked: tuple[str, ...]
    """The variables that are set, each with its value."""


def read_settings() -> Settings:
    """Read the environment variables.

    Raises:
        SpecError: One of them names nothing that exists; the message names the variable.
    """
    given = {name: os.environ.get(name, "").strip() for name in _CHECKS}
    for name, check in _CHECKS.items():
        if given[name] and given[name] != OFF:
            try:
                check(given[name])
            except SpecError as error:
                raise SpecError(f"{name}={given[name]}: {error}{_way_out(name)}") from None
    if OFF in (given[CHAIN], given[BACKEND]):
        raise SpecError(f"{OFF} is a value of {SAMPLER}, not of {CHAIN} or {BACKEND}")
    asked = tuple(f"{name}={value}" for name, value in given.items() if value)
    return Settings(given[SAMPLER] or "asd", given[CHAIN] or CHECKPOINT, given[BACKEND] or None, asked)


def _way_out(name: str) -> str:
    return f"; {name}={OFF} is LeRobot's own loop" if name == SAMPLER else ""
