"""How long does a plan take? Every sampler on every backend, interleaved, against the best sequential one.

A round of the benchmark is one plan of each contender, at the same states and with the same noise. Each round begins
with another contender, so that what the machine does meanwhile affects them all alike. Ratios compare plans of the same
rounds.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asd_policy._common import arrays
from asd_policy._common.clock import STAGES, Clock, Stopwatch, clock_of
from asd_policy._common.statistics import Floats, latency, ratio_of_means
from asd_policy.errors import AsdError, BackendError
from asd_policy.evaluation.costs import network_limit, summarize_calls, summarize_encoding
from asd_policy.evaluation.roofline import Advance, Ceiling, measure_ceiling
from asd_policy.evaluation.states import CALIBRATION_PLANS, TRIAL_PLANS, States, histories, recalling
from asd_policy.networks.backends import Backend, make_backend
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.records import SpeculationStats, overhead_fraction

EAGER = "torch-eager"
"""The backend that people run today: speedups are given against it too."""
WARM_UP_PLANS = 3
STAGE_PLANS = 20
"""Plans, or fewer if fewer are measured, that are taken apart after the others."""
CALIBRATION_SEED = 1_000_000
"""Added to a benchmark's seed for the noise of plans to learn from."""
SEEDS_APART = 10_000_000
"""How far apart the seeds of a batch's rows are, so that no two plans have one."""

_NOT_MEASURED = dict.fromkeys(
    (
        "success_rate",
        "success_ci95",
        "return_mean",
        "return_ci95",
        "paired_difference_ci95",
        "reward_difference",
        "equivalence",
    ),
    None,
)  # of the closed loop, where `asd-policy eval` measures them


@dataclass(frozen=True)
class Contender:
    """A sampler on a backend."""

    policy: Policy
    """With this sampler and this backend, and an experience of its own."""
    asked: bool = True
    """False for a baseline that was added."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.policy.sampler.spec} on {self.policy.backend.spec}"

    @property
    def identity(self) -> dict[str, str]:
        """What results.json calls it."""
        return {"spec": self.policy.sampler.spec, "backend": self.policy.backend.spec}


@dataclass(frozen=True)
class TimedPlan:
    """What one plan of a batch took."""

    seconds: float
    """From observations to actions on the host, by the device's clock [s]."""
    wall_seconds: float
    """The same by the host's clock, until the device is done [s]."""
    stats: SpeculationStats
    encode_seconds: float | None = None
    """The part that networks took to encode observations, by the host's clock [s]; None where none does."""
    stages: dict[str, float] | None = None
    """Time in each of `clock.STAGES` [s], of a plan that was taken apart."""


Measured = tuple[Contender, Sequence[TimedPlan]]
"""A contender and what its plans took."""


def contenders(policy: Policy, samplers: Sequence[Sampler], backends: Sequence[Backend]) -> list[Contender]:
    """Pair each sampler with each backend, and add the sequential sampler on each, and on `EAGER`, where it is missing.

    Args:
        policy: Whose network and chain.
        samplers: How to plan.
        backends: What runs the network.

    Raises:
        BackendError: A backend cannot run here, or not this network; where only the added eager
            baseline cannot, that is no error.
        SpecError: A sampler's options do not fit the chain.
    """
    for sampler in samplers:
        sampler.fit(policy.law.chain)  # before a network is exported, which may take a minute
    found = []
    for backend in dict.fromkeys(backends):
        running = policy.with_backend(backend)
        added = make_sampler(policy.reference.spec)
        for sampler in dict.fromkeys([*samplers, added]):
            found.append(Contender(running.with_sampler(sampler), sampler in samplers))
    if make_backend(EAGER) not in backends:
        try:
            running = policy.with_backend(make_backend(EAGER))
        except BackendError:
            return found  # results then have no eager baseline, and say so
        found.append(Contender(running.with_sampler(running.reference), False))
    return found


