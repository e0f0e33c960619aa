"""How long things take, learned while they are done."""

import math
from collections import deque
from collections.abc import Hashable

_REMEMBERED = 32  # times of each kind of work


class Pace:
    """How long pieces of work took lately, for a guess at the next. It goes on while nothing else is learned."""

    def __init__(self) -> None:
        """Begin without times."""
        self._recent: dict[Hashable, deque[float]] = {}
        self._least: dict[Hashable, float] = {}

    def copy(self) -> "Pace":
        """Return a pace with the same times that goes its own way."""
        other = Pace()
        other._recent = {work: times.copy() for work, times in self._recent.items()}
        other._least = dict(self._least)
        return other

    def note(self, work: Hashable, seconds: float) -> None:
        """Add what a piece of work took [s]."""
        self._recent.setdefault(work, deque(maxlen=_REMEMBERED)).append(seconds)
        self._least[work] = min(seconds, self._least.get(work, math.inf))

    def forget(self, work: Hashable) -> None:
        """Forget the longest of the times of a piece of work: it has forbidden it, and may have been an accident."""
        times = self._recent.get(work)
        if times:
            times.remove(max(times))

    def expect(self, work: Hashable) -> float:
        """Return what a piece of work may take [s]: the longest of its last times; 0 before the first."""
        return max(self._recent.get(work, ()), default=0.0)

    def least(self, work: Hashable) -> float | None:
        """Return the shortest that it ever took [s]; None before the first."""
        return self._least.get(work)
