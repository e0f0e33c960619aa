"""What the plugin says: one line when a policy is loaded, one when the process ends."""

import atexit
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.policy.adapters.base import AsdStats
from asd_policy.samplers import make_sampler
from asd_policy.samplers.records import WarmUp
from lerobot_policy_asd.settings import OFF, SAMPLER

log = logging.getLogger("lerobot_policy_asd")


@dataclass(frozen=True)
class _Loaded:
    """A policy that was accelerated."""

    name: str
    stats: AsdStats
    warm_ups: dict[int, WarmUp]
    """By the number of robots."""


_loaded: list[_Loaded] = []


def say_accelerated(policy: Any, sampler: str, trained: bool, warm_ups: dict[int, WarmUp], note: str = "") -> None:
    """Say how a policy plans from now on, and have its plans summed up at the end of the process.

    Args:
        policy: Accelerated and warm.
        sampler: The spec that was asked for.
        trained: Whether plans have the law of the chain of training.
        warm_ups: What its warm-ups found, by the number of robots; one at least.
        note: More to say of it.
    """
    warm = next(iter(warm_ups.values()))
    config, exact = policy.config, make_sampler(sampler).exact
    chain = (
        f"the DDPM chain of {warm.steps} steps it was trained for" if trained else f"its chain of {warm.steps} steps"
    )
    was = f"LeRobot's {config.noise_scheduler_type} loop"
    log.info(
        "%s policy plans with %s (%s) on %s, %s, in %s where %s takes %s%s; %s=%s turns it off",
        policy.name, sampler, warm.spec, chain, "the same law" if exact else "NOT the same law", _ms(warm.plan_seconds),
        was, _ms(warm.loop_seconds), note, SAMPLER, OFF,
    )  # fmt: skip
    if not _loaded:
        atexit.register(_say_what_was_done)
    _loaded.append(_Loaded(policy.name, policy.asd_stats, warm_ups))


def _say_what_was_done() -> None:
    for each in _loaded:
        if each.stats.plans:
            log.info("%s policy: %s", each.name, summary(each.stats, each.warm_ups))


def summary(stats: AsdStats, warm_ups: dict[int, WarmUp]) -> str:
    """Sum up plans: rounds in place of steps, and latency against LeRobot's loop, as measured when it was loaded."""
    rows, seconds = zip(*stats.latest, strict=True)
    robots = max(set(rows), key=rows.count)
    times = np.array(seconds)[np.array(rows) == robots]
    text = (
        f"{stats.plans} plans, {stats.rounds / stats.plans:.1f} sequential network calls each in place of "
        f"{stats.steps // stats.plans}; {_ms(float(np.median(times)))} a plan, 95 % within "
        f"{_ms(float(np.percentile(times, 95)))}"
    )
    if robots > 1:
        text += f", for {robots} robots together"
    loop = warm_ups[robots].loop_seconds if robots in warm_ups else None
    if loop is not None:
        text += f", where LeRobot's loop took {_ms(loop)}: {loop / float(np.mean(times)):.1f}x"
    return f"{text}; {stats.trial_calls} network calls beside, to warm up and to measure"


def _ms(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{1e3 * seconds:.3g} ms"
