"""Anytime planning: when a plan has to be there, and whether one piece of work more will fit in before."""

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from asd_policy._common.clock import Stopwatch
from asd_policy.errors import SpecError
from asd_policy.samplers.pace import Pace

FALLBACKS = ("jump", "last_plan")
"""How a plan is finished whose time has run out: by the network's prediction x̂0 at the point that it has come to, which
costs one call more; or by the rest of the plan before it, moved on to the present, where there is one."""

T = TypeVar("T")

JUMP = "jump"

_TIMINGS = 10  # of a call that looks longer than the deadline: the machine may have held it up


@dataclass(frozen=True)
class Budget:
    """The time that a batch of samples may take, and who gets to know where it goes.

    With a deadline this is anytime planning. Rows whose chains will not be at their end in time, by the times of calls
    and rounds before, are finished by the fallback: "jump", to the prediction x̂0 at the point that a row has come to,
    or "last_plan", to the warm start's last plan, where there is one. The others are, to the bit, the samples without a
    deadline. The times of before are those of the warm start's experience, or else of all calls with the same denoiser.
    The first call for a batch size times the network first, counted apart, and can be late; so can one that the machine
    holds up.
    """

    deadline_ms: float | None = None
    """When the samples have to be there [ms]; None for no matter when."""
    fallback: str = "jump"
    """How rows are finished that would miss the deadline, one of `FALLBACKS`."""
    began: float | None = None
    """From when on, by `time.perf_counter` [s]; None for the call of `Sampler.sample`."""
    stopwatch: Stopwatch | None = None
    """Gets a mark where each stage of `clock.STAGES` begins; recordings make none."""


def check_deadline(milliseconds: float | None, fallback: str) -> None:
    """Refuse what no plan can have.

    Args:
        milliseconds: The deadline; None where there is none.
        fallback: How plans are finished that would miss it.

    Raises:
        SpecError: There is no such fallback, or the time is not a positive number.
    """
    if fallback not in FALLBACKS:
        raise SpecError(f"fallback={fallback} is not one of {', '.join(FALLBACKS)}")
    if milliseconds is not None and not 0 < milliseconds < math.inf:
        raise SpecError(f"deadline_ms={milliseconds:g} is not a positive number of milliseconds")


class Deadline:
    """When a batch of plans has to be there. A sampler asks it before each piece of work."""

    def __init__(self, began: float, milliseconds: float, fallback: str, pace: Pace, batch: int, jumps: bool) -> None:
        """Set it.

        Args:
            began: Of the batch, by `time.perf_counter` [s].
            milliseconds: From then on.
            fallback: One of `FALLBACKS`.
            pace: Of such plans on this device; noted in.
            batch: Number of plans.
            jumps: Whether the fallback will jump, so that time has to be kept back for it.

        Raises:
            SpecError: As `check_deadline`.
        """
        check_deadline(milliseconds, fallback)
        self.fallback = fallback
        self._seconds = milliseconds / 1000
        self._end = began + self._seconds
        self._pace = pace
        self._batch = batch
        self._jumps = jumps
        self._running: tuple[Hashable, float] | None = None

    def reserve(self, jump: Callable[[], object]) -> None:
        """See to it that the time of a jump is known; called before the first piece of work.

        Args:
            jump: One network call on a point per row, and waiting for it.

        Raises:
            SpecError: The deadline is shorter than that, however often it is tried.
        """
        key, pace = (JUMP, self._batch), self._pace
        if pace.least(key) <= self._seconds:
            return
        jump()  # warms up
        for _ in range(_TIMINGS):
            start = time.perf_counter()
            jump()
            pace.note(key, time.perf_counter() - start)
            if pace.least(key) <= self._seconds:
                break
        else:
            raise SpecError(
                f"deadline_ms={1000 * self._seconds:g} is shorter than one network call, which takes "
                f"{1000 * pace.least(key):.2g} ms here for {self._batch} plan{'s' if self._batch > 1 else ''} at once"
            )

    def jump(self, jump: Callable[[], T]) -> T:
        """Jump; it lasts until `stop`, so that what comes after it is in its time."""
        self.stop()
        self._running = (JUMP, self._batch), time.perf_counter()
        return jump()

    def allows(self, work: Hashable) -> bool:
        """Tell whether a piece of work, and a jump after it, will probably be done in time.

        Args:
            work: Its kind. It is taken to begin now if this is true, and to last until the next call of `allows`,
                `jump` or `stop`.
        """
        self.stop()
        key, now = (work, self._batch), time.perf_counter()
        call = self._pace.expect((JUMP, self._batch)) or 0.0
        expected = self._pace.expect(key) or call  # no round is less than a call
        if now + expected + (call if self._jumps else 0.0) > self._end:
            self._pace.refuse(key)
            return False
        self._running = key, now
        return True

    def stop(self) -> None:
        """End the piece of work that is running."""
        if self._running is not None:
            work, since = self._running
            self._pace.note(work, time.perf_counter() - since)
            self._running = None
