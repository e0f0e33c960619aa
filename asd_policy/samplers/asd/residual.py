"""One-dimensional laws along the line from a target mean to a draft mean, once a block of drafts is judged.

In the coordinate y along the unit vector e from the target mean, with σ as the unit, the target is N(0, 1) and the
draft N(δ, 1). A prefix of weight p ≤ 1 keeps min(p·φ(y), φ(y − δ)) of the draft; what is left of each side is

    residual     max(p·φ(y) − φ(y − δ), 0) / S,               S(p, δ) = ∫ max(p·φ(y) − φ(y − δ), 0) dy,   y < b,
    refused      max(φ(y − δ) − p·φ(y), 0) / (S + 1 − p),                                                  y > b,

with b = δ/2 + ln(p)/δ. Seen from the draft mean, the refused law is a residual of weight 1/p. So all rests on one
integral, p·Φ(y) − Φ(y − δ) for y ≤ b. Its logarithm is off by about 1e-16/δ, in an event of probability ~δ/√(2π):
take float64, whatever the dtype of the samples, and the cancellation is never seen. All functions are elementwise.
"""

import math

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, log_ndtr, ndtri

CLOSEST, FARTHEST = 1e-30, 100.0
"""Range of δ. Means closer by need no draw from here, and those farther apart share no mass: clamp δ to it."""
LOWEST = -40.0  # Φ(−40) underflows in float64: a lower b gives the same S = 0
CELLS = 64
_FLOAT64 = np.finfo(np.float64)
NEWTON_STEPS = 3


def crossing(delta: Array, log_weight: Array) -> Array:
    """Find b [...], where the weighted target density falls below the draft's.

    Args:
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix [...].
    """
    return (0.5 * delta + log_weight / delta).clip(min=LOWEST)


def log_mass(y: Array, delta: Array, log_weight: Array) -> Array:
    """Compute ln(p·Φ(y) − Φ(y − δ)) [...] for y ≤ b; at y = b this is ln S.

    Args:
        y: Upper end of the integral [...], at most `crossing(delta, log_weight)`.
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix [...].
    """
    log_target = log_weight + log_ndtr(y)
    # Rounding may take the two past each other where nothing is left.
    return log_target + _log1mexp((log_target - log_ndtr(y - delta)).clip(min=float(_FLOAT64.tiny)))


def refused_level(along: Array, delta: Array, log_weight: Array, log_refused: Array) -> Array:
    """Compute ln of the CDF of a refused draft's −along, at this −along [...].

    Args:
        along: ⟨e, ξ⟩ = y − δ of the refused draft [...].
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix before the draft [...], at most 0.
        log_refused: ln(S + 1 − p) [...].
    """
    inside = arrays.namespace(along).minimum(-along, crossing(delta, -log_weight))
    return (log_weight + log_mass(inside, delta, -log_weight) - log_refused).clip(max=0)


def renew(log_level: Array) -> Array:
    """Map the noise of a refused draft along e, given by its `refused_level`, to a standard normal, increasingly."""
    level = arrays.namespace(log_level).exp(log_level)
    return -ndtri(level.clip(max=1 - 0.5 * float(_FLOAT64.eps)))


def mirror(log_level: Array, along: Array, delta: Array, log_weight: Array) -> Array:
    """Map the noise of a refused draft along e to the residual law's y [...], decreasingly; to −along if p = 1.

    The CDF of the residual is matched to the level of −along. Two orderings bracket the root: the residual lies below
    the law of −along (its b is the lower one), and above (b − y)φ(y), because its weight 1 − exp(−δ(b − y)) on φ
    divided by b − y rises with y. The density is log-concave, hence so is the CDF, and Newton's method on its
    logarithm, started below the root, climbs without overshooting. All counts are fixed: nothing waits on the data.

    Args:
        log_level: Its `refused_level` [...].
        along: ⟨e, ξ⟩ = y − δ of the refused draft [...].
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix before the draft [...], at most 0.
    """
    xp, b = arrays.namespace(along), crossing(delta, log_weight)
    goal = log_level + log_mass(b, delta, log_weight)
    low = b.clip(max=0) - xp.sqrt(-2 * log_level)
    cell = (xp.minimum(b, -along) - low) / CELLS

    inner = low[..., None] + cell[..., None] * (1 + arrays.arange(CELLS - 1, b))  # [..., cells − 1]
    below = log_mass(inner, delta[..., None], log_weight[..., None]) < goal[..., None]
    start = low + cell * below.sum(-1)
    y = start
    for _ in range(NEWTON_STEPS):
        mass = log_mass(y, delta, log_weight)
        short = (delta * (b - y)).clip(min=CLOSEST)  # of b, where the density is 0 and the step would be ∞·0
        density = log_weight - 0.5 * y * y - 0.5 * math.log(2 * math.pi) + _log1mexp(short)
        y = (y + (goal - mass) * xp.exp(mass - density)).clip(start, start + cell)
    return y


def _log1mexp(x: Array) -> Array:
    """Compute ln(1 − exp(−x)) for x ≥ 0."""
    xp = arrays.namespace(x)
    return xp.log(-xp.expm1(-x))
