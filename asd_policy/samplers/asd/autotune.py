"""What `asd` does where an option is left to it: the cost model behind `auto`.

The expected time of a plan is, for each window, draft and verifier, the time of a round (the network's by its number of
points, and the engine's own; both measured on first use) times the expected rounds, which follow from how often
drafts were refused at each step.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers.asd.compiled import compiled_form
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round, response_for
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.base import Target

WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Windows to choose from; a larger one saves few rounds on any network seen so far."""
_TIMED_WINDOWS = (2, 16, 64)  # the engine's time is nearly linear in between
_TIMED_CALLS = 3


class Setting(NamedTuple):
    """What `asd` runs with."""

    window: int
    draft: str
    verify: str

    @property
    def pair(self) -> tuple[str, str]:
        """Draft and verifier."""
        return self.draft, self.verify


_PRIORS = {(name, verify): share for name, draft in DRAFTS.items() for verify, share in draft.refusals.items()}
PRIOR_REFUSALS = dict(sorted(_PRIORS.items(), key=lambda prior: prior[1]))
"""Drafts and verifiers to choose from, the best guess first, and how many of the steps judged a trained policy refuses.

A pair that no plan was made with yet counts as refused in proportion to these figures, so that it is tried where it may
pay, and only there.
"""
DEFAULT = Setting(32, *next(iter(PRIOR_REFUSALS)))
"""Where there is no experience to measure for, as in a lone `Sampler.sample` call."""


def choose(
    window: int | None,
    draft: str | None,
    verify: str | None,
    target: Target,
    tape: NoiseTape,
    experience: Experience | None,
) -> Setting:
    """Choose the setting with the least expected time per plan.

    Latencies are measured once for each batch, on first use. The choice is made anew each time that the number of plans
    learned from has doubled.

    Args:
        window: Points of a round θ, or None to choose them. Where they are given, nothing is chosen.
        draft: Name of the draft; None for the best, or the default beside a window.
        verify: Name of the verifier; None alike.
        target: What is sampled.
        tape: Its noise. What is timed runs on it, and leaves it as it is.
        experience: Of the policy; None for `DEFAULT`.
    """
    if window is not None:
        return Setting(window, draft or DEFAULT.draft, verify or DEFAULT.verify)
    steps, batch = len(target.chain), len(tape.initial)
    if experience is None:
        return Setting(min(DEFAULT.window, steps), draft or DEFAULT.draft, verify or DEFAULT.verify)

    def best() -> Setting:
        settings = candidates(steps, None, draft, verify)
        measure(settings, target, tape, experience)
        costs = expected_costs(settings, experience, batch, steps)
        return min(settings, key=lambda setting: costs[setting])  # of equals the first: the default pair's

    return experience.once_per_doubling(("setting", batch, draft, verify), best)


def candidates(
    steps: int, window: int | None = None, draft: str | None = None, verify: str | None = None
) -> list[Setting]:
    """List the settings to choose from for a chain of so many steps; what is given stays."""
    windows = [each for each in WINDOWS if each <= steps] if window is None else [window]
    drafts = dict.fromkeys(each for each, _ in PRIOR_REFUSALS) if draft is None else [draft]
    verifiers = dict.fromkeys(each for _, each in PRIOR_REFUSALS) if verify is None else [verify]
    return [Setting(*each) for each in product(windows, drafts, verifiers)]


def measure(settings: Sequence[Setting], target: Target, tape: NoiseTape, experience: Experience) -> None:
    """Time, for a batch like the tape's, what was not timed yet: network calls, and rounds without the network."""
    batch = len(tape.initial)
    for window in dict.fromkeys(setting.window for setting in settings):
        if batch * window not in experience.latency:
            experience.latency[batch * window] = _time_call(target, tape.initial, window)
    silent = _Silent(
        target.denoiser, target.chain, target.shape, target.cond, target.inpainting, target.launcher, meter=target.meter
    )
    windows = sorted({min(window, len(target.chain)) for window in _TIMED_WINDOWS})
    for pair in dict.fromkeys(setting.pair for setting in settings):
        if (*pair, batch) not in experience.overhead:
            seconds = [_time_round(Setting(window, *pair), silent, tape, experience) for window in windows]
            experience.overhead[(*pair, batch)] = dict(zip(windows, seconds, strict=True))


