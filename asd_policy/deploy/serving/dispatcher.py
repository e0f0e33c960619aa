"""Plan for many robots: waiting requests are planned for together, the oldest first."""

import copy
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.deploy.serving.metrics import Metrics
from asd_policy.deploy.serving.sessions import Session
from asd_policy.errors import AsdError
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.episode_state import EpisodeState
from asd_policy.policy.plan import PlanRecord
from asd_policy.policy.policy import Policy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A plan for one robot."""

    actions: npt.NDArray[np.float32]
    """[n, action_dim], from the action for the latest observation to the plan's end."""
    record: PlanRecord
    """Its cost."""
    waited: float
    """From the request's arrival to the plan's start [s]."""
    sampler: str
    """Spec of the sampler as it ran."""


@dataclass(frozen=True, eq=False)
class Request:
    """One robot's request for a plan."""

    session: Session
    """The robot's session."""
    history: list[dict[str, Array]]
    """Its last n_obs_steps observations, oldest first, as `read_observation` gives them."""
    step: int
    """Actions it has taken in this episode."""
    begins: bool
    """Whether an episode begins."""
    seed: int | None = None
    """Seed of the noise of an episode that begins; None goes on with the session's."""
    prefix: Prefix | None = None
    """The actions that the robot executes meanwhile."""
    deadline: float = float("inf")
    """When the client stops waiting for the plan, on the clock `time.monotonic` [s]."""
    arrived: float = field(default_factory=time.monotonic)
    """When the request came, on the same clock [s]."""
    answer: Future[Answer] = field(default_factory=Future)
    """Holds the plan when it is made."""

    def robot(self, device: Any) -> EpisodeState:
        """Copy the session's robot for planning; the session's own stays as it is, should the plan fail."""
        known = self.session.robot
        kept = slice(0) if self.begins else slice(-1, None)
        seeded = self.seed is not None
        robot = replace(
            known,
            generator=arrays.make_generator(device, self.seed) if seeded else copy.deepcopy(known.generator),
            history=known.history.copy(),
            steps=self.step,
            plans=known.plans[kept],
            records=known.records[kept],
        )
        for seen in self.history:  # as many as there is room for: none of the old ones stays
            robot.observe(seen)
        return robot


def batch_sizes(most: int, on_cpu: bool) -> tuple[int, ...]:
    """List the sizes that batches may have: on a CPU all, else the powers of two and the largest."""
    if on_cpu:
        return tuple(range(1, most + 1))
    return tuple(sorted({2**power for power in range(most.bit_length())} | {most}))


class Dispatcher:
    """A queue of requests, and a thread that plans for them.

    A batch has the requests that wait when the thread is free, up to a size. On a GPU, whose work is recorded or
    compiled for its shapes, a batch is filled up to the next power of two with rows that nobody waits for; on a CPU,
    where each row costs time, it is not. Every size is planned once before the first request, so that none waits while
    a size is recorded, compiled or timed.
    """

    def __init__(self, policy: Policy, max_batch: int, max_queue: int, metrics: Metrics) -> None:
        """Begin with an empty queue.

        Args:
            policy: Plans; belongs to the thread from now on.
            max_batch: Robots planned for at once.
            max_queue: Requests that wait, beside those that are planned.
            metrics: Counts what happens.
        """
        self._policy, self._max_batch, self._max_queue, self._metrics = policy, max_batch, max_queue, metrics
        on_cpu = policy.device == NUMPY or policy.device.type == "cpu"
        self.sizes = batch_sizes(max_batch, on_cpu)
        self._spare = arrays.make_generator(policy.device)  # noise of rows that nobody waits for
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 0.0  # of a batch, smoothed
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="asd-policy-planner", daemon=True)

    def start(self) -> None:
        """Start the thread; plans of every size have been made when this returns.

        Raises:
            AsdError: As `Policy.plan_for`.
        """
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:  # Ctrl-C, too: the interpreter cannot end beside a thread that is within a network
            self.stop()
            raise

    def stop(self) -> None:
        """End the thread after the last waiting request has its plan."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def delay(self) -> float:
        """How long the requests that wait will take to plan, about [s]."""
        return self._seconds * (1 + len(self._waiting) / self._max_batch)

    def submit(self, request: Request) -> bool:
        """Let a request wait for its plan.

        Returns:
            Whether there was room for it.
        """
        with self._changed:
            if len(self._waiting) >= self._max_queue:
                return False
            request.session.busy = True
            self._waiting.append(request)
            self._changed.notify()
        request.answer.add_done_callback(lambda _: self._release(request))
        return True

    def _release(self, request: Request) -> None:
        """Note that a request is done, or that its client has gone."""
        with self._changed:
            request.session.renew()  # the wait and the plan may have taken longer than a lease
            request.session.busy = False
            if request in self._waiting:
                self._waiting.remove(request)
                self._metrics.dropped.inc()

    def _run(self) -> None:
        try:
            for size in self.sizes:
                if self._stopping:
                    return
                self._seconds = self._policy.warm_up(size).plan_seconds
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            batch = [request for request in taken if self._is_wanted(request)]
            if batch:
                self._serve(batch)

    def _is_wanted(self, request: Request) -> bool:
        """Tell whether somebody still waits for a plan; from now on it cannot be called off."""
        if time.monotonic() > request.deadline:
            request.answer.cancel()
        wanted = request.answer.set_running_or_notify_cancel()
        if not wanted:
            self._metrics.dropped.inc()
        return wanted

    def _serve(self, batch: list[Request]) -> None:
        """Plan for a batch of requests, and answer them; if one makes the common plan fail, each gets its own."""
        start = time.monotonic()
        try:
            answers = self._plan(batch, start)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._serve([request])
                return
            if not isinstance(error, AsdError):  # the client gets that one
                _log.exception("a plan failed")
            batch[0].answer.set_exception(error)
            return
        self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - start)
        self._metrics.batch.observe(len(batch))
        for request, answer in zip(batch, answers, strict=True):
            self._metrics.plans.inc()
            self._metrics.rounds.inc(answer.record.rounds)
            self._metrics.latency.observe(time.monotonic() - request.arrived)
            request.answer.set_result(answer)

    def _plan(self, batch: list[Request], start: float) -> list[Answer]:
        robots = [request.robot(self._policy.device) for request in batch]
        fill = next(size for size in self.sizes if size >= len(batch)) - len(batch)
        last = robots[-1]
        self._policy.robots = robots + [
            replace(last, generator=self._spare, plans=[*last.plans], records=[*last.records]) for _ in range(fill)
        ]
        prefixes = [request.prefix for request in batch] + [None] * fill
        actions = self._policy.plan_for(range(len(batch) + fill), prefixes)
        answers = []
        for request, robot, own in zip(batch, robots, actions, strict=False):  # the rows that fill up have no request
            request.session.robot = robot
            answers.append(Answer(own, robot.records[-1], start - request.arrived, robot.plans[-1].stats.spec))
        return answers
