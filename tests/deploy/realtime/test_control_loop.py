"""The control loop: which action is written when, what goes wrong, how it ends. No test waits for a speed."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest

import asd_policy
from asd_policy import ControlLoop, LoopError, LoopOptions, ObservationError, ProcessPlanner
from asd_policy.deploy.realtime import loop as loop_module
from asd_policy.deploy.realtime import telemetry
from asd_policy.deploy.realtime.history import History
from asd_policy.deploy.realtime.link import EpisodeEnded
from asd_policy.deploy.realtime.planner import PolicyPlanner
from asd_policy.deploy.realtime.timebase import RealTime, VirtualTime
from asd_policy.errors import MAX_MESSAGE
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.plan import Horizons
from asd_policy.policy.planner import Planned

LONG = 60.0  # [s] for what takes milliseconds, on a machine that is busy
HZ = 50.0
SAFE = -1.0
CHUNK = 8


class Planner:
    """Sees how many actions were written, and plans that the action of step s is s."""

    horizons = Horizons(n_obs_steps=2, horizon=CHUNK + 1, n_action_steps=4)
    action_dim = 1

    def __init__(self) -> None:
        """Begin, with no calls."""
        self.calls: list[tuple[list[float], int, bool]] = []
        self.prefixes: list[Prefix | None] = []
        """What each call was told of what the robot goes on to do."""
        self.fault: Callable[[int], Any] = lambda call: None

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Return the actions of the steps from the latest observation on; or what the fault says."""
        self.calls.append(([float(each[0]) for each in observations], step, begins))
        self.prefixes.append(prefix)
        wrong = self.fault(len(self.calls) - 1)
        if wrong is not None:
            return Planned(wrong, 3) if isinstance(wrong, np.ndarray) else wrong
        return Planned((observations[-1][0] + np.arange(CHUNK)).astype(np.float32)[:, None], 3)


class Robot:
    """Counts the actions it is given; an observation is their number."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.actions: list[float] = []
        self.seen = np.zeros(1)
        self.fault: Callable[[int], Any] = lambda reading: None
        self.readings = 0
        self.threads: set[str] = set()

    def read(self) -> Any:
        """Return the number, in the buffer that was returned before; or what the fault says."""
        self.readings += 1
        wrong = self.fault(self.readings - 1)
        if wrong is not None:
            return wrong
        self.seen[0] = len(self.actions)
        return self.seen

    def write(self, action: npt.NDArray[np.float32]) -> None:
        """Note the action."""
        assert action.shape == (1,)
        self.threads.add(threading.current_thread().name)
        self.actions.append(float(action[0]))


def make_loop(
    robot: Robot, planner: Planner, latency: float = 0.0, time: Any = None, hz: float = HZ, **options: Any
) -> ControlLoop:
    """Return a loop in virtual time, whose plans take `latency` periods."""
    chosen = LoopOptions(**{"patience": LONG, "ticks": 100, **options})
    return ControlLoop(planner, robot.read, robot.write, hz, chosen, time or VirtualTime((latency - 0.5) / hz))


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def robot() -> Robot:
    return Robot()


@pytest.fixture
def planner() -> Planner:
    return Planner()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Any:
    yield
    until(lambda: not [each for each in threading.enumerate() if each.name.startswith("asd_policy ")])


@pytest.mark.parametrize("latency", [1, 2, 3, 4])
def test_every_action_is_that_of_its_step(robot: Robot, planner: Planner, latency: int) -> None:
    """Plans take 1 … 4 of the 8 steps they are for; a new one begins every 4, so none is ever stale."""
    told = make_loop(robot, planner, latency).run()
    written = 100 - latency  # nothing before the first plan, and the robot does not move
    assert robot.actions == list(range(written))
    steps = [step for _, step, _ in planner.calls[1:]]
    assert steps == list(range(0, written, 4))
    assert planner.calls[0] == ([0.0], 0, True)  # the trial
    assert planner.calls[1] == ([0.0], 0, True)
    assert planner.calls[2] == ([3.0, 4.0], 4, False)
    assert (told.state, told.fault, told.ticks, told.stale, told.missed) == ("ended", None, 100, 0, 0)
    assert (told.safe, told.faults, told.dropped, told.episodes, told.blind) == (0, 0, 0, 0, 0)
    assert told.plans == sum(step == 0 or step + 2 * latency <= 99 for step in steps)  # the others came too late
    assert told.rounds_mean == 3
    assert told.period_ms is not None
    assert told.period_ms.n == written - 1
    assert told.period_ms.p50 == pytest.approx(1000 / HZ)
    assert told.lateness_ms is not None
    assert told.lateness_ms.max == 0
    assert robot.threads == {"asd_policy control"}


def test_in_real_time_too(robot: Robot, planner: Planner) -> None:
    """However slow the machine is: an action is that of its step, or it is counted as stale."""
    told = make_loop(robot, planner, hz=200.0, time=RealTime(), late_limit=10**9, ticks=200).run()
    late = [(step, action) for step, action in enumerate(robot.actions) if action != step]
    assert all(action < step for step, action in late)
    assert len(late) == told.stale
    assert told.ticks == 200
    assert told.lateness_ms is not None
    assert told.lateness_ms.n == len(robot.actions)
    assert told.lateness_ms.p50 >= 0


def test_plans_that_take_too_long(robot: Robot, planner: Planner) -> None:
    """Each of 8 steps is there after 6, and the next after 6 more: the last action is held until then."""
    told = make_loop(robot, planner, 6, late_limit=5).run()
    assert robot.actions[:18] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 10, 11, 11, 11, 11, 11, 16, 17]
    assert told.stale == sum(action != step for step, action in enumerate(robot.actions))
    assert told.faults == 0


@pytest.mark.parametrize("continuity", ["none", "inpaint", "soft"])
def test_a_plan_is_told_what_is_written_meanwhile(robot: Robot, planner: Planner, continuity: str) -> None:
    """The rest of the last plan, of which 2 actions are written until the plan is there."""
    make_loop(robot, planner, 2, continuity=continuity).run()
    first, *others = planner.prefixes[1:]
    assert first is None  # the robot waits
    for (_, step, _), told in zip(planner.calls[2:], others, strict=True):
        if continuity == "none":
            assert told is None
        else:
            assert told is not None
            assert told.actions[:, 0].tolist() == list(range(step, step + 4))
            assert (told.delay, told.soft) == (2, continuity == "soft")


class Slowing(VirtualTime):
    """The plan that begins at step 20 takes 3 periods, all others 1."""

    def outcome(self, planner: Any, since: float) -> Any:
        """Know it by the time: two ticks come before step 0."""
        self._latency = (3 if round(since * HZ) == 22 else 1) / HZ - 0.5 / HZ
        return super().outcome(planner, since)


def test_the_longest_of_the_last_delays_is_expected(robot: Robot, planner: Planner) -> None:
    make_loop(robot, planner, time=Slowing(), continuity="inpaint").run()
    delays = [told.delay for told in planner.prefixes[2:] if told is not None]
    slow = [step for _, step, _ in planner.calls[2:]].index(20)
    assert delays == [1] * (slow + 1) + [3] * 10 + [1] * (len(delays) - slow - 11)
    assert len(delays) > slow + 11


def test_the_seam_and_what_was_cut(robot: Robot, planner: Planner) -> None:
    planner.fault = lambda call: (
        Planned(np.arange(8, dtype=np.float32)[:, None] + 4 * call - 1, 3, cut=True) if call == 3 else None
    )
    told = make_loop(robot, planner, 1).run()
    assert told.cut == 1
    assert told.seam is not None
    assert (told.seam.n, told.seam.p50) == (told.plans - 1, 0)
    assert told.seam.max == 3  # 4 · 3 − 1 where 8 was to come


def test_the_seam_is_behind_what_a_plan_was_given(
    robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans after the first keep what is given to them, and are 5 further on behind it."""

    def plan(*arguments: Any) -> Planned:
        planned = Planner.plan(planner, *arguments)
        told = planner.prefixes[-1]
        if told is not None:
            planned.actions[: told.delay] = told.actions[: told.delay]
            planned.actions[told.delay :] = told.actions[told.delay] + 5
        return planned

    monkeypatch.setattr(planner, "plan", plan)
    told = make_loop(robot, planner, time=Slowing(), continuity="inpaint", ticks=40).run()
    assert told.seam is not None
    assert (told.seam.p50, told.seam.max) == (5, 5)


