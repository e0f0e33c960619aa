"""Whose law plans have: where a checkpoint's own scheduler adds no noise, that of its trained chain is another."""

import abc
import copy
from dataclasses import replace
from typing import Self

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.samplers import Sampler
from asd_policy.samplers.ddim import Ddim, OwnDdim
from asd_policy.samplers.ddpm import Ddpm

CHECKPOINT, TRAINED = CHAINS = "checkpoint", "trained"
"""Whose law plans have: that of the checkpoint's own scheduler, or of the chain that its network was trained for. They
differ where the scheduler is a DDIM that adds no noise."""


def check_chain(chain: str) -> None:
    """Refuse a name that is none of `CHAINS`.

    Raises:
        SpecError: It is so.
    """
    if chain not in CHAINS:
        raise SpecError(f"chain {chain!r} is not one of {', '.join(CHAINS)}")


class LawChoice(abc.ABC):
    """The part of a policy that knows its two laws: chain and sampler, and the plan of the checkpoint's scheduler."""

    def __init__(self, chain: GaussianChain, sampler: Sampler) -> None:
        """Begin with the law of the chain.

        Raises:
            SpecError: The sampler's options do not fit the chain.
        """
        sampler.check(chain)
        self.chain = chain
        self.sampler = sampler
        self.own: OwnDdim | None = None
        """The plan of the checkpoint's own scheduler; None where that is the chain's."""
        self.runs = CHECKPOINT
        """Whose law plans have, one of `CHAINS`."""

    @abc.abstractmethod
    def with_sampler(self, sampler: Sampler) -> Self:
        """As `Policy.with_sampler`."""

    def with_own_plan(self, own: OwnDdim | None) -> Self:
        """Make a policy that knows the plan of its checkpoint's own scheduler, where that is DDIM without noise.

        It still runs the chain that its network was trained for; `with_chain` turns to the other law.

        Args:
            own: None where the scheduler is the chain's.
        """
        other = copy.copy(self)
        other.own, other.runs = own, CHECKPOINT if own is None else TRAINED
        return other

    def with_chain(self, chain: str, sampler: Sampler | None = None) -> Self:
        """Make a policy of the same network with one of the two laws, see `CHAINS`; the rest is as by `with_sampler`.

        Args:
            chain: One of `CHAINS`.
            sampler: How to plan; None for the law's `reference`.

        Raises:
            SpecError: There is no such chain, or as `with_sampler`.
        """
        check_chain(chain)
        other = copy.copy(self)
        other.runs = chain
        return other.with_sampler(sampler or other.reference)

    @property
    def _runs_own(self) -> OwnDdim | None:
        return self.own if self.runs == CHECKPOINT else None

    @property
    def reference(self) -> Sampler:
        """The sequential sampler of the law that runs, which speedups are against."""
        return self._runs_own or Ddpm()

    @property
    def steps(self) -> int:
        """Network calls of `reference` in a plan."""
        return self.reference.sequential_steps(self.chain)

    def check_gaussian(self, what: str) -> None:
        """Refuse a thing that needs a chain of Gaussian steps, where the policy runs a scheduler that adds no noise.

        Args:
            what: Needs it, for the message.

        Raises:
            SpecError: The policy does.
        """
        if self._runs_own is not None:
            raise self._refusal(what, self._runs_own)

    def fitted(self, sampler: Sampler) -> Sampler:
        """Make a sampler one for the law that runs.

        Raises:
            SpecError: Its options do not fit the chain, or the policy runs a scheduler that adds no noise and the
                sampler is not `ddim`.
        """
        if self._runs_own is not None:
            if not isinstance(sampler, Ddim):
                raise self._refusal(sampler.spec, self._runs_own)
            sampler = replace(self._runs_own, steps=sampler.steps, eta=sampler.eta)
        sampler.check(self.chain)
        return sampler

    def _refusal(self, what: str, own: OwnDdim) -> SpecError:
        return SpecError(
            f"{what} needs a chain of Gaussian steps, and this checkpoint's own scheduler is DDIM without noise, whose "
            f"plan is {own.spec}: --chain {TRAINED}, or load_policy(…, chain={TRAINED!r}), samples the DDPM chain of "
            f"{len(self.chain)} steps that its network was trained for"
        )
