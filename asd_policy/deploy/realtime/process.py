"""A planner in a process of its own, which does not share the control thread's interpreter lock."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from asd_policy.deploy.realtime.planner import PolicyPlanner
from asd_policy.errors import LoopError
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.observation import Shapes
from asd_policy.policy.plan import Horizons
from asd_policy.policy.planner import Planned
from asd_policy.policy.policy import Policy

ENDING = 2.0
"""Time that the process has to end [s]."""


class ProcessPlanner:
    """A policy that another process loads and plans with.

    The control thread cannot tick while a planning thread of its process holds the interpreter's lock, and where the
    system interrupts that thread to run something else, it waits for both. Observations must be
    picklable. A process that ended is started again by the next plan.

        with ProcessPlanner(partial(load_policy, "checkpoints/avoid", "asd")) as planner:
            ControlLoop(planner, robot.read, robot.write, hz=500).run()
    """

    def __init__(self, load: Callable[[], Policy]) -> None:
        """Start the process, and wait until it has the policy.

        Args:
            load: Returns the policy; picklable, as `functools.partial(load_policy, …)` is.

        Raises:
            AsdError: What `load` raised.
            LoopError: The process ended.
        """
        self._load = load
        self._start()

    @property
    def horizons(self) -> Horizons:
        """The policy's."""
        return self._horizons

    @property
    def action_dim(self) -> int:
        """The policy's."""
        return self._action_dim

    @property
    def observation_shapes(self) -> Shapes:
        """The policy's."""
        return self._observation_shapes

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan, as `PolicyPlanner` does.

        Raises:
            AsdError: What the policy raised.
            LoopError: The process ended.
        """
        if not self._process.is_alive():
            self._start()
            begins = True
        return self._ask((observations, step, begins, prefix))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(ENDING)
        self._process.kill()  # nothing happens where it has ended
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._load, theirs), name="asd_policy planning", daemon=True
        )
        self._process.start()
        theirs.close()
        self._horizons, self._action_dim, self._observation_shapes = self._answer()

    def _ask(self, question: Any) -> Any:
        try:
            self._connection.send(question)
        except OSError:
            pass  # it has ended: its answer is still there, or the next line raises how it ended
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(ENDING)
            raise LoopError(f"the planning process ended with exit status {self._process.exitcode}") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _serve(load: Callable[[], Policy], connection: Connection) -> None:
    """Plan until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which ends this process
    try:
        planner = PolicyPlanner(load())
        planner.warm_up()
    except Exception as error:
        connection.send(error)
        return
    connection.send((planner.horizons, planner.action_dim, planner.observation_shapes))
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send(planner.plan(*question))
        except Exception as error:
            connection.send(error)
