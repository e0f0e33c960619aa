"""Tests of equivalence: never wrong more often than they say, and as often right."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asd_policy.evaluation import equivalence as tost
from asd_policy.evaluation.equivalence import (
    LEVEL,
    WANTED_POWER,
    Design,
    Paired,
    Unpaired,
    equivalence_power,
    pairs_needed,
    tost_paired,
    tost_unpaired,
)

RATE = st.floats(0, 1)
MARGIN = st.sampled_from([0.05, 0.1, 0.2, 0.3])


def outcomes(b: int, c: int, pairs: int) -> tuple[list[bool], list[bool]]:
    """Make pairs of which the first alone succeeds in b, the second alone in c, and both in the others."""
    both = pairs - b - c
    return [True] * b + [False] * c + [True] * both, [False] * b + [True] * c + [True] * both


def test_no_pair_that_differs_is_a_binomial_test() -> None:
    """The p-value is (1 − margin)^n, the chance of meeting none, as long as no other table is as far out."""
    for pairs in (5, 10, 20):
        assert tost_paired(*outcomes(0, 0, pairs), 0.1) == pytest.approx(0.9**pairs)
    assert tost_paired(*outcomes(0, 0, 28), 0.1) > LEVEL > tost_paired(*outcomes(0, 0, 29), 0.1)


@pytest.mark.parametrize("pairs", [20, 35])
@pytest.mark.parametrize("margin", [0.15, 0.25])
def test_size_by_enumeration(pairs: int, margin: float) -> None:
    """Over all tables of pairs, weighted by the law at the margin: no open parameter gives more than 5 %."""
    tables = [(b, c) for b in range(pairs + 1) for c in range(pairs + 1 - b)]
    rejected = [table for table in tables if tost_paired(*outcomes(*table, pairs), margin) <= LEVEL]
    assert rejected
    counts = np.array([(b, c, pairs - b - c) for b, c in rejected])
    sizes = []
    for only_second in np.linspace(0, (1 - margin) / 2, 301):
        p = [only_second + margin, only_second, max(1 - margin - 2 * only_second, 0)]
        sizes.append(stats.multinomial.pmf(counts, pairs, p).sum())
    assert 0.5 * LEVEL < max(sizes) <= LEVEL + 2e-4


@pytest.mark.parametrize("first", [12, 25])
def test_unpaired_size_by_enumeration(first: int) -> None:
    second, margin = 25, 0.3
    b, c = np.meshgrid(np.arange(first + 1), np.arange(second + 1), indexing="ij")
    p_values = np.vectorize(lambda b, c: tost_unpaired((b, first), (c, second), margin))(b, c)
    sizes = [
        stats.binom.pmf(b, first, q + margin)[p_values <= LEVEL] @ stats.binom.pmf(c, second, q)[p_values <= LEVEL]
        for q in np.linspace(0, 1 - margin, 301)
    ]
    assert max(sizes) <= LEVEL + 2e-4
    assert (p_values <= LEVEL).any() == (max(sizes) > 0)


@pytest.mark.parametrize(("pairs", "trials"), [(20, 4000), (50, 4000), (200, 1000), (1000, 250)])
def test_size_by_simulation(pairs: int, trials: int) -> None:
    """At a true difference of the margin, whatever the discordance and whichever is better."""
    rng = np.random.default_rng(pairs)
    for margin in (0.05, 0.1, 0.2):
        for share in (0.0, 0.05, 0.4, 1.0):
            only_second = share * (1 - margin) / 2
            p = [only_second + margin, only_second, 1 - margin - 2 * only_second]
            rejections = simulated_rejections(rng.multinomial(pairs, p, size=trials), pairs, margin)
            assert stats.binomtest(rejections, trials, LEVEL, alternative="greater").pvalue > 1e-4


def simulated_rejections(drawn: np.ndarray, pairs: int, margin: float) -> int:
    """Count the tables (first alone, second alone, other) in which equivalence is shown."""
    tables, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    return sum(
        int(count)
        for (b, c), count in zip(tables.tolist(), counts, strict=True)
        if b - c < 0.95 * margin * pairs and tost_paired(*outcomes(b, c, pairs), margin) <= LEVEL
    )


def test_nothing_near_the_margin_is_equivalent() -> None:
    """What `simulated_rejections` saves itself."""
    for pairs in (20, 50, 200, 1000):
        for margin in (0.05, 0.1, 0.2):
            b = math.ceil(0.95 * margin * pairs)
            assert tost_paired(*outcomes(b, 0, pairs), margin) > LEVEL


@pytest.mark.parametrize("pairs", [29, 150, 1000])
def test_the_open_parameter_is_searched_finely_enough(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [(0, 0), (pairs // 20, pairs // 20), (pairs // 5, pairs // 4)]
    coarse = [tost_paired(*outcomes(*table, pairs), 0.12) for table in tables]
    monkeypatch.setattr(tost, "_NUISANCES", 3000)
    tost._laws.cache_clear()
    fine = [tost_paired(*outcomes(*table, pairs), 0.12) for table in tables]
    tost._laws.cache_clear()
    assert fine == pytest.approx(coarse, abs=2e-4)


@pytest.mark.parametrize("design", [Paired(30), Unpaired(30, 30), Unpaired(12, 25), Unpaired(25, 12)])
def test_statistics_are_monotone(design: Design) -> None:
    """What the reduction to the boundary of the null hypothesis rests on."""
    most = design.most()
    b, c = np.meshgrid(np.arange(most.max() + 1), np.arange(len(most)), indexing="ij")
    for margin in (0.02, 0.1, 0.3, 0.6):
        score = np.where(b <= most[c], design.score(b, c, margin), np.nan)
        assert np.nanmin(np.diff(score, axis=0)) > 0
        assert np.nanmax(np.diff(score, axis=1)) < 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), MARGIN)
def test_a_p_value_is_one(pairs: list[tuple[bool, bool]], margin: float) -> None:
    """Between 0 and 1, the same with the two exchanged, above 5 % beyond the margin; below 5 % for a wider margin, too.

    Far above 5 % it may rise with the margin, by which an exact test orders what can be seen: of 5 pairs, 3 and 1 of
    which differ, it is 0.653 at a margin of 0.3 and 0.683 at 0.4.
    """
    first, second = zip(*pairs, strict=True)
    p_value = tost_paired(first, second, margin)
    assert 0 <= p_value <= 1 + 1e-9
    assert tost_paired(second, first, margin) == pytest.approx(p_value)
    assert p_value > LEVEL or tost_paired(first, second, margin + 0.1) <= LEVEL
    if abs(np.mean(first) - np.mean(second)) >= margin:
        assert p_value > LEVEL


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), RATE, RATE, MARGIN)
def test_an_unpaired_p_value_is_one(n: int, m: int, p: float, q: float, margin: float) -> None:
    first, second = (round(p * n), n), (round(q * m), m)
    p_value = tost_unpaired(first, second, margin)
    assert 0 <= p_value <= 1 + 1e-9
    assert tost_unpaired(second, first, margin) == pytest.approx(p_value)
    if abs(first[0] / n - second[0] / m) >= margin:
        assert p_value > LEVEL


@pytest.mark.parametrize(("pairs", "discordance", "margin"), [(60, 0.05, 0.1), (100, 0.2, 0.15), (200, 0.1, 0.07)])
def test_power_by_simulation(pairs: int, discordance: float, margin: float) -> None:
    rng = np.random.default_rng(0)
    p = [discordance / 2, discordance / 2, 1 - discordance]
    shown = simulated_rejections(rng.multinomial(pairs, p, size=4000), pairs, margin)
    power = equivalence_power(pairs, discordance, margin)
    assert 0.2 < power < 0.99
    assert stats.binomtest(shown, 4000, power).pvalue > 1e-4


def test_power_without_a_chance() -> None:
    assert equivalence_power(20, 0.1, 0.1) == 0  # no table of twenty pairs shows equivalence within 0.1
    assert equivalence_power(29, 0.0, 0.1) == pytest.approx(1)


def test_pairs_needed() -> None:
    """Against the power itself, and against the normal limit ψ (z_0.95 + z_0.9)² / margin²."""
    for discordance, margin in ((0.02, 0.1), (0.2, 0.1)):
        pairs = pairs_needed(discordance, margin)
        assert pairs is not None
        assert equivalence_power(pairs, discordance, margin) >= WANTED_POWER
        assert equivalence_power(pairs - 1, discordance, margin) < WANTED_POWER
    z = stats.norm.ppf(1 - LEVEL) + stats.norm.ppf((1 + WANTED_POWER) / 2)
    assert pairs == pytest.approx(discordance * (z / margin) ** 2, rel=0.1)
    assert pairs_needed(1.0, 0.005) is None
