"""Do two samplers draw from one law? Tests of the plans they return, and of the steps that one of them took.

Plans are compared with those of the reference within each observation, so that a difference between observations
cannot pass for one between samplers. Steps need no reference: the chain gives their law, and they are tested against
it. That is the far sharper test (`residual_checks`).

Everything here is a function of arrays; no network, no files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common.extras import needed

with needed("a test of exactness", "eval"):
    from scipy import optimize, stats
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import cdist, pdist, squareform

Array = npt.NDArray[np.float64]

PERMUTATIONS = 9999  # p-values down to 1e-4, an order below a level of 0.01 shared by some eight tests
MOST_MODES = 8
LEAST_SILHOUETTE = 0.5  # from here on Kaufman and Rousseeuw (Finding Groups in Data, 1990) speak of structure
LEAST_SHARE = 0.05  # of the plans, for a cluster to be a mode and not a handful of outliers
SPLITS = 200  # random splits for the power of the energy test: 80 % ± 3 %
POWERS = (0.8, 0.9)


@dataclass(frozen=True)
class Check:
    """One test of one hypothesis."""

    name: str
    p_value: float
    effects: dict[str, float] = field(default_factory=dict)
    """How large the difference is, by the name of the measure; about 0 where there is none."""
    standard_error: float | None = None
    """Of the first effect when the law holds, where the test is one of χ²; what can be detected follows from it."""
    degrees: int = 1
    """Of freedom of that χ²; 1 for a normal variable."""


@dataclass(frozen=True)
class Decision:
    """What several tests decide together."""

    holds: bool
    """Whether no test rejects at the family-wise level."""
    p_value: float
    """Of the whole family: the smallest p-value times the number of tests, at most 1."""
    level: float
    """The p-value at or below which a single test rejects."""


def bonferroni(checks: Sequence[Check], alpha: float) -> Decision:
    """Combine tests under one family-wise level by Bonferroni's inequality, whatever their dependence.

    On the question whether ANY of them rejects, Holm's procedure agrees: its first step is Bonferroni's.

    Args:
        checks: At least one.
        alpha: Probability of a false alarm, at most, when the law holds.
    """
    smallest = min(check.p_value for check in checks)
    return Decision(smallest > alpha / len(checks), min(1.0, len(checks) * smallest), alpha / len(checks))


# Two samples of plans. Arrays are [O, N, D]: N plans of D numbers at each of O observations.


def energy_check(first: Array, second: Array, seed: int, permutations: int = PERMUTATIONS) -> Check:
    """Compare joint laws by the energy distance, with a permutation test (Székely and Rizzo, InterStat 2004).

    The distance 2 E|X − Y| − E|X − X'| − E|Y − Y'| is zero only for equal laws, in any dimension. Each
    observation's is divided by its mean distance between plans, and the sum over observations is the statistic.

    Args:
        first: Plans [O, N, D].
        second: Plans [O, N, D] of the reference.
        seed: Of the permutations, which swap plans between the two within an observation.
        permutations: How many.
    """
    statistics = _energies(first, second, seed, permutations).sum(0)
    # The estimate is biased upwards by what permuted samples show, where there is no distance.
    excess = (statistics[0] - statistics[1:].mean()) / (2 * len(first))
    return Check("energy distance", _upper_tail(statistics), {"energy_coefficient": max(0.0, float(excess))})


def whiten(first: Array, second: Array) -> tuple[Array, Array]:
    """Scale each observation's pooled plans to unit variance in every direction in which they vary.

    In a plan's own units the energy distance mostly sees its broad shape. How rough a plan is, say, shows in directions
    of little variance. The map treats both samples alike, so permutations stay valid.

    Args:
        first: Plans [O, N, D].
        second: Plans [O, N, D] of the reference.
    """
    pooled = np.concatenate([first, second], axis=1)
    centred = pooled - pooled.mean(1, keepdims=True)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)  # [O, 2N, r], [O, r]
    varies = spread > 1e-6 * spread.max(1, keepdims=True)  # below is rounding
    white = left * varies[:, None] * np.sqrt(pooled.shape[1])
    return white[:, : first.shape[1]], white[:, first.shape[1] :]


def marginal_check(first: Array, second: Array) -> Check:
    """Compare each coordinate by Kolmogorov and Smirnov's test, with Bonferroni's correction.

    Args:
        first: Plans [O, N, D].
        second: Plans [O, N, D] of the reference.
    """
    result: Any = stats.ks_2samp(first, second, axis=1)  # pyright: ignore[reportCallIssue]  # scipy adds the axis
    count = first.shape[0] * first.shape[2]
    deviation = np.sqrt((first.var(1) + second.var(1)) / 2)
    shift = np.divide(
        np.abs(first.mean(1) - second.mean(1)), deviation, out=np.zeros_like(deviation), where=deviation > 0
    )
    effects = {"largest_ks_distance": float(result.statistic.max()), "largest_mean_shift_sd": float(shift.max())}
    return Check("coordinates", min(1.0, count * float(result.pvalue.min())), effects)


def mode_check(first: Array, second: Array, seed: int, permutations: int = PERMUTATIONS) -> Check | None:
    """Compare how often each mode is taken; None where no observation has several.

    The statistic is χ² of the modes' counts, summed over observations. Permutations give its law, so that rare modes
    do no harm. Modes are found in both samples pooled, which keeps permutations valid.

    Args:
        first: Plans [O, N, D].
        second: Plans [O, N, D] of the reference.
        seed: Of the permutations.
        permutations: How many.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(permutations + 1)
    difference, most, error, degrees = 0.0, 1, 0.0, 0
    for x, y in zip(first, second, strict=True):
        labels = modes(np.concatenate([x, y]))
        if labels.max() == 0:
            continue
        member = np.eye(labels.max() + 1, dtype=np.float32)[labels]  # [2N, modes]
        counts = (_signs(len(x), permutations, rng) > 0).astype(np.float32) @ member  # [P + 1, modes], of the first
        expected = member.sum(0) / 2
        total += (2 * (counts - expected) ** 2 / expected).sum(1)
        difference = max(difference, float(np.abs(2 * (counts[0] - expected)).max()) / len(x))
        most = max(most, int(labels.max()) + 1)
        degrees += int(labels.max())
        share = member.mean(0)
        error = max(error, float(np.sqrt(2 * share * (1 - share) / len(x)).max()))
    if most == 1:
        return None
    effects = {"largest_mode_difference": difference, "most_modes": float(most)}
    return Check("modes", _upper_tail(total), effects, error, degrees)


