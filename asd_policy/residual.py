"""The one-dimensional law that a block-verified step is drawn from when its draft does not stand.

In the coordinate y along the unit vector from the target mean to the draft mean, with σ as the unit, the target is
N(0, 1) and the draft N(δ, 1). What a prefix of weight p ≤ 1 leaves over of its target has the density

    max(p·φ(y) − φ(y − δ), 0) / S,      S(p, δ) = ∫ max(p·φ(y) − φ(y − δ), 0) dy,

positive below b = δ/2 + ln(p)/δ only. Up to any y ≤ b its integral is p·Φ(y) − Φ(y − δ) = p·Φ(y)·(1 − exp(−D)),
where D ≥ 0 is computed without subtracting nearly equal numbers however small δ is. These functions are
elementwise, and as good in float32 as float32 can be wherever S does not underflow.
"""

import math

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr

CLOSEST, FARTHEST = 1e-30, 100.0
"""Range of δ. Means closer by need no draw from here, and those farther apart share no mass: clamp δ to it."""
_LOWEST = -40.0  # Φ(−40) underflows in float64: a lower b gives the same S = 0
_NEAR = 1 / 16  # below it, D is integrated: two nodes are off by δ⁴/4320 of it; above it, a difference is safe
_CELLS = 32
_NEWTON_STEPS = 4


def crossing(delta: Tensor, log_weight: Tensor) -> Tensor:
    """Return b [...], where the weighted target density falls below the draft's.

    Args:
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix [...], at most 0.
    """
    return (0.5 * delta + log_weight / delta).clamp(min=_LOWEST)


def log_mass(y: Tensor, delta: Tensor, log_weight: Tensor) -> Tensor:
    """Return ln(p·Φ(y) − Φ(y − δ)) [...] for y ≤ b; at y = b this is ln S.

    Args:
        y: Upper end of the integral [...], at most `crossing(delta, log_weight)`.
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix [...], at most 0.
    """
    # D = ln p + ln Φ(y) − ln Φ(y − δ). With the hazard φ/Φ(−x) = x + g(x), this is δ(b − y) + ∫ g over (−y, δ − y).
    apart = log_weight + log_ndtr(y) - log_ndtr(y - delta)
    middle, offset = 0.5 * delta - y, delta / math.sqrt(12)
    g = 0.5 * (_hazard_excess(middle - offset) + _hazard_excess(middle + offset))
    close = delta * (crossing(delta, log_weight) - y + g)
    log_ratio = torch.where(delta < _NEAR, close, apart).clamp(min=torch.finfo(y.dtype).tiny)
    return log_weight + log_ndtr(y) + _log1mexp(log_ratio)


def quantile(normal: Tensor, delta: Tensor, log_weight: Tensor) -> Tensor:
    """Map a standard normal to the residual law, increasingly: the y [...] whose CDF is Φ(normal).

    The residual's weight 1 − exp(−δ(b − y)) on φ falls with y, and divided by b − y it rises with y: this orders
    the law between (b − y)φ(y) and φ, so that the root is bracketed. The density is log-concave, hence so is the CDF,
    and Newton's method on its logarithm started below the root climbs to it without overshooting. All counts are
    fixed, so nothing here depends on the data.

    Args:
        normal: Standard normals [...].
        delta: Distance δ of the means in units of σ [...], in [CLOSEST, FARTHEST].
        log_weight: ln p of the prefix [...], at most 0.
    """
    b = crossing(delta, log_weight)
    log_level = log_ndtr(normal)
    goal = log_level + log_mass(b, delta, log_weight)
    low = b.clamp(max=0) - (-2 * log_level).sqrt()
    cell = (torch.minimum(b, normal) - low) / _CELLS

    inner = low.unsqueeze(-1) + cell.unsqueeze(-1) * torch.arange(1, _CELLS, device=b.device)  # [..., cells − 1]
    below = log_mass(inner, delta.unsqueeze(-1), log_weight.unsqueeze(-1)) < goal.unsqueeze(-1)
    start = low + cell * below.sum(-1)
    y = start
    for _ in range(_NEWTON_STEPS):
        mass = log_mass(y, delta, log_weight)
        short = (delta * (b - y)).clamp(min=CLOSEST)  # of b, where the density is 0 and the step would be ∞·0
        density = log_weight - 0.5 * y.square() - 0.5 * math.log(2 * math.pi) + _log1mexp(short)
        y = (y + (goal - mass) * (mass - density).exp()).clamp(start, start + cell)
    return y


def _hazard_excess(x: Tensor) -> Tensor:
    """Return g(x) = φ(x)/Φ(−x) − x, which is positive."""
    return math.sqrt(2 / math.pi) / erfcx(x / math.sqrt(2)) - x


def _log1mexp(x: Tensor) -> Tensor:
    """Return ln(1 − exp(−x)) for x ≥ 0."""
    return (-torch.expm1(-x)).log()
