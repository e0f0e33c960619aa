"""Did a token plan take the steps of its law? Tests of each token given those before it; no reference is needed.

Given the tokens before it, a token x of law p is as likely as p says, whatever sampled it: P = F(x − 1) + V p(x), with
F the distribution function and V uniform, is uniform on [0, 1] and independent from step to step. Φ⁻¹(P) is then the
residual that `checks.residual_checks` tests. And a coupling that lets its draft through shows along the draft: for any
law q that was fixed before the step, f = (q − p)⁺ / max(p, q) has the mean Σ p f.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy import special, stats

from asd_policy._common import arrays
from asd_policy.chain.tokens import TokenChain
from asd_policy.evaluation.exactness.checks import Array, Check, Steps, residual_checks
from asd_policy.networks.denoiser import encode
from asd_policy.policy.policy import Policy
from asd_policy.tokens.marginals import log_law

LAGS = (1, 4, 16)
"""Steps since the marginals were seen that are taken for drafts."""
MOST_PLANS = 256
"""Plans whose steps are tested: each needs as many points as it has tokens."""
_POINTS = 256  # of a call


def token_checks(policy: Policy, conds: torch.Tensor, plans: Array, seed: int) -> list[Check]:
    """Test the tokens of plans in the order of their chain; no checks where each plan has an order of its own.

    Args:
        policy: With the network.
        conds: Conditioning [O, C].
        plans: Normalised plans [O, N, D], of which the first of each observation are tested.
        seed: Of V.
    """
    chain = policy.law.tokens
    if chain is None or chain.order is None:
        return []
    kept = plans[:, : max(1, MOST_PLANS // len(plans))]
    tokens = arrays.to_numpy(chain.encode(torch.as_tensor(kept.reshape(-1, len(chain)))))[:, chain.order]
    rows = np.repeat(np.arange(len(conds)), kept.shape[1])
    laws, guesses = _laws(policy, chain, conds, tokens, rows)
    level = np.random.default_rng(seed).random(tokens.shape)
    here = np.take_along_axis(laws, tokens[..., None], axis=2)[..., 0]
    below = np.take_along_axis(laws.cumsum(2), tokens[..., None], axis=2)[..., 0] - here
    uniform = np.clip(below + level * here, 1e-12, 1 - 1e-12)
    checks = residual_checks(Steps(special.ndtri(uniform)[..., None], {}))
    return [*checks, *(draft_check(laws, guess, tokens, lag) for lag, guess in guesses.items())]


def draft_check(laws: Array, guess: Array, tokens: npt.NDArray[np.int64], lag: int) -> Check:
    """Test whether tokens lean to a law that was fixed before they were drawn.

    Args:
        laws: p of each step [N, K, A].
        guess: q of each step [N, K, A]; NaN where there is none.
        tokens: What was drawn [N, K].
        lag: Steps since q was seen, for the name.
    """
    score = np.maximum(guess - laws, 0) / np.maximum(np.maximum(guess, laws), 1e-300)
    mean = (laws * score).sum(2)
    variance = (laws * score**2).sum(2) - mean**2
    found = np.take_along_axis(score, tokens[..., None], axis=2)[..., 0]
    usable = np.isfinite(mean) & (variance > 1e-12)
    spread = float(np.sqrt(variance[usable].sum())) or 1.0
    bias = float((found - mean)[usable].sum()) / spread
    count = max(1, int(usable.sum()))
    effects = {"mean": bias * spread / count}
    return Check(f"bias along marginals {lag} steps old", 2 * float(stats.norm.sf(abs(bias))), effects, spread / count)


def _laws(
    policy: Policy, chain: TokenChain, conds: torch.Tensor, tokens: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[Array, dict[int, Array]]:
    """Ask the network for the law of each step given the tokens before it, and as seen some steps earlier.

    Args:
        policy: With the network.
        chain: Of its tokens, in a given order.
        conds: Conditioning [O, C].
        tokens: In that order [N, K].
        rows: The observation of each plan [N].

    Returns:
        Laws [N, K, A], and by lag those seen so many steps before; NaN where that is before the first.
    """
    count, steps = tokens.shape
    laws = np.empty((count, steps, chain.alphabet))
    guesses = {lag: np.full(laws.shape, np.nan) for lag in LAGS if lag < steps}
    place, order = policy.device, np.array(chain.order)
    with arrays.no_gradients(place):
        encoded = encode(policy.denoiser, conds)
        for start in range(0, count * steps, _POINTS):
            plan, step = np.divmod(np.arange(start, min(start + _POINTS, count * steps)), steps)
            x = np.zeros((len(plan), steps, chain.alphabet), np.float32)
            known = np.arange(steps) < step[:, None]
            point, which = np.nonzero(known)
            x[point, order[which], tokens[plan[point], which]] = 1
            output = policy.denoiser(
                arrays.asarray(x, place), arrays.asarray(step, place), encoded[arrays.asarray(rows[plan], place)]
            )
            seen = np.exp(log_law(arrays.to_numpy(output)))
            laws[plan, step] = seen[np.arange(len(plan)), order[step]]
            for lag, guess in guesses.items():
                later = np.flatnonzero(step + lag < steps)
                guess[plan[later], step[later] + lag] = seen[later, order[step[later] + lag]]
    return laws, guesses
