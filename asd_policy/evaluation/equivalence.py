"""Are two success rates equal within a margin? Exact tests of equivalence, paired and unpaired.

Two one-sided tests at 5 % each show equivalence (TOST; Schuirmann, J. Pharmacokin. Biopharm. 15, 1987): that the
difference is below the margin, and that it is above minus the margin. The p-value is the larger of the two. Failing to
show equivalence does not show a difference.

Each one-sided test is exact and unconditional: outcomes are ordered by a score statistic, and the p-value is the
largest probability of an outcome at least as far out, over everything that the null hypothesis leaves open (Hsueh, Liu
and Chen, Biometrics 57, 2001, for pairs; Chan and Zhang, Biometrics 55, 1999, for two groups). The score tests by their
normal limit, which this replaces, reject up to 7 % at a nominal 5 % where few trials fail, which is where good policies
are. Both statistics are monotone in each count, so that the largest probability lies on the null hypothesis's boundary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

# scipy is imported where it is used: it takes its time, and importing the package does without it.
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVEL = 0.05
"""Of each one-sided test, and so of the verdict."""
WANTED_POWER = 0.8

USUAL_DISCORDANCE = 0.05
"""Of two samplers of one law on a good policy: success rates of 97 %, with independent noise."""
MOST_PAIRS = 1 << 15
"""Most pairs that `pairs_needed` looks for."""

_NUISANCES = 150  # points between the ends of the open parameter; a finer grid moves a p-value by less than 2e-4
_NEGLIGIBLE = 1e-13  # probability of an outcome that is left out of sums
_ROUNDING = 1e-9  # of statistics that are equal in exact arithmetic


class Design(Protocol):
    """Two counts, b for the first rate and c against it, whose law depends on a difference and one open parameter."""

    def most(self) -> Counts:
        """Compute the largest b for each c = 0, 1, …."""
        ...

    def score(self, b: Counts, c: Counts, difference: float) -> Floats:
        """Compute the score statistic: how far the counts are above a true difference, in standard errors."""
        ...

    def laws(self, difference: float) -> tuple[Floats, Floats]:
        """List the laws that the counts may have: probabilities of c [Q, C], and of one more b given c [Q, C]."""
        ...


@dataclass(frozen=True)
class Paired:
    """Pairs of trials: b is how many the first alone succeeded in, c the second alone."""

    pairs: int

    def most(self) -> Counts:
        """Compute the largest b for each c."""
        return self.pairs - np.arange(self.pairs + 1)

    def score(self, b: Counts, c: Counts, difference: float) -> Floats:
        """Compute Tango's statistic (Statistics in Medicine 17, 1998)."""
        n, d = self.pairs, difference
        linear = (2 * n - b + c) * d - b - c
        only_second = (np.sqrt(linear**2 + 8 * n * c * d * (1 - d)) - linear) / (4 * n)
        return (b - c - n * d) / np.sqrt(n * (2 * only_second + d * (1 - d)))

    def laws(self, difference: float) -> tuple[Floats, Floats]:
        """List the laws for each probability that only the second succeeds."""
        return self.laws_at(difference, (1 - difference) / 2 * _grid())

    def laws_at(self, difference: float, only_second: Floats) -> tuple[Floats, Floats]:
        """List the laws for given probabilities that only the second succeeds."""
        q = only_second[:, None]
        chance = np.minimum((q + difference) / (1 - q), 1.0)
        return _binomial(self.pairs, q), np.broadcast_to(chance, (len(q), self.pairs + 1))


@dataclass(frozen=True)
class Unpaired:
    """Two groups of trials: b is how many of the first succeeded, c how many of the second."""

    first: int
    second: int

    def most(self) -> Counts:
        """Compute the largest b for each c."""
        return np.full(self.second + 1, self.first)

    def score(self, b: Counts, c: Counts, difference: float) -> Floats:
        """Compute the statistic of Farrington and Manning (Statistics in Medicine 9, 1990).

        The second's rate under the null hypothesis is the root of a cubic, by Miettinen and Nurminen (Statistics in
        Medicine 4, 1985).
        """
        n, m, d = self.first, self.second, difference
        cubic = n + m
        square = ((n + 2 * m) * d - cubic - (b + c)) / (3 * cubic)
        linear = ((m * d - cubic - 2 * c) * d + b + c) / (3 * cubic)
        constant = c * d * (1 - d) / (2 * cubic)
        middle = square**3 - 1.5 * linear * square + constant
        reach = np.copysign(np.sqrt(np.maximum(square**2 - linear, 1e-300)), middle)
        angle = (math.pi + np.arccos(np.clip(middle / reach**3, -1.0, 1.0))) / 3
        q = np.clip(2 * reach * np.cos(angle) - square, 0.0, 1.0 - d)
        p = q + d
        return (b / n - c / m - d) / np.sqrt(p * (1 - p) / n + q * (1 - q) / m)

    def laws(self, difference: float) -> tuple[Floats, Floats]:
        """List the laws for each success rate of the second."""
        q = (1 - difference) * _grid()[:, None]
        return _binomial(self.second, q), np.broadcast_to(q + difference, (len(q), self.second + 1))


