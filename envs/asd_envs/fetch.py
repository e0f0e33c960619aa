"""`asd/Fetch-<task>-v0`: the Fetch arm of gymnasium-robotics, with its goal in the observation."""

from typing import Any

import numpy as np

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, state_space
from asd_envs.registration import FETCH_TASKS

# Of the 25 numbers of tasks with an object: gripper position, fingers, their velocities. Reach has only these 10.
_AGENT = [*range(3), 9, 10, *range(20, 25)]
_OBJECT = [*range(3, 9), *range(11, 20)]


class FetchEnv(SuiteEnv):
    """Reach, push, slide or lift to a goal position (arXiv 1802.09464, package gymnasium-robotics ≥ 1.4).

    ## Action space: `Box(4)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 2 | displacement of the gripper's target in x, y, z | -1 | 1 | 0.05 m |
    | 3 | fingers, opening positive; without effect but in PickAndPlace | -1 | 1 | – |

    ## Observation space: `Dict`; no `environment_state` 0 … 14 in Reach

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 2 | gripper position | -inf | inf | m |
    | `agent_pos` | 3 … 4 | finger positions | -inf | inf | m |
    | `agent_pos` | 5 … 7 | gripper velocity | -inf | inf | m per control step |
    | `agent_pos` | 8 … 9 | finger velocities | -inf | inf | m per control step |
    | `environment_state` | 0 … 5 | object position, absolute and seen from the gripper | -inf | inf | m |
    | `environment_state` | 6 … 8 | object rotation (Euler angles) | -inf | inf | rad |
    | `environment_state` | 9 … 11 | object velocity relative to the gripper | -inf | inf | m per control step |
    | `environment_state` | 12 … 14 | object angular velocity | -inf | inf | rad per control step |
    | `environment_state` | last 3 | goal position | -inf | inf | m |

    ## Reward
    −1 in each step that the goal is farther than 5 cm, else 0 (the suite's sparse reward).

    ## Start and end
    Goal and object position are drawn from the seed. The episode never terminates and is truncated after 50 steps
    (2 s at 25 Hz), as the suite's benchmark has it.

    ## Info
    `success` (bool): object, or gripper in Reach, within 5 cm of the goal in this very step; so an episode succeeds if
    it ends at the goal. `is_success`, after steps, is the suite's own name of it.

    ## Version history
    v0: first version, on the suite's v4.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `FETCH_TASKS`.
            render_mode: None, "human" or "rgb_array".

        Raises:
            ValueError: No such task.
            ImportError: The extra `robotics` is not installed.
        """
        check_task(task, FETCH_TASKS, "Fetch")
        self._has_object = task != "Reach"
        inner = make_inner("gymnasium_robotics", "robotics", f"Fetch{task}-v4", render_mode=render_mode)
        super().__init__(inner, state_space(len(_AGENT), 3 + len(_OBJECT) * self._has_object))

    def _observe(self, raw: dict[str, Array]) -> dict[str, Array]:
        observation, goal = raw["observation"], raw["desired_goal"]
        if not self._has_object:
            return {"agent_pos": observation.copy(), "environment_state": goal.copy()}
        return {"agent_pos": observation[_AGENT], "environment_state": np.concatenate([observation[_OBJECT], goal])}

    def _succeeded(self, raw: dict[str, Array], info: dict[str, Any]) -> bool:
        return bool(self.inner._is_success(raw["achieved_goal"], raw["desired_goal"]))
