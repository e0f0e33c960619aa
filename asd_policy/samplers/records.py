"""What sampling cost: one record for each plan, and for the call that made a batch of them.

Terms (round, nfe, acceptance length) as in docs/theory/architecture.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from asd_policy._common.arrays import Array


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """What one plan cost: one row of a batch."""

    rounds: int
    """Sequential network calls it waited for."""
    nfe: int
    """Network evaluations (points) computed for it."""
    window: int = 1
    """Most points that a network call evaluated for it."""
    refused: tuple[int, ...] | None = None
    """The steps k, 0 the noisiest, whose draft was refused; None for a sampler without drafts."""
    unjudged: tuple[int, ...] | None = None
    """The steps that were taken without a draft to judge; None for a sampler without drafts."""
    cut: bool = False
    """Whether a deadline's fallback has finished it."""
    exact: bool = True
    """Whether it has the law of the sequential sampler: not from an approximate sampler, not cut, not guided."""


def sequential_costs(calls: Sequence[int], cut: bool = False) -> list[PlanCost]:
    """List what plans cost that waited for so many calls each, on one point a call."""
    return [PlanCost(rounds=count, nfe=count, cut=cut) for count in calls]


@dataclass(frozen=True, kw_only=True)
class SpeculationStats:
    """What one call of a sampler cost, for all B plans of its batch."""

    plans: tuple[PlanCost, ...]
    """What each row cost."""
    steps: int
    """Length K of the sequential chain that a plan stands for."""
    seconds: float
    """Wall-clock time of the whole call [s]."""
    network_seconds: float | None
    """The part of `seconds` spent inside the network [s]; None where a recording hides it, as a CUDA graph does."""
    spec: str = ""
    """Of the sampler as it ran: what was left to it is settled."""
    trial_calls: int = 0
    """Network calls of the whole batch beside those in `rounds`: to look at the network, to time it, to record it. None
    after a warm-up for as many rows."""
    trial_points: int = 0
    """Points that these evaluated, beside those in `nfe`."""

    @property
    def rounds(self) -> tuple[int, ...]:
        """Of each row."""
        return tuple(plan.rounds for plan in self.plans)

    @property
    def nfe(self) -> tuple[int, ...]:
        """Of each row."""
        return tuple(plan.nfe for plan in self.plans)

    @property
    def window(self) -> int:
        """Most points that a network call evaluated per row."""
        return max(plan.window for plan in self.plans)

    @property
    def refused(self) -> tuple[tuple[int, ...], ...] | None:
        """Of each row; None for a sampler without drafts."""
        steps = [plan.refused for plan in self.plans if plan.refused is not None]
        return tuple(steps) if len(steps) == len(self.plans) else None

    @property
    def unjudged(self) -> tuple[tuple[int, ...], ...] | None:
        """Of each row; None for a sampler without drafts."""
        steps = [plan.unjudged for plan in self.plans if plan.unjudged is not None]
        return tuple(steps) if len(steps) == len(self.plans) else None

    @property
    def cut(self) -> tuple[bool, ...]:
        """Of each row."""
        return tuple(plan.cut for plan in self.plans)

    @property
    def exact(self) -> tuple[bool, ...]:
        """Of each row."""
        return tuple(plan.exact for plan in self.plans)

    @property
    def all_calls(self) -> int:
        """Network calls of the whole batch."""
        return max(self.rounds) + self.trial_calls

    @property
    def all_points(self) -> int:
        """Points that these evaluated."""
        return sum(self.nfe) + self.trial_points

    def with_trials(self, calls: int, points: int) -> "SpeculationStats":
        """Count so many network calls beside the algorithm's, and their points."""
        return replace(self, trial_calls=self.trial_calls + calls, trial_points=self.trial_points + points)

    def row(self, row: int) -> "SpeculationStats":
        """Take one row, as a batch of one."""
        return replace(self, plans=self.plans[row : row + 1])

    @property
    def algorithmic_speedup(self) -> float:
        """K over the mean number of rounds."""
        return self.steps * len(self.plans) / sum(self.rounds)

    @property
    def overhead_fraction(self) -> float | None:
        """Share of the time spent outside the network, 0 … 1; None where it is not known."""
        return overhead_fraction([self], self.seconds)


class _Timed(Protocol):
    @property
    def network_seconds(self) -> float | None: ...


def overhead_fraction(calls: Sequence[_Timed], seconds: float, encoding: float = 0.0) -> float | None:
    """Compute the share of some time that calls spent outside all networks, 0 … 1; None where one does not say.

    Args:
        calls: Of samplers.
        seconds: All the time [s].
        encoding: Of this, in the networks that encode observations [s].
    """
    inside = [call.network_seconds for call in calls if call.network_seconds is not None]
    return 1.0 - (sum(inside) + encoding) / seconds if len(inside) == len(calls) else None


@dataclass(frozen=True)
class SampleResult:
    """A batch of samples and what they cost."""

    sample: Array
    """Shape [B, *event], in the chain's (normalised) space."""
    stats: SpeculationStats


@dataclass(frozen=True)
class WarmUp:
    """What was done before a first plan, so that no plan waits for it."""

    calls: int
    """Network calls that were made for it: to look at the network, to time and to record it, and those of its plans."""
    points: int
    """Points that they evaluated."""
    seconds: float
    """Time it took [s]."""
    plan_seconds: float
    """Of it the last plan's, for which all was ready [s]."""
    spec: str
    """Of the sampler as it now runs: what was left to it is settled, until plans teach more."""
    loop_seconds: float | None = None
    """Time of the library's own sampling loop, for as many robots [s]; None where it was not measured."""