def tost_paired(first: Sequence[bool], second: Sequence[bool], margin: float) -> float:
    """Compute the p-value of the hypothesis that two success rates differ by the margin or more, from paired trials.

    Args:
        first: Successes.
        second: Successes of the same trials.
        margin: Of the difference, between 0 and 1.
    """
    x, y = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    b, c = int((x & ~y).sum()), int((~x & y).sum())
    design = Paired(len(x))
    return max(_below(design, b, c, margin), _below(design, c, b, margin))


def tost_unpaired(first: tuple[int, int], second: tuple[int, int], margin: float) -> float:
    """Compute the p-value of the hypothesis that two success rates differ by the margin or more, from two groups.

    Args:
        first: Successes and trials.
        second: Successes and trials of the other.
        margin: Of the difference, between 0 and 1.
    """
    (b, n), (c, m) = first, second
    return max(_below(Unpaired(n, m), b, c, margin), _below(Unpaired(m, n), c, b, margin))


def equivalence_power(pairs: int, discordance: float, margin: float) -> float:
    """Compute the probability that `tost_paired` shows equivalence at 5 % where the two rates are equal.

    Args:
        pairs: Trials of each.
        discordance: Probability that one of a pair succeeds and the other fails.
        margin: Of the difference, between 0 and 1.
    """
    from scipy import special

    design = Paired(pairs)
    c, most = np.arange(pairs + 1), design.most()
    high = _cuts(design, _critical(pairs, margin), margin)
    low = np.searchsorted(np.maximum.accumulate(high), c)  # the least b with c not above its own cut
    mass, chance = design.laws_at(0.0, np.array([discordance / 2]))
    inside = low <= high
    b_high, b_low = high[inside], low[inside]
    trials, p = most[inside], chance[0, inside]
    share = special.bdtr(b_high, trials, p) - np.where(b_low > 0, special.bdtr(np.maximum(b_low - 1, 0), trials, p), 0)
    return float(mass[0, inside] @ share)


@lru_cache(maxsize=256)
def pairs_needed(discordance: float, margin: float) -> int | None:
    """Find how many pairs show equivalence with a probability of 80 % where the two rates are equal.

    The power of a test of counts does not rise evenly: a few more pairs can have slightly less power.

    Args:
        discordance: Probability that one of a pair succeeds and the other fails.
        margin: Of the difference, between 0 and 1.

    Returns:
        The number of pairs, None if it is above 32768.
    """
    low, high = 1, 16
    while equivalence_power(high, discordance, margin) < WANTED_POWER:
        low, high = high, 2 * high
        if high > MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if equivalence_power(middle, discordance, margin) < WANTED_POWER:
            low = middle
        else:
            high = middle
    return high


def _below(design: Design, b: int, c: int, margin: float) -> float:
    """Compute the p-value of the hypothesis that the difference is the margin or more."""
    return _size(design, float(design.score(np.array(b), np.array(c), margin)), margin)


def _size(design: Design, bound: float, margin: float) -> float:
    """Compute the largest probability of a statistic at or below a bound where the difference is the margin."""
    from scipy import special

    mass, chance = _laws(design, margin)
    cuts, most = _cuts(design, bound, margin), design.most()
    seen = (mass > _NEGLIGIBLE) & (cuts >= 0)
    columns = np.nonzero(seen)[1]
    share = np.zeros_like(mass)
    share[seen] = special.bdtr(cuts[columns], most[columns], chance[seen])
    return float((mass * share).sum(1).max())


def _cuts(design: Design, bound: float, margin: float) -> Counts:
    """Find for each c the largest b whose statistic is at or below a bound; −1 where there is none."""
    high = design.most()
    c = np.arange(len(high))
    low = np.full_like(high, -1)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = design.score(np.maximum(middle, 0), c, margin) <= bound + _ROUNDING
        low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle - 1, low))
    return low


@lru_cache(maxsize=256)
def _critical(pairs: int, margin: float) -> float:
    """Find the largest bound on the statistic whose size is at most the level."""
    design = Paired(pairs)
    low, high = -4.0, -1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _size(design, middle, margin) <= LEVEL else (low, middle)
    return low


@lru_cache(maxsize=4)
def _laws(design: Design, margin: float) -> tuple[Floats, Floats]:
    return design.laws(margin)


def _grid() -> Floats:
    """Place points from 0 to 1, dense at both ends."""
    return (1 - np.cos(np.linspace(0, math.pi, _NUISANCES))) / 2


def _binomial(trials: int, chance: Floats) -> Floats:
    from scipy import stats

    return stats.binom.pmf(np.arange(trials + 1), trials, chance)
