"""What a policy keeps of a robot from one control step to the next, and what it takes to control several."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.policy.observation import stack_frames
from asd_policy.policy.plan import Plan, PlanRecord
from asd_policy.samplers.base import Sampler
from asd_policy.samplers.warm_start import move_on

PLANS_KEPT = 1000
"""Latest plans of a robot that are kept, and what they cost: its episode may be endless."""


@dataclass
class EpisodeState:
    """What is kept of one robot that a policy controls, or of one row of a vector environment, during an episode."""

    generator: Any
    """Source of the noise of its plans."""
    history: deque[dict[str, Array]]
    """Its last observations, oldest first; each a feature by its name, as `read_observation` gives it."""
    queue: deque[npt.NDArray[np.float32]] = field(default_factory=deque)
    """Actions [action_dim] that are planned and not yet taken."""
    steps: int = 0
    """Actions taken."""
    plans: list[Plan] = field(default_factory=list)
    """The latest plans made for it in this episode, as batches of one, at most `PLANS_KEPT`."""
    records: list[PlanRecord] = field(default_factory=list)
    """What each of them cost."""

    @property
    def last_plan(self) -> PlanRecord | None:
        """What its latest plan cost; None before the first."""
        return self.records[-1] if self.records else None

    def observe(self, features: dict[str, Array]) -> None:
        """Take note of an observation; at the start of an episode it stands for those before it, too."""
        for _ in range(max(1, (self.history.maxlen or 1) - len(self.history))):
            self.history.append(features)

    def note(self, plan: Plan, record: PlanRecord) -> None:
        """Take note of a plan that was made for it, and of its cost; forget those of long ago."""
        self.plans.append(plan)
        self.records.append(record)
        del self.plans[:-PLANS_KEPT], self.records[:-PLANS_KEPT]

    def next_action(self) -> npt.NDArray[np.float32]:
        """Take the next action [action_dim] from the queue."""
        self.steps += 1
        return self.queue.popleft()

    def moved_on(self) -> Array | None:
        """Give the last plan's sample as seen now [1, *event], for the next one's draft; None before the first."""
        if not self.plans:
            return None
        return move_on(self.plans[-1].sample, self.steps - self.records[-1].at)


def together(robots: Sequence[EpisodeState]) -> dict[str, Any]:
    """Put what some robots have seen into one batch, as the arguments of `Policy.plan`.

    Args:
        robots: All of which have observed.

    Returns:
        `history`, each feature [B, n_obs_steps, …]; `generator`, one for each row; and `last_plan`
        [B, *event], zeros for those whose episode begins, or None where all begin.
    """
    names = robots[0].history[0]
    history = {
        name: stack_frames([stack_frames([step[name] for step in robot.history]) for robot in robots]) for name in names
    }
    lasts = [robot.moved_on() for robot in robots]
    known = next((last for last in lasts if last is not None), None)
    if known is not None:
        begun = arrays.zeros(known.shape, known)
        known = arrays.namespace(known).concatenate([begun if last is None else last for last in lasts])
    return {"history": history, "generator": [robot.generator for robot in robots], "last_plan": known}


class Pilot(Protocol):
    """Controls the robots of a group: a policy, for which time stands still while it plans, or one of `clocks`."""

    @property
    def sampler(self) -> Sampler:
        """What it plans with."""
        ...

    @property
    def robots(self) -> list[EpisodeState]:
        """Those it controls."""
        ...

    def reset_batch(self, seeds: Sequence[int]) -> None:
        """As `Policy.reset_batch`."""
        ...

    def observe(self, row: int, observation: Any) -> None:
        """As `Policy.observe`."""
        ...

    def act(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """As `Policy.act`."""
        ...
