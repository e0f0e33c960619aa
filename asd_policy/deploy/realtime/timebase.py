"""The clock of a control loop: the machine's monotonic one, or one that runs as fast as it can."""

import threading
import time
from typing import Protocol

from asd_policy.deploy.realtime.worker import CallThread, Outcome


class Timebase(Protocol):
    """A clock that never goes back."""

    def now(self) -> float:
        """Read the clock [s], which counts from any instant."""
        ...

    def sleep_until(self, instant: float, stop: threading.Event) -> None:
        """Wait until an instant of this clock [s], not at all if it is past, or until `stop` is set."""
        ...

    def outcome(self, planner: CallThread, since: float) -> Outcome | None:
        """Take the planner's outcome, None while it plans; the plan was begun at the instant `since` [s]."""
        ...


class RealTime:
    """The monotonic clock. The wall clock may be set forward and back, so it is never read."""

    def now(self) -> float:
        """Read the clock [s]."""
        return time.monotonic()

    def sleep_until(self, instant: float, stop: threading.Event) -> None:
        """Sleep, without spinning at the end, which would hold the interpreter's lock and block the planner."""
        left = instant - time.monotonic()
        if left > 0:
            stop.wait(left)

    def outcome(self, planner: CallThread, since: float) -> Outcome | None:
        """Take the outcome, if there is one."""
        return planner.outcome()


class VirtualTime:
    """A clock that jumps to the next deadline, for rehearsals: hours of ticks take minutes or seconds.

    A plan takes a fixed time of this clock: the loop waits for the planner when that time is over, and not before.
    """

    def __init__(self, latency: float = 0.0) -> None:
        """Start at 0.

        Args:
            latency: Of every plan, in this clock's time [s].
        """
        self._latency = latency
        self._now = 0.0

    def now(self) -> float:
        """Read the last deadline [s]."""
        return self._now

    def sleep_until(self, instant: float, stop: threading.Event) -> None:
        """Set the clock forward."""
        self._now = max(self._now, instant)

    def outcome(self, planner: CallThread, since: float) -> Outcome | None:
        """Hold the outcome back until the latency is over, then wait for it."""
        return planner.outcome(None) if self._now >= since + self._latency else None
