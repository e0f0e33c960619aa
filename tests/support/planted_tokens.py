"""Any-order models whose law is known: a table of all sequences, and a walk on which drafts drift away."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asd_policy.chain.tokens import TokenChain
from asd_policy.tokens.couplings import Booleans
from asd_policy.tokens.tape import Floats, Ints


class TableModel:
    """A model of few tokens, with the law of each sequence in a table.

    Its marginals are those of one joint law, whatever the order; or, with `twist`, of none: they then also depend on
    which tokens are known, as a trained network's do, and each order has a law of its own.
    """

    def __init__(self, chain: TokenChain, seed: int, twist: float = 0.0) -> None:
        """Draw a table."""
        rng = np.random.default_rng(seed)
        self.chain = chain
        self.outcomes = np.array(list(itertools.product(range(chain.alphabet), repeat=len(chain))))
        self.table = rng.dirichlet(np.full(len(self.outcomes), 0.3)) + 1e-3
        self.table /= self.table.sum()
        self.twist = twist * rng.standard_normal((len(chain), len(chain), chain.alphabet))

    def __call__(self, tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        """Compute the marginals, as `tokens.marginals.Marginals`."""
        fits = ((self.outcomes == tokens[:, None]) | ~known[:, None]).all(2)
        values = np.arange(self.chain.alphabet)
        hot = (self.outcomes[..., None] == values).astype(float)
        with np.errstate(divide="ignore"):
            law = np.log(np.einsum("no,o,oia->nia", fits, self.table, hot))
        return law + np.einsum("nj,jia->nia", known.astype(float), self.twist)

    def law(self, order: Sequence[int]) -> npt.NDArray[np.float64]:
        """Compute the sequential sampler's law of each outcome, in an order."""
        law, known = np.ones(len(self.outcomes)), np.zeros(self.outcomes.shape, bool)
        for place in order:
            logits = self(self.outcomes, known, np.zeros(len(self.outcomes), int))[:, place]
            weights = np.exp(logits - logits.max(1, keepdims=True))
            law *= (weights / weights.sum(1, keepdims=True))[np.arange(len(law)), self.outcomes[:, place]]
            known[:, place] = True
        return law

    def count(self, tokens: Ints) -> npt.NDArray[np.int64]:
        """Count how often each outcome is among samples [N, n]."""
        base = self.chain.alphabet ** np.arange(len(self.chain) - 1, -1, -1)
        return np.bincount(tokens @ base, minlength=len(self.outcomes))
