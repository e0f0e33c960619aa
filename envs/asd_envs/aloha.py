"""`asd/Aloha-<task>-v0`: the bimanual tasks of gym-aloha, observed by their state or a camera."""

from typing import Any

import numpy as np
from gymnasium import spaces

from asd_envs.adapter import Array, SuiteEnv, check_task, make_inner, state_space, unbounded
from asd_envs.registration import ALOHA_TASKS
from asd_envs.task import ObsType, check_obs_type

CAMERA, IMAGE_SIZE = "top", (480, 640)  # [px]
_JOINTS = 14
_ARM_DIM = 6  # joints; the suite's actuators have two fingers after them, its actions one gripper
_OBJECT_DIM = {"TransferCube": 7, "Insertion": 14}


class AlohaEnv(SuiteEnv):
    """Two ViperX arms hand a cube over or put a peg into a socket (arXiv 2304.13705, package gym-aloha ≥ 0.1.5).

    The suite observes its camera `top`, at three rendered images a step. This adapter observes the state that its tasks
    report, and renders nothing; or, with `obs_type="pixels_agent_pos"`, the joints and that camera's one image.

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
    | `pixels` | `top` | 480, 640, 3, uint8: image from above | 0 | 255 | – |

    `obs_type="state"` has the first two keys, `obs_type="pixels_agent_pos"` the first and the last, as
    LeRobot has them.

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

    def __init__(self, task: str, render_mode: str | None = None, obs_type: ObsType = "state") -> None:
        """Build the simulation.

        Args:
            task: One of `ALOHA_TASKS`.
            render_mode: None or "rgb_array".
            obs_type: "state" or "pixels_agent_pos".

        Raises:
            ValueError: No such task or observation.
            ImportError: The extra `aloha` is not installed.
        """
        check_task(task, ALOHA_TASKS, "Aloha")
        self._sees = check_obs_type(obs_type) == "pixels_agent_pos"
        inner = make_inner("gym_aloha", "aloha", f"gym_aloha/Aloha{task}-v0")
        image = spaces.Dict({CAMERA: spaces.Box(0, 255, (*IMAGE_SIZE, 3), np.uint8)})
        seen = spaces.Dict({"pixels": image, "agent_pos": unbounded(_JOINTS)})
        super().__init__(inner, seen if self._sees else state_space(_JOINTS, _OBJECT_DIM[task]))
        self.render_mode = render_mode
        # Its observation would be three images.
        simulation = inner._env.task
        simulation.get_observation = lambda physics: {
            "agent_pos": simulation.get_qpos(physics),
            **(
                {"pixels": physics.render(*IMAGE_SIZE, camera_id=CAMERA)}
                if self._sees
                else {"environment_state": simulation.get_env_state(physics)}
            ),
        }
        inner._format_raw_obs = lambda raw: raw
        arm = [*inner._env.physics.model.actuator_ctrlrange[:_ARM_DIM], (0.0, 1.0)]
        low, high = np.tile(np.array(arm, np.float32), (2, 1)).T
        self.action_space = spaces.Box(low, high)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed fixes where the objects are."""
        # Without a seed the suite asks the operating system for one, even after an episode that had one.
        return super().reset(seed=int(self.np_random.integers(2**32)) if seed is None else seed, options=options)

    def _observe(self, raw: dict[str, Array]) -> dict[str, Any]:
        if self._sees:
            return {"pixels": {CAMERA: np.array(raw["pixels"])}, "agent_pos": np.array(raw["agent_pos"], np.float64)}
        return {key: np.array(value, np.float64) for key, value in raw.items()}

    def _succeeded(self, raw: dict[str, Array], info: dict[str, Any]) -> bool:
        return bool(info["is_success"])
