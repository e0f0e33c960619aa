"""The control loop: its threads, their begin and their end."""

import atexit
import math
import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from asd_policy.deploy.realtime.link import EnvLink, Link, ReadObservation, WriteAction
from asd_policy.deploy.realtime.metrics import MetricsServer
from asd_policy.deploy.realtime.options import LoopOptions
from asd_policy.deploy.realtime.planner import PolicyPlanner, check_plan
from asd_policy.deploy.realtime.telemetry import Recorder, Telemetry
from asd_policy.deploy.realtime.ticker import Ticker
from asd_policy.deploy.realtime.timebase import RealTime, Timebase
from asd_policy.deploy.realtime.worker import CallThread
from asd_policy.errors import LoopError, one_line
from asd_policy.policy.planner import Planner
from asd_policy.policy.policy import Policy

if TYPE_CHECKING:
    import gymnasium

FIRST_OBSERVATION = 10.0
"""Time that a source has for its first observation [s]."""
ENDING = 10.0
"""Time that each thread has to end [s]."""


class ControlLoop:
    """Runs a policy on a robot at a fixed rate; plans while the robot moves.

    Three threads: one ticks, one reads observations, one plans. At tick k, whose deadline is start + k / hz on the
    monotonic clock, the loop waits for an observation (`LoopOptions.patience`), takes a plan that has become ready, has
    the next one begun if `n_action_steps` actions were written since the last one began and the planner is free, and
    writes an action. A finished plan replaces the one before; it skips as many of its first actions as were written
    since its observation. When a plan is used up, its last action is written again.

    After missed deadlines the loop goes on with the next action and skips none: a jump would be worse than the delay.

        loop = ControlLoop(policy, robot.read, robot.write, hz=50, options=LoopOptions(safe_action=home))
        with loop:
            loop.wait()
    """

    def __init__(
        self,
        policy: Policy | Planner,
        read_observation: ReadObservation,
        write_action: WriteAction,
        hz: float,
        options: LoopOptions | None = None,
        time: Timebase | None = None,
    ) -> None:
        """Make a loop; `start` runs it, once.

        Args:
            policy: Plans. A `Policy` is the loop's while it runs: it is planned with in another thread.
            read_observation: Returns what the robot sees now; called in a thread of its own, once for each tick.
            write_action: Takes an action [action_dim], float32; called in the thread that ticks. It may raise
                `EpisodeEnded`.
            hz: Ticks per second.
            options: What to do when something goes wrong, and how to run.
            time: The clock; None for the machine's monotonic one.

        Raises:
            LoopError: The rate or an option makes no sense, or the safe action does not fit the policy.
        """
        if not 0 < hz < math.inf:
            raise LoopError(f"hz={hz} is not a rate above 0 Hz")
        self._planner = PolicyPlanner(policy) if isinstance(policy, Policy) else policy
        self._options = (options or LoopOptions()).checked(self._planner.action_dim)
        self._read, self._write, self._hz = read_observation, write_action, hz
        self._time = time or RealTime()
        self._recorder = Recorder()
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._metrics: MetricsServer | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def for_env(
        cls,
        policy: Policy | Planner,
        env: "gymnasium.Env[Any, Any]",
        hz: float,
        options: LoopOptions | None = None,
        time: Timebase | None = None,
        seed: SupportsIndex | None = None,
    ) -> Self:
        """Make a loop that steps an environment in real time, one episode after the other.

        Args:
            policy: As for `ControlLoop`.
            env: The environment, which is reset here; whoever made it closes it.
            hz: As for `ControlLoop`.
            options: As for `ControlLoop`.
            time: As for `ControlLoop`.
            seed: Of the first episode, 0 … 2⁶⁴ − 1.

        Raises:
            EnvError: The environment's actions are not the policy's.
            LoopError: As for `ControlLoop`.
            SpecError: The seed is not one.
        """
        from asd_policy.evaluation.rollout.environments import check_fit

        check_fit(policy, env)
        link = EnvLink(env, seed)
        return cls(policy, link.read_observation, link.write_action, hz, options, time)

    def start(self) -> None:
        """Warm up, take a first observation, plan once, to see that all of it works, and begin to tick.

        That plan is not executed. It and the warm-up may take any time, minutes where a backend compiles; Ctrl-C ends
        the waiting.

        Raises:
            LoopError: The loop was started before, the source gives no observation, the plan is none, the metrics' port
                cannot be had, or the priority not.
            AsdError: The observation does not fit the policy, or the network failed.
        """
        if self._thread is not None:
            raise LoopError("a ControlLoop runs once; make another one")
        options = self._options
        if options.metrics_port is not None:
            self._metrics = MetricsServer(self.telemetry, options.metrics_port, options.metrics_host)
        self._link = Link(self._read, self._write)
        self._worker = CallThread("asd_policy planning", self._planner.plan)
        patience = 0.5 / self._hz if options.patience is None else options.patience
        self._ticker = Ticker(self._link, self._planner, self._worker, options, patience, self._recorder, self._time)
        self._thread = threading.Thread(target=self._control, name="asd_policy control", daemon=True)
        try:
            if isinstance(self._planner, PolicyPlanner):
                self._planner.warm_up(options.continuity)
            self._try_out()
            if options.priority is not None:
                _schedule(self._link.reader.thread, options.priority)
            self._thread.start()
            if options.priority is not None:
                _schedule(self._thread, options.priority)
        except BaseException:
            self._closed = True
            self._stopping.set()
            self._close()
            raise
        atexit.register(self._at_exit)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the loop ends, or for a time; Ctrl-C ends the waiting, and with `with` the loop too.

        Args:
            seconds: How long to wait [s]; None for as long as it runs.

        Returns:
            Whether the loop has ended; why, `stop` raises.

        Raises:
            LoopError: It was not started.
        """
        if self._thread is None:
            raise LoopError("the ControlLoop was not started")
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Write the safe action as the last one, end the threads, and close the metrics' port.

        Called in `write_action` it only ends the ticking; another thread's `stop` has to end threads and port.

        Raises:
            LoopError: The loop ended by a fault, or is in one that it has not recovered from, or a thread does not end.
        """
        if self._thread is None or self._closed:
            return
        self._stopping.set()
        if threading.current_thread() is self._thread:  # `write_action` has called it: this tick is the last
            return
        self._closed = True
        alive = self._close()
        atexit.unregister(self._at_exit)
        error = self._error or self._ticker.fault
        if error is not None:
            raise error
        if alive:
            raise LoopError(f"threads do not end within {ENDING} s: {', '.join(alive)}")

    def run(self, seconds: float | None = None) -> Telemetry:
        """Start, wait, stop.

        Args:
            seconds: How long to run [s]; None for until it ends by itself or by Ctrl-C.

        Returns:
            The account at the end.

        Raises:
            AsdError: As `start` and `stop`.
        """
        with self:
            self.wait(seconds)
        return self.telemetry()

    def telemetry(self) -> Telemetry:
        """Report what the loop has done so far; from any thread, while it runs and after it."""
        return self._recorder.telemetry()

    @property
    def metrics_port(self) -> int | None:
        """Port of the Prometheus endpoint; None where there is none, or the loop was not started."""
        return self._metrics and self._metrics.port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; where an error is under way already, the loop's own is added to it as a note."""
        try:
            self.stop()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"the control loop: {own}")

    def _try_out(self) -> None:
        observation = self._link.read(FIRST_OBSERVATION)
        if observation is None:
            raise LoopError(f"read_observation has returned nothing for {FIRST_OBSERVATION:.0f} s")
        self._ticker.history.add(observation)
        self._worker.begin(self._ticker.history.hand_over(), 0, True)
        outcome = self._worker.outcome(None)
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        check_plan(outcome.value, self._planner.action_dim)
        self._ticker.history.clear()

    def _control(self) -> None:
        """Tick, and write the safe action at the end, whatever ends it."""
        for part in (self._tick, self._ticker.finish):
            try:
                part()
            except BaseException as error:
                self._error = self._error or error
        if self._error is not None:
            self._recorder.fault = one_line(str(self._error))
        self._recorder.state = "ended"
        self._ended.set()

    def _tick(self) -> None:
        hz, time = self._hz, self._time
        start = time.now() + 1 / hz
        place, last, ticks = 0, -1, 0
        while ticks != self._options.ticks:
            # Every deadline is computed from the start: a late tick does not move the next one.
            deadline = start + place / hz
            time.sleep_until(deadline, self._stopping)
            if self._stopping.is_set():
                return
            self._ticker.tick(deadline, place - last - 1)
            ticks += 1
            last, place = place, max(place + 1, math.floor((time.now() - start) * hz) + 1)

    def _close(self) -> list[str]:
        """End all threads; return the names of those that do not."""
        assert self._thread is not None
        if self._thread.ident is not None:
            self._thread.join(ENDING)
        alive = [self._thread] if self._thread.is_alive() else []
        alive += [worker.thread for worker in (self._link.reader, self._worker) if not worker.close(ENDING)]
        if self._metrics is not None:
            self._metrics.close()
        return [thread.name for thread in alive]

    def _at_exit(self) -> None:
        self._stopping.set()
        self._ended.wait(ENDING)


def _schedule(thread: threading.Thread, priority: int) -> None:
    """Give a thread a SCHED_FIFO priority.

    Raises:
        LoopError: The system has none, or does not allow it.
    """
    if not hasattr(os, "sched_setscheduler"):
        raise LoopError(f"priority={priority} needs SCHED_FIFO, which this system has not")
    assert thread.native_id is not None
    try:
        os.sched_setscheduler(thread.native_id, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        raise LoopError(f"priority={priority} is not allowed here: it needs CAP_SYS_NICE or an rtprio limit") from None
