"""What a policy's plans teach about its network, for the drafts and the window of later plans.

Nothing here can make a sample wrong: a response only shapes guesses, a window only the cost. It is learned between
plans, from whole committed paths; a response fitted with the data of the plan it drafts would see noise that has yet
to judge it, and the law would be another one.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers.asd.response import Response, fit, moments
from asd_policy.samplers.asd.trials import Setting, Trial
from asd_policy.samplers.pace import Pace
from asd_policy.samplers.records import PlanCost, SpeculationStats

T = TypeVar("T")

_MOST_SQUARE = 100.0
"""Mean square, over a plan's steps and coordinates, of noise and of what changes of the prediction move points by, both
in units of the step's noise, beyond which nothing is learned of it. They are of the order of 1, or less."""


def _in_units_of_noise(chain: GaussianChain, device: Device, dtype: Any) -> tuple[Array, Array]:
    """Give what squares of σξ, and of changes of x̂0 in the step after it, are multiplied by, each [K − 1].

    Steps without noise do not count.
    """

    def make() -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):
            noise, change = 1 / chain.sigma**2, (chain.a / chain.sigma) ** 2
        parts = np.where(np.isfinite(noise[:-1]), noise[:-1], 0), np.where(np.isfinite(change[1:]), change[1:], 0)
        return arrays.asarray(parts[0], device, dtype), arrays.asarray(parts[1], device, dtype)

    return chain.keep(("units of noise", device, dtype), make)


@dataclass(frozen=True)
class CommittedPaths:
    """What a batch of B finished plans has seen along its committed points."""

    points: Array
    """The points of the chain [B, K, D]."""
    x0_pred: Array
    """The predictions x̂0 there [B, K, D]."""
    done: Array
    """How many steps of each are committed [B]: all K, but for plans that a deadline has stopped."""
    free: Array | None
    """Coordinates that are sampled, not given, [B, D]; None for all. Those given have no noise."""
    judged: Array
    """Which steps had a draft to be judged [B, K]."""
    refused: Array
    """For which of them it was refused [B, K]."""


