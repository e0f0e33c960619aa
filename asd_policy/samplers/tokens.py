"""Token plans, one token after the other or speculatively: `asd_policy.tokens` as a sampler."""

from dataclasses import dataclass, replace

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import Chain, TokenChain
from asd_policy.errors import SpecError
from asd_policy.samplers.base import Sampler, Samples, Target, check_count
from asd_policy.samplers.records import PlanCost
from asd_policy.samplers.warm_start import WarmStart
from asd_policy.tokens.couplings import Booleans
from asd_policy.tokens.rounds import FROZEN, TokenRounds, check_how
from asd_policy.tokens.tape import Ints, TokenTape


@dataclass(frozen=True)
class Tokens(Sampler):
    """Any-order sampling of tokens: sequential with a window of 1, else speculative and exact (arXiv 2511.07869)."""

    window: int = 1
    """Most prefixes that one network call evaluates per row; 1 is the sequential sampler."""
    draft: str = FROZEN
    """frozen or picard."""
    verify: str = "sequence"
    """token, sequence or gumbel."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        check_count(f"window={self.window}", self.window)
        check_how(self.draft, self.verify)

    @property
    def spec(self) -> str:
        """The full spec of this sampler; a sequential one drafts nothing."""
        if self.window == 1:
            return "tokens"
        return f"tokens:window={self.window},draft={self.draft},verify={self.verify}"

    @property
    def exact(self) -> bool:
        """True: it is the law, or couples with it."""
        return True

    def fit(self, chain: Chain) -> None:
        """Refuse a chain of Gaussian steps, and a window longer than a plan."""
        if not isinstance(chain, TokenChain):
            raise SpecError(
                f"{self.spec} samples tokens, and this is a chain of Gaussian steps: ddpm or asd samples it"
            )
        check_count(f"window={self.window}", self.window, chain)

    def check(self, chain: GaussianChain) -> None:
        """Refuse it."""
        self.fit(chain)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Do rounds until every row has all its tokens; samples are the middles of their bins."""
        if target.deadline is not None:
            raise SpecError(f"no deadline can cut {self.spec}: leave it out for a policy of tokens")
        if target.inpainting is not None:
            raise SpecError(f"{self.spec} has no given coordinates: --continuity none plans without them")
        chain, like = _tokens_of(target.chain), tape.initial
        own = TokenTape.draw(chain, _sources(tape), len(like))
        seen = _Points(replace(target, shape=(len(like), len(chain), chain.alphabet)), chain, like)
        made = TokenRounds(seen, chain, own, self.window, self.draft, self.verify).run()
        costs = [
            PlanCost(rounds=rounds, nfe=nfe, window=self.window, refused=tuple(refused), unjudged=tuple(unjudged))
            for rounds, nfe, refused, unjudged in zip(
                made.rounds.tolist(), made.nfe.tolist(), made.refused, made.unjudged, strict=True
            )
        ]
        tokens = arrays.asarray(made.tokens, arrays.device_of(like)).reshape(like.shape)
        return Samples(arrays.namespace(like).astype(chain.decode(tokens), like.dtype), costs)


@dataclass(frozen=True)
class _Points:
    """A policy's network as `tokens.marginals.Marginals`: a known token is a one-hot row, an unknown one is zeros."""

    target: Target
    """Of points [n, A]."""
    chain: TokenChain
    like: Array
    """Any numbers of a plan's device and dtype."""

    def __call__(self, tokens: Ints, known: Booleans, rows: Ints) -> Array:
        """Compute logits [N, n, A] on the device of the plan."""
        place, xp = arrays.device_of(self.like), arrays.namespace(self.like)
        values, shown = arrays.asarray(tokens, place), arrays.asarray(known, place)
        x = (values[..., None] == arrays.arange(self.chain.alphabet, values)) & shown[..., None]
        cond = None if self.target.cond is None else self.target.cond[arrays.asarray(rows, place)]
        return self.target.call(xp.astype(x, self.like.dtype), shown.sum(1), cond)


def _tokens_of(chain: object) -> TokenChain:
    """Narrow a chain that `Tokens.fit` has looked at."""
    assert isinstance(chain, TokenChain)
    return chain


def _sources(tape: NoiseTape) -> list[np.random.Generator]:
    """Make a generator for each row of a tape, seeded with noise that tokens have no other use for."""
    rows = (np.ascontiguousarray(arrays.to_numpy(part).reshape(len(tape.initial), -1)) for part in _used(tape))
    words = np.concatenate([part.view(np.uint32) for part in rows], axis=1)
    return [np.random.default_rng(row) for row in words]


def _used(tape: NoiseTape) -> tuple[Array, Array, Array]:
    return tape.initial, tape.normals[:, 0], tape.uniforms
