"""Who plans for a control loop: a policy, or anything that makes chunks of actions of observations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asd_policy.policy.continuity import Prefix
from asd_policy.policy.plan import Horizons


@dataclass(frozen=True)
class Planned:
    """What one plan brought."""

    actions: npt.NDArray[np.float32]
    """Actions [n, action_dim] in the robot's units, the first for the latest observation."""
    rounds: int
    """Sequential network calls it waited for."""
    cut: bool = False
    """Whether a deadline's fallback has finished it, so that it is not exact."""


class Planner(Protocol):
    """Plans in a thread of its own. Nobody but that thread calls `plan`, one call at a time.

    One that has `observation_shapes`, as a `Policy` has, or `observation_dims` where all features are vectors, is given
    those features alone, as `observation.read_observation` reads them, and whatever else an observation holds is not
    looked at. One that has neither is given observations as they come.
    """

    @property
    def horizons(self) -> Horizons:
        """Observations it looks at, and actions between the beginnings of two plans."""
        ...

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        ...

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan.

        Args:
            observations: The last ones, oldest first, 1 … n_obs_steps; fewer at an episode's begin.
            step: Control steps that were taken before the latest of them.
            begins: Whether an episode begins, so that nothing before it counts.
            prefix: What the robot goes on to do meanwhile; None where the plan need not go with that.
        """
        ...
