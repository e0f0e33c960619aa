"""An any-order model whose law is known: a table of all sequences of few tokens."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from asd_policy.chain.tokens import TokenChain
from asd_policy.tokens.couplings import Booleans
from asd_policy.tokens.tape import Floats, Ints


class TableModel:
    """A model of few tokens, with the law of each sequence in a table.

    Its marginals are those of one joint law, whatever the order; or, with `twist`, of none: they then also depend on
    which tokens are known, as a trained network's do, and each order has a law of its own.
    """

    def __init__(self, chain: TokenChain, seed: int = 1, twist: float = 0.5) -> None:
        """Draw a table, and compute the marginals given each set of known tokens."""
        rng = np.random.default_rng(seed)
        n, alphabet = len(chain), chain.alphabet
        self.chain = chain
        self.outcomes = np.array(list(itertools.product(range(alphabet), repeat=n)))
        table = rng.dirichlet(np.full(len(self.outcomes), 0.3)) + 1e-3
        twists = twist * rng.standard_normal((n, n, alphabet))
        seen = np.array(list(itertools.product(range(alphabet + 1), repeat=n)))  # the last value: not known
        fits = ((self.outcomes == seen[:, None]) | (seen == alphabet)[:, None]).all(2)
        hot = np.eye(alphabet)[self.outcomes]
        with np.errstate(divide="ignore"):
            self.logits = np.log(np.einsum("so,o,oia->sia", fits, table, hot))
        self.logits += np.einsum("sj,jia->sia", (seen < alphabet).astype(float), twists)

    def __call__(self, tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        """Look up the marginals, as `tokens.marginals.Marginals`."""
        base = (self.chain.alphabet + 1) ** np.arange(len(self.chain) - 1, -1, -1)
        return self.logits[np.where(known, tokens, self.chain.alphabet) @ base]

    def law(self, order: Sequence[int]) -> npt.NDArray[np.float64]:
        """Compute the sequential sampler's law of each outcome, in an order."""
        law, known = np.ones(len(self.outcomes)), np.zeros(self.outcomes.shape, bool)
        for place in order:
            weights = np.exp(self(self.outcomes, known, np.zeros(len(law), int))[:, place])
            law *= weights[np.arange(len(law)), self.outcomes[:, place]] / weights.sum(1)
            known[:, place] = True
        return law

    def p_value(self, tokens: Ints) -> float:
        """Test whether samples [N, n] have the law of the chain's order, or of all orders: Pearson's χ²."""
        n = len(self.chain)
        base = self.chain.alphabet ** np.arange(n - 1, -1, -1)
        found = np.bincount(tokens @ base, minlength=len(self.outcomes))
        orders = [self.chain.order] if self.chain.order is not None else list(itertools.permutations(range(n)))
        expected = len(tokens) * np.mean([self.law(order) for order in orders], axis=0)
        return float(stats.chisquare(found, expected * len(tokens) / expected.sum()).pvalue)
