"""How long things take, learned while they are done."""

import math
from collections import deque
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

REMEMBERED = 32
"""Times of each kind of work that are kept; also how often one may be refused in a row before it is tried again."""


class Pace:
    """How long pieces of work took lately, for a guess at the next. It goes on while nothing else is learned."""

    def __init__(self) -> None:
        self._recent: dict[Hashable, deque[float]] = {}
        self._least: dict[Hashable, float] = {}
        self._refused: dict[Hashable, int] = {}

    def copy(self) -> "Pace":
        """Copy the times to a pace that goes its own way."""
        other = Pace()
        other._recent = {work: times.copy() for work, times in self._recent.items()}
        other._least, other._refused = dict(self._least), dict(self._refused)
        return other

    def note(self, work: Hashable, seconds: float) -> None:
        """Add what a piece of work took [s]."""
        self._recent.setdefault(work, deque(maxlen=REMEMBERED)).append(seconds)
        self._least[work] = min(seconds, self._least.get(work, math.inf))
        self._refused.pop(work, None)

    def refuse(self, work: Hashable) -> None:
        """Take note that a piece of work was not begun because it takes too long, and so is not measured anew.

        After `REMEMBERED` times in a row its times are forgotten: the machine may have been busy when they were taken.
        """
        self._refused[work] = self._refused.get(work, 0) + 1
        if self._refused[work] > REMEMBERED:
            for known in (self._recent, self._least, self._refused):
                known.pop(work, None)

    def expect(self, work: Hashable) -> float | None:
        """Estimate how long a piece of work takes [s]; None before the first.

        The second longest of its last times: one may have been an accident. So work that was timed once, and refused
        for that, counts as not timed.
        """
        times = sorted(self._recent.get(work, ()), reverse=True)
        if len(times) == 1 and work in self._refused:
            return None
        return times[min(1, len(times) - 1)] if times else None

    def least(self, work: Hashable) -> float:
        """Give the shortest time that it ever took [s]; infinite before the first."""
        return self._least.get(work, math.inf)


_PACES: WeakKeyDictionary[Any, Pace] = WeakKeyDictionary()


def pace_of(network: Any) -> Pace:
    """Find the pace of a network without a policy; a new one each time for what has no weak references or no hash."""
    try:
        return _PACES.setdefault(network, Pace())
    except TypeError:
        return Pace()
