"""Chunk continuity: a plan that goes on from what the robot is already bound to do while the plan is made.

Real-time chunking (Black, Galliker and Levine, arXiv 2506.07339): the actions that will have been executed when a plan
arrives are given to it, and it is made up to go with them. There it is done for flow matching, by guidance through the
network's gradient; here by replacement in the denoising chain, which needs no gradient and leaves a Gaussian chain, so
that `asd` couples the free coordinates exactly.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asd_policy._common.border import as_numbers, finite
from asd_policy.errors import SpecError

Actions = npt.NDArray[np.float32]

CONTINUITIES = ("none", "inpaint", "soft")
"""What a plan does with the actions that are taken while it is made: nothing; they are given to it, which is exact on
the rest of it; it is also guided to the rest of the last plan, which is approximate."""

REMEMBERED = 10
"""Delays of a robot's last plans, of which the largest is expected next (arXiv 2506.07339)."""


@dataclass(frozen=True)
class Prefix:
    """What a robot goes on to do while its next plan is made."""

    actions: npt.NDArray[np.float32]
    """The rest of the last plan [n, action_dim], in the environment's units, from the action for the latest observation
    on; a copy of what is given."""
    delay: int
    """How many of them will be executed before the new plan takes over, 0 … n; they are given to it."""
    soft: bool = False
    """Also draw the new plan to the others of them, less and less (arXiv 2506.07339, eq. 5). Approximate: such a plan
    does not have the law of the policy."""

    def __post_init__(self) -> None:
        """Copy the actions, and check them and the delay.

        Raises:
            SpecError: The actions are no finite numbers, or not so many.
        """
        own = finite(as_numbers(self.actions, "committed actions", SpecError), "committed actions", SpecError)
        if own.ndim != 2:
            raise SpecError(f"committed actions have shape {own.shape}, not (n, action_dim)")
        object.__setattr__(self, "actions", own)
        if not 0 <= self.delay <= len(self.actions):
            raise SpecError(f"delay={self.delay} is not in 0 … {len(self.actions)}, the actions left of the last plan")


def prefix_of(rest: npt.NDArray[np.float32], delays: Collection[int], continuity: str) -> Prefix | None:
    """Make the prefix of a plan that is about to begin from the rest of the last one; None for none.

    Args:
        rest: Actions of the last plan [n, action_dim] from the one for the latest observation on.
        delays: What the last `REMEMBERED` plans took [control steps].
        continuity: One of `CONTINUITIES`.
    """
    if continuity == CONTINUITIES[0] or not len(rest):
        return None
    return Prefix(rest, min(max(delays), len(rest)), soft=continuity == "soft")


def seam(before: Actions, after: Actions, given: int, scale: Actions | float = 1.0) -> float | None:
    """Measure how far a plan is from what it takes over from, at the first step that it was free in.

    Args:
        before: What the robot would go on to do [n, action_dim], its last action held beyond that.
        after: The plan [m, action_dim], from the same step on.
        given: How many of these were given to it, and so are as before.
        scale: Of the Euclidean distance, for each coordinate.

    Returns:
        The distance; None where the robot does nothing yet, or all of the plan was given.
    """
    if not len(before) or given >= len(after):
        return None
    return float(np.linalg.norm((after[given] - before[min(given, len(before) - 1)]) * scale))


def guidance(prefix: Prefix) -> npt.NDArray[np.float32]:
    """Compute how far a new plan is guided to each of the last one's actions [n]: 1 for those that are given."""
    count, delay = len(prefix.actions), prefix.delay
    share = ((count - np.arange(count)) / (count - delay + 1)).clip(max=1)
    falling = share * np.expm1(share) / math.expm1(1) if prefix.soft else np.zeros(count)
    return np.where(np.arange(count) < delay, 1, falling).astype(np.float32)


def overlay(
    prefixes: Sequence[Prefix | None], first: int, event: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Lay committed actions over plans.

    Args:
        prefixes: For each plan of a batch; None where its robot has no plan yet.
        first: Place in a plan of the action for the latest observation.
        event: Horizon and action_dim.

    Returns:
        Actions, and how far the plans are guided to them, 1 where they are given: both [B, horizon, action_dim].
    """
    actions, pull = np.zeros((2, len(prefixes), *event), np.float32)
    for row, each in enumerate(prefixes):
        if each is not None:
            kept = each.actions[: event[0] - first]
            actions[row, first : first + len(kept)] = kept
            pull[row, first : first + len(kept)] = guidance(each)[: len(kept), None]
    return actions, pull
