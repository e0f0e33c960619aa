"""Who controls robots while time goes on: a plan comes some control steps after the observation it was made for.

Time is counted in control steps, not waited for: a plan that takes L seconds at f Hz comes ceil(L f) steps late. So an
episode with given latencies is the same on any machine. The first plan of an episode comes at once: the robot is at
rest, and its clock starts when there is something to do.
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
from asd_policy.policy.continuity import CONTINUITIES, REMEMBERED, Actions, Committed, commit, seam
from asd_policy.policy.episode_state import Pilot, Robot
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler
from asd_policy.samplers.types import UNCLOCKED, Timing

RATES = (1e-3, 1e6)
"""The lowest and the highest control frequency [Hz]; with others floating point has no control steps to count."""

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
        """Refuse what is no clock.

        Raises:
            SpecError: The mode or the continuity is unknown, they do not go together, or the rate is not above 0.
        """
        if self.mode not in PILOTS:
            raise SpecError(f"clock {self.mode!r} is not one of {', '.join(PILOTS)}")
        check_rate(self.hz)
        check_continuity(self.continuity, self.mode)

    def steps(self, seconds: float) -> int:
        """Return the control steps that begin before a plan is there, whose making took so long."""
        return math.ceil(round(seconds * self.hz, 9))  # 0.07 s at 100 Hz are 7.000000000000001 steps


def make_pilot(policy: Policy, clock: ControlClock | None, spec: str | None = None) -> Pilot:
    """Return who controls with a policy by a clock; without one the policy itself, for which time stands still.

    Args:
        policy: Plans.
        clock: How time goes on while it does.
        spec: What the clock's latencies are known by; the spec of the policy's sampler unless said.
    """
    return policy if clock is None else PILOTS[clock.mode](policy, clock, spec or policy.sampler.spec)


def check_rate(hz: float) -> None:
    """Refuse a control frequency that is none.

    Raises:
        SpecError: It is.
    """
    if not RATES[0] <= hz <= RATES[1]:
        raise SpecError(f"--hz {hz:g} is not a number of control steps in a second in {RATES[0]:g} … {RATES[1]:g}")


def check_continuity(continuity: str, mode: str) -> None:
    """Refuse a continuity that there is not, or that the mode has no use for.

    Raises:
        SpecError: It is so.
    """
    if continuity not in CONTINUITIES:
        raise SpecError(f"--continuity {continuity!r} is not one of {', '.join(CONTINUITIES)}")
    if continuity != CONTINUITIES[0] and mode != "async":
        raise SpecError(
            f"--continuity {continuity} is for --clock async: with {mode} no action is taken ahead of a plan"
        )


def clock_record(clock: ControlClock | None) -> dict[str, Any]:
    """Return what results.json says of a clock, and what must be the same for a run to go on."""
    return {
        "clock": UNCLOCKED if clock is None else clock.mode,
        "hz": None if clock is None else clock.hz,
        "latency": None if clock is None else clock.latency.name,
        "latency_sha256": None if clock is None else clock.latency.sha256,
        "continuity": None if clock is None else clock.continuity,
    }


@dataclass
class _Course:
    """Where a robot is between two plans."""

    rng: np.random.Generator
    """Of its plans' latencies."""
    started: int = 0
    """Control step of the observation that the last plan was made for."""
    delay: int = 0
    """Control steps after which that plan comes."""
    delays: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """What the last plans took [control steps], the first one of the episode, which is waited for, included."""
    given: int = 0
    """Actions that were given to that plan."""
    coming: Actions | None = None
    """It, from the action for its observation on, until it comes."""
    last: npt.NDArray[np.float32] | None = None
    """The last action taken [action_dim]; None before the first."""


