"""A thread that does one call at a time while its owner goes on."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call."""

    value: Any
    """Its return value; None where it raised."""
    error: BaseException | None
    """The error that it raised; None where it returned."""
    seconds: float
    """How long it took [s]."""


class CallThread:
    """A thread for calls that may block. It is a daemon: one that never comes back does not keep the program alive."""

    def __init__(self, name: str, work: Callable[..., Any]) -> None:
        """Start the thread.

        Args:
            name: Name of the thread.
            work: The function of every call.
        """
        self._work = work
        self._calls: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.busy = False
        """Whether a call's outcome has not been taken yet."""
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        """The thread."""
        self.thread.start()

    def begin(self, *arguments: Any) -> None:
        """Begin a call; only for the owner of an idle worker. Waits for nothing."""
        assert not self.busy
        self.busy = True
        self._calls.put(arguments)

    def outcome(self, timeout: float | None = 0.0) -> Outcome | None:
        """Take the outcome of the call that was begun, so that the next one can be; None while it goes on.

        Args:
            timeout: How long to wait for it [s]; None for as long as it takes.
        """
        try:
            found = self._outcomes.get(timeout != 0.0, timeout)
        except Empty:
            return None
        self.busy = False
        return found

    def close(self, timeout: float) -> bool:
        """Have the thread end after the call it is at; return whether it has ended.

        Args:
            timeout: How long to wait for it [s].
        """
        self._calls.put(None)
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        while (arguments := self._calls.get()) is not None:
            start = time.perf_counter()
            value = error = None
            try:
                value = self._work(*arguments)
            except BaseException as raised:  # any error is the owner's to handle
                error = raised
            self._outcomes.put(Outcome(value, error, time.perf_counter() - start))
            value = error = None  # so that nothing is kept alive while the thread waits