@dataclass
class Experience:
    """Sums over the plans of one network in one chain. Kept with the policy; `asd-policy tune` saves it."""

    plans: int = 0
    """Plans learned from."""
    moments: dict[str, Array] = field(default_factory=dict)
    """Sums for the response by name, see `response.moments`."""
    responses: int = 0
    """Plans that these are of: those whose sampler may follow the response."""
    judgements: dict[tuple[str, str], tuple[Array, ...]] = field(default_factory=dict)
    """By draft and verifier, how often a draft was judged and refused at each step, [K] and [K]."""
    latency: dict[int, float] = field(default_factory=dict)
    """Seconds of a network call by its number of points."""
    trials: dict[tuple[int, str | None, str | None], Trial] = field(default_factory=dict)
    """What plans cost with the settings that may be the best, by the batch, the draft and the verifier that were asked
    for."""
    pace: Pace = field(default_factory=Pace)
    """How long rounds and calls of plans with a deadline took."""
    learning: bool = True
    """Whether `learn` adds; off, a plan's numbers depend on its observation, its noise and its setting alone."""
    trying: bool = True
    """Whether plans still try settings, where there is one to choose."""
    _made: dict[Hashable, tuple[int, Any]] = field(default_factory=dict, repr=False)

    def copy(self) -> "Experience":
        """Copy the contents to an experience that goes its own way."""
        return replace(
            self,
            moments={name: arrays.copied(sums) for name, sums in self.moments.items()},
            judgements=dict(self.judgements),
            latency=dict(self.latency),
            trials={key: trial.copy() for key, trial in self.trials.items()},
            pace=self.pace.copy(),
            _made=dict(self._made),
        )

    def without_times(self) -> "Experience":
        """Copy all but the latencies: those of another backend or device say nothing."""
        return replace(self.copy(), latency={}, trials={}, pace=Pace(), _made={})

    def take_up(self, known: "Experience") -> None:
        """Begin with what another experience has learned, without its times."""
        other = known.copy()
        self.plans, self.responses = other.plans, other.responses
        self.moments, self.judgements = other.moments, other.judgements

    @contextmanager
    def paused(self, trying: bool = True) -> Iterator[None]:
        """Learn nothing of the plans in a context, and try no settings with them either, unless `trying`."""
        was = self.learning, self.trying
        self.learning, self.trying = False, self.trying and trying
        try:
            yield
        finally:
            self.learning, self.trying = was

    def freeze(self) -> None:
        """Stop learning and trying, with the last word on all that was learned."""
        self.learning = self.trying = False
        for trial in self.trials.values():
            trial.settle()
        self._made.clear()

    @property
    def undecided(self) -> bool:
        """Whether settings are still being tried."""
        return self.trying and not all(trial.done for trial in self.trials.values())

    @property
    def untried(self) -> bool:
        """Whether there are settings to try that no plan was made with."""
        return self.trying and any(trial.untried for trial in self.trials.values())

    def lacks(self, plans: Sequence[SpeculationStats]) -> bool:
        """Tell whether a warm-up that has made these plans needs another one, so that no later plan is held up.

        After one that had something to time, one more, for which all is ready; and what records its rounds records
        those of all that it will try.
        """
        if not plans:
            return True
        recorded = plans[0].network_seconds is None
        return (len(plans) < 2 and plans[0].trial_calls > 0) or (recorded and self.untried)

    def tried(self, batch: int) -> list[dict[str, Any]]:
        """List what plans of a batch cost with each setting that was tried, as results.json has it, the best first."""
        return [row for (rows, _, _), trial in self.trials.items() if rows == batch for row in trial.record()]

    def note(self, setting: Setting, costs: Sequence[PlanCost], seconds: float) -> None:
        """Add to the trials of this batch what its plans cost.

        Args:
            setting: They ran with.
            costs: Of its rows.
            seconds: That they took.
        """
        if any(cost.cut for cost in costs):
            self.lose(setting, len(costs))
            return
        rounds, points = max(cost.rounds for cost in costs), sum(cost.nfe for cost in costs)
        for trial in self._trying(len(costs)):
            trial.note(setting, rounds, points, seconds)

    def lose(self, setting: Setting, batch: int, memory: bool = False) -> None:
        """Add to the trials of a batch that its plans with a setting were cut or failed.

        Args:
            setting: They ran with.
            batch: How many they were.
            memory: Whether they failed for want of it: then settings are chosen anew among those with smaller calls.
        """
        for trial in self._trying(batch):
            trial.lose(setting)
        if memory and any(setting in trial.left for trial in self._trying(batch)):
            self.latency[batch * setting.window] = math.inf
            self.trials = {key: trial for key, trial in self.trials.items() if key[0] != batch}

    def _trying(self, batch: int) -> list[Trial]:
        return [trial for (rows, *_), trial in self.trials.items() if self.trying and rows == batch]

    def learn(
        self, committed: CommittedPaths, chain: GaussianChain, pair: tuple[str, str], horizon: int | None
    ) -> None:
        """Add the committed paths of a batch of plans.

        Args:
            committed: The paths; for plans that teach a response in its basis, `response.sines`.
            chain: Whose.
            pair: Names of the draft and of the verifier.
            horizon: Length of the plans' time axis, for the response; None for plans that teach none, because their
                sampler has no use for it.
        """
        if not self.learning:
            return
        points, x0_pred, done = committed.points, committed.x0_pred, committed.done
        device, xp = arrays.device_of(points), arrays.namespace(points)
        tables = chain.tables(device, points.dtype)
        a, b = tables.a[:-1, None], tables.b[:-1, None]
        mean = a * x0_pred[:, :-1]
        mean += b * points[:, :-1]
        noise = points[:, 1:] - mean  # [B, K − 1, D]
        change = x0_pred[:, 1:] - x0_pred[:, :-1]
        counted = arrays.arange(len(chain), done)[1:] < done[:, None]
        if not bool(counted.all()):
            noise, change = (xp.where(counted[:, :, None], values, 0) for values in (noise, change))
        squares = [xp.einsum("bkd,bkd->bk", each, each) / each.shape[2] for each in (noise, change)]  # [B, K − 1]
        # A plan for an observation without sense may overflow, or outweigh all others, and spoil the sums for good.
        of_noise, of_change = _in_units_of_noise(chain, device, points.dtype)
        fine = xp.nonzero((of_noise * squares[0] + of_change * squares[1]).mean(1) < _MOST_SQUARE)[0]  # not of NaN
        counts = tuple(xp.astype(flags[fine].sum(0), points.dtype) for flags in (committed.judged, committed.refused))
        before = self.judgements.get(pair, (0, 0))
        self.judgements[pair] = tuple(
            arrays.asarray(known, device, now.dtype) + now for known, now in zip(before, counts, strict=True)
        )
        self.plans += len(fine)
        if horizon is None or not len(fine):
            return
        if len(fine) < len(points):
            noise, change, *squares = (values[fine] for values in (noise, change, *squares))
        sampled = xp.ones_like(points[:, 0]) if committed.free is None else xp.astype(committed.free, points.dtype)
        for name, sums in moments(noise, change, (squares[0], squares[1]), sampled[fine], horizon).items():
            known = self.moments.get(name)
            self.moments[name] = sums if known is None else arrays.asarray(known, device, sums.dtype) + sums
        self.responses += len(fine)
        self.response(device, points.dtype, not chain.predicts_sample)  # fitted here, after a plan, not in the next

    def response(self, device: Device, dtype: Any, of_force: bool = False) -> Response | None:
        """Fit how predictions follow the points, as the plans so far say; None before the first.

        It is fitted anew each time the number of these plans has doubled.

        Args:
            device: Where it is wanted.
            dtype: Of it.
            of_force: As for `fit`.
        """
        if not self.moments:
            return None
        return self.once_per_doubling(
            (device, dtype), lambda: fit(self.moments, device, dtype, of_force), self.responses
        )

    def once_per_doubling(self, key: Hashable, make: Callable[[], T], plans: int | None = None) -> T:
        """Make what `key` names, or give what was made when it was last asked for, if plans have not doubled since.

        Args:
            key: Names it.
            make: Makes it.
            plans: How many it is made of; None for all.
        """
        plans = self.plans if plans is None else plans
        before, made = self._made.get(key, (-1, None))
        if before < 0 or plans >= max(1, 2 * before):
            before, made = self._made[key] = plans, make()
        return made