def modes(plans: Array) -> npt.NDArray[np.int64]:
    """Cluster plans [n, D] into modes: number each plan's mode [n], 0 for all where there is one.

    Ward's hierarchical clusters are cut into 2 … 8; of the cuts in which every cluster has 5 % of the plans, the one
    with the largest mean silhouette (Rousseeuw 1987) is taken if that is 0.5 or more. Otherwise there is one mode.
    """
    none = np.zeros(len(plans), dtype=np.int64)
    condensed = pdist(plans)
    if not condensed.any():
        return none
    distance = squareform(condensed)
    tree = linkage(condensed, "ward")
    best, found = LEAST_SILHOUETTE, none
    for count in range(2, MOST_MODES + 1):
        labels = fcluster(tree, count, "maxclust").astype(np.int64) - 1
        sizes = np.bincount(labels)
        if len(sizes) < count or sizes.min() < max(2, LEAST_SHARE * len(plans)):
            continue
        member = np.eye(count)[labels]  # [n, count]
        sums = distance @ member  # [n, count] of the distances to each cluster
        own = member.astype(bool)
        within = sums[own] / (sizes[labels] - 1)  # without the plan itself
        between = np.where(own, np.inf, sums / sizes).min(1)
        silhouette = float(((between - within) / np.maximum(between, within)).mean())
        if silhouette >= best:
            best, found = silhouette, labels
    return found


def detectable_moves(
    first: Array, second: Array, level: float, seed: int, powers: Sequence[float] = POWERS
) -> dict[str, dict[str, float | None]]:
    """Find the smallest moves of all plans that the energy test would probably have detected.

    By simulation: the pooled plans are split at random, so that both halves have one law. Then one half is moved, and
    the test is run.

    Args:
        first: Plans [O, N, D].
        second: Plans [O, N, D] of the reference.
        level: The p-value at or below which the test rejects.
        seed: Of the splits.
        powers: Wanted probabilities to detect the move.

    Returns:
        By difference, then by power in percent ("80", "90"): `mean_shift_sd`, every coordinate moved by this many
        standard deviations; `scale`, every deviation from the mean longer by this fraction. None where even the
        largest size tried, 10, is not detected.
    """
    splits = SPLITS
    pooled = np.concatenate([first, second], axis=1)  # [O, 2N, D]
    null = _energies(first, second, seed, PERMUTATIONS)[:, 1:].sum(0)
    threshold = float(np.quantile(null, 1 - level))
    rng = np.random.default_rng(seed)
    halves = [_signs(first.shape[1], splits, rng)[1:] > 0 for _ in pooled]  # O times [splits, 2N]
    centred = pooled - pooled.mean(1, keepdims=True)
    moves = {"mean_shift_sd": np.broadcast_to(pooled.std(1, keepdims=True), pooled.shape), "scale": centred}

    def seen(size: float, move: Array) -> float:
        """Measure the share of splits in which the test detects `size` times `move` in one half."""
        energy = np.zeros(splits)
        for plans, step, half in zip(pooled, move, halves, strict=True):
            energy += _energy_after(plans, plans + size * step, half)
        return float((energy >= threshold).mean())

    return {name: {_percent(power): _smallest(seen, move, power) for power in powers} for name, move in moves.items()}


