"""What `asd` does where an option is left to it.

A cost model says which settings may be the best: the expected time of a plan is, for each window, draft and verifier,
the time of a network call by its number of points, measured on first use, times the expected rounds, which follow from
how often drafts were refused at each step. Plans then try these settings in turn, and the one whose plans took the
least time stays (`trials`).
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.trials import Setting, Trial
from asd_policy.samplers.base import Target

WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
"""Windows to choose from."""
_TIMED_WINDOWS = (1, 4, 16, 64)  # the time of a call is nearly linear in between
_TIMED_CALLS = 2
_MOST_CALLS, _WARM = 16, 0.02
"""A plan makes calls of one size in a row, with warm caches: so they are timed for as many calls or seconds, and for
one call and two more at least."""
_FIRST_PLANS = 4
"""Plans that tell how often drafts are refused here; before, the settings to try are those of a usual policy."""
_WINDOWS_TRIED, _TRIED_UP_TO = 7, 1.3
"""How many windows are tried beside the one of the least expected cost, and how many times that cost they may have."""
_WINDOWS_RECORDED, _BLOCK = 4, 4
"""The same where each setting is a recording, of which a network keeps no more than `recording.MOST_RECORDINGS`; and
how many plans are then made with a setting in a row."""


_PRIORS = {(name, verify): share for name, draft in DRAFTS.items() for verify, share in draft.refusals.items()}
PRIOR_REFUSALS = dict(sorted(_PRIORS.items(), key=lambda prior: prior[1]))
"""Drafts and verifiers to choose from, the best guess first, and how many of the steps judged a trained policy refuses.

A pair that no plan was made with yet counts as refused in proportion to these figures, so that it is tried where it may
pay, and only there.
"""
_WORTH = 10
"""Plans of a pair that say as much of its refusals as those of all pairs do in these proportions: they are off by some
15 %, and a plan has about four refusals."""
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
    """Choose the setting of a plan.

    Args:
        window: Points of a round θ, or None to choose them. Where they are given, nothing is chosen.
        draft: Name of the draft; None for the best, or the default beside a window.
        verify: Name of the verifier; None alike.
        target: What is sampled.
        tape: Its noise. What is timed runs on it, and leaves it as it is.
        experience: Of the policy, which keeps what was tried, see `note`; None for `DEFAULT`.
    """
    if window is not None:
        return Setting(window, draft or DEFAULT.draft, verify or DEFAULT.verify)
    steps, batch = len(target.chain), len(tape.initial)
    if experience is None:
        return Setting(min(DEFAULT.window, steps), draft or DEFAULT.draft, verify or DEFAULT.verify)
    key = batch, draft, verify
    trial, informed = experience.trials.get(key), experience.plans >= _FIRST_PLANS
    # What was recorded stays: another setting would have to be recorded while a robot waits.
    anew = experience.trying and informed and target.launcher is None
    if trial is None or (anew and not trial.informed):
        settings = candidates(steps, None, draft, verify)
        measure(settings, target, tape, experience)
        windows = _WINDOWS_TRIED if target.launcher is None else _WINDOWS_RECORDED
        likely = shortlist(expected_costs(settings, experience, batch, steps), windows)
        trial = experience.trials[key] = Trial.of(likely, informed)
    if trial.done or not experience.trying:
        return trial.best
    if trial.decides:
        trial.expected = expected_counts(trial.tried, experience, batch, steps)
    return trial.turn(1 if target.launcher is None else _BLOCK)


def shortlist(costs: Mapping[Setting, float], windows: int = _WINDOWS_TRIED) -> list[Setting]:
    """List the settings to try, by their expected costs: those that may be the best, far enough apart to tell them.

    The best, as many windows of its draft and verifier, spread over those that may be the best, and the best setting of
    others.
    """
    likely = sorted(costs, key=lambda setting: costs[setting])  # of equals the first: the default pair's
    likely = [each for each in likely if costs[each] <= _TRIED_UP_TO * costs[likely[0]]]
    best, others = likely[0], [each for each in likely if each.pair != likely[0].pair]
    own = sorted(each for each in likely if each.pair == best.pair)
    spread = {own[round(place)] for place in np.linspace(0, len(own) - 1, min(windows, len(own)))}
    return sorted({best, *spread, *others[:1]}, key=lambda setting: costs[setting])


def candidates(
    steps: int, window: int | None = None, draft: str | None = None, verify: str | None = None
) -> list[Setting]:
    """List the settings to choose from for a chain of so many steps; what is given stays."""
    windows = [each for each in WINDOWS if each <= steps] if window is None else [window]
    drafts = dict.fromkeys(each for each, _ in PRIOR_REFUSALS) if draft is None else [draft]
    verifiers = dict.fromkeys(each for _, each in PRIOR_REFUSALS) if verify is None else [verify]
    return [Setting(*each) for each in product(windows, drafts, verifiers)]


def measure(settings: Sequence[Setting], target: Target, tape: NoiseTape, experience: Experience) -> None:
    """Time network calls of a batch like the tape's, where they were not timed yet."""
    batch, largest = len(tape.initial), max(setting.window for setting in settings)
    for window in sorted({min(each, largest) for each in _TIMED_WINDOWS}):
        if batch * window not in experience.latency:
            experience.latency[batch * window] = _time_call(target, tape.initial, window)