class ClockedPilot(abc.ABC):
    """Controls robots with a policy for which time goes on."""

    def __init__(self, policy: Policy, clock: ControlClock, spec: str) -> None:
        """Take who plans, and the clock.

        Args:
            policy: Plans, and keeps what it does of its robots; `act` is the pilot's.
            clock: Of this pilot's mode.
            spec: What the clock's latencies are known by: that of the sampler, as it was asked for.
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
    def robots(self) -> list[Robot]:
        """Those that the policy keeps."""
        return self.policy.robots

    def reset_batch(self, seeds: Sequence[int]) -> None:
        """Begin an episode of several robots.

        Args:
            seeds: For each what fixes its planning noise, and its latencies where they are drawn.
        """
        self.policy.reset_batch(seeds)
        sequences = [np.random.SeedSequence(seed, spawn_key=(_LATENCIES,)) for seed in seeds]
        self._courses = [_Course(np.random.default_rng(sequence)) for sequence in sequences]

    def observe(self, row: int, observation: Any) -> None:
        """As `Policy.observe`."""
        self.policy.observe(row, observation)

    def act(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Return the action that each of some robots takes in this control step.

        Args:
            rows: The robots, all of which have observed.

        Returns:
            Actions [action_dim] in the order of `rows`; where there is none for this step, the one before.

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
        """Return whether a robot for which no plan is being made needs one to be begun."""

    @abc.abstractmethod
    def _use(self, actions: Actions, delay: int) -> Actions:
        """Return which actions of a plan are queued when it comes, `delay` steps after its observation."""

    @abc.abstractmethod
    def _committed(self, row: int) -> Committed | None:
        """Return what the plan to be begun is told of the actions that a robot takes meanwhile."""

    def _plan(self, due: Sequence[int]) -> None:
        """Have plans made for what some robots see now."""
        committed = [self._committed(row) for row in due]
        for row, told, actions in zip(due, committed, self.policy.plan_for(due, committed), strict=True):
            robot, course = self.robots[row], self._courses[row]
            record = robot.records[-1]
            latency = self.clock.latency.draw(self._spec, record.seconds, course.rng)
            course.started, course.coming = robot.steps, actions
            course.given = told.delay if told else 0
            course.delays.append(self.clock.steps(latency))
            course.delay = course.delays[-1] if course.last is not None else 0
            robot.records[-1] = replace(record, timing=Timing(latency, course.delay, 0, None))

    def _arrive(self, row: int) -> None:
        """Queue a plan if this is the control step in which it comes."""
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
    """Plans when its actions are used up, and repeats the last one until the plan is there.

    The plan begins with the action for its observation, late as it is, and `n_action_steps` are taken.
    """

    def _is_due(self, row: int) -> bool:
        return not self.robots[row].queue

    def _use(self, actions: Actions, delay: int) -> Actions:
        return actions[: self.policy.horizons.n_action_steps]

    def _committed(self, row: int) -> None:
        return None


class AsyncPilot(ClockedPilot):
    """Plans while it goes on with the rest of the last plan; a new one takes over with its action for that moment.

    Plans begin `n_action_steps` after each other, or as soon as the one before is there. What is past of a plan when it
    comes is cut; of one that is past as a whole the last action is left.
    """

    def _is_due(self, row: int) -> bool:
        robot, course = self.robots[row], self._courses[row]
        every = max(self.policy.horizons.n_action_steps, course.delay)
        return course.last is None or robot.steps >= course.started + every

    def _use(self, actions: Actions, delay: int) -> Actions:
        return actions[min(delay, len(actions) - 1) :]

    def _committed(self, row: int) -> Committed | None:
        rest = np.array(self.robots[row].queue, np.float32)
        return commit(rest, self._courses[row].delays, self.clock.continuity)


PILOTS: dict[str, type[ClockedPilot]] = {"sync": SyncPilot, "async": AsyncPilot}


def _timing(robot: Robot) -> Timing:
    """Return when the last plan came."""
    timing = robot.records[-1].timing
    assert timing is not None  # every plan that a pilot has made has one
    return timing


def _note(robot: Robot, **changes: Any) -> None:
    """Note something of the last plan's timing."""
    robot.records[-1] = replace(robot.records[-1], timing=replace(_timing(robot), **changes))
