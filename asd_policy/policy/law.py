"""Whose law samples have: that of a checkpoint's own scheduler, of its network's trained chain, or of a noisy flow."""

from dataclasses import dataclass, replace

from asd_policy._common.specs import parse_spec
from asd_policy.chain.flow import check_flow_eta, is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.tokens import Chain, TokenChain, gaussian
from asd_policy.errors import ChainError, SpecError
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import number
from asd_policy.samplers.ddim import OwnDdim
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.euler import OwnEuler, flow_with_eta
from asd_policy.samplers.parallel import OwnParallel, Parallel
from asd_policy.samplers.tokens import Tokens

CHECKPOINT, TRAINED, STOCHASTIC = CHAINS = "checkpoint", "trained", "stochastic"
"""The laws. The first two differ where the checkpoint's scheduler is a DDIM that adds no noise. The third is a flow's,
a law of its own: Euler's steps with a share of noise η, `stochastic:eta=0.5`; of 1 where none is given."""


@dataclass(frozen=True)
class Stochastic:
    """The option of the chain `stochastic`."""

    eta: float = 1.0
    """Share of noise, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            SpecError: It is out of range; 0 is Euler's own plan, the chain `checkpoint`.
        """
        try:
            check_flow_eta(self.eta)
        except ChainError as error:
            raise SpecError(f"chain {STOCHASTIC}: {error}") from None
        if self.eta == 0:
            raise SpecError(
                f"chain {STOCHASTIC}: eta=0 adds no noise, so there is nothing to draft and verify; the chain "
                f"{CHECKPOINT!r} has Euler's own plans, and in (0, 1] eta adds noise"
            )

    @property
    def spec(self) -> str:
        """How results call the law."""
        return f"{STOCHASTIC}:eta={number(self.eta)}"


def check_chain(name: str) -> None:
    """Refuse a name that is none of `CHAINS`.

    Raises:
        SpecError: It is so, or its option is out of range.
    """
    if name not in (CHECKPOINT, TRAINED):
        stochastic_of(name)


def stochastic_of(name: str) -> Stochastic | None:
    """Read the option of the chain `stochastic`; None for the name of another chain.

    Raises:
        SpecError: There is no such chain, or its option is out of range.
    """
    if name in (CHECKPOINT, TRAINED):
        return None
    if not isinstance(name, str) or name.partition(":")[0] != STOCHASTIC:
        raise SpecError(f"chain {name!r} is not one of {', '.join(CHAINS)}")
    return parse_spec("chain", name, {STOCHASTIC: Stochastic})


@dataclass(frozen=True)
class Law:
    """A chain, the plan of the checkpoint's own scheduler where that is another one, and which of the two runs."""

    chain: Chain
    """The scheduler's own; for DDIM without noise the DDPM chain that the network was trained for, for a flow a chain
    with noise. Or one of tokens."""
    own: OwnDdim | OwnEuler | None = None
    """The plan of the checkpoint's own scheduler; None where that is the chain's."""
    runs: str = CHECKPOINT
    """One of `CHAINS`, with its option."""

    @property
    def _runs_own(self) -> OwnDdim | OwnEuler | None:
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

    @property
    def other(self) -> str:
        """The chain of Gaussian steps of a checkpoint whose own scheduler adds no noise."""
        return STOCHASTIC if self.is_flow else TRAINED

    @property
    def is_flow(self) -> bool:
        """Whether the network is a flow's."""
        return isinstance(self.chain, GaussianChain) and is_flow(self.chain.config)

    def turned(self, runs: str) -> "Law":
        """Turn to one of the laws; an exported file, which has no more than the trained chain, stays with that.

        Raises:
            SpecError: There is no such one, or not of this network.
        """
        noise = stochastic_of(runs)
        if noise is not None:
            if not self.is_flow:
                kind = "TokenChain" if isinstance(self.chain, TokenChain) else self.chain.config["_class_name"]
                raise SpecError(
                    f"chain {runs!r} is a flow's, and the network of this {kind} is none: use {CHECKPOINT} or {TRAINED}"
                )
            flow = flow_with_eta(self.gaussian("a flow"), noise.eta)
            return replace(self, chain=flow, runs=noise.spec)
        if self.is_flow and runs == TRAINED:
            raise SpecError(
                f"chain {runs!r} is the DDPM chain of a diffusion's network, and this one is a flow's: use "
                f"{CHECKPOINT} or {STOCHASTIC}"
            )
        return self if self.own is None and self.runs == TRAINED else replace(self, runs=runs)

    def fitted(self, sampler: Sampler) -> Sampler:
        """Make a sampler as it runs here: of the checkpoint's own kind with its options, where that runs.

        Raises:
            SpecError: Its options do not fit the chain, or the checkpoint's own scheduler runs, which adds no noise,
                and it is not of that kind, `ddim` or for a flow `euler`, nor `parallel`.
        """
        own = self._runs_own
        if own is not None:
            if isinstance(sampler, Parallel):
                sampler = OwnParallel(sampler.window, sampler.tol, sampler.draft, sampler.steps, own)
            elif isinstance(sampler, own.family):
                sampler = own.like(sampler)
            else:
                raise self._refusal(sampler.spec, own)
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

    def _refusal(self, what: str, own: OwnDdim | OwnEuler) -> SpecError:
        chain = (
            f"a chain of {len(self.chain)} steps with noise, which has a law of its own"
            if isinstance(own, OwnEuler)
            else f"the DDPM chain of {len(self.chain)} steps that its network was trained for"
        )
        return SpecError(
            f"{what} needs a chain of Gaussian steps, and this checkpoint's own scheduler is {own.what}, whose plan is "
            f"{own.spec}: --chain {self.other}, or load_policy(…, chain={self.other!r}), samples {chain}"
        )
