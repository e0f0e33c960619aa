"""The randomness of a batch of token plans, indexed by the step that may use it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asd_policy.chain.tokens import TokenChain

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTape:
    """All that is random about B plans of n tokens.

    A draft for step k may depend on the numbers of steps before k, and on nothing of step k or later: that is what
    makes it independent of the numbers that judge it.
    """

    orders: Ints
    """The token that each step samples [B, n]."""
    gumbels: Floats
    """Gumbel noise of each step [B, n, A]: a token of law q is argmax(log q + g), whichever law q is."""
    uniforms: Floats
    """What judges the draft of each step [B, n], in (0, 1]."""
    residuals: Floats
    """What draws from the residual of each step [B, n], in [0, 1)."""
    sources: Sequence[np.random.Generator]
    """Of fresh numbers, where a verdict has looked at those of the tape: one for each row, or one for all."""

    @classmethod
    def draw(cls, chain: TokenChain, sources: Sequence[np.random.Generator], batch: int) -> "TokenTape":
        """Draw a tape.

        Args:
            chain: Whose steps it is for.
            sources: One for each row, which is then the same whatever the batch it is in; or one for all.
            batch: Rows B.

        Raises:
            ValueError: There are neither one nor B sources.
        """
        if len(sources) not in (1, batch):
            raise ValueError(f"{len(sources)} generators for a batch of {batch}: give one, or one per row")
        n, each = len(chain), batch // len(sources)
        if chain.order is None:
            orders = [source.permuted(np.tile(np.arange(n), (each, 1)), axis=1) for source in sources]
        else:
            orders = [np.tile(np.array(chain.order), (each, 1)) for _ in sources]
        return cls(
            orders=np.concatenate(orders),
            gumbels=np.concatenate([source.gumbel(size=(each, n, chain.alphabet)) for source in sources]),
            uniforms=1 - np.concatenate([source.random((each, n)) for source in sources]),
            residuals=np.concatenate([source.random((each, n)) for source in sources]),
            sources=sources,
        )

    def renew(self, row: Ints, step: Ints) -> None:
        """Draw the numbers of some steps afresh, those of step[i] of row[i]."""
        if len(self.sources) == 1:
            self._redraw(row, step, self.sources[0])
            return
        for which in np.unique(row):
            own = row == which
            self._redraw(row[own], step[own], self.sources[which])

    def _redraw(self, row: Ints, step: Ints, source: np.random.Generator) -> None:
        self.gumbels[row, step] = source.gumbel(size=(len(row), self.gumbels.shape[2]))
        self.uniforms[row, step] = 1 - source.random(len(row))