def test_late_too_often_is_a_fault(robot: Robot, planner: Planner) -> None:
    loop = make_loop(robot, planner, 6, late_limit=2)
    with pytest.raises(LoopError, match="late 2 times in a row: the plan is used up, and the next is not there"):
        loop.run()
    assert robot.actions == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    told = loop.telemetry()
    assert (told.state, told.faults, told.safe) == ("ended", 1, 0)


def broken(robot: Robot, planner: Planner, what: str, begin: int, end: int) -> None:
    """Have something go wrong from one call on, until another; call 0 is the trial."""

    def wrong(call: int) -> Any:
        if not begin <= call < end:
            return None
        if what in ("source raises", "planner raises"):
            raise ConnectionError("the cable is out")
        return {
            "source returns NaN": np.full(1, np.nan),
            "source returns another shape": np.zeros(2),
            "source returns no array": [[1.0], [1.0, 2.0]],
            "planner returns NaN": np.full((CHUNK, 1), np.nan, np.float32),
            "planner returns too much for 32 bits": np.array([[0.0], [1e300], [0.0]]),
            "planner returns another shape": np.zeros((CHUNK, 2), np.float32),
            "planner returns nothing": np.zeros((0, 1), np.float32),
            "planner returns no plan": "a plan",
            "planner returns lists": Planned([[0.0]] * CHUNK, 3),  # pyright: ignore[reportArgumentType]  # as it may
            "planner returns whole numbers": np.zeros((CHUNK, 1), np.int64),
        }[what]

    if what.startswith("source"):
        robot.fault = wrong
    else:
        planner.fault = wrong