def expected_costs(settings: Sequence[Setting], experience: Experience, batch: int, steps: int) -> dict[Setting, float]:
    """Compute the expected time of a plan [s] with each setting; all were measured at this batch."""
    sizes = sorted(experience.latency)
    seconds = [experience.latency[size] for size in sizes]

    def latency(points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.interp(batch * points, sizes, seconds)

    costs = {}
    for setting in settings:
        timed = experience.overhead[(*setting.pair, batch)]
        overhead = float(np.interp(setting.window, list(timed), list(timed.values())))
        costs[setting] = expected_seconds(refusals(setting.pair, experience, steps), setting.window, latency, overhead)
    return costs


def refusals(pair: tuple[str, str], experience: Experience, steps: int) -> npt.NDArray[np.float64]:
    """Estimate the probability that a pair's draft is refused where it is judged, by step [K]."""
    prior = {known: PRIOR_REFUSALS.get(known, max(PRIOR_REFUSALS.values())) for known in (pair, *experience.judgements)}
    hazard = np.full(steps, prior[pair])
    for known in sorted(experience.judgements, key=lambda known: known == pair):  # its own have the last word
        judged, refused = (arrays.to_numpy(sums).astype(np.float64) for sums in experience.judgements[known])
        # What was thought before is worth one plan.
        hazard = (prior[pair] / prior[known] * refused + hazard) / (judged + 1)
    return hazard.clip(max=1)


def expected_seconds(
    hazard: npt.NDArray[np.float64],
    window: int,
    latency: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    overhead: float,
) -> float:
    """Compute the expected time of a plan [s], walking back from the end of the chain.

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


class _Silent(Target):
    """A target whose network takes no time."""

    def predict(self, x: Array, steps: Array, rows: Array | None = None, live: Array | None = None) -> Array:
        """Predict zeros."""
        return arrays.namespace(x).zeros_like(x)


def _time_call(target: Target, initial: Array, window: int) -> float:
    """Time a network call on `window` points per row [s]."""
    device, batch = arrays.device_of(initial), len(initial)
    rows = arrays.asarray(np.repeat(np.arange(batch), window), device)
    steps = arrays.asarray(np.tile(np.arange(window), batch), device)
    points = initial[rows]
    if target.launcher is None:
        return min(_seconds(lambda: target.predict(points, steps, rows), device) for _ in range(1 + _TIMED_CALLS))
    recorded = target.recordable(target.cond, target.inpainting)
    target.meter.count(1 + _TIMED_CALLS, (1 + _TIMED_CALLS) * len(points))  # of the replays
    return _replay_seconds(lambda: recorded.predict(points, steps, rows), target.launcher, device)


def _time_round(setting: Setting, silent: Target, tape: NoiseTape, experience: Experience) -> float:
    """Time a round from the start of the chain [s]."""
    device, rows = arrays.device_of(tape.initial), arrays.arange(len(tape.initial), tape.initial)
    draft = DRAFTS[setting.draft]
    response = response_for(draft, tape, experience)
    round_ = Round(silent, draft, VERIFIERS[setting.verify], response, setting.window)
    paths = [Path.begin(silent, tape, None) for _ in range(1 + _TIMED_CALLS)]
    if silent.launcher is None:
        rounds = [(compiled_form(round_, path), path) for path in paths]
        return min(_seconds(lambda run=run, path=path: run(path, rows, path.compact), device) for run, path in rounds)
    return _replay_seconds(lambda: round_(paths[0], rows, compact=False), silent.launcher, device)


def _replay_seconds(work: Callable[[], object], launcher: Launcher, device: Device) -> float:
    """Time work when it is replayed [s]; infinite where there is no room to record it."""
    try:
        replay = launcher.record(work)
    except OutOfDeviceMemory:
        return math.inf
    with launcher.queue():
        return min(_seconds(replay, device) for _ in range(1 + _TIMED_CALLS))


def _seconds(call: Callable[[], object], device: Device) -> float:
    """Time a call [s]."""
    start = time.perf_counter()
    call()
    arrays.synchronize(device)
    return time.perf_counter() - start
