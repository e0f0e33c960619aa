"""What the plugin says: one line when a policy is loaded, one when the process ends."""

import atexit
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.policy.adapters.base import AsdStats
from asd_policy.policy.law import TRAINED
from asd_policy.samplers import make_sampler
from asd_policy.samplers.records import WarmUp

log = logging.getLogger("lerobot_policy_asd")


@dataclass(frozen=True)
class Plan:
    """How a policy plans."""

    sampler: str
    """The spec that was asked for, or the default."""
    chain: str
    """Whose law plans have: "checkpoint" or "trained"."""
    way_out: str
    """How the user turns it off."""
    note: str = ""
    """More to say of it."""


@dataclass(frozen=True)
class _Loaded:
    """A policy that was accelerated."""

    name: str
    stats: AsdStats
    warm_ups: dict[int, WarmUp]
    """By the number of robots."""


_loaded: list[_Loaded] = []


def say_accelerated(policy: Any, plan: Plan, warm_ups: dict[int, WarmUp]) -> None:
    """Say how a policy plans from now on, and have its plans summed up at the end of the process.

    Args:
        policy: Accelerated and warm.
        plan: How it is to plan.
        warm_ups: What its warm-ups found, by the number of robots; for one at least.
    """
    warm, config = warm_ups[1], policy.config
    is_flow = getattr(config, "objective", None) == "flow_matching"
    own = f"LeRobot's own loop ({config.integration_method if is_flow else config.noise_scheduler_type})"
    exact = "the same law" if make_sampler(plan.sampler).exact else "NOT the same law"
    if plan.chain == TRAINED:
        law = f"{exact} as the DDPM chain that it was trained for, not that of {own}"
    elif is_flow:
        law = f"{exact} as the chain {plan.chain} of its flow, a law of its own and not that of {own}"
    else:
        law = f"{exact} as {own}"
    than = "" if warm.loop_seconds is None else f" where that takes {_ms(warm.loop_seconds)}"
    log.info(
        "%s policy plans with %s (%s), %s: %s a plan%s, on observations of zeros%s; %s",
        policy.name, plan.sampler, warm.spec, law, _ms(warm.plan_seconds), than, plan.note, plan.way_out,
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


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
