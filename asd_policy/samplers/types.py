"""What samplers and policies return. Terms (round, nfe, acceptance length) as in docs/theory/architecture.md."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asd_policy._common.arrays import Array

UNCLOCKED = "none"
"""In the place of a mode of `clocks`, where the environment waits for plans."""
MEASURED = "measured"
"""In the place of a latency: what a plan takes on this machine."""


@dataclass(frozen=True)
class SpeculationStats:
    """What one call of a sampler cost. Tuples have one entry per row of the batch."""

    steps: int
    """Length K of the sequential chain that the plan stands for."""
    rounds: tuple[int, ...]
    """Sequential network calls a row waited for."""
    nfe: tuple[int, ...]
    """Network evaluations (points) computed for a row."""
    seconds: float
    """Wall-clock time of the whole call [s]."""
    network_seconds: float | None
    """The part of `seconds` spent inside the network [s]; None where a recording hides it, as a CUDA graph does."""
    window: int = 1
    """Most points that a network call evaluated per row."""
    spec: str = ""
    """Of the sampler as it ran: what was left to it is settled."""
    refused: tuple[tuple[int, ...], ...] | None = None
    """The steps k, 0 the noisiest, whose draft was refused; None for a sampler without drafts."""
    unjudged: tuple[tuple[int, ...], ...] | None = None
    """The steps that were taken without a draft to judge; None for a sampler without drafts."""
    cut: tuple[bool, ...] = ()
    """Which rows a deadline's fallback has finished."""
    exact: tuple[bool, ...] = ()
    """Which rows have the law of the sequential sampler: no row of an approximate one, none that was cut, and none that
    was drawn to the plan before it."""
    trial_calls: int = 0
    """Network calls of the whole batch beside those in `rounds`: to look at the network, to time it, to record it. None
    after a warm-up for as many rows."""
    trial_points: int = 0
    """Points that these evaluated, beside those in `nfe`."""

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

    @property
    def algorithmic_speedup(self) -> float:
        """K over the mean number of rounds."""
        return self.steps * len(self.rounds) / sum(self.rounds)

    @property
    def overhead_fraction(self) -> float | None:
        """Share of the time spent outside the network, 0 … 1; None where it is not known."""
        return overhead_fraction([self], self.seconds)


@dataclass(frozen=True)
class Timing:
    """When one plan came to a robot that did not wait for it (`asd_policy.evaluation.rollout.clocks`)."""

    latency: float
    """The time it is taken to have been made in [s]: measured, or as the run was told."""
    delay: int
    """Control steps from the observation it was made for to its first action; 0 for the first plan of an episode."""
    stale: int
    """Control steps in which an action was repeated for want of this plan; above 0, its deadline is missed."""
    seam: float | None
    """Distance, in normalised units, from what the robot would have done without this plan to what it does with it, at
    the first step that the plan was free in. None for a first plan, and without delay at the end of the one before."""


@dataclass(frozen=True)
class PlanRecord:
    """What one plan of an episode cost."""

    at: int
    """Control step of the episode at which it was made, 0 the first."""
    rounds: int
    """Sequential network calls it waited for."""
    nfe: int
    """Network evaluations (points) computed for it."""
    window: int
    """Most points that a network call evaluated for it."""
    batch: int
    """Plans that were sampled together, this one included."""
    seconds: float
    """Latency of the batch [s]: observations in, actions out."""
    network_seconds: float | None
    """The part of `seconds` spent inside the network [s]; None where it is not known."""
    refused: tuple[int, ...] | None
    """The steps whose draft was refused; None for a sampler without drafts."""
    unjudged: tuple[int, ...] | None
    """The steps without a draft to judge; None for a sampler without drafts."""
    cut: bool = False
    """Whether a deadline's fallback has finished it."""
    exact: bool = True
    """Whether it was made with the law of the sequential sampler, and not cut."""
    timing: Timing | None = None
    """When it came; None where the environment waited for it."""


def overhead_fraction(calls: Sequence[SpeculationStats] | Sequence[PlanRecord], seconds: float) -> float | None:
    """Return the share of so many seconds that calls spent outside the network, 0 … 1; None where one does not say."""
    inside = [call.network_seconds for call in calls if call.network_seconds is not None]
    return 1.0 - sum(inside) / seconds if len(inside) == len(calls) else None


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


@dataclass(frozen=True)
class Plan:
    """One planned batch of action chunks, in the environment's units."""

    chunk: Array
    """All the actions the network generated, shape [B, horizon, action_dim]."""
    actions: Array
    """The actions to execute, shape [B, n_action_steps, action_dim]."""
    stats: SpeculationStats
    """What the sampler reports."""
    seconds: float
    """Latency of the plan [s]: observation in, actions out."""
    cond: Array
    """What the network was told of the observations: normalised and flattened [B, n_obs_steps · feature dims]."""
    sample: Array
    """The chunk as the network sees it, normalised, [B, horizon, action_dim], or wider for a policy that inpaints."""

    def row(self, row: int) -> "Plan":
        """Return one plan of the batch, as a batch of one."""
        rows, stats = slice(row, row + 1), self.stats
        return Plan(
            self.chunk[rows],
            self.actions[rows],
            replace(
                stats,
                rounds=stats.rounds[rows],
                nfe=stats.nfe[rows],
                refused=stats.refused and stats.refused[rows],
                unjudged=stats.unjudged and stats.unjudged[rows],
                cut=stats.cut[rows],
                exact=stats.exact[rows],
            ),
            self.seconds,
            self.cond[rows],
            self.sample[rows],
        )

    def record(self, row: int, at: int) -> PlanRecord:
        """Return what one plan of the batch cost, made at control step `at` of its episode."""
        stats = self.stats
        return PlanRecord(
            at=at,
            rounds=stats.rounds[row],
            nfe=stats.nfe[row],
            window=stats.window,
            batch=len(stats.rounds),
            seconds=self.seconds,
            network_seconds=stats.network_seconds,
            refused=None if stats.refused is None else stats.refused[row],
            unjudged=None if stats.unjudged is None else stats.unjudged[row],
            cut=any(stats.cut[row : row + 1]),
            exact=all(stats.exact[row : row + 1]),
        )
