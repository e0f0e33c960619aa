"""`asd/Aloha-<task>-v0`: the bimanual tasks of gym-aloha, observed by their state."""

from typing import Any

import numpy as np
from gymnasium import spaces

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, state_space
from asd_envs.registration import ALOHA_TASKS

_ARM_DIM = 6  # joints; the suite's actuators have two fingers after them, its actions one gripper
_OBJECT_DIM = {"TransferCube": 7, "Insertion": 14}


class AlohaEnv(SuiteEnv):
    """Two ViperX arms hand a cube over or put a peg into a socket (arXiv 2304.13705, package gym-aloha ≥ 0.1.1).

    The suite observes its camera `top` alone, at three rendered images a step; this adapter observes the state that its
    tasks report, and renders nothing. A policy with cameras runs on the suite's own ids, in LeRobot.

    ## Action space: `Box(14)`, the right arm's after the left's

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 5 | joint position targets | joint's | joint's | rad |
    | 6 | gripper, 0 = closed, 1 = open | 0 | 1 | – |

    The suite declares −1 … 1, which its own start pose exceeds; here are the limits that its actuators have.

    ## Observation space: `Dict`

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 … 13 | joint and gripper positions, as in the action | -inf | inf | rad, – |
    | `environment_state` | TransferCube 0 … 6 | cube: position, quaternion | -inf | inf | m, – |
    | `environment_state` | Insertion 0 … 13 | peg, then socket | -inf | inf | m, – |

    ## Reward
    0 … 4, the stage that the suite sees the task in.

    ## Start and end
    Positions of the objects are drawn from the seed. An episode terminates at success and is truncated after 300 steps
    (6 s at 50 Hz).

    ## Info
    `success` (bool): reward 4, the cube in the left gripper alone and lifted, or the peg touching the socket's pin.

    ## Version history
    v0: first version, on gym-aloha's v0.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `ALOHA_TASKS`.
            render_mode: None or "rgb_array".

        Raises:
            ValueError: No such task.
            ImportError: The extra `aloha` is not installed.
        """
        check_task(task, ALOHA_TASKS, "Aloha")
        inner = make_inner("gym_aloha", "aloha", f"gym_aloha/Aloha{task}-v0")
        super().__init__(inner, state_space(14, _OBJECT_DIM[task]))
        self.render_mode = render_mode
        # Its observation would be three images; the task's state is what they show.
        simulation = inner._env.task
        simulation.get_observation = lambda physics: {
            "agent_pos": simulation.get_qpos(physics),
            "environment_state": simulation.get_env_state(physics),
        }
        inner._format_raw_obs = lambda raw: raw
        arm = [*inner._env.physics.model.actuator_ctrlrange[:_ARM_DIM], (0.0, 1.0)]
        low, high = np.tile(np.array(arm, np.float32), (2, 1)).T
        self.action_space = spaces.Box(low, high)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed fixes where the objects are."""
        # Without a seed the suite asks the operating system for one, even after an episode that had one.
        return super().reset(seed=int(self.np_random.integers(2**32)) if seed is None else seed, options=options)

    def _observe(self, raw: dict[str, Array]) -> dict[str, Array]:
        return {key: np.array(value, np.float64) for key, value in raw.items()}

    def _succeeded(self, raw: dict[str, Array], info: dict[str, Any]) -> bool:
        return bool(info["is_success"])
