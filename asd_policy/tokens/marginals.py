"""The seam for networks of tokens, and the look at one before it is sampled from."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy.chain.tokens import TokenChain
from asd_policy.errors import DenoiserError
from asd_policy.tokens.couplings import Booleans
from asd_policy.tokens.tape import Floats, Ints

_LOOKS = 8
"""Sequences that a network is looked at with."""


class Marginals(Protocol):
    """An any-order model's network. Each point's output depends on its known tokens alone, and on nothing random."""

    def __call__(self, tokens: Ints, known: Booleans, rows: Ints, /) -> Any:
        """Predict the law of each token given the known ones.

        Args:
            tokens: Points [N, n], values in 0 … A − 1; those of unknown tokens mean nothing.
            known: Which tokens are known [N, n].
            rows: The batch row of each point [N], for what it is conditioned on.

        Returns:
            Logits [N, n, A], an array of NumPy or PyTorch; those of known tokens are not looked at.
        """
        ...


def read_logits(logits: Any, points: int, chain: TokenChain) -> npt.NDArray[Any]:
    """Check the form of a network's output, as NumPy's array.

    Raises:
        DenoiserError: It is no array [points, n, A] of floating-point numbers.
    """
    found = arrays.to_numpy(logits)
    wanted = (points, len(chain), chain.alphabet)
    if found.shape != wanted:
        raise DenoiserError(f"the network returned logits of shape {found.shape}; {wanted} are needed")
    if not np.issubdtype(found.dtype, np.floating):
        raise DenoiserError(f"the network returned {found.dtype}, not floating-point logits")
    return found


def log_law(logits: npt.NDArray[Any]) -> Floats:
    """Normalise logits [..., A] to the logarithms of a law, in float64; −∞ is a token that never comes.

    Raises:
        DenoiserError: One is NaN or +∞, or none of a law is above −∞.
    """
    wide = logits.astype(np.float64)
    peak = wide.max(-1, keepdims=True)
    if not np.isfinite(peak).all():  # NaN, too
        raise DenoiserError("the network returned NaN or infinity among its logits")
    wide -= peak
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def check_marginals(network: Marginals, chain: TokenChain, batch: int = 1) -> tuple[int, int]:
    """Refuse a network whose sequential sampler has no law that could be kept.

    Each of a few random sequences is shown with a random part of it known, then again as it was, and with other values
    in the place of the unknown tokens, at which no marginal may change.

    Args:
        network: To look at.
        chain: Its tokens.
        batch: Rows that it can be asked about.

    Returns:
        How many calls that took, and points.

    Raises:
        DenoiserError: Its logits are misshapen or not finite, two equal calls differ, or it sees unknown tokens.
    """
    rng, n = np.random.default_rng(0), len(chain)
    tokens, others = rng.integers(chain.alphabet, size=(2, _LOOKS, n))
    share = np.linspace(0, n - 1, _LOOKS).round()
    known = rng.permuted(np.tile(np.arange(n), (_LOOKS, 1)), axis=1) < share[:, None]
    rows = np.arange(_LOOKS) % batch

    def ask(values: Ints) -> Floats:
        return log_law(read_logits(network(values, known, rows), _LOOKS, chain))

    first, again = ask(tokens), ask(tokens)
    hidden = ask(np.where(known, tokens, others))
    _compare(first, again, known, "two equal calls of the network differ; is dropout left on? Call .eval(); it is")
    _compare(
        first, hidden, known,
        "the network sees tokens that it should not: its marginals change with the values of unknown tokens; they are",
    )  # fmt: skip
    return 3, 3 * _LOOKS


def _compare(first: Floats, second: Floats, known: Booleans, what: str) -> None:
    """Refuse laws of unknown tokens that differ by more than rounding."""
    change = np.abs(np.exp(first) - np.exp(second)).max(-1) * ~known
    if change.max() > 1e-4:
        point, place = np.unravel_index(int(change.argmax()), change.shape)
        raise DenoiserError(f"{what} {change.max():.2g} apart at token {place}, with {known[point].sum()} known")
