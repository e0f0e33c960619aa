"""Delays of plans that a robot did not wait for: repeated actions, missed deadlines, the rate that was kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from asd_policy._common.statistics import latency
from asd_policy.evaluation.rollout.episodes import Episode


def summarize_timing(episodes: Sequence[Episode], hz: float) -> dict[str, Any] | None:
    """Build the `timing` of a sampler in results.json (see docs/guide/evaluation.md).

    Args:
        episodes: Run by a clock. Those that failed are left out.
        hz: Control steps in a second.

    Returns:
        None where no episode has come to its end.
    """
    done = [episode for episode in episodes if episode.error is None]
    if not done:
        return None
    # The first plan of an episode has no deadline: the robot is at rest until it comes.
    later = [plan.timing for episode in done for plan in episode.plans[1:] if plan.timing is not None]
    stale = [sum(plan.timing.stale for plan in episode.plans if plan.timing is not None) for episode in done]
    steps = sum(episode.steps for episode in done)
    missed = sum(timing.stale > 0 for timing in later)
    gaps = [gap for episode in done for gap in _gaps(episode)]
    seams = [timing.seam for timing in later if timing.seam is not None]
    return {
        "counted_latency_ms": latency(np.array([timing.latency for timing in later])) if later else None,
        "delay_steps_mean": float(np.mean([timing.delay for timing in later])) if later else None,
        "delay_steps_max": max((timing.delay for timing in later), default=None),
        "stale_steps_mean": float(np.mean(stale)),
        "stale_fraction": sum(stale) / steps,
        "missed_deadlines": missed,
        "missed_fraction": missed / len(later) if later else None,
        "control_frequency_hz": hz * (1 - sum(stale) / steps),
        "jitter_ms": 1e3 / hz * float(np.std(gaps)) if gaps else None,
        "seam_mean": float(np.mean(seams)) if seams else None,
        "seam_p95": float(np.percentile(seams, 95)) if seams else None,
    }


def _gaps(episode: Episode) -> list[int]:
    """Count the control steps from each new action, one that is not a repetition, to the next.

    A wait that the end of the episode cuts short has no next action. It counts as if one came then: a robot that stands
    still to the end is not punctual.
    """
    timings = [(plan.at, plan.timing) for plan in episode.plans if plan.timing is not None]
    waits = [timing.stale + 1 for _, timing in timings if timing.stale]
    ended = sum(timing.stale > 0 and at + timing.delay < episode.steps for at, timing in timings)
    fresh = episode.steps - sum(timing.stale for _, timing in timings)
    return waits + [1] * (fresh - 1 - ended)
