"""Which setting of `asd` is the best one, by what plans really cost: a few are tried in turn, then the best stays.

The order of trying, and which settings are tried at all, follows a cost model (`autotune`); the choice follows the time
and the rounds of plans as they run. Plans of all settings have the same law, so trying costs time alone.
"""

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

STAGES = {4: 1.25, 8: 1.12, 16: 1.06}
"""After so many plans of each setting those go that cost more than so many times the best one's: what the noise of so
few plans does not explain."""
ENOUGH = 32
"""Plans of each setting, after which the best one stays. Costs are of the last so many: later plans draft better."""
_AS_GOOD = 1.02
_LOST = 0.1
"""By how much more a setting's share of lost plans may be than the least one's: 32 plans do not tell it closer."""
_ENOUGH_FOR_A_LINE = 3  # windows: through fewer it would have nothing to smooth


class Setting(NamedTuple):
    """What `asd` runs with."""

    window: int
    draft: str
    verify: str

    @property
    def pair(self) -> tuple[str, str]:
        """Draft and verifier."""
        return self.draft, self.verify


class Taken(NamedTuple):
    """What plans of a batch took."""

    rounds: int
    """Of the slowest."""
    points: int
    """Of all."""
    seconds: float | None
    """None where that tells nothing: a first plan may have had something to record or to load."""


@dataclass
class Tried:
    """What the last plans of a setting took."""

    taken: deque[Taken] = field(default_factory=lambda: deque(maxlen=ENOUGH))
    """By each."""
    plans: int = 0
    """All, those that are lost among them."""

    def lose(self) -> None:
        """Add a plan that a deadline has cut, or that failed: what it would have cost is not known."""
        self.plans += 1

    @property
    def lost(self) -> float:
        """Share of the plans that are lost, 0 … 1."""
        plans = min(self.plans, ENOUGH)
        return max(plans - len(self.taken), 0) / max(plans, 1)

    def add(self, rounds: int, points: int, seconds: float) -> None:
        """Add a plan."""
        self.taken.append(Taken(rounds, points, seconds if self.plans else None))
        self.plans += 1

    @property
    def counts(self) -> npt.NDArray[np.float64]:
        """Rounds and points of each [N, 2]."""
        return np.array([(each.rounds, each.points) for each in self.taken], np.float64).reshape(-1, 2)

    @property
    def timed(self) -> npt.NDArray[np.float64]:
        """Rounds, points and seconds of those that were timed [N, 3]."""
        return np.array([each for each in self.taken if each.seconds is not None], np.float64).reshape(-1, 3)

    @property
    def is_timed(self) -> bool:
        """Whether one was."""
        return any(each.seconds is not None for each in self.taken)


