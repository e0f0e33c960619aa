"""Couplings of drafted tokens with their target laws: pure functions, no network, no randomness.

A draft of step i is x̃_i = argmax(log q_i + g_i), of law q_i; the network's own law there is p_i, given the drafts
before it. A verifier decides how many of a round's drafts stand, and draws the token after them.

`token` goes token by token (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): accept where

    u_i ≤ p_i(x̃_i) / q_i(x̃_i),      P(accept) = Σ min(p_i, q_i),

else draw from the residual (p_i − q_i)⁺, normalised. Either way the token has the law p_i, and no coupling accepts
more.

`sequence` judges the prefixes of a round (block verification: Sun et al., arXiv 2403.10444, Algorithm 2; in any order:
arXiv 2511.07869). It is `samplers.asd.couplings.block` with sums in the place of integrals:

    w_0 = 1,   w_{i+1} = min(1, w_i · p_i(x̃_i) / q_i(x̃_i)),   S_i = Σ (w_i p_i − q_i)⁺,   h_i = S_i / (S_i + 1 − w_i),

and h = w after the last draft. The longest prefix τ with u_τ ≤ h_τ stands, and step τ comes from (w_τ p_τ − q_τ)⁺. The
refused part of the round was looked at to refuse it: its noise is drawn afresh before it is used again.

`gumbel` accepts the draft where it is argmax(log p_i + g_i), the token that the sequential sampler takes with the same
noise, and takes that one otherwise. It couples less well, but a plan is the sequential plan of its tape, to the token.

| symbol | in code |
|---|---|
| p_i, q_i | `log_p`, `log_q` [R, m, A] |
| x̃_i | `drafted` [R, m] |
| τ | `last` [R] |
| w_i | `log_weight` [R, m] |
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy.tokens.tape import Floats, Ints

Booleans = npt.NDArray[np.bool_]


class Drafted(NamedTuple):
    """One round of R rows of m slots: what was drafted, and what the network says of it."""

    log_p: Floats
    """Logarithm of the target law of each slot, given the drafts before it [R, m, A]."""
    log_q: Floats
    """Logarithm of the law that its draft is of [R, m, A]."""
    drafted: Ints
    """The draft of each slot [R, m]."""
    gumbel: Floats
    """Its Gumbel noise [R, m, A]."""
    uniform: Floats
    """What judges it, in (0, 1] [R, m]."""
    residual: Floats
    """What draws from its residual, in [0, 1) [R, m]."""
    live: Ints
    """Slots of each row [R], 1 or more; the last one has no draft, and takes its own token if it is reached."""


class TokenVerdict(NamedTuple):
    """What a verifier makes of a round."""

    last: Ints
    """Slot of the last token that the round commits [R]; those before it stand as drafted."""
    token: Ints
    """The token of that slot [R]."""
    refused: Booleans
    """Whether a draft of that slot was judged and refused [R]."""


class TokenJudge(Protocol):
    """The signature of `token`, `sequence` and `gumbel`."""

    def __call__(self, given: Drafted) -> TokenVerdict:
        """Judge a round."""
        ...


@dataclass(frozen=True)
class TokenVerifier:
    """A way to judge a round, and what it leaves of the round's randomness."""

    judge: TokenJudge
    renews: bool
    """Whether the noise of the refused drafts after `last` has been looked at, and must be drawn afresh."""


def token(given: Drafted) -> TokenVerdict:
    """Judge each draft by itself."""
    stands = np.log(given.uniform) <= _log_ratio(given)
    last = _run(stands, given.live)
    return _settle(given, last, np.zeros_like(given.uniform))


def sequence(given: Drafted) -> TokenVerdict:
    """Judge the prefixes of a round, and draw the token after the longest that stands from its residual."""
    # min(1, ·) at every step is a walk reflected at zero, which is the free walk less its running maximum.
    walk = np.roll(_log_ratio(given).cumsum(1), 1, axis=1)
    walk[:, 0] = 0
    log_weight = walk - np.maximum.accumulate(walk, axis=1)
    left = _residual(given.log_p + log_weight[..., None], given.log_q).sum(2)
    total = left - np.expm1(log_weight)  # S + 1 − w
    threshold = np.divide(left, total, out=np.ones_like(left), where=total > 0)
    slots = np.arange(left.shape[1])
    ends = slots + 1 == given.live[:, None]
    threshold = np.where(ends, np.exp(log_weight), threshold)
    chosen = (given.uniform <= threshold) & (slots < given.live[:, None])
    chosen[:, 0] = True  # h = 1 there, up to rounding
    return _settle(given, (slots * chosen).max(1), log_weight)


def gumbel(given: Drafted) -> TokenVerdict:
    """Accept the drafts that are the sequential sampler's own tokens."""
    own = (given.log_p + given.gumbel).argmax(2)
    last = _run(own == given.drafted, given.live)
    rows = np.arange(len(last))
    return TokenVerdict(last, own[rows, last], last + 1 < given.live)


TOKEN_VERIFIERS = {
    "token": TokenVerifier(token, renews=False),
    "sequence": TokenVerifier(sequence, renews=True),
    "gumbel": TokenVerifier(gumbel, renews=False),
}


def _log_ratio(given: Drafted) -> Floats:
    """Compute log p(x̃) − log q(x̃) of each slot [R, m]."""
    at = given.drafted[..., None]
    here = (np.take_along_axis(each, at, axis=2)[..., 0] for each in (given.log_p, given.log_q))
    return np.subtract(*here)


def _run(stands: Booleans, count: Ints) -> Ints:
    """Count the drafts of each row up to the first that does not stand; the last slot has none."""
    judged = np.arange(stands.shape[1]) + 1 < count[:, None]
    return (stands & judged).cumprod(1).sum(1)


def _residual(log_p: Floats, log_q: Floats) -> Floats:
    """Compute (p − q)⁺."""
    return np.maximum(np.exp(log_p) - np.exp(log_q), 0)


def _settle(given: Drafted, last: Ints, log_weight: Floats) -> TokenVerdict:
    """Draw the token of slot `last`: of the residual where its draft was refused, of its own law where it has none."""
    rows = np.arange(len(last))
    refused = last + 1 < given.live
    log_p = given.log_p[rows, last]
    weights = _residual(log_p + log_weight[rows, last, None], given.log_q[rows, last])
    # Where rounding has left no residual, draft and target are one law.
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, np.exp(log_p))
    levels = weights.cumsum(1)
    drawn = (levels <= given.residual[rows, last, None] * levels[:, -1:]).sum(1)
    own = (log_p + given.gumbel[rows, last]).argmax(1)
    return TokenVerdict(last, np.where(refused, np.minimum(drawn, log_p.shape[1] - 1), own), refused)