def warm_up_contender(contender: Contender, states: States, batch: int, seed: int) -> None:
    """Let a contender compile, capture, time and learn what it needs; after that it learns no more.

    Args:
        contender: What to warm up.
        states: To plan in; not those of the measurement.
        batch: Rows of a plan.
        seed: Of the noise.

    Raises:
        AsdError: The network failed, or the device has too little memory.
    """
    policy, clock = contender.policy, clock_of(contender.policy.device)
    learning = -(-CALIBRATION_PLANS // batch) if policy.sampler.learns else 0
    made = 0
    try:
        while made < learning or (policy.experience.undecided and made < learning + TRIAL_PLANS):
            plan(policy, pick(states, made, batch), seed + CALIBRATION_SEED + made, clock)
            made += 1
        policy.experience.freeze()
        for index in range(made, made + WARM_UP_PLANS):
            plan(policy, pick(states, index, batch), seed + CALIBRATION_SEED + index, clock)
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"{contender.name} at batch {batch} is out of memory: {str(error).splitlines()[0]}; "
            "use a smaller batch or window"
        ) from None


def pick(states: States, index: int, batch: int) -> States:
    """Select the `batch` states of plan number `index`; after the last one the first comes again."""
    return states.rows((index * batch + np.arange(batch)) % len(states))


def plan(policy: Policy, states: States, seed: int, clock: Clock, staged: bool = False) -> TimedPlan:
    """Plan once for a batch of states, from observations on the host to actions on the host.

    Args:
        policy: That plans.
        states: One for each row of the batch.
        seed: Of the noise.
        clock: Of the policy's device.
        staged: Take the plan apart; the marks cost a little.
    """
    history = {name: values.cpu() for name, values in histories(policy, states.cond).items()}
    policy = recalling(policy, states.cond)
    # One for each robot, as in an episode.
    generators = [arrays.make_generator(policy.device, seed + SEEDS_APART * row) for row in range(len(states))]
    arrays.synchronize(policy.device)  # the plan before, of another contender, may have left a round running
    wall = time.perf_counter()
    start = clock.tick()
    stopwatch = Stopwatch(clock) if staged else None
    made = policy.plan(history, generators, states.last_plan, stopwatch)
    made.actions.cpu()
    end = clock.tick()
    taken_apart = stopwatch.stop() if stopwatch else None
    (seconds,) = clock.seconds([start, end])
    wall_seconds, encode_seconds = time.perf_counter() - wall, made.encoding and made.encoding.seconds
    return TimedPlan(seconds, wall_seconds, made.stats, encode_seconds, taken_apart)


def interleave(
    entered: Sequence[Contender], states: States, batch: int, plans: int, seed: int, clock: Clock, staged: bool = False
) -> Iterator[list[TimedPlan]]:
    """Yield for each round what a plan of each contender took, at the same states and with the same noise.

    Args:
        entered: The contenders. Results come in their order, whichever begins a round.
        states: To plan in.
        batch: Rows of a plan.
        plans: How many rounds.
        seed: Of the noise.
        clock: Of the device.
        staged: Take the plans apart.

    Raises:
        AsdError: A network failed.
    """
    for index in range(plans):
        there = pick(states, index, batch)
        took: dict[int, TimedPlan] = {}
        for turn in range(len(entered)):
            which = (index + turn) % len(entered)
            took[which] = plan(entered[which].policy, there, seed + index, clock, staged)
        yield [took[which] for which in range(len(entered))]


