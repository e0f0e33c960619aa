"""What `inspect` recommends where nothing exact is possible: its own plan to a tolerance, if that pays as measured."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from asd_policy._common import arrays
from asd_policy.policy.plan import Plan
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import at_rest
from asd_policy.samplers import make_sampler

WINDOWS = (4, 8, 16)
"""Points θ of a round that are tried."""
PAYS = 0.9
"""Share of the own plan's time from which on less is worth an approximation."""
_PLANS, _FEWEST = 12, 4
_SECONDS = 10.0  # after which no more plans are made than the fewest


def measure_parallel(policy: Policy) -> dict[str, Any]:
    """Plan as the checkpoint's own DDIM scheduler does, and with `parallel`, in turn on the same noise.

    The observation is made up, at rest in the middle of what the normalisation knows: what counts is the time of calls
    here, and how far plans of this network are from their drafts.

    Args:
        policy: One whose own scheduler adds no noise, on the device and the backend to measure.

    Returns:
        "own" and "parallel", the quickest of its settings, each with "spec", "calls" a plan and "ms", the median time;
        "difference", the largest of any number of a plan between the two, in normalised units; "plans", how many of
        each; "device"; and whether it "pays".
    """
    settings = [f"parallel:window={window}" for window in WINDOWS if window <= policy.steps] or ["parallel"]
    planners = [policy.with_sampler(policy.reference)]
    planners += [policy.with_sampler(make_sampler(spec)) for spec in settings]
    rest = {
        name: arrays.namespace(values).broadcast_to(values, (1, policy.horizons.n_obs_steps, *values.shape))
        for name, values in at_rest(policy.encoder).items()
    }
    made: list[list[Plan]] = [[] for _ in planners]
    start = time.perf_counter()
    for seed in range(_PLANS):
        if seed >= _FEWEST and time.perf_counter() - start > _SECONDS:
            break
        for planner, plans in zip(planners, made, strict=True):
            last = planner.move_on(plans[-1].sample) if plans else None
            plans.append(planner.plan(rest, arrays.make_generator(policy.device, seed), last))
    own, *others = ([plan.seconds for plan in plans[1:]] for plans in made)  # the first ones have to warm up
    best = min(range(len(others)), key=lambda place: median(others[place]))
    ours = made[1 + best]
    pairs = zip(ours, made[0], strict=True)
    return {
        "own": _cost(planners[0], made[0]),
        "parallel": _cost(planners[1 + best], ours),
        "difference": max(float(abs(plan.sample - its.sample).max()) for plan, its in pairs),
        "plans": len(own),
        "device": f"{policy.device}, {policy.backend.spec}",
        "pays": median(others[best]) < PAYS * median(own),
    }


def _cost(planner: Policy, plans: Sequence[Plan]) -> dict[str, Any]:
    calls = [plan.stats.rounds[0] for plan in plans[1:]]
    milliseconds = 1000 * median(plan.seconds for plan in plans[1:])
    return {"spec": planner.sampler.spec, "calls": sum(calls) / len(calls), "ms": milliseconds}


def recommendation_lines(found: dict[str, Any]) -> list[str]:
    """Write what was measured, and what follows, as lines for the terminal."""
    own, ours = found["own"], found["parallel"]
    measured = (
        f"{ours['spec']} took {ours['calls']:.1f} calls and {ours['ms']:.1f} ms, its own {own['spec']} "
        f"{own['calls']:.0f} and {own['ms']:.1f} ms (median of {found['plans']} plans on {found['device']})"
    )
    if found["pays"]:
        return [
            ours["spec"],
            measured,
            f"approximate: plans were off by {found['difference']:.2g} at most, in normalised units; tol= sets how far",
        ]
    return [own["spec"], f"{measured}: too little for an approximation"]