def detectable_effects(
    checks: Sequence[Check], level: float, powers: Sequence[float] = POWERS
) -> dict[str, dict[str, dict[str, float]]]:
    """Compute, by test, effect and power, the smallest effect that each test with a standard error probably detects.

    In closed form: (effect / standard error)² is the non-centrality of the test's χ².
    """

    def smallest(check: Check, error: float, power: float) -> float:
        critical = stats.chi2.isf(level, check.degrees)

        def missing(noncentrality: float) -> float:
            return float(stats.ncx2.sf(critical, check.degrees, noncentrality)) - power

        root: Any = optimize.brentq(missing, 1e-9, 1e4)
        return error * float(np.sqrt(root))

    return {
        check.name: {
            next(iter(check.effects)): {
                _percent(power): smallest(check, check.standard_error, power) for power in powers
            }
        }
        for check in checks
        if check.standard_error is not None
    }


def _percent(power: float) -> str:
    return f"{100 * power:.0f}"


def _smallest(seen: Callable[[float, Array], float], move: Array, power: float) -> float | None:
    """Bisect for the smallest size, 0.001 … 10, seen with that power; to 2 %."""

    def excess(log_size: float) -> float:
        return seen(float(np.exp(log_size)), move) - power + 1e-9

    low, high = np.log(1e-3), np.log(10.0)
    if excess(high) < 0:
        return None
    if excess(low) >= 0:
        return float(np.exp(low))
    root: Any = optimize.bisect(excess, low, high, xtol=0.02)
    return float(np.exp(root))


def _energy_after(plans: Array, moved: Array, half: npt.NDArray[np.bool_]) -> Array:
    """Compute the energy distance [splits] between the plans of a half [splits, 2N] and the others, which moved."""
    stay, go = half.astype(np.float64), (~half).astype(np.float64)
    condensed = pdist(plans)
    within, after, across = squareform(condensed), squareform(pdist(moved)), cdist(plans, moved)

    def sums(left: Array, matrix: npt.NDArray[np.floating], right: Array) -> Array:
        return ((left @ matrix) * right).sum(1)

    total = 2 * sums(stay, across, go) - sums(stay, within, stay) - sums(go, after, go)
    return total / ((len(plans) / 2) ** 2 * (condensed.mean() or 1.0))


def _energies(first: Array, second: Array, seed: int, permutations: int) -> Array:
    """Compute energy distances over spread [O, permutations + 1]; the first of a row is the observed one."""
    rng = np.random.default_rng(seed)
    found = np.zeros((len(first), permutations + 1))
    for row, x, y in zip(found, first, second, strict=True):
        condensed = pdist(np.concatenate([x, y]))
        spread = condensed.mean() or 1.0  # plans that are all one have no distance, and any spread will do
        distance = squareform(condensed / spread).astype(np.float32)
        signs = _signs(len(x), permutations, rng)
        row[:] = -((signs @ distance) * signs).sum(1, dtype=np.float64) / len(x) ** 2
    return found


