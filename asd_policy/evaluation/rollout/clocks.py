"""Control by a clock: time goes on while a plan is made, which comes some control steps after its observation.

Time is counted in control steps, and nobody waits for it: a plan that takes L seconds at f Hz comes ceil(L f) steps
late. So an episode with given latencies is the same on any machine. The first plan of an episode comes at once: the
robot is at rest, and its clock starts when there is something to do.
"""

import abc
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy.errors import SpecError
from asd_policy.evaluation.rollout.latencies import Latency
from asd_policy.policy.continuity import CONTINUITIES, REMEMBERED, Actions, Prefix, prefix_of, seam
from asd_policy.policy.episode_state import EpisodeState, Pilot
from asd_policy.policy.plan import UNCLOCKED, Timing
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler

RATES = (1e-3, 1e6)
"""The lowest and the highest control frequency [Hz] at which floating point can count control steps."""

_LATENCIES = 1  # spawn key of the latencies of an episode, beside its planning noise


@dataclass(frozen=True)
class ControlClock:
    """How time goes on while a policy plans."""

    mode: str
    """One of `PILOTS`."""
    hz: float
    """Control steps in a second."""
    latency: Latency
    """How long plans take."""
    continuity: str = CONTINUITIES[0]
    """One of `CONTINUITIES`."""

    def __post_init__(self) -> None:
        """Check the clock.

        Raises:
            SpecError: The mode or the continuity is unknown, they do not go together, or the rate is out of range.
        """
        if self.mode not in PILOTS:
            raise SpecError(f"clock {self.mode!r} is not one of {', '.join(PILOTS)}")
        check_rate(self.hz)
        check_continuity(self.continuity, self.mode)

    def steps(self, seconds: float) -> int:
        """Count the control steps that begin before a plan is there, if making it takes `seconds`."""
        return math.ceil(round(seconds * self.hz, 9))  # 0.07 s at 100 Hz are 7.000000000000001 steps


def make_pilot(policy: Policy, clock: ControlClock | None, spec: str | None = None) -> Pilot:
    """Put a policy on a clock; without one return the policy itself, for which time stands still.

    Args:
        policy: That plans.
        clock: How time goes on while it plans.
        spec: Selects the clock's latencies; by default the spec of the policy's sampler.
    """
    return policy if clock is None else PILOTS[clock.mode](policy, clock, spec or policy.sampler.spec)


def check_rate(hz: float) -> None:
    """Refuse a control frequency that is out of range.

    Raises:
        SpecError: It is.
    """
    if not RATES[0] <= hz <= RATES[1]:
        raise SpecError(f"--hz {hz:g} is not a number of control steps in a second in {RATES[0]:g} … {RATES[1]:g}")


def check_continuity(continuity: str, mode: str) -> None:
    """Refuse a continuity that is unknown, or that does nothing in a mode.

    Raises:
        SpecError: It is one of these.
    """
    if continuity not in CONTINUITIES:
        raise SpecError(f"--continuity {continuity!r} is not one of {', '.join(CONTINUITIES)}")
    if continuity != CONTINUITIES[0] and mode != "async":
        raise SpecError(
            f"--continuity {continuity} is for --clock async: with {mode} no action is taken ahead of a plan"
        )


def clock_record(clock: ControlClock | None) -> dict[str, Any]:
    """List a clock's settings, as results.json has them; they must be the same for a run to go on."""
    return {
        "clock": UNCLOCKED if clock is None else clock.mode,
        "hz": None if clock is None else clock.hz,
        "latency": None if clock is None else clock.latency.name,
        "latency_sha256": None if clock is None else clock.latency.sha256,
        "continuity": None if clock is None else clock.continuity,
    }


@dataclass
class _Course:
    """How far a robot is between two plans."""

    rng: np.random.Generator
    """Of its plans' latencies."""
    started: int = 0
    """Control step of the observation that the last plan was made for."""
    delay: int = 0
    """Control steps after which that plan comes."""
    delays: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """What the last plans took [control steps], with the first one of the episode, which is waited for."""
    given: int = 0
    """Number of actions that were given to that plan."""
    coming: Actions | None = None
    """That plan, from the action for its observation on, until it comes."""
    last: npt.NDArray[np.float32] | None = None
    """The last action taken [action_dim]; None before the first."""


