"""`asd/Adroit-<task>-v0`: the dexterous hand tasks of gymnasium-robotics."""

from typing import Any

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, unbounded
from asd_envs.registration import ADROIT_TASKS


class AdroitEnv(SuiteEnv):
    """One task of a ShadowHand on an arm (arXiv 1709.10087, package gymnasium-robotics ≥ 1.4).

    ## Action space: `Box(28)` for Door, `Box(26)` for Hammer, `Box(24)` for Pen, `Box(30)` for Relocate

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | all | position target of a joint of arm, wrist or fingers, ±1 at the ends of its range | -1 | 1 | – |

    ## Observation space: `Box`, as in the suite and in D4RL

    | Task | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | Door | 0 … 26 | arm, wrist and finger joints | -inf | inf | rad |
    | Door | 27 … 28 | latch and hinge angle | -inf | inf | rad |
    | Door | 29 … 37 | palm, handle, palm − handle | -inf | inf | m |
    | Door | 38 | 1 if the hinge is beyond 1 rad, else −1 | -1 | 1 | – |
    | Hammer | 0 … 25 | arm, wrist and finger joints | -inf | inf | rad |
    | Hammer | 26 | depth of the nail | -inf | inf | m |
    | Hammer | 27 … 32 | velocity and angular velocity of the hammer, cut | -1 | 1 | m/s, rad/s |
    | Hammer | 33 … 38 | palm, hammer | -inf | inf | m |
    | Hammer | 39 … 41 | rotation of the hammer (Euler angles) | -inf | inf | rad |
    | Hammer | 42 … 44 | nail | -inf | inf | m |
    | Hammer | 45 | force on the nail, cut | -1 | 1 | N |
    | Pen | 0 … 23 | wrist and finger joints | -inf | inf | rad |
    | Pen | 24 … 26 | pen position | -inf | inf | m |
    | Pen | 27 … 32 | velocity and angular velocity of the pen | -inf | inf | m/s, rad/s |
    | Pen | 33 … 38 | direction of the pen, and wanted | -inf | inf | – |
    | Pen | 39 … 44 | errors of position and direction | -inf | inf | m, – |
    | Relocate | 0 … 29 | arm, wrist and finger joints | -inf | inf | m, rad |
    | Relocate | 30 … 38 | palm − ball, palm − target, ball − target | -inf | inf | m |

    ## Reward
    The suite's dense reward of the task.

    ## Start and end
    Position of door, nail or ball and target, or the wanted direction of the pen, are drawn from the seed. The episode
    never terminates and is truncated after 200 steps (2 s at 100 Hz).

    ## Info
    `success` (bool): the suite's own, in this very step: hinge beyond 1.35 rad; nail within 1 cm of the end; pen
    within 7.5 cm and cosine 0.95; ball within 10 cm of the target. False after a reset, where the suite gives none.
    So an episode succeeds if it ends solved; DAPG counts more than 25 solved steps (20 for Pen): another number.

    ## Version history
    v0: first version, on the suite's v1.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `ADROIT_TASKS`.
            render_mode: None, "human" or "rgb_array".

        Raises:
            ValueError: No such task.
            ImportError: The extra `robotics` is not installed.
        """
        check_task(task, ADROIT_TASKS, "Adroit")
        inner = make_inner("gymnasium_robotics", "robotics", f"AdroitHand{task}-v1", render_mode=render_mode)
        super().__init__(inner, unbounded(inner.observation_space.shape[0]))

    def _observe(self, raw: Array) -> Array:
        return raw.copy()

    def _succeeded(self, raw: Array, info: dict[str, Any]) -> bool:
        return bool(info.get("success", False))
