"""Intervals against known values and by their coverage."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from asd_policy._common.statistics import (
    cluster_ratio,
    enough_episodes,
    entropy,
    latency,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    ratio_of_means,
    unpaired_difference,
    welch_difference,
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


def test_a_bootstrap_of_pairs_is_as_uncertain_as_theory_says() -> None:
    """On many pairs Student's interval is right; what both of a pair share does not widen it."""
    rng = np.random.default_rng(0)
    seed = 10 * rng.normal(size=500)
    first, second = seed + rng.normal(size=500) + 0.3, seed + rng.normal(size=500)
    mean, interval = paired_bootstrap(first.tolist(), second.tolist())
    assert mean == pytest.approx((first - second).mean())
    assert interval == pytest.approx(mean_interval((first - second).tolist()), abs=0.01)


def test_a_bootstrap_covers_skewed_differences() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, interval = paired_bootstrap(rng.exponential(size=60).tolist(), [0.0] * 60)
        assert interval is not None
        hits += interval[0] <= 1 <= interval[1]
    assert 0.9 <= hits / 200 <= 0.99


def test_a_bootstrap_of_little() -> None:
    assert paired_bootstrap([3.0], [1.0]) == (2.0, None)
    assert paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (0.0, (0.0, 0.0))
    assert paired_bootstrap([1.1, 2.2, 3.3], [1.0, 2.1, 3.2])[1] == pytest.approx((0.1, 0.1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
@example([(0.0, 0.0), (0.0, 2.7e-231)])
def test_a_bootstrap_interval_is_one(pairs: list[tuple[float, float]]) -> None:
    """Within the differences that were seen, and the other way round for the pairs exchanged."""
    first, second = zip(*pairs, strict=True)
    differences = np.subtract(first, second)
    slack = 1e-9 * np.abs(differences).max()
    mean, interval = paired_bootstrap(first, second)
    assert interval is not None
    assert differences.min() - slack <= interval[0] <= interval[1] <= differences.max() + slack
    back, other = paired_bootstrap(second, first)
    assert back == -mean
    assert other is not None


def test_unpaired_difference_against_newcombe() -> None:
    """Newcombe 1998 (p. 873), table II, example (a), method 10: 56/70 − 48/80."""
    assert unpaired_difference((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    low, high = unpaired_difference((10, 10), (20, 20))
    assert low == pytest.approx(-0.2775, abs=1e-3)
    assert high == pytest.approx(0.1611, abs=1e-3)


def test_welch_against_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=12).tolist(), (3 * rng.normal(size=30)).tolist()
    sides = [(float(np.mean(x)), mean_interval(x) or (math.nan, math.nan), len(x)) for x in (first, second)]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert welch_difference(sides[0], sides[1]) == pytest.approx((expected.low, expected.high))
    assert welch_difference((2.0, (2.0, 2.0), 5), (1.0, (1.0, 1.0), 7)) == (1.0, 1.0)


def test_a_ratio_over_clusters_is_as_uncertain_as_its_clusters() -> None:
    """Ten equal values in each cluster tell no more than one; unpaired, a shared drift counts."""
    rng = np.random.default_rng(0)
    means, others = 5 + rng.normal(size=(2, 200))
    ten, ones = np.full(200, 10.0), np.ones(200)
    ratio, interval = cluster_ratio(np.stack([means, ones], 1), np.stack([others, ones], 1), paired=False)
    tenfold = cluster_ratio(np.stack([10 * means, ten], 1), np.stack([10 * others, ten], 1), paired=False)
    assert tenfold[0] == pytest.approx(ratio)
    assert tenfold[1] == pytest.approx(interval)
    error = np.sqrt((means.std() / means.mean()) ** 2 + (others.std() / others.mean()) ** 2) / np.sqrt(200) * ratio
    assert interval == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), rel=0.02)
    drift = np.stack([rng.uniform(1, 10, size=200), ones], 1)
    assert cluster_ratio(3 * drift * [1, 1 / 3], drift, paired=True)[1] == pytest.approx((3, 3))
    _, apart = cluster_ratio(3 * drift * [1, 1 / 3], drift, paired=False)
    assert apart is not None and apart[1] - apart[0] > 0.3


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