@dataclass
class Trial:
    """The settings that are tried for plans of one batch, those of the least expected cost first."""

    tried: dict[Setting, Tried]
    """Of each setting."""
    left: list[Setting]
    """Those that may still be the best."""
    informed: bool
    """Whether plans of this policy said which settings to try, and not those of others alone."""
    running: Setting | None = None
    expected: dict[Setting, tuple[float, float]] = field(default_factory=dict)
    """Rounds and points of a plan with each setting, by what a model makes of the refusals of all plans; see
    `costs`. Made anew before each decision, and not kept."""
    _draw: random.Random = field(default_factory=lambda: random.Random(0), repr=False, compare=False)

    @classmethod
    def of(cls, settings: Iterable[Setting], informed: bool = True) -> "Trial":
        """Begin to try settings, at least one."""
        tried = {setting: Tried() for setting in settings}
        return cls(tried, list(tried), informed)

    @property
    def done(self) -> bool:
        """Whether the best is known."""
        return len(self.left) == 1

    @property
    def untried(self) -> bool:
        """Whether no plan was made with one of those that are left."""
        return not self.done and not all(self.tried[setting].plans for setting in self.left)

    @property
    def best(self) -> Setting:
        """The setting of the least time so far; of those that are as good, the one with the shortest tail.

        But first those of which plans are lost more often than of others are left out.
        """
        if self.done:
            return self.left[0]
        kept = self._kept
        tried = [setting for setting in kept if self.tried[setting].is_timed]
        if not tried:
            return kept[0]
        costs = self._at_most(self.costs(tried))
        good = [setting for setting in tried if costs[setting] <= _AS_GOOD * min(costs.values())]
        return min(good, key=self.tail)

    @property
    def _kept(self) -> list[Setting]:
        """Those left of which about the fewest plans are lost."""
        least = min(self.tried[setting].lost for setting in self.left)
        return [setting for setting in self.left if self.tried[setting].lost <= least + _LOST]

    def seconds(self, setting: Setting) -> float:
        """Estimate the time of a plan [s] with a setting that was tried, see `costs`."""
        return self.costs([setting])[setting]

    def costs(self, settings: Iterable[Setting]) -> dict[Setting, float]:
        """Estimate the time of a plan [s] with each of some settings that were tried.

        By the noise alone, plans of one setting differ by a quarter in rounds and points, and a handful of them tells
        little of the mean time. So their times are divided by what their rounds and points cost at prices that are the
        same for all settings; the median of that, which differs by a few per cent from plan to plan, is multiplied by
        the price of the rounds and points that are to be expected.
        """
        price, factors = self._price, self._factors
        return {each: factors[each] * float(price @ self._mean_counts(each)) for each in settings}

    def tail(self, setting: Setting) -> float:
        """Estimate the time [s] that one plan in twenty exceeds with a setting that was tried."""
        price = self._price
        return self._factors[setting] * float(np.percentile(self.tried[setting].counts @ price, 95))

    @property
    def _price(self) -> npt.NDArray[np.float64]:
        """Fit what a round and a point cost [2] in plans of any setting [s], by the least relative error."""
        rounds, points, seconds = np.concatenate([each.timed for each in self.tried.values()]).T
        counts = np.stack([rounds, points], axis=1)
        price, *_ = np.linalg.lstsq(counts / seconds[:, None], np.ones(len(seconds)), rcond=None)
        return price.clip(min=0)  # below 0 is noise

    @property
    def _factors(self) -> dict[Setting, float]:
        """Compute how many times its price a plan with each setting takes that was timed.

        What else the machine did falls on all plans of a turn, which are made one after the other: so they are
        compared with one another.
        """
        timed, price = [setting for setting, each in self.tried.items() if each.is_timed], self._price
        if not timed:
            return {}
        times = np.full((len(timed), ENOUGH), np.nan)
        for row, setting in zip(times, timed, strict=True):
            for turn, each in enumerate(self.tried[setting].taken):
                if each.seconds is not None:
                    row[turn] = each.seconds / (price @ (each.rounds, each.points))
        times = times[:, ~np.isnan(times).all(axis=0)]
        factors = np.nanmedian(times) * np.nanmedian(times / np.nanmedian(times, axis=0), axis=1)
        return dict(zip(timed, factors.tolist(), strict=True))

    def _mean_counts(self, setting: Setting) -> npt.NDArray[np.float64]:
        """Estimate the mean rounds and points [2] of a plan with a setting.

        The mean of a setting's own rounds differs by the plans' noise: by 4 % after 32 plans of 6 rounds each. The
        model has the refusals of all plans of its pair, whatever their window, and is off by a factor that changes
        slowly with the window: a line over the logarithm of windows, through what plans really took.
        """
        alike = self._alike(setting)
        if not alike:
            return self.tried[setting].counts.mean(0)
        taken = [self.tried[each].counts for each in alike]
        off = np.stack([own.mean(0) / self.expected[each] for own, each in zip(taken, alike, strict=True)])
        weights = [own[:, 0].sum() ** 0.5 for own in taken]  # a count's relative error is by its root
        line = np.polyfit(np.log([each.window for each in alike]), off, 1, w=weights)  # of each of the two
        return np.array(self.expected[setting]) * (line[0] * np.log(setting.window) + line[1])

    def _alike(self, setting: Setting) -> list[Setting]:
        """List the settings whose plans tell about one's rounds, itself among them; none where these are too few."""
        # Of a window of 1 every plan takes the same rounds.
        alike = [
            each for each in self.expected if each.pair == setting.pair and each.window > 1 and self.tried[each].taken
        ]
        return alike if setting.window > 1 and len(alike) >= _ENOUGH_FOR_A_LINE else []

    def _at_most(self, costs: Mapping[Setting, float]) -> dict[Setting, float]:
        """Add a standard error to what settings cost of which no other plans tell.

        Their luck is not averaged with that of others: among several they would be chosen for it.
        """
        price = self._price

        def error(setting: Setting) -> float:
            taken = self.tried[setting].counts @ price
            return float(taken.std() / (len(taken) ** 0.5 * taken.mean()))

        return {each: cost if self._alike(each) else cost * (1 + error(each)) for each, cost in costs.items()}

    @property
    def decides(self) -> bool:
        """Whether the next plan ends a stage, after which settings may go."""
        counts = sorted(self.tried[each].plans for each in self.left)
        return len(counts) > 1 and counts[0] < counts[1] and counts[0] + 1 in (*STAGES, ENOUGH)

    def turn(self, block: int) -> Setting:
        """Give the setting of the next plan: one of those with the fewest plans.

        Once each has had one, in the order of expected costs, it is drawn which: so what comes back in plans, as the
        phases of a task do, falls on all settings alike.

        Args:
            block: Plans of one setting in a row: 1 where the machine's load is to hit all alike, more where it costs
                time to go from one setting to another.
        """
        running = self.running
        if running is None or running not in self.left or self.tried[running].plans % block == 0:
            fewest = min(self.tried[each].plans for each in self.left)
            due = [each for each in self.left if self.tried[each].plans == fewest]
            running = self.running = self._draw.choice(due) if fewest else due[0]
        return running

    def note(self, setting: Setting, rounds: int, points: int, seconds: float) -> None:
        """Add what a plan cost, and drop the settings that cannot be the best.

        Args:
            setting: It ran with; others than those that are tried are not looked at.
            rounds: That it took, of its slowest row.
            points: That it took, of all rows.
            seconds: That it took.
        """
        if setting in self.tried and not self.done:
            self.tried[setting].add(rounds, points, seconds)
            self._decide(setting)

    def lose(self, setting: Setting) -> None:
        """Add a plan that a deadline has cut, or that failed; as `note`."""
        if setting in self.tried and not self.done:
            self.tried[setting].lose()
            self._decide(setting)

    def _decide(self, setting: Setting) -> None:
        """Drop settings if a stage ended with a plan of this one."""
        fewest = min(self.tried[each].plans for each in self.left)
        if fewest >= ENOUGH:
            self.settle()
        elif fewest in STAGES and self.tried[setting].plans == fewest:
            timed = [each for each in self._kept if self.tried[each].is_timed]
            if timed:  # or all plans were lost, which tells nothing
                costs = self.costs(timed)
                limit = STAGES[fewest] * min(self._at_most(costs).values())
                self.left = [each for each in timed if costs[each] <= limit]

    def settle(self) -> None:
        """Take the setting that is the best so far for the best."""
        self.left = [self.best]

    def record(self) -> list[dict[str, Any]]:
        """List what was tried as results.json has it, the best first."""
        tried = self.costs([setting for setting, cost in self.tried.items() if cost.is_timed])
        return [
            {**setting._asdict(), "plans": self.tried[setting].plans}
            | {"plan_ms": 1e3 * tried[setting], "tail_ms": 1e3 * self.tail(setting)}
            for setting in sorted(tried, key=lambda each: tried[each])
        ]

    def copy(self) -> "Trial":
        """Copy it to a trial that goes its own way."""
        other = Trial.from_json(self.to_json())
        other.expected = dict(self.expected)
        return other

    def to_json(self) -> list[Any]:
        """List it in numbers and strings: `informed`, and each setting, whether it is left, and its cost."""
        rows = [[*setting, setting in self.left, list(cost.taken), cost.plans] for setting, cost in self.tried.items()]
        return [self.informed, rows]

    @classmethod
    def from_json(cls, written: Sequence[Any]) -> "Trial":
        """Read it again.

        Raises:
            ValueError: This is none.
        """
        tried, left = {}, []
        informed, rows = written
        for window, draft, verify, stays, taken, plans in rows:
            setting = Setting(int(window), str(draft), str(verify))
            tried[setting] = cost = Tried(plans=int(plans))
            for rounds, points, seconds in taken:
                cost.taken.append(Taken(int(rounds), int(points), None if seconds is None else float(seconds)))
                if not (0 < int(rounds) <= int(points) and (seconds is None or 0 < float(seconds) < float("inf"))):
                    raise ValueError(f"what {setting} took is no number of rounds, points and seconds")
            if stays:
                left.append(setting)
        if not left:
            raise ValueError("no setting is left")
        return cls(tried, left, bool(informed))
