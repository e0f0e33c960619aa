"""How many points a round should evaluate on this device: the cost model behind `window=auto`."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy.draft import Draft
from asd_policy.experience import Experience
from asd_policy.samplers.target import Target

DEFAULT_WINDOW = 32
"""Where there is no experience to measure for, as in a lone `Sampler.sample` call."""
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Windows to choose from; a larger one saves few rounds on any network seen so far."""

_TIMED_CALLS = 3
_PRIOR_REFUSALS = 0.06  # of a step, worth one plan: what a trained policy has on average


def choose_window(target: Target, initial: Tensor, experience: Experience | None, draft: Draft) -> int:
    """Return the window with the least expected time per plan.

    The latency of the network is measured once for each batch, on first use. The choice is made anew each time that
    the number of plans learned from has doubled.

    Args:
        target: What is sampled.
        initial: Start of the chain [B, *event], for its size, device and dtype.
        experience: Of the policy; None for `DEFAULT_WINDOW`.
        draft: Whose refusals the experience has.
    """
    steps = len(target.chain)
    if experience is None:
        return min(DEFAULT_WINDOW, steps)
    batch = len(initial)
    measure_latency(target, initial, experience)

    def choose() -> int:
        costs = window_costs(experience, batch, steps)
        return min(costs, key=lambda window: costs[window])

    return experience.once_per_doubling(("window", batch, draft), choose)


def measure_latency(target: Target, initial: Tensor, experience: Experience) -> None:
    """Time the network on the points of each window in `WINDOWS`, for a batch like `initial`, where not yet done."""
    for window in WINDOWS:
        points = len(initial) * window
        if window <= len(target.chain) and points not in experience.latency:
            experience.latency[points] = _time_call(target, initial, window)


def window_costs(experience: Experience, batch: int, steps: int) -> dict[int, float]:
    """Return the expected time of a plan [s] for each window whose latency at this batch was measured."""
    sizes = sorted(experience.latency)
    seconds = [experience.latency[size] for size in sizes]

    def latency(points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.interp(batch * points, sizes, seconds)

    hazard = np.full(steps, _PRIOR_REFUSALS)
    if experience.moments:
        judged, refused = (experience.moments[name].double().cpu().numpy() for name in ("judged", "refused"))
        hazard = (refused + _PRIOR_REFUSALS) / (judged + 1)
    windows = [window for window in WINDOWS if batch * window in experience.latency]
    return {window: expected_seconds(hazard, window, latency, experience.overhead) for window in windows}


def expected_seconds(
    hazard: npt.NDArray[np.float64],
    window: int,
    latency: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    overhead: float,
) -> float:
    """Return the expected time of a plan [s], walking back from the end of the chain.

    Args:
        hazard: Probability that a draft is refused where it is judged, by step [K].
        window: Points of a round θ.
        latency: Seconds of a network call by points per row.
        overhead: Seconds of a round outside the network; the sequential sampler (θ = 1) has none to speak of.
    """
    steps = len(hazard)
    cost = np.zeros(steps + 1)
    per_round = latency(np.minimum(np.arange(steps, 0, -1), window)) + (overhead if window > 1 else 0)
    for cursor in range(steps - 1, -1, -1):
        run = min(window, steps - cursor)
        judged = hazard[cursor : cursor + run - 1]
        stands = np.cumprod(np.concatenate([[1.0], 1 - judged]))  # [run] all drafts before each slot
        after = cost[cursor + 1 : cursor + run]
        cost[cursor] = per_round[cursor] + (stands[:-1] * judged * after).sum() + stands[-1] * cost[cursor + run]
    return float(cost[0])


def _time_call(target: Target, initial: Tensor, window: int) -> float:
    """Return the seconds of a network call on `window` points per row: the least of a few, after one to warm up."""
    rows = torch.arange(len(initial), device=initial.device).repeat_interleave(window)
    points = initial[rows]
    steps = torch.arange(window, device=initial.device).repeat(len(initial))
    times = []
    for _ in range(1 + _TIMED_CALLS):
        start = time.perf_counter()
        target.predict(points, steps, rows)
        if points.is_cuda:
            torch.cuda.synchronize(points.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
