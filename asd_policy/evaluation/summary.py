"""What the episodes of an evaluation add up to: the `samplers` list of results.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asd_policy._common.statistics import entropy, latency, mean_interval, paired_difference, wilson
from asd_policy.evaluation.comparison import MARGIN, equivalence_result, pair, reward_difference
from asd_policy.evaluation.costs import summarize_calls, summarize_encoding
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.timing import summarize_timing
from asd_policy.policy.plan import PlanRecord
from asd_policy.samplers import Sampler
from asd_policy.samplers.records import overhead_fraction

_NO_COSTS: dict[str, Any] = dict.fromkeys(
    ("window", "rounds_mean", "rounds_p95", "nfe_mean", "acceptance_length_mean", "algorithmic_speedup",
     "wall_clock_speedup", "overhead_fraction", "encode_ms", "encode_fraction", "latency_ms", "acceptance_by_step")
)  # fmt: skip
"""Of a sampler that made no plan."""


def summarize_episodes(
    samplers: Mapping[str, Sampler],
    episodes: Sequence[Episode],
    steps: int,
    margin: float = MARGIN,
    hz: float | None = None,
    reference: str = "ddpm",
) -> list[dict[str, Any]]:
    """Build the `samplers` list of results.json (see docs/guide/evaluation.md) from what has finished.

    Args:
        samplers: From `resolve_samplers`, in the order of the list.
        episodes: In any order, with the specs that were asked for.
        steps: Network calls K of the sequential sampler, see `Policy.steps`.
        margin: Difference of success rates that would not matter, for the test of equivalence.
        hz: Control steps in a second of the clock that went on while plans were made; None where there was none.
        reference: Spec of the sequential sampler, which the others are compared with.
    """
    ordered = sorted(episodes, key=lambda episode: episode.index)
    by_spec = {spec: [episode for episode in ordered if episode.spec == spec] for spec in samplers}
    other = by_spec.get(reference, [])
    return [_summary(spec, samplers[spec], done, other, steps, margin, hz) for spec, done in by_spec.items() if done]


def _summary(
    spec: str,
    sampler: Sampler,
    done: list[Episode],
    reference: list[Episode],
    steps: int,
    margin: float,
    hz: float | None,
) -> dict[str, Any]:
    plans = [plan for episode in done for plan in episode.plans]
    returns = [each.total_reward for each in done if each.error is None and each.total_reward is not None]
    modes = Counter(episode.mode for episode in done if episode.mode is not None)
    pairs = pair(reference, done)
    successes = [(own.success, other.success) for other, own in pairs]
    return {
        "spec": spec,
        "ran": sampler.spec,
        "exact": sampler.exact and all(plan.exact for plan in plans),
        "steps": steps,
        "episodes": len(done),
        "failed": sum(episode.error is not None for episode in done),
        "success_rate": float(np.mean([episode.success for episode in done])),
        "success_ci95": wilson(sum(episode.success for episode in done), len(done)),
        "return_mean": float(np.mean(returns)) if returns else None,
        "return_ci95": mean_interval(returns),
        "paired_difference_ci95": paired_difference(*zip(*successes, strict=True)) if pairs else None,
        "reward_difference": reward_difference(pairs),
        "equivalence": equivalence_result(pairs, margin) if pairs and done is not reference else None,
        "modes": dict(sorted(modes.items())),
        "mode_entropy": entropy(modes),
        "timing": None if hz is None else summarize_timing(done, hz),
        "plans": len(plans),
        "cut_plans": sum(plan.cut for plan in plans),
        **_costs(plans, [plan for episode in reference for plan in episode.plans], steps),
    }


def _costs(plans: list[PlanRecord], reference: list[PlanRecord], steps: int) -> dict[str, Any]:
    """Summarize what plans cost, next to those of the reference; None for all of it where no plan was made."""
    if not plans:
        return _NO_COSTS
    seconds = np.array([plan.seconds for plan in plans])
    encode_seconds = [plan.encode_seconds for plan in plans]
    reference_seconds = [plan.seconds for plan in reference]
    rounds, nfe, windows = ([getattr(plan, name) for plan in plans] for name in ("rounds", "nfe", "window"))
    return {
        **summarize_calls(rounds, nfe, windows, steps),
        "wall_clock_speedup": float(np.mean(reference_seconds) / seconds.mean()) if reference_seconds else None,
        "overhead_fraction": overhead_fraction(plans, float(seconds.sum()), sum(filter(None, encode_seconds))),
        **summarize_encoding(encode_seconds, float(seconds.sum())),
        "latency_ms": latency(seconds),
        "acceptance_by_step": _acceptance(plans, steps),
    }


def _acceptance(plans: list[PlanRecord], steps: int) -> list[float | None] | None:
    """Compute for each step k the share of its drafts that were accepted; None where none was judged, or drafted."""
    judged, refused = np.zeros((2, steps), int)
    for plan in plans:
        if plan.refused is not None and plan.unjudged is not None:
            refused[list(plan.refused)] += 1
            judged += 1
            judged[list(plan.unjudged)] -= 1
    if not judged.any():
        return None
    return [float(1 - r / j) if j else None for r, j in zip(refused, judged, strict=True)]