GAVE = "read_observation gave an observation that cannot be used:"
FAULTS = {
    "source raises": "read_observation raised ConnectionError: the cable is out",
    "source returns NaN": f"{GAVE} the observation holds NaN or infinity: nan at [0]",
    "source returns another shape": f"{GAVE} the observation is float64 (2,), in the first observation it was",
    "source returns no array": f"{GAVE} the observation is no array: ",
    "planner raises": "the planner raised ConnectionError: the cable is out",
    "planner returns NaN": "the plan holds NaN or infinity: nan at [0, 0]",
    "planner returns too much for 32 bits": "the plan holds NaN or infinity in 32 bits: 1e+300 at [1, 0]",
    "planner returns another shape": "the plan has shape (8, 2), not (n, 1)",
    "planner returns nothing": "the plan has shape (0, 1), not (n, 1)",
    "planner returns no plan": "the planner returned a str, not a Planned",
    "planner returns lists": "the plan's actions are list, not an array of floating-point numbers",
    "planner returns whole numbers": "the plan's actions are int64, not an array of floating-point numbers",
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_without_a_safe_action_ends_the_loop(robot: Robot, planner: Planner, what: str) -> None:
    broken(robot, planner, what, 5, 10**9)
    loop = make_loop(robot, planner, 1)
    with pytest.raises(LoopError) as caught:
        loop.run()
    assert str(caught.value).startswith(FAULTS[what])
    assert isinstance(caught.value.__cause__, ConnectionError) == what.endswith("raises")
    assert robot.actions == list(range(len(robot.actions)))
    assert 0 < len(robot.actions) < 30
    assert loop.telemetry().fault == str(caught.value)


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_with_a_safe_action(robot: Robot, planner: Planner, what: str) -> None:
    broken(robot, planner, what, 5, 10)
    loop = make_loop(robot, planner, 1, safe_action=[SAFE])
    with pytest.raises(LoopError) as caught:
        loop.run()
    assert str(caught.value).startswith(FAULTS[what])
    first = robot.actions.index(SAFE, 1)
    assert robot.actions[0] == SAFE  # before the first plan
    # From rest a plan begins with its first action, a step late; the second one is in time.
    assert robot.actions[1:first] == [0, 1, 2, 3, *range(5, 100)][: first - 1]
    assert robot.actions[first:] == [SAFE] * (101 - first)  # 100 ticks, and the last action
    told = loop.telemetry()
    assert (told.state, told.fault, told.faults) == ("ended", str(caught.value), 1)
    assert told.safe == robot.actions.count(SAFE)


@pytest.mark.parametrize("what", FAULTS)
def test_recovery(robot: Robot, planner: Planner, what: str) -> None:
    broken(robot, planner, what, 5, 8)
    told = make_loop(robot, planner, 2, safe_action=[SAFE], recover=True).run()
    planned = [step for step, action in enumerate(robot.actions) if action != SAFE]
    since = 0
    for step in planned:  # from rest a plan begins with its first action, 2 steps late; the second one is in time
        since = since + 1 if step - 1 in planned else 0
        assert robot.actions[step] == (step - 2 if since < 4 else step)
    assert planned[0] == 2
    assert planned[-1] == 99
    assert len(planned) < 98
    assert robot.actions[-1] == SAFE
    assert (told.fault, told.safe) == (None, robot.actions.count(SAFE))
    assert told.faults == 1
    begins = [step for _, step, begins in planner.calls[1:] if begins]
    assert len(begins) == (
        4 if what.startswith("planner") else 2
    )  # what was seen before a fault is no history for what comes after it


def test_a_plan_from_before_a_fault_is_dropped(robot: Robot, planner: Planner) -> None:
    broken(robot, planner, "source returns NaN", 7, 8)  # at the tick of step 6, while the plan begun at 4 is under way
    told = make_loop(robot, planner, 4, safe_action=[SAFE], recover=True).run()
    assert told.dropped == 1
    assert robot.actions[6:12] == [SAFE] * 6
    assert robot.actions[12:20] == [8, 9, 10, 11, *range(16, 20)]  # from rest, then in time


def test_a_planner_that_is_too_slow_is_not_gone_back_to(robot: Robot, planner: Planner) -> None:
    """Its first plan is waited for; after the fault its plans are over when they are there."""
    loop = make_loop(robot, planner, CHUNK + 1, safe_action=[SAFE], recover=True, late_limit=1)
    with pytest.raises(LoopError, match="late 1 times in a row: the plan is used up"):
        loop.run()
    assert robot.actions[:18] == [SAFE] * 9 + list(range(8)) + [SAFE]
    assert set(robot.actions[18:]) == {SAFE}
    assert loop.telemetry().faults == 1


@pytest.mark.parametrize("safe_action", [None, [SAFE]])
def test_from_rest_a_plan_begins_with_its_first_action(
    robot: Robot, planner: Planner, safe_action: list[float] | None
) -> None:
    """Inpainting by safe actions or not, the robot is where the plan begins: a later action would be a jump."""
    make_loop(robot, planner, 5, safe_action=safe_action, ticks=14).run()
    planned = [action for action in robot.actions if action != SAFE]
    assert planned[:5] == [0, 1, 2, 3, 4]


def test_what_is_done_to_an_action_is_not_done_to_the_plan(
    robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a robot that changes it in place, or a planner that uses its memory again."""
    memory = np.zeros((CHUNK, 1), np.float32)

    def plan(*arguments: Any) -> Planned:
        memory[:] = Planner.plan(planner, *arguments).actions
        return Planned(memory, 3)

    def write(action: npt.NDArray[np.float32]) -> None:
        robot.write(action)
        action *= 100

    monkeypatch.setattr(planner, "plan", plan)
    options = LoopOptions(patience=LONG, ticks=30, late_limit=99)
    ControlLoop(planner, robot.read, write, HZ, options, VirtualTime(5.5 / HZ)).run()
    assert robot.actions[:18] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 10, 11, 11, 11, 11, 11, 16, 17]


def test_what_is_done_to_a_rest_or_a_safe_action_is_not_written(robot: Robot, planner: Planner) -> None:
    """Neither by a planner to what it is told of the last plan, nor by whoever made the options."""
    safe = np.array([SAFE])
    loop = make_loop(robot, planner, 2, safe_action=safe, continuity="inpaint", ticks=20)

    def spoil(call: int) -> None:
        told = planner.prefixes[-1]
        if told is not None:
            told.actions[:] = 99

    planner.fault = spoil
    safe[:] = 99
    loop.run()
    assert robot.actions == [SAFE, SAFE, 0, 1, 2, 3, *range(6, 20), SAFE]


def test_a_fault_is_one_line_of_bounded_length(robot: Robot, planner: Planner) -> None:
    def shout(call: int) -> None:
        if call == 5:
            raise RuntimeError("\n\x1b[31m" + "no bus\n" * 100_000)

    planner.fault = shout
    with pytest.raises(LoopError, match=r"^the planner raised RuntimeError: \\x1b\[31mno bus no bus") as caught:
        make_loop(robot, planner).run()
    assert len(str(caught.value)) == MAX_MESSAGE
    assert str(caught.value).isprintable()


def test_what_was_read_before_an_episode_began_is_not_of_it(planner: Planner) -> None:
    """Even where it comes only then; and an old frame does not end a fault."""
    slow, written, frames = threading.Event(), [0], [0]

    def read() -> npt.NDArray[np.float64]:
        frame = np.array([float(frames[0])])
        if written[0] == 19:
            slow.wait(LONG)
        return frame

    def write(action: npt.NDArray[np.float32]) -> None:
        written[0] += 1
        if written[0] == 20:
            frames[0] = 1000
            slow.set()
            raise EpisodeEnded

    options = LoopOptions(patience=0.002, late_limit=10**9, ticks=None)
    with ControlLoop(planner, read, write, 100.0, options) as loop:
        until(lambda: len([begins for _, _, begins in planner.calls if begins]) >= 3)
    assert loop.telemetry().episodes == 1
    assert [seen for seen, _, begins in planner.calls if begins][2] == [1000.0]


def test_the_safe_action_of_the_last_observation(robot: Robot, planner: Planner) -> None:
    broken(robot, planner, "source returns NaN", 5, 10**9)
    loop = make_loop(robot, planner, 1, safe_action=lambda seen: [100 + seen[0]])
    with pytest.raises(LoopError, match="NaN"):
        loop.run()
    assert robot.actions[:4] == [100, 0, 1, 2]
    assert set(robot.actions[4:]) == {103}  # what was seen last, before NaN


@pytest.mark.parametrize(
    ("safe_action", "message"),
    [
        (lambda seen: 1 / 0, "the safe action raised ZeroDivisionError: division by zero"),
        (lambda seen: [np.nan], r"the safe action holds NaN or infinity: nan at \[0\]"),
        (lambda seen: [1e300], r"the safe action holds NaN or infinity in 32 bits: 1e\+300 at \[0\]"),
        (lambda seen: None, r"the safe action is an array of object, not of real numbers"),
        (lambda seen: [0.0, 0.0], r"the safe action has shape \(2,\), the policy's actions have \(1,\)"),
    ],
)
def test_a_safe_action_that_is_none_ends_the_loop(
    robot: Robot, planner: Planner, safe_action: Any, message: str
) -> None:
    with pytest.raises(LoopError, match=message):
        make_loop(robot, planner, safe_action=safe_action).run()
    assert not robot.actions


def test_a_robot_that_cannot_be_written_to_ends_the_loop(robot: Robot, planner: Planner) -> None:
    def write(action: npt.NDArray[np.float32]) -> None:
        if len(robot.actions) == 7:
            raise OSError("no bus")
        robot.write(action)

    options = LoopOptions(patience=LONG, safe_action=[SAFE], ticks=50)
    with pytest.raises(LoopError, match="write_action raised OSError: no bus") as caught:
        ControlLoop(planner, robot.read, write, HZ, options, VirtualTime()).run()
    assert isinstance(caught.value.__cause__, OSError)
    assert len(robot.actions) == 7


def test_a_source_that_blocks(robot: Robot, planner: Planner) -> None:
    """The loop writes on: the rest of the plan, then safe actions; and goes back when the source does."""
    free = threading.Event()
    robot.fault = lambda reading: None if reading != 10 else free.wait(LONG) and None
    loop = make_loop(
        robot, planner, hz=200.0, time=RealTime(), patience=0.001, ticks=None, safe_action=[SAFE], recover=True
    )
    with loop:
        until(lambda: loop.telemetry().fault is not None)
        assert loop.telemetry().fault == "late 10 times in a row: read_observation blocks"
        count = len(robot.actions)
        until(lambda: len(robot.actions) > count + 20)
        assert loop.telemetry().state == "safe"
        assert robot.actions[-5:] == [SAFE] * 5
        free.set()
        until(lambda: loop.telemetry().state == "running" and robot.readings > 30)
    assert loop.telemetry().blind >= 30


def test_a_source_that_never_shows_anything(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "FIRST_OBSERVATION", 0.05)
    monkeypatch.setattr(loop_module, "ENDING", 0.05)
    free = threading.Event()
    robot.fault = lambda reading: free.wait(LONG) and None
    with pytest.raises(LoopError, match="read_observation has returned nothing for 0 s"):
        make_loop(robot, planner).start()
    free.set()
    assert not robot.actions


def test_a_planner_that_hangs(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "ENDING", 0.5)
    free = threading.Event()
    planner.fault = lambda call: None if call != 6 else free.wait(LONG) and None
    loop = make_loop(robot, planner, hz=200.0, time=RealTime(), ticks=None, safe_action=[SAFE])
    loop.start()
    until(lambda: loop.telemetry().state == "safe")
    with pytest.raises(LoopError, match="late 10 times in a row"):
        loop.stop()
    assert robot.actions[-1] == SAFE
    free.set()


@pytest.mark.parametrize("recover", [False, True])
def test_a_planner_that_hangs_before_the_first_plan(robot: Robot, planner: Planner, recover: bool) -> None:
    """The robot waits for that plan as long as plans may take, and no longer."""
    free = threading.Event()
    planner.fault = lambda call: None if call != 1 else free.wait(LONG) and None
    options = {"plan_limit": 0.1, "late_limit": 10**9, "safe_action": [SAFE], "recover": recover}
    loop = make_loop(robot, planner, hz=200.0, time=RealTime(), ticks=None, **options)
    loop.start()
    until(lambda: loop.telemetry().state == "safe")
    fault = loop.telemetry().fault
    assert fault is not None and fault.startswith("the planner has not answered for 0.")
    free.set()
    if recover:
        until(lambda: loop.telemetry().state == "running")
        loop.stop()
        assert (loop.telemetry().dropped, loop.telemetry().faults) == (1, 1)
    else:
        with pytest.raises(LoopError, match=r"the planner has not answered for 0\.[0-9]* s"):
            loop.stop()
        assert set(robot.actions) == {SAFE}


@pytest.mark.parametrize("recover", [False, True])
def test_a_planner_that_hangs_with_a_plan_of_the_episode_before(planner: Planner, recover: bool) -> None:
    free, written = threading.Event(), [0]
    planner.fault = lambda call: None if call != 3 else free.wait(LONG) and None

    def write(action: npt.NDArray[np.float32]) -> None:
        written[0] += 1
        if len(planner.calls) == 4 and action[0] != SAFE:
            raise EpisodeEnded

    options = LoopOptions(plan_limit=0.1, late_limit=10**9, safe_action=[SAFE], recover=recover)
    loop = ControlLoop(planner, lambda: np.zeros(1), write, 200.0, options)
    loop.start()
    until(lambda: loop.telemetry().state == "safe")
    assert "the planner has not answered for 0." in str(loop.telemetry().fault)
    free.set()
    with pytest.raises(LoopError, match="has not answered") if not recover else contextlib.nullcontext():
        if recover:
            until(lambda: loop.telemetry().state == "running")
        loop.stop()


def test_the_robot_stops_the_loop(robot: Robot, planner: Planner) -> None:
    """From `write_action`, in the thread that ticks."""

    def write(action: npt.NDArray[np.float32]) -> None:
        robot.write(action)
        if len(robot.actions) == 10:
            loop.stop()

    options = LoopOptions(patience=LONG, safe_action=[SAFE], late_limit=10**9)
    loop = ControlLoop(planner, robot.read, write, 200.0, options)
    with loop:
        assert loop.wait(LONG)
    assert len(robot.actions) == 11
    assert robot.actions[-1] == SAFE


def test_a_thread_that_does_not_end_is_named(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "ENDING", 0.05)
    free, writing = threading.Event(), threading.Event()

    def write(action: npt.NDArray[np.float32]) -> None:
        writing.set()
        free.wait(LONG)

    loop = ControlLoop(planner, robot.read, write, HZ, LoopOptions(patience=LONG))
    loop.start()
    assert writing.wait(LONG)
    with pytest.raises(LoopError, match=r"threads do not end within 0.05 s: asd_policy control"):
        loop.stop()
    free.set()


@pytest.mark.parametrize("what", ["source returns NaN", "source raises", "planner raises", "planner returns NaN"])
def test_what_is_wrong_from_the_start_is_raised_by_it(robot: Robot, planner: Planner, what: str) -> None:
    broken(robot, planner, what, 0, 10**9)
    expected = {"source returns NaN": ObservationError, "planner raises": ConnectionError}.get(what, LoopError)
    loop = make_loop(robot, planner, safe_action=[SAFE])
    with pytest.raises(expected):
        loop.start()
    assert not robot.actions


def test_a_source_that_returns_none(robot: Robot, planner: Planner) -> None:
    with pytest.raises(LoopError, match="read_observation returned None"):
        ControlLoop(planner, lambda: None, robot.write, HZ).start()


def test_a_loop_runs_once(robot: Robot, planner: Planner) -> None:
    loop = make_loop(robot, planner)
    loop.stop()  # nothing to stop
    with pytest.raises(LoopError, match="was not started"):
        loop.wait()
    loop.run()
    loop.stop()
    with pytest.raises(LoopError, match="a ControlLoop runs once"):
        loop.start()


def test_the_safe_action_is_the_last(robot: Robot, planner: Planner) -> None:
    loop = make_loop(robot, planner, time=RealTime(), hz=500.0, ticks=None, safe_action=[SAFE], late_limit=10**9)
    with loop:
        until(lambda: loop.telemetry().state == "running" and len(robot.actions) > 20)
        assert not loop.wait(0.0)
    assert robot.actions[-1] == SAFE
    assert loop.telemetry().state == "ended"
    count = len(robot.actions)
    time.sleep(0.02)
    assert len(robot.actions) == count


def test_ctrl_c(robot: Robot, planner: Planner) -> None:
    """It comes to whoever waits, and ends the loop."""

    def write(action: npt.NDArray[np.float32]) -> None:
        robot.write(action)
        if len(robot.actions) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    options = LoopOptions(patience=LONG, safe_action=[SAFE], late_limit=10**9)
    loop = ControlLoop(planner, robot.read, write, 500.0, options)
    # Where the tests run in a shell's background, Ctrl-C is ignored unless told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert robot.actions[-1] == SAFE
    assert loop.telemetry().state == "ended"


def test_an_error_under_way_is_not_hidden(robot: Robot, planner: Planner) -> None:
    broken(robot, planner, "source raises", 5, 10**9)
    loop = make_loop(robot, planner)
    with pytest.raises(ZeroDivisionError) as caught, loop:
        assert loop.wait(LONG)
        _ = 1 / 0
    assert caught.value.__notes__ == [f"the control loop: {FAULTS['source raises']}"]


def test_a_program_that_ends_without_stopping_the_loop() -> None:
    """The safe action is still the last that is written."""
    code = (
        "import numpy as np, time\n"
        "from test_control_loop import Planner, Robot, ControlLoop, LoopOptions\n"
        "robot = Robot()\n"
        "def write(action): robot.write(action); print(action[0], flush=True)\n"
        "loop = ControlLoop(Planner(), robot.read, write, 500.0, LoopOptions([-1], 9**9, patience=9))\n"
        "loop.start()\n"
        "while len(robot.actions) < 50: time.sleep(0.001)\n"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    written = done.stdout.split()
    assert len(written) > 50
    assert written[-1] == "-1.0"
    assert done.stderr == ""


class Halting(VirtualTime):
    """Wakes up late by a third of a period, every time; and takes long at one tick."""

    def __init__(self, pause: float) -> None:
        """Take the pause [s]."""
        super().__init__()
        self.wakes: list[float] = []
        self.deadlines: list[float] = []
        self._pause = pause

    def sleep_until(self, instant: float, stop: threading.Event) -> None:
        """Oversleep."""
        self.deadlines.append(instant)
        if len(self.deadlines) == 10:
            self._now = instant + self._pause
        super().sleep_until(instant + 1 / (3 * HZ), stop)
        self.wakes.append(self._now)


def test_lateness_does_not_add_up(robot: Robot, planner: Planner) -> None:
    clock = Halting(0.0)
    told = make_loop(robot, planner, time=clock, ticks=1000).run()
    np.testing.assert_allclose(np.diff(clock.deadlines), 1 / HZ, rtol=1e-9)
    assert told.missed == 0
    assert told.lateness_ms is not None
    assert told.lateness_ms.max == pytest.approx(1000 / (3 * HZ))
    assert clock.deadlines[-1] - clock.deadlines[0] == pytest.approx(999 / HZ, rel=1e-12)


def test_missed_deadlines_are_counted_and_left_out(robot: Robot, planner: Planner) -> None:
    clock = Halting(4.5 / HZ)
    told = make_loop(robot, planner, time=clock, ticks=50).run()
    assert told.missed == 4
    gaps = np.round(np.diff(clock.deadlines) * HZ, 6)
    assert gaps.tolist() == [1] * 9 + [5] + [1] * 39
    assert robot.actions == list(range(len(robot.actions)))  # no action is left out


def test_missed_deadlines_in_a_row_are_a_fault(robot: Robot, planner: Planner) -> None:
    """Each tick takes three periods."""
    clock = VirtualTime()

    def write(action: npt.NDArray[np.float32]) -> None:
        robot.write(action)
        clock.sleep_until(clock.now() + 3 / HZ, threading.Event())

    options = LoopOptions(patience=LONG, late_limit=5)
    with pytest.raises(LoopError, match="late 5 times in a row: [23] deadlines were missed"):
        ControlLoop(planner, robot.read, write, HZ, options, clock).run()


def test_the_wall_clock_is_never_asked(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be set back; the loop cannot tell."""

    def refuse() -> float:
        raise AssertionError

    monkeypatch.setattr(time, "time", refuse)
    told = make_loop(robot, planner, time=RealTime(), hz=200.0, ticks=40, late_limit=10**9).run()
    assert told.ticks == 40
    assert told.period_ms is not None


class Line(gymnasium.Env[Any, Any]):
    """Episodes of 10 steps; an observation is the step's number, and 100 for each episode before."""

    def __init__(self) -> None:
        """Begin."""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.episode = -1
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.episode += 1
        self.now = 100 * self.episode
        return np.array([self.now], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on."""
        self.actions.append(float(action[0]))
        self.now += 1
        return np.array([self.now], np.float32), 0.0, False, self.now % 100 == 10, {}


def test_an_environment_is_stepped_through_its_episodes(planner: Planner) -> None:
    env = Line()
    options = LoopOptions(patience=LONG, ticks=34)
    told = ControlLoop.for_env(planner, env, HZ, options, VirtualTime(1.5 / HZ), seed=0).run()
    # Two ticks before each first plan, in which the world stands still.
    assert env.actions == [*range(10), *range(100, 110), *range(200, 208)]
    assert told.episodes == 2
    assert told.dropped == 2  # the plan that was under way when an episode ended
    first = [(seen, step) for seen, step, begins in planner.calls[1:] if begins]
    assert first == [([0.0], 0), ([100.0], 10), ([200.0], 20)]


class Bounded(Line):
    """Has a narrow action space, and insists on it, as gymnasium's classic environments do."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-0.5, 2.5, (1,), np.float64)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on."""
        assert self.action_space.contains(action)
        return super().step(action)


@pytest.mark.parametrize("seed", [0, np.int64(0), np.uint8(0)])
def test_an_environment_is_given_actions_of_its_space(planner: Planner, seed: Any) -> None:
    env = Bounded()
    options = LoopOptions(patience=LONG, ticks=12, safe_action=[-3.0])
    ControlLoop.for_env(planner, env, HZ, options, VirtualTime(1.5 / HZ), seed=seed).run()
    assert set(env.actions) == {-0.5, 0, 1, 2, 2.5}


def test_a_seed_that_is_none(planner: Planner) -> None:
    with pytest.raises(asd_policy.SpecError, match=r"seed 1\.5 is not a whole number in 0 … 18446744073709551615"):
        ControlLoop.for_env(planner, Line(), HZ, seed=1.5)  # pyright: ignore[reportArgumentType]  # as users may


@pytest.mark.parametrize(
    "unread",
    [
        lambda step: {"depth": np.full((480, 640), np.inf)},
        lambda step: {"task": "pick" if step < 5 else "put down"},
        lambda step: {"contacts": np.zeros(step % 3)},
        lambda step: {"agent_pos": [0, 0, 0, 0] if step < 5 else [0.1, 0, 0, 0]},
        lambda step: {"masked": np.ma.masked_all(3), "object": np.array([None])} if step % 2 else {},
    ],
)
def test_what_a_policy_does_not_read_stops_no_loop(unread: Callable[[int], Any], small_checkpoint: Path) -> None:
    policy = asd_policy.load_policy(small_checkpoint, "ddim:2")
    seen: list[Any] = []

    def read() -> Any:
        seen.append({"agent_pos": np.zeros(4), "environment_state": np.zeros(3), **unread(len(seen))})
        return seen[-1]

    options = LoopOptions(patience=LONG, ticks=20)
    told = ControlLoop(policy, read, lambda action: None, HZ, options, VirtualTime(0.5 / HZ)).run()
    assert (told.faults, told.ticks, len(seen)) == (0, 20, 21)


def test_a_policy_in_an_environment(small_checkpoint: Path) -> None:
    policy = asd_policy.load_policy(small_checkpoint, "asd:window=4")
    env = make_env("asd/Avoid-v0")
    options = LoopOptions(patience=LONG, ticks=150)
    told = ControlLoop.for_env(policy, env, 10.0, options, VirtualTime(0.25), seed=3).run()
    assert told.plans >= 10
    assert told.stale == 0
    assert told.rounds_mean is not None
    assert 1 <= told.rounds_mean <= 10
    assert len(policy.plans) == 1  # of an endless episode, only what the next plan needs is kept
    env.close()


@pytest.mark.parametrize("continuity", ["none", "inpaint"])
def test_a_loop_is_warm_before_it_looks(
    small_checkpoint: Path, continuity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is tried and timed is over before the first observation, for all plans that follow."""
    policy = asd_policy.load_policy(small_checkpoint, "asd")
    events: list[int | str] = []
    plan = policy.plan

    def spy(*arguments: Any, **options: Any) -> Any:
        made = plan(*arguments, **options)
        events.append(made.stats.trial_calls)
        return made

    def read() -> Any:
        events.append("read")
        return np.zeros(7)

    monkeypatch.setattr(policy, "plan", spy)
    options = LoopOptions(patience=LONG, ticks=40, continuity=continuity)
    ControlLoop(policy, read, lambda action: None, 10.0, options, VirtualTime(0.25)).run()
    first = events.index("read")
    assert max(each for each in events[:first] if isinstance(each, int)) > 0
    assert {each for each in events[first:] if each != "read"} == {0}
    assert events.count(0) >= 5


def test_an_environment_that_does_not_fit(small_checkpoint: Path) -> None:
    policy = asd_policy.load_policy(small_checkpoint)
    with pytest.raises(asd_policy.EnvError, match=r"the policy's actions have shape \(2,\)"):
        ControlLoop.for_env(policy, Line(), HZ)


def test_a_plan_is_the_policys(small_checkpoint: Path) -> None:
    """With the history it would have had, and its last plan moved on by the steps taken since."""
    seen = [np.linspace(0, 1, 7) + 0.1 * step for step in range(6)]
    policy, other = (asd_policy.load_policy(small_checkpoint, "asd:window=4") for _ in range(2))
    policy.reset(seed=5)
    other.reset(seed=5)
    planner = PolicyPlanner(policy)
    first = planner.plan(seen[:1], 17, True)
    second = planner.plan(seen[4:6], 22, False)
    other.observe(0, seen[0])
    expected = other.plan_for([0])[0]
    np.testing.assert_array_equal(first.actions, expected)
    for step in range(1, 6):
        other.observe(0, seen[step])
    other.robots[0].steps = 5
    np.testing.assert_array_equal(second.actions, other.plan_for([0])[0])
    assert second.rounds == other.plans[-1].stats.rounds[0]
    rest = np.linspace(-0.5, 0.5, 20, dtype=np.float32).reshape(10, 2)
    third = planner.plan(seen[4:6], 30, False, Prefix(rest, delay=3))
    np.testing.assert_allclose(third.actions[:3], rest[:3], atol=1e-6)
    assert np.abs(third.actions[3:10] - rest[3:]).max() > 0.01
    assert not third.cut
    late = PolicyPlanner(policy.with_deadline(60_000))
    assert not late.plan(seen[:1], 0, True).cut


def test_planning_in_a_process_of_its_own(small_checkpoint: Path, robot: Robot) -> None:
    load = functools.partial(asd_policy.load_policy, small_checkpoint, "ddpm")
    observations = [np.linspace(-1, 1, 7)]
    with ProcessPlanner(load) as planner:
        assert planner.horizons == load().horizons
        assert planner.action_dim == 2
        actions = []
        options = LoopOptions(patience=LONG, ticks=30)
        ControlLoop(planner, lambda: observations[0], actions.append, HZ, options, VirtualTime(2.5 / HZ)).run()
        assert len(actions) == 27
        with pytest.raises(ObservationError, match=r"has shape \(3,\); the policy reads \(7,\)"):
            planner.plan([np.zeros(3)], 0, True)
        planner._process.kill()
        planner._process.join()
        with pytest.raises(LoopError, match="the planning process ended with exit status -9"):
            planner._ask((observations, 0, False))
        assert planner.plan(observations, 0, False).actions.shape == (15, 2)  # by a new one
        process = planner._process
    assert not process.is_alive()


def test_a_process_that_cannot_load_its_policy(tmp_path: Path) -> None:
    with pytest.raises(asd_policy.CheckpointError, match="none"):
        ProcessPlanner(functools.partial(asd_policy.load_policy, tmp_path / "none"))


@pytest.mark.parametrize("hz", [0.0, -50.0, float("nan"), float("inf")])
def test_a_rate_that_is_none(robot: Robot, planner: Planner, hz: float) -> None:
    with pytest.raises(LoopError, match=f"hz={hz} is not a rate above 0 Hz"):
        ControlLoop(planner, robot.read, robot.write, hz)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safe_action": [0.0, 0.0]}, r"the safe action has shape \(2,\), the policy's actions have \(1,\)"),
        ({"safe_action": [np.nan]}, "the safe action holds NaN or infinity"),
        ({"safe_action": [1e300]}, r"the safe action holds NaN or infinity in 32 bits: 1e\+300 at \[0\]"),
        ({"safe_action": ["home"]}, "the safe action is an array of <U4, not of real numbers"),
        ({"safe_action": [[1.0], [1.0, 2.0]]}, "the safe action is no array: ValueError: "),
        ({"late_limit": 0}, "late_limit=0 is not 1 or more"),
        ({"ticks": 0}, "ticks=0 is not 1 or more"),
        ({"patience": 0.0}, "patience=0.0 is not a time above 0 s"),
        ({"patience": float("nan")}, "patience=nan is not a time above 0 s"),
        ({"plan_limit": 0.0}, "plan_limit=0.0 is not a time above 0 s"),
        ({"plan_limit": float("inf")}, "plan_limit=inf is not a time above 0 s"),
        ({"continuity": "smooth"}, "continuity='smooth' is not one of none, inpaint, soft"),
        ({"priority": 100}, "priority=100 is not in 1 … 99"),
        ({"metrics_port": -1}, "metrics_port=-1 is not in 0 … 65535"),
    ],
)
def test_options_that_make_no_sense(robot: Robot, planner: Planner, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoopError, match=message):
        make_loop(robot, planner, **options)


def test_real_time_priority(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda tid, policy, value: asked.append((tid, policy)))
    make_loop(robot, planner, priority=10).run()
    assert len({tid for tid, _ in asked}) == 2  # the thread that ticks, the thread that reads
    assert {policy for _, policy in asked} == {os.SCHED_FIFO}

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    count = len(robot.actions)
    with pytest.raises(LoopError, match="priority=10 is not allowed here: it needs CAP_SYS_NICE"):
        make_loop(robot, planner, priority=10).start()
    assert len(robot.actions) == count


def scrape(port: int | None) -> dict[str, float]:
    """Return the samples of an endpoint."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LONG) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics(robot: Robot, planner: Planner) -> None:
    loop = make_loop(robot, planner, time=RealTime(), hz=200.0, ticks=None, late_limit=10**9, metrics_port=0)
    with loop:
        until(lambda: loop.telemetry().plans > 3)
        before, samples, after = loop.telemetry(), scrape(loop.metrics_port), loop.telemetry()
        port = loop.metrics_port
    assert before.ticks <= samples["asd_policy_loop_ticks_total"] <= after.ticks
    assert before.plans <= samples["asd_policy_loop_plans_total"] <= after.plans
    assert samples['asd_policy_loop_state{state="running"}'] == 1
    assert samples['asd_policy_loop_state{state="safe"}'] == 0
    assert samples["asd_policy_loop_rounds"] == 3
    assert samples['asd_policy_loop_seam{quantile="1"}'] == 0
    assert samples['asd_policy_loop_period_seconds{quantile="0.5"}'] > 0
    assert {f"asd_policy_loop_{name}_total" for name in telemetry.COUNTS} <= samples.keys()
    with pytest.raises(OSError):
        scrape(port)


def test_metrics_before_the_first_plan(planner: Planner, robot: Robot) -> None:
    free = threading.Event()
    planner.fault = lambda call: free.wait(LONG) and None if call else None
    with make_loop(robot, planner, time=RealTime(), ticks=None, metrics_port=0) as loop:
        samples = scrape(loop.metrics_port)
        free.set()
    assert samples['asd_policy_loop_state{state="waiting"}'] == 1
    assert "asd_policy_loop_rounds" not in samples


def test_a_port_in_use(robot: Robot, planner: Planner) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LoopError, match=f"metrics_port={port} on 127.0.0.1 cannot be had: Address already in use"):
            make_loop(robot, planner, metrics_port=port).start()


def test_metrics_without_prometheus(robot: Robot, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(LoopError, match=r"needs prometheus_client: pip install 'asd-policy\[realtime\]'"):
        make_loop(robot, planner, metrics_port=0).start()


def test_nothing_piles_up(planner: Planner) -> None:
    """Between two instants, thousands of ticks and hundreds of plans apart, memory is the same."""
    sizes = {}
    count = 0

    def write(action: npt.NDArray[np.float32]) -> None:
        nonlocal count
        count += 1
        if count in (4000, 8000):
            planner.calls.clear()
            planner.prefixes.clear()
            sizes[count] = tracemalloc.get_traced_memory()[0]

    options = LoopOptions(patience=LONG, ticks=8100)
    loop = ControlLoop(planner, lambda: np.array([count]), write, HZ, options, VirtualTime(1.5 / HZ))
    tracemalloc.start()
    try:
        loop.run()
    finally:
        tracemalloc.stop()
    assert loop.telemetry().plans > 2000
    assert abs(sizes[8000] - sizes[4000]) < 4000  # less than a byte for each tick


def test_history() -> None:
    assert History(3).latest is None
    history = History(3)
    buffer = {"agent_pos": np.zeros(2), "pixels": np.zeros((4, 4, 3), np.uint8)}
    handed = []
    for step in range(8):
        buffer["agent_pos"][:] = step
        buffer["pixels"][:] = step
        history.add(buffer)
        if step == 4:
            handed = history.hand_over()
    assert [each["agent_pos"].tolist() for each in handed] == [[2, 2], [3, 3], [4, 4]]  # the planner's to keep
    assert history.latest["pixels"].max() == 7
    history.clear()
    assert history.latest["agent_pos"].tolist() == [7, 7]
    buffer["agent_pos"][:] = 9
    history.add(buffer)
    (alone,) = history.hand_over()
    assert alone["agent_pos"].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"b": np.zeros(2)}, r"the observation has \[\"observation 'b'\"\], the first had \[\"observation 'a'\"\]"),
        ({"a": np.zeros(1)}, r"observation 'a' is float64 \(1,\), in the first observation it was float64 \(2,\)"),
        ({"a": "text"}, r"the observation has \[\], the first had \[\"observation 'a'\"\]"),
        ({"a": np.array([0, np.inf])}, r"observation 'a' holds NaN or infinity: inf at \[1\]"),
    ],
)
def test_observations_keep_their_form(observation: Any, message: str) -> None:
    history = History(2)
    with pytest.raises(ObservationError, match="observation 'a' holds NaN or infinity: nan at"):
        history.add({"a": np.full(3, np.nan)})  # which is no first one
    history.add({"a": np.ones(2)})
    with pytest.raises(ObservationError, match=message):
        history.add(observation)
    assert history.latest["a"].tolist() == [1, 1]