def expected_costs(settings: Sequence[Setting], experience: Experience, batch: int, steps: int) -> dict[Setting, float]:
    """Compute the expected time of a plan [s] with each setting, whose calls were measured at this batch."""
    hazards = _hazards(settings, experience, steps)

    def latency(points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return call_seconds(experience, batch * points)

    def seconds(setting: Setting) -> float:
        fits = np.isfinite(latency(np.array([setting.window]))[0])
        return expected_seconds(hazards[setting.pair], setting.window, latency) if fits else math.inf

    return {each: seconds(each) for each in settings}


def expected_counts(
    settings: Collection[Setting], experience: Experience, batch: int, steps: int
) -> dict[Setting, tuple[float, float]]:
    """Compute the expected rounds and points of a batch of plans with each setting, from the refusals of its pair."""
    hazards = _hazards(settings, experience, steps)

    def expect(setting: Setting, price: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]) -> float:
        return expected_seconds(hazards[setting.pair], setting.window, price)

    return {
        each: (
            expect(each, lambda points: np.ones(len(points))),
            expect(each, lambda points: batch * points.astype(np.float64)),
        )
        for each in settings
    }


def _hazards(
    settings: Collection[Setting], experience: Experience, steps: int
) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """Estimate the refusals of each pair that is among some settings."""
    return {pair: refusals(pair, experience, steps) for pair in dict.fromkeys(each.pair for each in settings)}


def call_seconds(experience: Experience, points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the time of network calls of so many points [s], linear between those that were measured and beyond.

    It is infinite from the smallest call on for which there was no memory.
    """
    most = min((size for size, seconds in experience.latency.items() if math.isinf(seconds)), default=math.inf)
    sizes = sorted(size for size in experience.latency if size < most)
    if not sizes:
        return np.full(points.shape, math.inf)
    seconds = [experience.latency[size] for size in sizes]
    beyond = 0.0
    if len(sizes) > 1:
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        beyond = max(slope, 0.0) * np.maximum(points - sizes[-1], 0)
    return np.where(points < most, np.interp(points, sizes, seconds) + beyond, math.inf)


def refusals(pair: tuple[str, str], experience: Experience, steps: int) -> npt.NDArray[np.float64]:
    """Estimate the probability that a pair's draft is refused where it is judged, by step [K].

    What was thought before is worth one plan against those of all pairs, whose shares say what they are of this one;
    and they say it as surely as `_WORTH` plans of its own: one plan without a refusal is luck.
    """
    prior = {known: PRIOR_REFUSALS.get(known, max(PRIOR_REFUSALS.values())) for known in (pair, *experience.judgements)}
    counts = {
        known: [arrays.to_numpy(each).astype(np.float64) for each in sums]
        for known, sums in experience.judgements.items()
    }
    judged, refused = np.ones(steps), np.full(steps, prior[pair])
    for known, (judged_known, refused_known) in counts.items():
        judged = judged + judged_known
        refused = refused + prior[pair] / prior[known] * refused_known
    own_judged, own_refused = counts.get(pair, (np.zeros(steps), np.zeros(steps)))
    hazard = (own_refused + _WORTH * refused / judged) / (own_judged + _WORTH)
    return hazard.clip(max=1)


def expected_seconds(
    hazard: npt.NDArray[np.float64],
    window: int,
    latency: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
) -> float:
    """Compute the expected time of a plan [s], walking back from the end of the chain.

    Args:
        hazard: Probability that a draft is refused where it is judged, by step [K].
        window: Points of a round θ.
        latency: Seconds of a network call by points per row.
    """
    steps = len(hazard)
    cost = np.zeros(steps + 1)
    per_round = latency(np.minimum(np.arange(steps, 0, -1), window))
    for cursor in range(steps - 1, -1, -1):
        run = min(window, steps - cursor)
        judged = hazard[cursor : cursor + run - 1]
        stands = np.cumprod(np.concatenate([[1.0], 1 - judged]))  # [run] all drafts before each slot
        after = cost[cursor + 1 : cursor + run]
        cost[cursor] = per_round[cursor] + (stands[:-1] * judged * after).sum() + stands[-1] * cost[cursor + run]
    return float(cost[0])


def _time_call(target: Target, initial: Array, window: int) -> float:
    """Time a network call on `window` points per row [s]; infinite where there is no memory for it."""
    device, batch = arrays.device_of(initial), len(initial)
    rows = arrays.asarray(np.repeat(np.arange(batch), window), device)
    steps = arrays.asarray(np.tile(np.arange(window), batch), device)
    points = initial[rows]
    if target.launcher is None:
        seconds: list[float] = []
        try:
            while len(seconds) <= _TIMED_CALLS or (len(seconds) < _MOST_CALLS and sum(seconds) < _WARM):
                seconds.append(_seconds(lambda: target.predict(points, steps, rows), device))
        except Exception as error:
            if arrays.is_out_of_memory(error):
                return math.inf
            raise
        return min(seconds)
    recorded = target.recordable(target.cond, target.inpainting)
    target.meter.count(1 + _TIMED_CALLS, (1 + _TIMED_CALLS) * len(points))  # of the replays
    return _replay_seconds(lambda: recorded.predict(points, steps, rows), target.launcher, device)


def _replay_seconds(work: Callable[[], object], launcher: Launcher, device: Device) -> float:
    """Time work when it is replayed [s]; infinite where there is no memory to record it."""
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
