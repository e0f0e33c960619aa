"""What plans cost in network calls, as `eval` and `bench` report it. Terms as in docs/theory/architecture.md."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from asd_policy.samplers.asd.autotune import WINDOWS, expected_seconds
from asd_policy.samplers.records import SpeculationStats


def summarize_encoding(encode_seconds: Sequence[float | None], seconds: float) -> dict[str, float | None]:
    """Summarize what networks that encode observations take of plans, under the names of results.json.

    Args:
        encode_seconds: Of each plan [s]; None where no network encodes.
        seconds: All that the plans took [s].
    """
    known = [each for each in encode_seconds if each is not None]
    return {
        "encode_ms": 1e3 * float(np.mean(known)) if known else None,
        "encode_fraction": sum(known) / seconds if known else None,
    }


def summarize_calls(
    rounds: Sequence[int], nfe: Sequence[int], windows: Sequence[int], steps: int
) -> dict[str, int | float]:
    """Summarize the network calls of plans, under the names of results.json.

    The acceptance length is how many steps a round commits. As a round is one network call, and the sequential sampler
    makes one call for each step, the algorithmic speedup is the same number.

    Args:
        rounds: Network calls that each plan waited for.
        nfe: Points that were evaluated for each plan.
        windows: Most points that a call evaluated for a plan; the one that is met most often is reported.
        steps: Length K of the chain.
    """
    steps_per_round = steps / float(np.mean(rounds))
    return {
        "window": Counter(windows).most_common(1)[0][0],
        "rounds_mean": float(np.mean(rounds)),
        "rounds_p95": float(np.percentile(rounds, 95)),
        "nfe_mean": float(np.mean(nfe)),
        "acceptance_length_mean": steps_per_round,
        "algorithmic_speedup": steps_per_round,
    }


def network_limit(
    stats: Sequence[SpeculationStats], batch: int, call_seconds: Callable[[float], float]
) -> tuple[float, int] | None:
    """Compute what the network calls of a plan alone would take at the best window, given the refusals of plans.

    How often a step's draft is refused is taken to be the same at every window.

    Args:
        stats: Of plans with drafts, at one window.
        batch: Rows of a call; each row's rounds are counted as if it waited for no other.
        call_seconds: Time of a call by its number of points [s].

    Returns:
        The seconds, and the window; None for plans without drafts, and for those of a draft that costs calls of its
        own, as `frozen` does.
    """
    if any("draft=frozen" in each.spec for each in stats):
        return None
    plans = [plan for each in stats for plan in each.plans]
    steps = stats[0].steps
    refused, judged = np.zeros(steps), np.full(steps, float(len(plans)))
    for plan in plans:
        if plan.refused is None or plan.unjudged is None:
            return None
        refused[list(plan.refused)] += 1
        judged[list(plan.unjudged)] -= 1
    hazard = refused / np.maximum(judged, 1)

    def latency(points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.array([call_seconds(float(batch * count)) for count in points])

    windows = [window for window in WINDOWS if window <= steps]
    return min((expected_seconds(hazard, window, latency), window) for window in windows)
