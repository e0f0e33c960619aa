"""What a policy keeps of a robot from one control step to the next, and what it takes to control several."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy._common.arrays import Array
from asd_policy.samplers.base import Sampler, move_on
from asd_policy.samplers.types import Plan, PlanRecord

PLANS_KEPT = 1000
"""Latest plans of a robot that are kept, and what they cost: its episode may be endless."""


@dataclass
class Robot:
    """One robot that a policy controls, or one row of a vector environment."""

    generator: Any
    """Source of the noise of its plans."""
    history: deque[dict[str, Array]]
    """Its last observations, oldest first; each a feature [feature_dim] by its name."""
    queue: deque[npt.NDArray[np.float32]] = field(default_factory=deque)
    """Actions [action_dim] that are planned and not yet taken."""
    steps: int = 0
    """Actions taken."""
    plans: list[Plan] = field(default_factory=list)
    """The latest plans made for it in this episode, as batches of one, at most `PLANS_KEPT`."""
    records: list[PlanRecord] = field(default_factory=list)
    """What each of them cost."""

    def observe(self, features: dict[str, Array]) -> None:
        """Take note of an observation; at the start of an episode it stands for those before it, too."""
        for _ in range(max(1, (self.history.maxlen or 1) - len(self.history))):
            self.history.append(features)

    def note(self, plan: Plan, record: PlanRecord) -> None:
        """Take note of a plan that was made for it, and of its cost; forget those of long ago."""
        self.plans.append(plan)
        self.records.append(record)
        del self.plans[:-PLANS_KEPT], self.records[:-PLANS_KEPT]

    def moved_on(self) -> Array | None:
        """Return the last plan's sample as seen now [1, *event], for the next one's draft; None before the first."""
        if not self.plans:
            return None
        return move_on(self.plans[-1].sample, self.steps - self.records[-1].at)


class Pilot(Protocol):
    """Controls the robots of a group: a policy, for which time stands still while it plans, or one of `clocks`."""

    @property
    def sampler(self) -> Sampler:
        """What it plans with."""
        ...

    @property
    def robots(self) -> list[Robot]:
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
