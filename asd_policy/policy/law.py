"""Whose law samples have: that of a checkpoint's own scheduler, or of the chain that its network was trained for."""

from dataclasses import dataclass, replace

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.samplers import Sampler
from asd_policy.samplers.ddim import Ddim, OwnDdim
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.parallel import OwnParallel, Parallel

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

    chain: GaussianChain
    """The scheduler's own; for DDIM without noise the DDPM chain that the network was trained for."""
    own: OwnDdim | None = None
    """The plan of the checkpoint's own scheduler; None where that is the chain's."""
    runs: str = CHECKPOINT
    """One of `CHAINS`."""

    @property
    def _runs_own(self) -> OwnDdim | None:
        return self.own if self.runs == CHECKPOINT else None

    @property
    def reference(self) -> Sampler:
        """The sequential sampler of the law that runs, which speedups are against."""
        return self._runs_own or Ddpm()

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
        """Make a sampler as it runs here: `ddim` and `parallel` as the checkpoint's own, where that runs.

        Raises:
            SpecError: Its options do not fit the chain, or the checkpoint's own scheduler runs, which adds no noise,
                and it is neither.
        """
        if self._runs_own is not None:
            if isinstance(sampler, Ddim):
                sampler = replace(self._runs_own, steps=sampler.steps, eta=sampler.eta)
            elif isinstance(sampler, Parallel):
                sampler = OwnParallel(sampler.window, sampler.tol, sampler.draft, sampler.steps, self._runs_own)
            else:
                raise self._refusal(sampler.spec, self._runs_own)
        sampler.check(self.chain)
        return sampler

    def check_gaussian(self, what: str) -> None:
        """Refuse a thing that needs a chain of Gaussian steps, where a scheduler runs that adds no noise.

        Args:
            what: Needs it, for the message.

        Raises:
            SpecError: One does.
        """
        if self._runs_own is not None:
            raise self._refusal(what, self._runs_own)

    def _refusal(self, what: str, own: OwnDdim) -> SpecError:
        return SpecError(
            f"{what} needs a chain of Gaussian steps, and this checkpoint's own scheduler is DDIM without noise, whose "
            f"plan is {own.spec}: --chain {TRAINED}, or load_policy(…, chain={TRAINED!r}), samples the DDPM chain of "
            f"{len(self.chain)} steps that its network was trained for"
        )
