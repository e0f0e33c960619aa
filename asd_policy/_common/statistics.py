"""Intervals and summaries for evaluation results."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asd_policy._common import extras

# scipy is imported where it is used: the import is slow, and a benchmark does not need it.
Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_BATCH = 200  # resamples in memory at once
_ROUNDING = 1e-12  # relative, of sums that are equal in exact arithmetic
_Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson(successes: int, trials: int) -> Interval:
    """Compute Wilson's 95 % interval of a success rate (Wilson 1927)."""
    stats = extras.module("scipy.stats", "an interval", "eval")

    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def enough_episodes(successes: Sequence[Sequence[bool]], half_width: float, every: int) -> int | None:
    """Find after how many episodes Wilson's 95 % interval of every success rate is narrow enough; None if never.

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
    """Compute a 95 % interval of the difference of two success rates over the same trials.

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
    """Compute Student's 95 % interval of a mean; None for fewer than two values."""
    stats = extras.module("scipy.stats", "an interval", "eval")

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def paired_bootstrap(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval | None]:
    """Compute the mean difference of pairs and its 95 % bootstrap interval, bias-corrected and accelerated (BCa).

    Efron, J. Am. Stat. Assoc. 82, 1987: it follows the skew that returns have, which Student's interval does not.

    Args:
        first: One value of each pair, counted positive.
        second: The other, counted negative.

    Returns:
        Difference and interval: None for fewer than two pairs, a point where all differ by the same.
    """
    stats = extras.module("scipy.stats", "an interval", "eval")

    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None
    scale = np.abs(differences).max()
    if np.ptp(differences) <= _ROUNDING * scale:
        return mean, (mean, mean)
    # Scaled, so that the cubes of small differences, which measure their skew, do not vanish.
    drawn = stats.bootstrap(
        (differences / scale,), np.mean, n_resamples=_RESAMPLES, batch=_BATCH, rng=np.random.default_rng(0)
    ).confidence_interval
    return mean, (float(scale * drawn.low), float(scale * drawn.high))


def unpaired_difference(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """Compute a 95 % interval of the difference of the success rates of two groups of trials.

    Newcombe's method 10 for unpaired proportions (Statistics in Medicine 17, 1998, p. 873): the two Wilson intervals,
    squared and added.

    Args:
        first: Successes and trials, counted positive.
        second: Successes and trials of the other, counted negative.
    """
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = wilson(*first), wilson(*second)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def entropy(modes: Counter[str]) -> float | None:
    """Compute the plug-in entropy of observed modes [nat]; None where there are none.

    It underestimates by about (number of modes − 1)/(2 n): compare only counts of equal size.
    """
    stats = extras.module("scipy.stats", "an interval", "eval")

    if not modes:
        return None
    return float(stats.entropy(list(modes.values())))


def latency(seconds: Floats) -> dict[str, float]:
    """Compute the `latency_ms` of results.json: mean, percentiles and maximum of latencies [s], in milliseconds."""
    milliseconds = 1e3 * seconds
    return {
        "mean": float(milliseconds.mean()),
        **{f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)},
        "max": float(milliseconds.max()),
    }


def welch_difference(first: tuple[float, Interval, int], second: tuple[float, Interval, int]) -> Interval:
    """Compute Welch's 95 % interval of the difference of two means of independent values (Biometrika 34, 1947).

    Args:
        first: Mean, its interval by `mean_interval` and the number of values; counted positive.
        second: The other, counted negative.
    """
    stats = extras.module("scipy.stats", "an interval", "eval")

    variances, degrees = [], []
    for _, (low, high), count in (first, second):
        variances.append(((high - low) / 2 / float(stats.t.ppf(0.975, count - 1))) ** 2)
        degrees.append(count - 1)
    total = sum(variances)
    difference = first[0] - second[0]
    if total == 0:
        return difference, difference
    freedom = total**2 / sum(variance**2 / each for variance, each in zip(variances, degrees, strict=True))
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return difference - reach, difference + reach


def ratio_of_means(numerator: Floats, denominator: Floats) -> tuple[float, Interval | None]:
    """Compute the ratio of two means of pairs, and its 95 % interval; None for fewer than two pairs.

    Pairs are resampled, so that what slows down both of a pair does not widen the interval.

    Args:
        numerator: One value of each pair [N].
        denominator: The other [N], above 0.
    """
    one = np.ones(len(numerator))
    return cluster_ratio(np.stack([numerator, one], 1), np.stack([denominator, one], 1), paired=True)


def cluster_ratio(numerator: Floats, denominator: Floats, paired: bool) -> tuple[float, Interval | None]:
    """Compute the ratio of two means over clusters of values, and its 95 % interval (percentile bootstrap).

    Whole clusters are resampled, because the plans of one episode are alike (Davison and Hinkley, Bootstrap
    Methods and their Application, 1997, section 3.8).

    Args:
        numerator: Sum and number of the values of each cluster [N, 2].
        denominator: The same of the other mean [M, 2], above 0.
        paired: Whether clusters of equal index belong together and are resampled together; N = M.

    Returns:
        Ratio and interval; None for fewer than two clusters.
    """
    rng = np.random.default_rng(0)

    def means(sums: Floats) -> Floats:
        return sums[..., 0] / sums[..., 1]

    ratio = float(means(numerator.sum(0)) / means(denominator.sum(0)))
    if min(len(numerator), len(denominator)) < 2:
        return ratio, None
    picks = rng.integers(len(numerator), size=(_RESAMPLES, len(numerator)))
    others = picks if paired else rng.integers(len(denominator), size=(_RESAMPLES, len(denominator)))
    low, high = np.percentile(means(numerator[picks].sum(1)) / means(denominator[others].sum(1)), (2.5, 97.5))
    return ratio, (float(low), float(high))
