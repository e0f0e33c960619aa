"""A policy as the planner of a control loop, and the check of any planner's plans."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from asd_policy._common.border import finite
from asd_policy.errors import LoopError
from asd_policy.policy.continuity import CONTINUITIES, Prefix
from asd_policy.policy.observation import Shapes
from asd_policy.policy.plan import Horizons
from asd_policy.policy.planner import Planned
from asd_policy.policy.policy import Policy


class PolicyPlanner:
    """A `Policy` of this process. It is the loop's while the loop runs."""

    def __init__(self, policy: Policy) -> None:
        """Take a policy; its noise goes on where `Policy.reset` has set it."""
        self._policy = policy
        self._begin = 0

    @property
    def horizons(self) -> Horizons:
        """The policy's."""
        return self._policy.horizons

    @property
    def action_dim(self) -> int:
        """The policy's."""
        return self._policy.action_dim

    @property
    def observation_shapes(self) -> Shapes:
        """The policy's."""
        return self._policy.observation_shapes

    def warm_up(self, continuity: str = CONTINUITIES[0]) -> None:
        """Do in advance what the first plans would wait for; see `Policy.warm_up`."""
        for each in dict.fromkeys((CONTINUITIES[0], continuity)):
            self._policy.warm_up(continuity=each)

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan from the observations to the end of the policy's horizon.

        Raises:
            ObservationError: An observation does not fit the policy.
            DenoiserError: The network failed.
        """
        if begins:
            self._policy.reset()
            self._begin = step
        for observation in observations:
            self._policy.observe(0, observation)
        robot = self._policy.robots[0]
        robot.steps = step - self._begin
        (actions,) = self._policy.plan_for([0], [prefix])
        del robot.plans[:-1], robot.records[:-1]  # an episode may be endless; the last one begins the next
        record = robot.records[-1]
        return Planned(actions, record.rounds, record.cut)


def shapes_of(planner: object) -> Shapes | None:
    """Find the shape of each feature that a planner reads; None for one that does not tell."""
    shapes, dims = (getattr(planner, name, None) for name in ("observation_shapes", "observation_dims"))
    if shapes is None and dims is not None:
        return {name: (dim,) for name, dim in dims.items()}
    return shapes


def check_plan(planned: object, action_dim: int) -> Planned:
    """Check what a planner returned, and copy its actions as a robot is given them, float32.

    Raises:
        LoopError: It is no plan, or its actions have the wrong shape or are not finite.
    """
    if not isinstance(planned, Planned):
        raise LoopError(f"the planner returned a {type(planned).__name__}, not a Planned")
    if not isinstance(planned.actions, np.ndarray) or planned.actions.dtype.kind != "f":
        kind = getattr(planned.actions, "dtype", type(planned.actions).__name__)
        raise LoopError(f"the plan's actions are {kind}, not an array of floating-point numbers")
    shape = planned.actions.shape
    if len(shape) != 2 or not shape[0] or shape[1] != action_dim:
        raise LoopError(f"the plan has shape {shape}, not (n, {action_dim})")
    return replace(planned, actions=finite(planned.actions, "the plan", LoopError))
