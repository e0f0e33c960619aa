"""Telemetry of a control loop, to be read while it runs."""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

State = Literal["ready", "waiting", "running", "safe", "ended"]
STATES: tuple[State, ...] = ("ready", "waiting", "running", "safe", "ended")
"""Not started; no plan yet; planned actions are written; safe actions are; over."""
COUNTS: tuple[str, ...] = ("ticks", "missed", "blind", "stale", "safe", "faults", "plans", "cut", "dropped", "episodes")
TICKS_KEPT = 65536
"""Number of last ticks in the percentiles."""
PLANS_KEPT = 4096
"""Number of last plans in the percentiles."""


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the last values, in one unit."""

    p50: float
    """Median."""
    p95: float
    """95th percentile."""
    p99: float
    """99th percentile."""
    max: float
    """Largest."""
    n: int
    """Number of values."""


@dataclass(frozen=True)
class Telemetry:
    """A control loop's telemetry at one instant. Counts are since the start, percentiles of the last values."""

    state: State
    """What it does."""
    fault: str | None
    """Why it writes safe actions, or has ended; None where there was no fault or it was recovered from."""
    ticks: int
    """Deadlines at which it acted."""
    missed: int
    """Deadlines that it let pass, because the tick before took too long."""
    blind: int
    """Ticks whose observation was not there in time."""
    stale: int
    """Ticks without a planned action: the last plan was used up and its last action was written again."""
    safe: int
    """Safe actions written."""
    faults: int
    """Times that it switched to safe actions, or ended by a fault."""
    plans: int
    """Plans that were executed, or began to be."""
    cut: int
    """Those of them that a deadline's fallback has finished: they are not exact."""
    dropped: int
    """Plans thrown away: their episode was over, or there was a fault meanwhile."""
    episodes: int
    """Episodes that ended."""
    period_ms: Percentiles | None
    """Between the actions of consecutive ticks [ms]; None before the second."""
    lateness_ms: Percentiles | None
    """From a tick's deadline to its action being written [ms]; None before the first."""
    plan_ms: Percentiles | None
    """Latency of a plan [ms]; None before the first."""
    seam: Percentiles | None
    """Euclidean distance, in the actions' own units, between the actions without and with a new plan, at the first step
    in which the plan was free; None before the first."""
    rounds_mean: float | None
    """Sequential network calls of a plan; None before the first."""

    def __str__(self) -> str:
        counts = [f"{name} {getattr(self, name)}" for name in COUNTS]
        rows = [("period", "ms", self.period_ms), ("lateness", "ms", self.lateness_ms)]
        rows += [("plan", "ms", self.plan_ms), ("seam", "", self.seam)]
        found = [_line(name, unit, values) for name, unit, values in rows if values is not None]
        return "\n".join(
            (
                f"{self.state}{'' if self.fault is None else f': {self.fault}'}",
                ", ".join(counts[:6]),
                ", ".join(counts[6:]),
                *([] if self.rounds_mean is None else [f"rounds of a plan {self.rounds_mean:.1f}"]),
                *([] if not found else [f"{'':14}" + "".join(f"{name:>10}" for name in ("p50", "p95", "p99", "max"))]),
                *found,
            )
        )


def _line(name: str, unit: str, values: Percentiles) -> str:
    shown = "".join(f"{value:10.4g}" for value in (values.p50, values.p95, values.p99, values.max))
    return f"{name + (f' [{unit}]' if unit else ''):14}{shown}  of {values.n}"


class Ring:
    """The last numbers of a row, in memory that is allocated once."""

    def __init__(self, size: int) -> None:
        self._values = np.zeros(size)
        self._added = 0

    def add(self, value: float) -> None:
        """Add one; where it is full the oldest one goes."""
        self._values[self._added % len(self._values)] = value
        self._added += 1

    def copy(self) -> npt.NDArray[np.float64]:
        """Copy the values that it holds, in no order."""
        return self._values[: self._added].copy()


def percentiles(values: npt.NDArray[np.float64], scale: float = 1.0) -> Percentiles | None:
    """Compute the percentiles of values times a scale; None where there are none."""
    if not len(values):
        return None
    p50, p95, p99 = (float(value) for value in scale * np.percentile(values, (50, 95, 99)))
    return Percentiles(p50, p95, p99, float(scale * values.max()), len(values))


class Recorder:
    """Written by the control thread, which never waits; read by any thread, again if it was written meanwhile."""

    def __init__(self) -> None:
        self._version = 0  # odd while the control thread writes
        self._counts = dict.fromkeys(COUNTS, 0)
        self._periods, self._lateness = Ring(TICKS_KEPT), Ring(TICKS_KEPT)
        self._plans, self._rounds, self._seams = Ring(PLANS_KEPT), Ring(PLANS_KEPT), Ring(PLANS_KEPT)
        self._written: float | None = None
        self.state: State = "ready"
        """What the loop does."""
        self.fault: str | None = None
        """The fault, or None."""

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of `COUNTS`."""
        self._version += 1
        self._counts[name] += number
        self._version += 1

    def write(self, instant: float, deadline: float) -> None:
        """Note that an action is being written [s]."""
        self._version += 1
        self._lateness.add(instant - deadline)
        if self._written is not None:
            self._periods.add(instant - self._written)
        self._written = instant
        self._version += 1

    def write_nothing(self) -> None:
        """Note a tick without an action: the time from the last to the next one is no period."""
        self._written = None

    def plan(self, seconds: float, rounds: int, cut: bool) -> None:
        """Note a plan's latency [s], its rounds, and whether a deadline cut it."""
        self._version += 1
        self._counts["plans"] += 1
        self._counts["cut"] += cut
        self._plans.add(seconds)
        self._rounds.add(rounds)
        self._version += 1

    def seam(self, distance: float) -> None:
        """Note how far a plan is from the one that it replaces."""
        self._version += 1
        self._seams.add(distance)
        self._version += 1

    def telemetry(self) -> Telemetry:
        """Report all of it."""
        while True:
            version = self._version
            counts = dict(self._counts)
            rings = (self._periods, self._lateness, self._plans, self._rounds, self._seams)
            periods, lateness, plans, rounds, seams = (ring.copy() for ring in rings)
            state, fault = self.state, self.fault
            if version % 2 == 0 and version == self._version:
                break
            time.sleep(1e-4)
        return Telemetry(
            state=state,
            fault=fault,
            **counts,
            period_ms=percentiles(periods, 1e3),
            lateness_ms=percentiles(lateness, 1e3),
            plan_ms=percentiles(plans, 1e3),
            seam=percentiles(seams),
            rounds_mean=float(rounds.mean()) if len(rounds) else None,
        )