def test_observations_without_features_to_read() -> None:
    """The numbers' precision is free, and texts are nobody's business but the planner's."""
    history = History(3)
    for values, task in (([0, 0], "pick"), ([0.5, 0.5], "put down"), (np.ones(2, np.float32)[::-1], None)):
        history.add({"a": values, "task": task})
    handed = history.hand_over()
    assert [each["a"].tolist() for each in handed] == [[0, 0], [0.5, 0.5], [1, 1]]
    assert [each["task"] for each in handed] == ["pick", "put down", None]


def test_only_the_features_that_are_read_are_looked_at() -> None:
    """As they are written down for the planner; the safe action is shown all."""
    history = History(2, {"agent_pos": (2,)})
    depth = np.full((480, 640), np.inf)
    for step in range(4):
        seen = {"agent_pos": np.array([step, step], [">f8", "<i4"][step % 2])[::-1], "contacts": np.zeros(step)}
        history.add({**seen, "depth": depth, "task": "x" * step, "object": object(), 5: [[1], [1, 2]]})
    assert [set(each) for each in history.hand_over()] == [{"agent_pos"}] * 2
    assert [each["agent_pos"].tolist() for each in history.hand_over()] == [[2, 2], [3, 3]]
    assert history.hand_over()[0]["agent_pos"].dtype == np.float32
    assert (history.latest["task"], history.latest["contacts"].shape) == ("xxx", (3,))
    depth[:] = 0
    assert np.isinf(history.latest["depth"]).all()
    history.hand_over()[0]["agent_pos"][:] = 9
    assert history.hand_over()[0]["agent_pos"].tolist() == [2, 2]


