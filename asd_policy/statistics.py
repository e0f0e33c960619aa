"""Intervals and summaries for evaluation results."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % interval of a success rate (Wilson 1927)."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Return a 95 % interval of the difference of two success rates over the same trials.

    Newcombe's method 10 (Statistics in Medicine 17, 1998): the two Wilson intervals squared and added, with the
    correlation of the pairs. Unlike a bootstrap it has a width when no pair differs.

    Args:
        first: Successes whose rate is counted positive.
        second: Successes of the same trials, counted negative.
    """
    trials = len(first)
    x, y = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    p, q = float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = wilson(int(x.sum()), trials), wilson(int(y.sum()), trials)
    both, only_x = int((x & y).sum()), int((x & ~y).sum())
    only_y, neither = int((~x & y).sum()), int((~x & ~y).sum())
    product = x.sum() * (~x).sum() * y.sum() * (~y).sum()
    numerator = both * neither - only_x * only_y
    if numerator > 0:
        numerator = max(numerator - trials / 2, 0)
    phi = numerator / math.sqrt(product) if product else 0.0

    def half(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p - q - half(p - p_low, q_high - q), p - q + half(p_high - p, q - q_low)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's 95 % interval of a mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def entropy(modes: Counter[str]) -> float | None:
    """Return the plug-in entropy of observed modes [nat], or None where there are none.

    It underestimates by about (number of modes − 1)/(2 n): compare only counts of equal size.
    """
    if not modes:
        return None
    return float(stats.entropy(list(modes.values())))
