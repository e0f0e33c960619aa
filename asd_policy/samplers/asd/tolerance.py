"""The gap below a tolerance in the place of a coupling, for chains without noise: approximate.

A drafted step stands if no number of its guess d is further than τ from the network's own prediction at the drafted
point, |d − x̂0| ≤ τ. So a plan is the sequential plan of a network whose every prediction is off by τ at most; how far
that is from the network's own plan depends on how fast predictions move with the point. At τ = 0 a step stands if its
guess is right to the bit, and the plan is the sequential one up to the rounding of a network's batches.
"""

from functools import lru_cache, partial

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.samplers.asd.couplings import Verdict, Verifier


@lru_cache(maxsize=16)
def within(tolerance: float) -> Verifier:
    """Make a verifier that lets steps stand whose guess is within a tolerance."""
    return Verifier(partial(_judge, tolerance), renews_noise=False, tolerance=tolerance)


def _judge(tolerance: float, gap: Array, scale: Array, noise: Array, uniform: Array, live: Array) -> Verdict:
    """Judge one round, see `couplings.Judge`; a gap that is no number does not stand."""
    xp = arrays.namespace(gap)
    stands = (xp.amax(xp.abs(gap), axis=-1) <= tolerance)[:, :-1] & live[:, 1:]
    last = stands.cumprod(1).sum(1)
    return Verdict(last, last + 1 < live.sum(1), noise, uniform)