def _signs(count: int, permutations: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Assign 2N pooled plans to the first sample (1) or the second (−1) at random [permutations + 1, 2N].

    The first row is the samples as they are.
    """
    signs = np.repeat(np.array([1, -1], dtype=np.float32), count)
    return np.concatenate([signs[None], rng.permuted(np.tile(signs, (permutations, 1)), axis=1)])


def _upper_tail(statistics: Array) -> float:
    """Compute the p-value of the first statistic among permuted ones, itself included; rounding makes no tie."""
    reached = statistics >= statistics[0] - 1e-6 * max(1e-6, abs(statistics[0]))
    return float(reached.mean())


# One sample of paths.


@dataclass(frozen=True)
class Steps:
    """The noisy steps that n plans took, and vectors that were fixed before each. Arrays are [n, k, D]."""

    residuals: Array
    """z = (x_{k+1} − m_k)/σ_k."""
    errors: dict[str, Array]
    """By name, vectors by which a draft may have missed m_k, over σ_k. They were fixed before the step's noise. NaN
    where there is none."""


def residual_steps(
    points: Array, predictions: Array, a: Array, b: Array, sigma: Array, guesses: dict[str, Array]
) -> Steps:
    """Standardise a sampler's committed path by the chain's own means and deviations.

    Args:
        points: Committed points [n, K + 1, D], from the initial noise to the plan.
        predictions: x̂0 at the first K of them [n, K, D].
        a: The chain's weight of x̂0 [K].
        b: Its weight of the point [K].
        sigma: Its standard deviations [K]; steps without noise are left out.
        guesses: By name, guesses of x̂0 [n, K, D] that were fixed before the step was taken.
    """
    noisy = sigma > 0
    scale = (a[noisy] / sigma[noisy])[:, None]
    means = a[:, None] * predictions + b[:, None] * points[:, :-1]
    residuals = (points[:, 1:] - means)[:, noisy] / sigma[noisy, None]
    return Steps(residuals, {name: (guess - predictions)[:, noisy] * scale for name, guess in guesses.items()})


def residual_checks(steps: Steps) -> list[Check]:
    """Test a sampler's steps against the chain's: conditional on what came before, each residual z is N(0, I).

    An exact coupling guarantees that on ANY network, and it implies the law of the final plan. The checks:

    - size: Σ z² of a step is χ²; two-sided, Bonferroni over the steps.
    - mean: of z, for each step and coordinate; χ².
    - shape: all z against the normal law; Kolmogorov and Smirnov.
    - bias and spread along a possible draft error: z along a direction that was fixed before the step is N(0, 1). A
      coupling that lets its draft's error through pulls z towards the draft, which no average over directions shows.
      Suppose it redraws where it should reflect, with a draft that is δ standard deviations off: that pulls by
      δ Φ(−δ/2). This is each step's weight: none where the draft was right, none where it was hopeless.
    """
    residuals = steps.residuals
    plans, count, dim = residuals.shape
    squares = (residuals**2).sum((0, 2))  # [k]
    degrees = plans * dim
    tail = np.minimum(stats.chi2.cdf(squares, degrees), stats.chi2.sf(squares, degrees)).min()
    mean = residuals.mean(0)  # [k, D]
    shape = stats.kstest(residuals.ravel(), "norm", method="asymp")
    size_effect = {"largest_variance_error": float(np.abs(squares / degrees - 1).max())}
    checks = [
        Check("step size", min(1.0, 2 * count * float(tail)), size_effect),
        Check(
            "step mean",
            float(stats.chi2.sf(plans * (mean**2).sum(), count * dim)),
            {"largest_mean_sd": float(np.abs(mean).max())},
        ),
        Check("step shape", float(shape.pvalue), {"ks_distance": float(shape.statistic)}),
    ]
    for name, errors in steps.errors.items():
        length = np.linalg.norm(errors, axis=2)  # [n, k], δ
        usable = length > 0  # and not NaN
        delta = length[usable]
        along = (residuals * errors).sum(2)[usable] / delta
        weight = delta * stats.norm.sf(delta / 2)
        total, squared = weight.sum(), (weight**2).sum()
        if squared == 0:
            continue
        bias = float((weight * along).sum() / np.sqrt(squared))
        # A weighted sum of χ² variables as one χ² of the same mean and variance (Satterthwaite 1946).
        spread = float((weight * along**2).sum() / total)
        degrees = total**2 / squared
        tails = stats.chi2.cdf(spread * degrees, degrees), stats.chi2.sf(spread * degrees, degrees)
        checks += [
            Check(
                f"bias along {name}",
                2 * float(stats.norm.sf(abs(bias))),
                {"mean_sd": float(bias * np.sqrt(squared) / total)},
                float(np.sqrt(squared) / total),
            ),
            Check(
                f"spread along {name}",
                min(1.0, 2 * float(min(tails))),
                {"variance_error": spread - 1},
                float(np.sqrt(2 / degrees)),
            ),
        ]
    return checks


def noiseless_check(points: Array, predictions: Array, a: Array, b: Array, sigma: Array, tolerance: float) -> Check:
    """Check that a step without noise, such as a chain's last one, went to its mean. This test is deterministic.

    Args:
        points: Committed points [n, K + 1, D].
        predictions: x̂0 at the first K of them [n, K, D].
        a: The chain's weight of x̂0 [K].
        b: Its weight of the point [K].
        sigma: Its standard deviations [K].
        tolerance: Rounding error to allow.
    """
    quiet = sigma == 0
    means = a[:, None] * predictions + b[:, None] * points[:, :-1]
    error = float(np.abs((points[:, 1:] - means)[:, quiet]).max(initial=0.0))
    return Check("steps without noise", 1.0 if error <= tolerance else 0.0, {"largest_error": error})
