"""What samplers and policies return. Terms (round, nfe, acceptance length) as in docs/architecture.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from asd_policy.arrays import Array


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

    @property
    def algorithmic_speedup(self) -> float:
        """K over the mean number of rounds."""
        return self.steps * len(self.rounds) / sum(self.rounds)

    @property
    def overhead_fraction(self) -> float | None:
        """Share of the time spent outside the network, 0 … 1; None where it is not known."""
        return overhead_fraction([self], self.seconds)


def overhead_fraction(calls: Sequence[SpeculationStats], seconds: float) -> float | None:
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
