"""Whose law samples have: that of a checkpoint's own scheduler, or of the chain that its network was trained for."""

from dataclasses import dataclass, replace

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.tokens import Chain, TokenChain, gaussian
from asd_policy.errors import SpecError
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddim import Ddim, OwnDdim
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.tokens import Tokens

CHECKPOINT, TRAINED = CHAINS = "checkpoint", "trained"
"""The two laws. They differ where the checkpoint's scheduler is a DDIM that adds no noise."""


def check_chain(name: str) -> None:
    """Refuse a name that is none of `CHAINS`.

    Raises:
        SpecError: It is so.
    """
    if name not in CHAINS:
        raise SpecError(f"chain {name!r} is not one of {', '.join(CHAINS)}")


@dataclass(frozen=True)
class Law:
    """A chain, the plan of the checkpoint's own scheduler where that is another one, and which of the two runs."""

    chain: Chain
    """The scheduler's own; for DDIM without noise the DDPM chain that the network was trained for. Or one of tokens."""
    own: OwnDdim | None = None
    """The plan of the checkpoint's own scheduler; None where that is the chain's."""
    runs: str = CHECKPOINT
    """One of `CHAINS`."""

    @property
    def _runs_own(self) -> OwnDdim | None:
        return self.own if self.runs == CHECKPOINT else None

    @property
    def tokens(self) -> TokenChain | None:
        """The chain of tokens; None for one of Gaussian steps."""
        return self.chain if isinstance(self.chain, TokenChain) else None

    def gaussian(self, what: str) -> GaussianChain:
        """Give the chain of Gaussian steps.

        Args:
            what: Needs it, for the message.

        Raises:
            SpecError: It is one of tokens.
        """
        return gaussian(what, self.chain)

    @property
    def reference(self) -> Sampler:
        """The sequential sampler of the law that runs, which speedups are against."""
        if self.tokens is not None:
            return Tokens()
        return self._runs_own or Ddpm()

    @property
    def fast(self) -> Asd | Tokens | None:
        """The sampler that makes the same plans in fewer network calls; None where there is none."""
        if self.tokens is not None:
            return Tokens(min(16, len(self.tokens)))
        return None if self._runs_own is not None else Asd()

    @property
    def steps(self) -> int:
        """Network calls of `reference` for a sample."""
        return self.reference.sequential_steps(self.chain)

    def turned(self, runs: str) -> "Law":
        """Turn to one of the two laws; an exported file, which has no more than the trained chain, stays with that.

        Raises:
            SpecError: There is no such one.
        """
        check_chain(runs)
        return self if self.own is None and self.runs == TRAINED else replace(self, runs=runs)

    def fitted(self, sampler: Sampler) -> Sampler:
        """Make a sampler as it runs here: `ddim` with the options of the checkpoint's own, where that runs.

        Raises:
            SpecError: Its options do not fit the chain, or the checkpoint's own scheduler runs, which adds no noise,
                and it is not `ddim`.
        """
        if self._runs_own is not None:
            if not isinstance(sampler, Ddim):
                raise self._refusal(sampler.spec, self._runs_own)
            sampler = replace(self._runs_own, steps=sampler.steps, eta=sampler.eta)
        sampler.fit(self.chain)
        return sampler

    def check_gaussian(self, what: str) -> None:
        """Refuse a thing that needs a chain of Gaussian steps, where a scheduler adds no noise or plans are tokens.

        Args:
            what: Needs it, for the message.

        Raises:
            SpecError: One does.
        """
        self.gaussian(what)
        if self._runs_own is not None:
            raise self._refusal(what, self._runs_own)

    def _refusal(self, what: str, own: OwnDdim) -> SpecError:
        return SpecError(
            f"{what} needs a chain of Gaussian steps, and this checkpoint's own scheduler is DDIM without noise, whose "
            f"plan is {own.spec}: --chain {TRAINED}, or load_policy(…, chain={TRAINED!r}), samples the DDPM chain of "
            f"{len(self.chain)} steps that its network was trained for"
        )
