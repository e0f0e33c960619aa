"""Intervals against known values and by their coverage."""

import math
from collections import Counter

import numpy as np
import pytest

from asd_policy.statistics import (
    enough_episodes,
    entropy,
    latency,
    mean_interval,
    paired_difference,
    ratio_of_means,
    wilson,
)


def test_wilson_against_its_formula() -> None:
    n, p, z = 20, 0.75, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(15, 20) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[0] == 0.0


def test_paired_difference_against_newcombe() -> None:
    """Newcombe 1998, table III, method 10: pairs (both, first only, second only, neither) = (20, 12, 2, 16)."""
    first = [True] * 32 + [False] * 18
    second = [True] * 20 + [False] * 12 + [True] * 2 + [False] * 16
    low, high = paired_difference(first, second)
    assert (low, high) == pytest.approx((0.0562, 0.3292), abs=2e-4)


def test_paired_difference_of_perfect_records_has_a_width() -> None:
    low, high = paired_difference([True] * 20, [True] * 20)
    assert low == pytest.approx(-high)
    assert 0.1 < high < 0.2


def test_paired_difference_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        first = rng.random(40) < 0.8
        second = np.where(rng.random(40) < 0.7, first, rng.random(40) < 0.6)
        truth = 0.8 - (0.7 * 0.8 + 0.3 * 0.6)
        low, high = paired_difference(first.tolist(), second.tolist())
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_mean_interval() -> None:
    assert mean_interval([1.0]) is None
    low, high = mean_interval([1.0, 2.0, 3.0]) or (math.nan, math.nan)
    reach = 4.302653 * 1.0 / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)


def test_entropy() -> None:
    assert entropy(Counter()) is None
    assert entropy(Counter(a=5)) == 0.0
    assert entropy(Counter(a=5, b=5, c=5, d=5)) == pytest.approx(math.log(4))


def test_latency_summary() -> None:
    assert latency(np.array([0.001, 0.002, 0.003])) == pytest.approx(
        {"mean": 2, "p50": 2, "p95": 2.9, "p99": 2.98, "max": 3}
    )


def test_a_ratio_of_means_is_as_uncertain_as_theory_says() -> None:
    """Its interval against that of the delta method, for pairs that share nothing and for pairs that share a drift."""
    rng = np.random.default_rng(0)
    first, second = 5 + rng.normal(size=400), 2 + 0.3 * rng.normal(size=400)
    ratio, interval = ratio_of_means(first, second)
    assert ratio == pytest.approx(first.mean() / second.mean())
    error = ratio * np.sqrt((first.std() / first.mean()) ** 2 + (second.std() / second.mean()) ** 2) / 20
    assert interval == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), rel=0.01)
    drift = rng.uniform(1, 10, size=400)
    _, interval = ratio_of_means(3 * drift, drift)
    assert interval == pytest.approx((3, 3))
    assert ratio_of_means(first[:1], second[:1]) == (first[0] / second[0], None)


def test_enough_episodes_is_the_first_narrow_interval() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.random(200) < rate for rate in (0.9, 0.6))

    def reach(successes: np.ndarray[tuple[int], np.dtype[np.bool_]], count: int) -> float:
        low, high = wilson(int(successes[:count].sum()), count)
        return (high - low) / 2

    for every in (1, 8):
        count = enough_episodes([first.tolist(), second.tolist()], 0.1, every)
        assert count is not None and count % every == 0
        widest = [max(reach(first, n), reach(second, n)) for n in range(every, count + 1, every)]
        assert widest[-1] <= 0.1 < min(widest[:-1])
    assert enough_episodes([first.tolist(), second.tolist()[:20]], 0.1, 1) is None
    assert enough_episodes([first.tolist(), []], 0.1, 1) is None
    assert enough_episodes([first.tolist()], 0.01, 1) is None


def test_intervals_of_runs_that_stopped_at_a_width_cover() -> None:
    """Nearly as often as they say; 95 % would be exact."""
    rng = np.random.default_rng(0)
    for rate in (0.1, 0.5, 0.7, 0.9, 0.97):
        hits = 0
        for _ in range(400):
            successes = (rng.random(200) < rate).tolist()
            count = enough_episodes([successes], 0.1, 1)
            low, high = wilson(sum(successes[:count]), count or 200)
            hits += low <= rate <= high
        assert 0.91 < hits / 400 < 0.995