class ClockedPilot(abc.ABC):
    """Controls robots with a policy while time goes on."""

    def __init__(self, policy: Policy, clock: ControlClock, spec: str) -> None:
        """Take the policy and the clock.

        Args:
            policy: That plans. It keeps the state of its robots; only `act` is the pilot's own.
            clock: Of this pilot's mode.
            spec: Of the sampler, as it was asked for; selects the clock's latencies.
        """
        self.policy = policy
        self.clock = clock
        self._spec = spec
        self._courses: list[_Course] = []
        self._gain = arrays.to_numpy(policy.normalization["action"].gain)

    @property
    def sampler(self) -> Sampler:
        """What the policy plans with."""
        return self.policy.sampler

    @property
    def robots(self) -> list[EpisodeState]:
        """Those that the policy keeps."""
        return self.policy.robots

    def reset_batch(self, seeds: Sequence[int]) -> None:
        """Begin an episode of several robots.

        Args:
            seeds: One for each robot; it fixes the planning noise, and the latencies where they are drawn.
        """
        self.policy.reset_batch(seeds)
        sequences = [np.random.SeedSequence(seed, spawn_key=(_LATENCIES,)) for seed in seeds]
        self._courses = [_Course(np.random.default_rng(sequence)) for sequence in sequences]

    def observe(self, row: int, observation: Any) -> None:
        """As `Policy.observe`."""
        self.policy.observe(row, observation)

    def act(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Take a control step with some robots: plan where it is due, and choose each robot's action.

        Args:
            rows: The robots, all of which have observed.

        Returns:
            Actions [action_dim] in the order of `rows`; where a plan has none for this step, the action before.

        Raises:
            DenoiserError: The network failed.
        """
        for row in rows:
            self._arrive(row)
        due = [row for row in rows if self._courses[row].coming is None and self._is_due(row)]
        if due:
            self._plan(due)
            for row in due:
                self._arrive(row)
        return [self._take(row) for row in rows]

    @abc.abstractmethod
    def _is_due(self, row: int) -> bool:
        """Tell whether a plan is to be begun for a robot, for which none is being made."""

    @abc.abstractmethod
    def _use(self, actions: Actions, delay: int) -> Actions:
        """Select the actions of a plan that are queued when it comes, `delay` steps after its observation."""

    @abc.abstractmethod
    def _prefix(self, row: int) -> Prefix | None:
        """Give the actions that a robot takes while the next plan is made, as far as that plan is to know them."""

    def _plan(self, due: Sequence[int]) -> None:
        """Make plans for what some robots see now."""
        prefixes = [self._prefix(row) for row in due]
        for row, given, actions in zip(due, prefixes, self.policy.plan_for(due, prefixes), strict=True):
            robot, course = self.robots[row], self._courses[row]
            record = robot.records[-1]
            latency = self.clock.latency.draw(self._spec, record.seconds, course.rng)
            course.started, course.coming = robot.steps, actions
            course.given = given.delay if given else 0
            course.delays.append(self.clock.steps(latency))
            course.delay = course.delays[-1] if course.last is not None else 0
            robot.records[-1] = replace(record, timing=Timing(latency, course.delay, 0, None))

    def _arrive(self, row: int) -> None:
        """Queue a plan if it comes in this control step."""
        robot, course = self.robots[row], self._courses[row]
        if course.coming is None or robot.steps < course.started + course.delay:
            return
        actions = self._use(course.coming, course.delay)
        held = [course.last] if course.delay else []  # without a delay the last plan has come to its end
        before = np.array(robot.queue or held, np.float32)
        _note(robot, seam=seam(before, actions, max(0, course.given - course.delay), self._gain))
        robot.queue = deque(actions)
        course.coming = None

    def _take(self, row: int) -> npt.NDArray[np.float32]:
        """Take a control step; return its action."""
        robot, course = self.robots[row], self._courses[row]
        if robot.queue:
            course.last = robot.queue.popleft()
        else:
            _note(robot, stale=_timing(robot).stale + 1)
        robot.steps += 1
        assert course.last is not None  # the first plan comes at once
        return course.last.copy()  # it may be taken again


class SyncPilot(ClockedPilot):
    """Plans when its actions are used up, and repeats the last action until the plan is there.

    The late plan still begins with the action for its observation, and `n_action_steps` of it are taken.
    """

    def _is_due(self, row: int) -> bool:
        return not self.robots[row].queue

    def _use(self, actions: Actions, delay: int) -> Actions:
        return actions[: self.policy.horizons.n_action_steps]

    def _prefix(self, row: int) -> None:
        return None


class AsyncPilot(ClockedPilot):
    """Plans while it takes the rest of the last plan; a new plan takes over with its action for that moment.

    A plan begins `n_action_steps` after the one before, or as soon as that one is there. Actions that are past when a
    plan comes are dropped; if all of them are, the last one stays.
    """

    def _is_due(self, row: int) -> bool:
        robot, course = self.robots[row], self._courses[row]
        every = max(self.policy.horizons.n_action_steps, course.delay)
        return course.last is None or robot.steps >= course.started + every

    def _use(self, actions: Actions, delay: int) -> Actions:
        return actions[min(delay, len(actions) - 1) :]

    def _prefix(self, row: int) -> Prefix | None:
        rest = np.array(self.robots[row].queue, np.float32)
        return prefix_of(rest, self._courses[row].delays, self.clock.continuity)


PILOTS: dict[str, type[ClockedPilot]] = {"sync": SyncPilot, "async": AsyncPilot}


def _timing(robot: EpisodeState) -> Timing:
    """Look up when the last plan came."""
    timing = robot.records[-1].timing
    assert timing is not None  # every plan that a pilot has made has one
    return timing


def _note(robot: EpisodeState, **changes: Any) -> None:
    """Change fields of the last plan's timing."""
    robot.records[-1] = replace(robot.records[-1], timing=replace(_timing(robot), **changes))