def test_percentiles_of_the_last() -> None:
    ring = telemetry.Ring(100)
    assert telemetry.percentiles(ring.copy()) is None
    for value in range(350):
        ring.add(value)
    found = telemetry.percentiles(ring.copy(), 1e3)
    assert found is not None
    assert found.n == 100
    assert (found.p50, found.max) == (299.5e3, 349e3)
    assert found.p99 == pytest.approx(348.01e3)


def test_telemetry_is_read_whole_while_it_is_written() -> None:
    recorder = telemetry.Recorder()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=lambda: [recorder.plan(1.0, 5, False) for _ in range(telemetry.PLANS_KEPT)])
    try:
        writer.start()
        seen = []
        while writer.is_alive():
            told = recorder.telemetry()
            seen.append((told.plans, told.plan_ms.n if told.plan_ms else 0))
    finally:
        sys.setswitchinterval(interval)
    writer.join()
    assert all(plans == n for plans, n in seen)
    assert recorder.telemetry().plans == telemetry.PLANS_KEPT


def test_telemetry_prints_as_a_table() -> None:
    recorder = telemetry.Recorder()
    assert str(recorder.telemetry()).splitlines() == [
        "ready",
        "ticks 0, missed 0, blind 0, stale 0, safe 0, faults 0",
        "plans 0, cut 0, dropped 0, episodes 0",
    ]
    recorder.state, recorder.fault = "safe", "the cable is out"
    recorder.count("ticks", 3)
    recorder.write(1.001, 1.0)
    recorder.plan(0.0425, 7, False)
    assert str(recorder.telemetry()).splitlines() == [
        "safe: the cable is out",
        "ticks 3, missed 0, blind 0, stale 0, safe 0, faults 0",
        "plans 1, cut 0, dropped 0, episodes 0",
        "rounds of a plan 7.0",
        "                     p50       p95       p99       max",
        "lateness [ms]          1         1         1         1  of 1",
        "plan [ms]           42.5      42.5      42.5      42.5  of 1",
    ]
