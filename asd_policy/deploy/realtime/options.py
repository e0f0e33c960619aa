"""The options of a control loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import LoopError
from asd_policy.policy.continuity import CONTINUITIES

SafeAction = npt.ArrayLike | Callable[[Any], npt.ArrayLike]
"""An action [action_dim], or a function that makes one from the last valid observation."""


@dataclass(frozen=True)
class LoopOptions:
    """What a control loop does when something goes wrong, and how it runs."""

    safe_action: SafeAction | None = None
    """The action that is written in the place of plans after a fault, before an episode's first plan, and once at the
    end. None for nothing: a fault ends the loop. A function is given the observation as it came, with all its keys;
    arrays in it are copies."""
    late_limit: int = 10
    """Ticks in a row, each without a planned action, without an observation in time, or after ticks that were missed,
    which are a fault."""
    recover: bool = False
    """Whether to return to the policy when the cause of a fault is gone and there is a new plan. If not, safe actions
    are written until the loop is stopped."""
    plan_limit: float = 10.0
    """How long a plan may take before that is a fault [s]. This catches a planner that hangs, even on a first plan,
    which may take more than `late_limit` ticks."""
    continuity: str = CONTINUITIES[0]
    """How a plan takes the actions into account that are written while it is made, one of `CONTINUITIES` (real-time
    chunking): "inpaint" is exact on the rest of the plan, "soft" is approximate."""
    patience: float | None = None
    """How long a tick waits for its observation [s]; None for half a period."""
    priority: int | None = None
    """SCHED_FIFO priority of the threads that read and write, 1 … 99 (Linux, with CAP_SYS_NICE); None for the usual
    scheduling."""
    ticks: int | None = None
    """Ticks after which the loop ends by itself; None for never."""
    metrics_port: int | None = None
    """Port of a Prometheus endpoint, 0 for any free one; None for no endpoint."""
    metrics_host: str = "127.0.0.1"
    """Address that it listens on."""

    def checked(self, action_dim: int) -> Self:
        """Check the options, and give them a safe action of their own; refuse values that make no sense.

        Raises:
            LoopError: One does not.
        """
        for name, value in (("late_limit", self.late_limit), ("ticks", self.ticks)):
            if value is not None and value < 1:
                raise LoopError(f"{name}={value} is not 1 or more")
        for name, value in (("plan_limit", self.plan_limit), ("patience", self.patience)):
            if value is not None and not 0 < value < np.inf:
                raise LoopError(f"{name}={value} is not a time above 0 s")
        if self.continuity not in CONTINUITIES:
            raise LoopError(f"continuity={self.continuity!r} is not one of {', '.join(CONTINUITIES)}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise LoopError(f"metrics_port={self.metrics_port} is not in 0 … 65535")
        if self.priority is not None and not 1 <= self.priority <= 99:
            raise LoopError(f"priority={self.priority} is not in 1 … 99")
        if self.safe_action is None or callable(self.safe_action):
            return self
        return replace(self, safe_action=checked_action(self.safe_action, action_dim))


def checked_action(value: npt.ArrayLike, action_dim: int) -> npt.NDArray[np.float32]:
    """Copy a safe action [action_dim] as float32, checked.

    Raises:
        LoopError: It is none of finite numbers, or has another shape.
    """
    action = as_numbers(value, "the safe action", LoopError)
    if action.shape != (action_dim,):
        raise LoopError(f"the safe action has shape {action.shape}, the policy's actions have ({action_dim},)")
    return finite(action, "the safe action", LoopError)