class Benchmark:
    """A run, and at any moment the results of what has finished."""

    def __init__(
        self,
        entered: Sequence[Contender],
        states: States,
        calibration: States,
        plans: int,
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        """Begin with nothing measured.

        Args:
            entered: From `contenders`, on one device.
            states: To measure in.
            calibration: To warm up and learn in.
            plans: Rounds of the measurement.
            batch: Rows of a plan.
            seed: Of the noise.

        Raises:
            SpecError: A device without a clock.
        """
        self.entered = list(entered)
        self.failed: list[tuple[Contender, Exception]] = []
        """Contenders that could not be warmed up, and why."""
        self.ceiling: Ceiling | None = None
        """Of the network on each backend; None before it was measured."""
        self._states, self._calibration = states, calibration
        self._plans, self._batch, self._seed = plans, batch, seed
        self._clock = clock_of(entered[0].policy.device)
        self._timings: list[list[TimedPlan]] = []
        self._staged: list[list[TimedPlan]] = []

    @property
    def rounds(self) -> int:
        """How many rounds have finished."""
        return len(self._timings)

    def measure_ceiling(self, advance: Advance = lambda doing, done, total: None) -> Ceiling:
        """Measure what the network and the device can do at best, before anything is measured against it.

        Args:
            advance: As for `roofline.measure_ceiling`.

        Raises:
            AsdError: A network failed, or the device has too little memory.
        """
        by_backend = {contender.policy.backend.spec: contender.policy for contender in self.entered}
        self.ceiling = measure_ceiling(list(by_backend.values()), self._batch, self._clock, advance)
        return self.ceiling

    def warm_up(self, advance: Advance, go_on: Callable[[], bool] = lambda: True, keep_going: bool = False) -> None:
        """Warm up every contender.

        Args:
            advance: Called before each.
            go_on: Called before each; where it returns False, the contender has failed.
            keep_going: Leave out a contender that fails, and keep it in `failed`.

        Raises:
            AsdError: A contender failed.
        """
        for index, contender in enumerate(list(self.entered)):
            advance(f"warming up {contender.name}", index, len(self.entered) + len(self.failed))
            try:
                if not go_on():
                    raise AsdError(f"{contender.name} is left out: no time is left to warm it up")
                warm_up_contender(contender, self._calibration, self._batch, self._seed)
            except Exception as error:  # also those of a compiler or a device, which others may run without
                if not keep_going:
                    raise
                self.entered.remove(contender)
                self.failed.append((contender, error))

    def measure(self, advance: Advance, go_on: Callable[[], bool] = lambda: True) -> None:
        """Measure plans, and then take some apart.

        Args:
            advance: Called after each round.
            go_on: Called after each round; where it returns False, no other round begins.

        Raises:
            AsdError: A network failed.
        """
        for staged, finished, plans in (
            (False, self._timings, self._plans),
            (True, self._staged, min(self._plans, STAGE_PLANS)),
        ):
            course = (self.entered, self._states, self._batch, plans, self._seed, self._clock, staged)
            for timings in interleave(*course):
                finished.append(timings)
                advance("taking plans apart" if staged else "plans", len(finished), plans)
                if not go_on():
                    break

    def results(self) -> dict[str, Any]:
        """Build the part of results.json that was measured; if it was cut short, from whole rounds alone."""
        measured, staged = self._by_contender(self._timings), self._by_contender(self._staged)
        best, eager = baselines(measured)
        return {
            "batch": self._batch,
            "states": len(self._states),
            "plans": len(self._timings),
            "plans_asked": self._plans,
            "baseline": best and best[0].identity,
            "eager_baseline": eager and eager[0].identity,
            "ceiling": self.ceiling and self.ceiling.record(),
            "failed": [{**contender.identity, "why": str(error)} for contender, error in self.failed],
            "samplers": [
                {
                    **contender.identity,
                    "dtype": contender.policy.backend.dtype,
                    "asked": contender.asked,
                    "exact": contender.policy.sampler.exact,
                    **_NOT_MEASURED,
                    **summarize_plans(timings, best and best[1], eager and eager[1]),
                    **self._bounds(contender, timings),
                    "stages_ms": stages_ms(staged[index][1]) if staged else None,
                    "tried": contender.policy.experience.tried(self._batch),
                }
                for index, (contender, timings) in enumerate(measured)
            ],
        }

    def _by_contender(self, rounds: Sequence[Sequence[TimedPlan]]) -> list[Measured]:
        """List each contender with its plans, if a whole round has finished."""
        plans = zip(*rounds, strict=True)
        return list(zip(self.entered, map(list, plans), strict=True)) if rounds else []

    def _bounds(self, contender: Contender, timings: Sequence[TimedPlan]) -> dict[str, float | int | None]:
        """Estimate what network calls alone would take on the contender's backend, under the names of results.json.

        They are a plan's own calls, those at the best window, and what of a plan is neither calls nor encoding.
        """
        names = ("floor_ms", "limit_ms", "limit_window", "outside_fraction")
        if self.ceiling is None:
            return dict.fromkeys(names)
        backend, ceiling = contender.policy.backend.spec, self.ceiling
        stats = [timing.stats for timing in timings]
        calls = np.mean([max(each.rounds) for each in stats])
        points = np.sum([sum(each.nfe) for each in stats]) / (calls * len(stats))
        floor = float(calls) * ceiling.call_seconds(backend, float(points))
        best = network_limit(stats, self._batch, lambda count: ceiling.call_seconds(backend, count))
        limit, window = best or (floor, None)
        encode = np.mean([timing.encode_seconds or 0.0 for timing in timings])
        outside = 1 - (floor + encode) / np.mean([timing.wall_seconds for timing in timings])
        return dict(zip(names, (1e3 * floor, 1e3 * limit, window, float(outside)), strict=True))


def baselines(measured: Sequence[Measured]) -> tuple[Measured | None, Measured | None]:
    """Find the sequential contender with the least mean latency, and the one on `EAGER`; None where there is none."""
    sequential = [each for each in measured if each[0].policy.sampler == each[0].policy.reference]
    best = min(sequential, key=lambda each: seconds_of(each[1]).mean(), default=None)
    eager = [each for each in sequential if each[0].policy.backend == make_backend(EAGER)]
    return best, next(iter(eager), None)


def seconds_of(timings: Sequence[TimedPlan]) -> Floats:
    """List the latency of each plan [s]."""
    return np.array([timing.seconds for timing in timings])


def summarize_plans(
    timings: Sequence[TimedPlan], baseline: Sequence[TimedPlan] | None, eager: Sequence[TimedPlan] | None
) -> dict[str, Any]:
    """Summarize one contender's plans as results.json has them.

    Args:
        timings: What its plans took.
        baseline: What those of the baseline took, in the same rounds.
        eager: What those of the eager baseline took.
    """
    seconds = seconds_of(timings)
    stats = [timing.stats for timing in timings]
    rounds, nfe = ([count for each in stats for count in getattr(each, name)] for name in ("rounds", "nfe"))
    wall = np.array([timing.wall_seconds for timing in timings])
    encode_seconds = [timing.encode_seconds for timing in timings]
    steps = stats[0].steps

    def against(other: Sequence[TimedPlan] | None) -> tuple[float | None, list[float] | None]:
        ratio, interval = (None, None) if other is None else ratio_of_means(seconds_of(other), seconds)
        return ratio, None if interval is None else list(interval)

    speedup, speedup_ci95 = against(baseline)
    over_eager, over_eager_ci95 = against(eager)
    return {
        "ran": Counter(each.spec for each in stats).most_common(1)[0][0],
        "steps": steps,
        "plans": len(timings),
        **summarize_calls(rounds, nfe, [each.window for each in stats], steps),
        "calls_mean": float(np.mean([max(each.rounds) for each in stats])),
        "wall_clock_speedup": speedup,
        "wall_clock_speedup_ci95": speedup_ci95,
        "wall_clock_speedup_of_medians": (
            None if baseline is None else float(np.median(seconds_of(baseline)) / np.median(seconds))
        ),
        "speedup_over_eager": over_eager,
        "speedup_over_eager_ci95": over_eager_ci95,
        "overhead_fraction": overhead_fraction(stats, float(wall.sum()), sum(filter(None, encode_seconds))),
        **summarize_encoding(encode_seconds, float(wall.sum())),
        "latency_ms": latency(seconds),
        "wall_latency_ms": latency(wall),
        "latencies_ms": [round(1e3 * value, 4) for value in seconds.tolist()],
    }


def stages_ms(timings: Sequence[TimedPlan]) -> dict[str, float]:
    """Average the time of each stage [ms] over plans that were taken apart."""
    taken_apart = [timing.stages for timing in timings if timing.stages is not None]
    return {stage: float(1e3 * np.mean([stages[stage] for stages in taken_apart])) for stage in STAGES}
