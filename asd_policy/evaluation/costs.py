"""What plans cost in network calls, as `eval` and `bench` report it. Terms as in docs/theory/architecture.md."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


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
