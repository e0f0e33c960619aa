"""The ticks of a control loop: observe, take a plan, ask for the next one, act."""

from collections import deque

import numpy as np
import numpy.typing as npt

from asd_policy.deploy.realtime.history import History
from asd_policy.deploy.realtime.link import EpisodeEnded, Link
from asd_policy.deploy.realtime.options import LoopOptions, checked_action
from asd_policy.deploy.realtime.planner import check_plan, shapes_of
from asd_policy.deploy.realtime.telemetry import Recorder
from asd_policy.deploy.realtime.timebase import Timebase
from asd_policy.deploy.realtime.worker import CallThread
from asd_policy.errors import AsdError, LoopError
from asd_policy.policy.continuity import REMEMBERED, prefix_of, seam
from asd_policy.policy.planner import Planner


class Ticker:
    """Used by the control thread alone; only `Recorder` is read by others."""

    def __init__(
        self,
        link: Link,
        planner: Planner,
        worker: CallThread,
        options: LoopOptions,
        patience: float,
        recorder: Recorder,
        time: Timebase,
    ) -> None:
        """Begin an episode.

        Args:
            link: To the robot.
            planner: Says how long histories and chunks are.
            worker: Runs its `plan`.
            options: What to do when something goes wrong.
            patience: How long a tick waits for its observation [s].
            recorder: Takes the record of every step.
            time: The clock.
        """
        self._link, self._worker, self._options, self._patience = link, worker, options, patience
        self._recorder, self._time = recorder, time
        self._horizons, self._action_dim = planner.horizons, planner.action_dim
        self.history = History(planner.horizons.n_obs_steps, shapes_of(planner))
        """The last observations."""
        self.fault: LoopError | None = None
        """Why safe actions are written."""
        self._steps = 0  # actions written
        self._late = 0  # ticks in a row
        self._chunk = self._no_plan = np.zeros((0, planner.action_dim), np.float32)
        self._chunk_step = 0  # at which the chunk's first action was due
        self._asked_step, self._asked_at, self._asked_epoch = 0, 0.0, 0
        self._ticks, self._asked_tick, self._given = 0, 0, 0
        self._delays: deque[int] = deque(maxlen=REMEMBERED)  # latencies of the last plans [ticks]
        self._epoch = 0  # goes up when observations and plans become void
        self._begin_anew()
        recorder.state = "waiting"

    def tick(self, deadline: float, missed: int) -> None:
        """Act once.

        Args:
            deadline: When the action is due [s].
            missed: Deadlines before it that were let pass.

        Raises:
            LoopError: A fault, and there is no safe action; or that is none; or `write_action` raised.
        """
        self._ticks += 1
        self._recorder.count("ticks")
        self._recorder.count("missed", missed)
        late = f"{missed} deadlines were missed" if missed else ""
        try:
            seen = self._link.read(self._patience)
            if seen is None:
                self._recorder.count("blind")
                late = "read_observation blocks"
            else:
                self.history.add(seen)
            self._exchange_plans(seen is not None)
        except AsdError as error:
            self._fail(error)
        if self._recorder.state == "running" and not len(self._rest()):
            self._recorder.count("stale")
            late = late or "the plan is used up, and the next is not there"
        self._late = self._late + 1 if late and self.fault is None else 0
        if self._late >= self._options.late_limit:
            self._fail(LoopError(f"late {self._late} times in a row: {late}"))
        action = self._action()
        if action is None:
            self._recorder.write_nothing()
        else:
            self._recorder.write(self._time.now(), deadline)
            self._write(action)

    def finish(self) -> None:
        """Write the safe action, if there is one, as the last.

        Raises:
            LoopError: It is none, or `write_action` raised.
        """
        action = self._safe_action()
        if action is not None:
            self._write(action)

    def _exchange_plans(self, fresh: bool) -> None:
        """Take a finished plan; begin the next one when it is due.

        Args:
            fresh: Whether this tick has an observation to plan from.

        Raises:
            AsdError: The planner failed, or returned something that must not reach a robot.
        """
        outcome = self._time.outcome(self._worker, self._asked_at) if self._worker.busy else None
        if outcome is not None and self._asked_epoch != self._epoch:
            self._recorder.count("dropped")
        elif outcome is not None:
            if outcome.error is not None:
                error = outcome.error
                raise LoopError(f"the planner raised {type(error).__name__}: {error}") from error
            planned = check_plan(outcome.value, self._action_dim)
            self._recorder.plan(outcome.seconds, planned.rounds, planned.cut)
            self._delays.append(self._ticks - self._asked_tick)
            in_time = self._steps - self._asked_step < len(planned.actions)
            if self.fault is None or in_time:
                self._take_over(planned.actions)
        elif self._worker.busy and self.fault is None:
            taken = self._time.now() - self._asked_at
            if taken > self._options.plan_limit:
                raise LoopError(f"the planner has not answered for {taken:.3g} s")
        wanted = self.fault is None or self._options.recover
        if wanted and fresh and not self._worker.busy and self._steps >= self._due:
            self._asked_step, self._asked_at, self._asked_epoch = self._steps, self._time.now(), self._epoch
            self._asked_tick = self._ticks
            self._due = self._steps + self._horizons.n_action_steps
            prefix = prefix_of(self._rest(), self._delays, self._options.continuity)  # a copy of the rest
            self._given = prefix.delay if prefix else 0
            self._worker.begin(self.history.hand_over(), self._steps, self._begins, prefix)
            self._begins = False

    def _take_over(self, actions: npt.NDArray[np.float32]) -> None:
        """Go on with the plan that was asked for last."""
        before = self._ahead()
        self._chunk = actions
        # A robot that was at rest, or held by safe actions, begins with the first action: a later one is a jump.
        self._chunk_step = self._asked_step if self._recorder.state == "running" else self._steps
        jump = seam(before, self._ahead(), max(0, self._given - (self._steps - self._asked_step)))
        if jump is not None:
            self._recorder.seam(jump)
        self._recorder.state, self.fault, self._recorder.fault = "running", None, None

    def _rest(self) -> npt.NDArray[np.float32]:
        """Slice the plan's actions [n, action_dim] from the one for this step on."""
        return self._chunk[self._steps - self._chunk_step :]

    def _ahead(self) -> npt.NDArray[np.float32]:
        """List the actions that the robot goes on with [n, action_dim]: the rest of the plan, or its last action."""
        return self._chunk[min(self._steps - self._chunk_step, len(self._chunk) - 1) :]

    def _action(self) -> npt.NDArray[np.float32] | None:
        if self._recorder.state != "running":
            return self._safe_action()
        return self._ahead()[0].copy()  # a copy, because `write_action` may change it

    def _safe_action(self) -> npt.NDArray[np.float32] | None:
        safe = self._options.safe_action
        if safe is None:
            return None
        if callable(safe):
            try:
                safe = safe(self.history.latest)
            except Exception as error:
                raise LoopError(f"the safe action raised {type(error).__name__}: {error}") from error
        self._recorder.count("safe")
        return checked_action(safe, self._action_dim)

    def _write(self, action: npt.NDArray[np.float32]) -> None:
        self._steps += 1
        try:
            self._link.write(action)
        except EpisodeEnded:
            self._recorder.count("episodes")
            self._begin_anew()
            if self.fault is None:
                self._recorder.state = "waiting"
        except Exception as error:
            raise LoopError(f"write_action raised {type(error).__name__}: {error}") from error

    def _fail(self, error: AsdError) -> None:
        """Switch to safe actions.

        Raises:
            LoopError: There is no safe action.
        """
        fault = error if isinstance(error, LoopError) else LoopError(str(error))
        if self.fault is None:
            self._recorder.count("faults")
        self._recorder.fault = str(fault)
        self.fault = fault
        self._begin_anew()
        if self._options.safe_action is None:
            raise fault
        self._recorder.state = "safe"

    def _begin_anew(self) -> None:
        """Forget observations and plans: they belong to another episode, or to the time before a fault."""
        self.history.clear()
        self._link.forget()
        self._chunk = self._no_plan
        self._due = self._steps
        self._epoch += 1
        self._begins = True
