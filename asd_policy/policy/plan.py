"""A plan, its horizons, and what it cost."""

from dataclasses import dataclass, replace

from asd_policy._common.arrays import Array
from asd_policy.samplers.records import PlanCost, SpeculationStats

UNCLOCKED = "none"
"""In the place of a clock's mode, where the environment waits for plans."""
MEASURED = "measured"
"""In the place of a latency: what a plan takes on this machine."""


@dataclass(frozen=True)
class Horizons:
    """The three horizons of Diffusion Policy (arXiv 2303.04137), in control steps."""

    n_obs_steps: int
    """Observations the policy looks at, the current one included."""
    horizon: int
    """Actions a plan has, the first for the oldest of those observations."""
    n_action_steps: int
    """Actions executed before the next plan."""
    first_action: int | None = None
    """Place in a plan of the first action executed; None for n_obs_steps − 1, the action for the latest observation."""

    @property
    def executed(self) -> slice:
        """The part of a plan that is executed."""
        first = self.n_obs_steps - 1 if self.first_action is None else self.first_action
        return slice(first, first + self.n_action_steps)


@dataclass(frozen=True)
class Timing:
    """When one plan came to a robot that did not wait for it."""

    latency: float
    """The time it is taken to have been made in [s]: measured, or given by the run."""
    delay: int
    """Control steps from the observation it was made for to its first action; 0 for the first plan of an episode."""
    stale: int
    """Control steps in which an action was repeated for want of this plan; above 0, its deadline is missed."""
    seam: float | None
    """Discontinuity: distance, in normalised units, from what the robot would have done without this plan to what it
    does with it, at the first step that the plan was free in. None for a first plan, and without delay at the end of
    the one before."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord(PlanCost):
    """What one plan of an episode cost, and when it was made."""

    at: int
    """Control step of the episode at which it was made, 0 the first."""
    batch: int
    """Plans that were sampled together, this one included."""
    seconds: float
    """Latency of the batch [s]: observations in, actions out."""
    network_seconds: float | None
    """The part of `seconds` spent inside the network [s]; None where it is not known."""
    timing: Timing | None = None
    """When it came; None where the environment waited for it."""
    encode_seconds: float | None = None
    """The part of `seconds` spent encoding observations [s]; None where no network encodes them."""
    encoded: int | None = None
    """Observations that were encoded for the batch; those of earlier plans are not encoded again."""


@dataclass(frozen=True)
class Encoding:
    """What it took networks to encode the observations of a batch of plans."""

    observations: int
    """That were encoded."""
    seconds: float
    """Until the device was done [s]."""


@dataclass(frozen=True)
class Plan:
    """One planned batch of action chunks, in the environment's units."""

    chunk: Array
    """All the actions the network generated, shape [B, horizon, action_dim]."""
    actions: Array
    """The actions to execute, shape [B, n_action_steps, action_dim]."""
    stats: SpeculationStats
    """What sampling them cost."""
    seconds: float
    """Latency of the plan [s]: observation in, actions out."""
    cond: Array
    """The conditioning that the encoder made of observations [B, cond_dim]."""
    sample: Array
    """The chunk as the network sees it, normalised, [B, horizon, action_dim], or wider for a policy that inpaints."""
    encoding: Encoding | None = None
    """What the batch's observations took to encode; None where no network encodes them."""

    def row(self, row: int) -> "Plan":
        """Take one plan of the batch, as a batch of one."""
        rows = slice(row, row + 1)
        return Plan(
            self.chunk[rows],
            self.actions[rows],
            self.stats.row(row),
            self.seconds,
            self.cond[rows],
            self.sample[rows],
            self.encoding,
        )

    def record(self, row: int, at: int) -> PlanRecord:
        """Record what one plan of the batch cost, made at control step `at` of its episode."""
        record = record_of(self.stats, row, at, self.seconds)
        if self.encoding is None:
            return record
        return replace(record, encode_seconds=self.encoding.seconds, encoded=self.encoding.observations)


def record_of(stats: SpeculationStats, row: int, at: int, seconds: float) -> PlanRecord:
    """Record what one plan of a batch cost.

    Args:
        stats: Of the batch.
        row: Of the plan.
        at: Control step of the episode at which it was made.
        seconds: Latency of the batch [s].
    """
    return PlanRecord(
        **vars(stats.plans[row]),
        at=at,
        batch=len(stats.plans),
        seconds=seconds,
        network_seconds=stats.network_seconds,
    )
