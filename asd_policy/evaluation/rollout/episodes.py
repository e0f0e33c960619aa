"""One finished rollout as a record, and how a group of them is run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from asd_policy._common.shapes import check_shape
from asd_policy.errors import EnvError, ObservationError
from asd_policy.evaluation.rollout.vector import End, Envs, EnvsLost, Moment
from asd_policy.policy.episode_state import EpisodeState, Pilot
from asd_policy.policy.observation import given_by
from asd_policy.policy.plan import PlanRecord, Timing


@dataclass(frozen=True)
class Episode:
    """One finished rollout; a line of episodes.jsonl."""

    spec: str
    """Of the sampler it was planned with."""
    index: int
    """Episodes of equal index have the same environment seed and the same planning seed."""
    success: bool
    """The environment's `info["success"]` at the end; False where the episode failed."""
    total_reward: float | None
    """Sum of the rewards, "return" in JSON; None where it is not finite."""
    steps: int
    """Control steps taken."""
    mode: str | None
    """The environment's `info["homotopy_class"]` at the end of a success, if it has one."""
    error: str | None
    """Why the episode failed before its end: what the environment raised, or which of its numbers was not finite."""
    plans: tuple[PlanRecord, ...]
    """What each plan cost."""

    def to_json(self) -> dict[str, Any]:
        """Convert to the object of a line of episodes.jsonl."""
        values = asdict(self)
        return {("return" if name == "total_reward" else name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Episode":
        """Read an episode back from an object that `to_json` made.

        Raises:
            KeyError: Something is missing.
            ValueError: Something is not of its type, or out of range, or too much.
        """
        rest = {name: value for name, value in values.items() if name not in ("return", "plans")}
        whole = {**rest, "plans": values["plans"], "total_reward": values["return"]}
        check_shape(whole, cls, "episode")
        if min(whole["index"], whole["steps"]) < 0:
            raise ValueError("episode.index or episode.steps is negative")
        return cls(**{**whole, "plans": tuple(_plan(plan) for plan in whole["plans"])})


_LEAST = dict.fromkeys(
    ("at", "seconds", "network_seconds", "encode_seconds", "encoded", "refused", "unjudged"), 0
) | dict.fromkeys(("rounds", "nfe", "window", "batch"), 1)
"""The least value of a plan's numbers, or of each where there are several."""


def _plan(values: Mapping[str, Any]) -> PlanRecord:
    """Make the plan of an object whose types were checked."""
    steps = {name: None if values[name] is None else tuple(values[name]) for name in ("refused", "unjudged")}
    timing = values.get("timing")
    plan = PlanRecord(**{**values, **steps, "timing": timing and Timing(**timing)})
    for name, least in _LEAST.items():
        value = getattr(plan, name)
        lowest = min(value, default=least) if isinstance(value, tuple) else least if value is None else value
        if lowest < least:
            raise ValueError(f"a plan's {name} is {lowest}, which is below {least}")
    return plan


def episode_seeds(seed: int, index: int) -> tuple[int, int]:
    """Derive the seeds of an episode's environment and of its planning noise.

    Args:
        seed: Of the evaluation.
        index: Of the episode.
    """
    env_seed, noise_seed = (int(word) for word in np.random.SeedSequence([seed, index]).generate_state(2))
    return env_seed, noise_seed


def run_group(pilot: Pilot, envs: Envs, indices: Sequence[int], seed: int) -> Iterator[Episode]:
    """Run a group of episodes side by side, with one batched plan for all that need one at a moment.

    Every random number belongs to an episode. Its group still changes the rounding of a network call, which depends on
    the number of points in it. So groups are fixed by index, and an episode is the same, to the bit, whoever runs its
    group and whatever ran before.

    Args:
        pilot: Plans and acts; what its policy learned is frozen.
        envs: With as many rows as a group has episodes, or more.
        indices: Of the episodes.
        seed: Of the evaluation: it and an episode's index fix the environment's and the planner's seeds.

    Yields:
        Episodes as they finish. One fails if its environment raises, is lost, or shows numbers that are not finite. The
        others go on; if the environment's process has ended, they begin again without it.

    Raises:
        EnvError: An environment does not report success, or none can be made.
        DenoiserError: The network failed.
    """
    seeds = [episode_seeds(seed, index) for index in indices]
    pilot.reset_batch([noise_seed for _, noise_seed in seeds])
    rows = [_Row(index, robot) for index, robot in zip(indices, pilot.robots, strict=True)]
    lost: Mapping[int, str] = {}
    try:
        moments = dict(enumerate(envs.reset([env_seed for env_seed, _ in seeds])))
        while moments:
            for row, moment in moments.items():
                rows[row].take(moment)
                if rows[row].end is None:
                    try:
                        with given_by("the environment"):
                            pilot.observe(row, moment.observation)
                    except ObservationError as error:
                        rows[row].end = End.failure(str(error))
                if rows[row].end is not None:
                    yield rows[row].episode(pilot.sampler.spec)
            going = [row for row in moments if rows[row].end is None]
            actions = dict(zip(going, pilot.act(going), strict=True)) if going else {}
            for row in going:
                rows[row].note_plan()
            moments = envs.step(actions) if going else {}
    except EnvsLost as error:
        lost = error.rows
    for row, reason in lost.items():
        if rows[row].end is None:
            rows[row].end = End.failure(reason)
            yield rows[row].episode(pilot.sampler.spec)
    rest = [row.index for row in rows if row.end is None]
    if rest:
        yield from run_group(pilot, envs, rest, seed)


@dataclass
class _Row:
    """An episode that is running."""

    index: int
    robot: EpisodeState
    total: float = 0.0
    steps: int = 0
    end: End | None = None
    plans: list[PlanRecord] = field(default_factory=list)

    def note_plan(self) -> None:
        """Record the last plan, or what has changed in its record: a robot keeps only the latest ones."""
        record = self.robot.records[-1]
        if self.plans and self.plans[-1].at == record.at:
            self.plans.pop()
        self.plans.append(record)

    def take(self, moment: Moment) -> None:
        """Record what a reset or a step has brought."""
        self.end = moment.end
        if moment.reward is None:
            return
        self.total += moment.reward
        self.steps += 1
        if not math.isfinite(moment.reward):
            self.end = End.failure(f"the reward of step {self.steps} is {moment.reward}")

    def episode(self, spec: str) -> Episode:
        """Make the record of the finished episode.

        Raises:
            EnvError: The environment did not say whether it is a success, or not in one number.
        """
        assert self.end is not None
        if self.end.success is None:
            raise EnvError(self.end.unsaid)
        return Episode(
            spec,
            self.index,
            self.end.success,
            self.total if math.isfinite(self.total) else None,
            self.steps,
            self.end.mode if self.end.success else None,
            self.end.error,
            tuple(self.plans),
        )
