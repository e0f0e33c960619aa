"""Intervals and summaries for evaluation results."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# scipy is imported where it is used: it takes its time, and a benchmark does without it.
Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % interval of a success rate (Wilson 1927)."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def enough_episodes(successes: Sequence[Sequence[bool]], half_width: float, every: int) -> int | None:
    """Return after how many episodes Wilson's 95 % intervals of all success rates are narrow enough, or None if never.

    To stop at a width, and not at an outcome, keeps an interval nearly honest (Frey, The American Statistician 64(3),
    2010); the tests simulate how nearly.

    Args:
        successes: For each sampler its episodes in order; those at the end that only some samplers have do not count.
        half_width: Half the distance between an interval's ends, at most.
        every: A run may stop after multiples of so many episodes.
    """
    trials = min(map(len, successes), default=0)
    if trials == 0:
        return None
    n = np.arange(1, trials + 1)
    rates = np.stack([np.cumsum(each[:trials]) for each in successes]) / n  # [S, N]
    z2 = _Z95**2
    widths = np.sqrt(z2 * rates * (1 - rates) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    narrow = np.flatnonzero((widths <= half_width).all(0) & (n % every == 0))
    return int(n[narrow[0]]) if len(narrow) else None


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
    from scipy import stats

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def entropy(modes: Counter[str]) -> float | None:
    """Return the plug-in entropy of observed modes [nat], or None where there are none.

    It underestimates by about (number of modes − 1)/(2 n): compare only counts of equal size.
    """
    from scipy import stats

    if not modes:
        return None
    return float(stats.entropy(list(modes.values())))


def latency(seconds: Floats) -> dict[str, float]:
    """Return the `latency_ms` of results.json: mean, percentiles and maximum of latencies [s], in milliseconds."""
    milliseconds = 1e3 * seconds
    return {
        "mean": float(milliseconds.mean()),
        **{f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)},
        "max": float(milliseconds.max()),
    }


def ratio_of_means(numerator: Floats, denominator: Floats) -> tuple[float, Interval | None]:
    """Return the ratio of two means of pairs, and its 95 % interval; None for fewer than two pairs.

    Pairs are resampled (percentile bootstrap), so that what slows both of a pair down widens nothing.

    Args:
        numerator: One value of each pair [N].
        denominator: The other [N], above 0.
    """
    ratio = float(numerator.mean() / denominator.mean())
    if len(numerator) < 2:
        return ratio, None
    picks = np.random.default_rng(0).integers(len(numerator), size=(_RESAMPLES, len(numerator)))
    low, high = np.percentile(numerator[picks].mean(1) / denominator[picks].mean(1), (2.5, 97.5))
    return ratio, (float(low), float(high))
