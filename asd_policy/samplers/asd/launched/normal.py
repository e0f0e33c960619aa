"""The standard normal distribution and the `residual` module's laws in Triton, elementwise in float64.

Made of exp, log and sqrt alone, so that the same text runs in Triton's interpreter, which has no library functions.
Code that few threads run once a round takes as long to be fetched as to run: what repeats is in loops.
"""
# Triton's language only looks like Python: indices, loops and arguments are not of the types that they seem.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from asd_policy.samplers.asd.residual import CELLS, CLOSEST, LOWEST, NEWTON_STEPS

_CLOSEST = tl.constexpr(CLOSEST)
_LOWEST = tl.constexpr(LOWEST)
_CELLS = tl.constexpr(CELLS)
_NEWTON_STEPS = tl.constexpr(NEWTON_STEPS)
_TINY = tl.constexpr(2.2250738585072014e-308)
_BELOW_ONE = tl.constexpr(1 - 2.0**-53)
_HALF_LOG_2PI = tl.constexpr(0.9189385332046727)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
MIDDLE = tl.constexpr(2.75)
SCALED_ERFC = tl.constexpr(
    (
        *(1.2588036258139463, -0.13046248372294103, -0.07130621000899036, 0.14490634075198747, -0.11449313228515612),
        *(0.052319579784445173, -0.0105007207231818, -0.0026222804595509813, 0.0019344816147775258),
        *(4.015225201977268e-05, -0.00028905276256620895, 8.596736864648173e-06, 4.797520257760908e-05),
        *(3.8119010840456613e-07, -8.741395890069433e-06, -1.0702154827683952e-06, 1.5738713995537884e-06),
        *(4.873467228095535e-07, -2.365581295396655e-07, -1.4661286788785947e-07, 1.9730278010174836e-08),
        *(2.9519150056932915e-08, 1.5580468857880305e-09, -3.022699420092582e-09, -5.093556195155093e-10),
    )
)
"""Coefficients of (1 + 2t)·exp(t²)·erfc(t) in powers of (t − 2.75)/(t + 2.75), t ≥ 0: interpolated in 25 Chebyshev
points in 50 digits, to 4e-16. The form is that of Shepherd and Laframboise, Math. Comp. 36 (1981)."""


@triton.jit
def at_least(x, least):
    """Clamp from below; what is no number stays so, which `tl.maximum` does not promise."""
    bound = tl.zeros_like(x) + least  # of x's type: a comparison would round a plain number to float32
    return tl.where(x < bound, bound, x)


@triton.jit
def at_most(x, most):
    """Clamp from above; what is no number stays so."""
    bound = tl.zeros_like(x) + most
    return tl.where(x > bound, bound, x)


@triton.jit
def expm1(x):
    """Compute exp(x) − 1, by Kahan's correction of the rounding of exp."""
    power = tl.exp(x)
    less = power - 1.0
    near = (power == 1.0) | (less == -1.0) | (power > 1e300)
    corrected = less * (x / tl.where(near, 1.0, tl.log(tl.where(near, 2.0, power))))
    return tl.where(power == 1.0, x, tl.where(near, less, corrected))


@triton.jit
def log1mexp(x):
    """Compute ln(1 − exp(−x)) for x ≥ 0."""
    return tl.log(-expm1(-x))


@triton.jit
def tile_log_ndtr(x):
    """Compute ln Φ(x)."""
    t = at_most(tl.abs(x) * _SQRT_HALF, 1e9)
    z = (t - MIDDLE) / (t + MIDDLE)
    value = tl.zeros_like(z) + SCALED_ERFC[24]
    for place in tl.static_range(1, 25):
        value = value * z + SCALED_ERFC[24 - place]
    half = 0.5 * value / (1.0 + 2.0 * t)
    square = 0.5 * x * x
    # ln(1 − q), by Kahan's correction of the rounding of 1 − q, above 0; one logarithm for both sides.
    q = half * tl.exp(-square)
    rest = 1.0 - q
    logarithm = tl.log(tl.where(x > 0, rest, half))
    corrected = tl.where(rest == 1.0, -q, logarithm * (q / tl.where(rest == 1.0, 1.0, 1.0 - rest)))
    return tl.where(x > 0, corrected, logarithm - square)


@triton.jit
def tile_ndtri(p):
    """Compute Φ⁻¹(p): a first guess (Abramowitz and Stegun 26.2.23), and Halley's method on ln Φ of the nearer tail."""
    tail = tl.minimum(p, 1.0 - p)
    inside = tail > 0
    goal = tl.log(tl.where(inside, tail, 0.25))
    t = tl.sqrt(-2.0 * goal)
    x = -(t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))))
    for _ in range(0, 4):
        value = tile_log_ndtr(x)
        slope = tl.exp(-0.5 * x * x - _HALF_LOG_2PI - value)  # of ln Φ
        miss = value - goal
        x -= miss / (slope * (1.0 + 0.5 * miss * (x + slope) / slope))
    edge = tl.where(p > 0.5, float("inf"), float("-inf"))
    return tl.where(inside, tl.where(p < 0.5, x, -x), edge)


@triton.jit
def tile_crossing(delta, log_weight):
    """As `residual.crossing`, and so are the others."""
    return at_least(0.5 * delta + log_weight / delta, _LOWEST)


@triton.jit
def tile_log_mass(y, delta, log_weight):
    """Compute ln(p·Φ(y) − Φ(y − δ))."""
    log_target = log_weight + tile_log_ndtr(y)
    return log_target + log1mexp(at_least(log_target - tile_log_ndtr(y - delta), _TINY))


@triton.jit
def tile_refused_level(along, delta, log_weight, log_refused):
    """Compute ln of the CDF of a refused draft's −along, at this −along."""
    inside = tl.minimum(-along, tile_crossing(delta, -log_weight))
    return at_most(log_weight + tile_log_mass(inside, delta, -log_weight) - log_refused, 0.0)


@triton.jit
def tile_renew(log_level):
    """Map the noise of a refused draft along e, given by its `refused_level`, to a standard normal, increasingly."""
    return -tile_ndtri(at_most(tl.exp(log_level), _BELOW_ONE))


@triton.jit
def tile_mirror(log_level, along, delta, log_weight, log_left_over):
    """Map the noise of a refused draft along e to the residual law's y, each [R, 1]; given ln S, too."""
    b = tile_crossing(delta, log_weight)
    goal = log_level + log_left_over
    low = at_most(b, 0.0) - tl.sqrt(-2.0 * log_level)
    cell = (tl.minimum(b, -along) - low) / _CELLS
    inner = tl.arange(0, _CELLS)[None, :]
    below = (tile_log_mass(low + cell * inner, delta, log_weight) < goal) & (inner > 0)
    start = low + cell * tl.sum(below.to(tl.int32), 1)[:, None]
    y = start
    for _ in range(0, _NEWTON_STEPS):
        mass = tile_log_mass(y, delta, log_weight)
        short = at_least(delta * (b - y), _CLOSEST)  # of b, where the density is 0 and the step would be ∞·0
        density = log_weight - 0.5 * y * y - _HALF_LOG_2PI + log1mexp(short)
        y = at_most(at_least(y + (goal - mass) * tl.exp(mass - density), start), start + cell)
    return y
