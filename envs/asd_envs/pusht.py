"""`asd/PushT-v0`: push a T-shaped block into a goal pose."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from shapely import Polygon

from asd_envs.dubins import Pose
from asd_envs.task import Observation, ObsType, Task

REACH = 0.24  # [m] the pusher's targets lie within ± this in x and y, so that it does not touch the walls
PUSHER_RADIUS = 0.015  # [m]
START_RANGE = 0.1  # [m] the block's centre of mass starts within ± this in x and y
START_DISTANCE = 0.11  # [m] at least, from the pusher's start to the block's centre of mass: they do not touch
GOAL_POSE = (0.0, 0.0, np.pi / 4)  # x, y [m], yaw [rad]
SUCCESS_COVERAGE = 0.9

BAR_OUTSIDE, BAR_INSIDE, STEM_END = -0.285 / 7, -0.075 / 7, 0.555 / 7  # [m] y in the block's frame, of the T's faces
BAR_HALF_WIDTH, STEM_HALF_WIDTH = 0.06, 0.015  # [m]
# Corners in the block's frame [8, 2] [m]: origin in the centre of mass, y from the bar to the stem's end.
CORNERS = np.array(
    [
        [-BAR_HALF_WIDTH, BAR_OUTSIDE],
        [BAR_HALF_WIDTH, BAR_OUTSIDE],
        [BAR_HALF_WIDTH, BAR_INSIDE],
        [STEM_HALF_WIDTH, BAR_INSIDE],
        [STEM_HALF_WIDTH, STEM_END],
        [-STEM_HALF_WIDTH, STEM_END],
        [-STEM_HALF_WIDTH, BAR_INSIDE],
        [-BAR_HALF_WIDTH, BAR_INSIDE],
    ]
)

Array = npt.NDArray[np.float64]


def rotation(yaw: float) -> Array:
    """Compute the matrix [2, 2] that turns vectors by `yaw` [rad]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin], [sin, cos]])


def outline(pose: Pose, corners: Array = CORNERS) -> Polygon:
    """Compute the outline of the T, or of another that has these corners [N, 2] [m], at a pose."""
    return Polygon(corners @ rotation(pose[2]).T + pose[:2])


GOAL = outline(GOAL_POSE)


def coverage(pose: Pose) -> float:
    """Compute the share of the goal's area that the block covers at a pose, 0 … 1."""
    return GOAL.intersection(outline(pose)).area / GOAL.area


class PushTEnv(Task):
    """A round pusher brings a T-shaped block to a goal pose, by pushing alone.

    The benchmark task of Diffusion Policy (arXiv 2303.04137), there a pymunk simulation of 512 × 512 pixels, in MuJoCo.
    With a pixel of 1 mm, the T, the pusher, the workspace and the goal's yaw are the same, contacts have no friction,
    and the block stops when it is not pushed, as there. What differs: success at a coverage of 0.9 instead of 0.95,
    a block that starts within 0.1 m of the goal's x and y instead of 0.15 m, a pusher that does not start beside it,
    and a goal whose centre of mass is the workspace's centre.

    ## Action space: `Box(2)`, the target position of the pusher

    | Index | Action | Min | Max | Actuator | Unit |
    |---|---|---|---|---|---|
    | 0 | target x | -0.24 | 0.24 | position servo `x` | m |
    | 1 | target y | -0.24 | 0.24 | position servo `y` | m |

    The servos (1000 N/m, critically damped, at most 50 N on 0.5 kg) are driven at 10 Hz.

    ## Observation space: `Dict`

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 | pusher's position x | -0.3 | 0.3 | m |
    | `agent_pos` | 1 | pusher's position y | -0.3 | 0.3 | m |
    | `environment_state` | 0 | x of the block's centre of mass | -0.3 | 0.3 | m |
    | `environment_state` | 1 | y of the block's centre of mass | -0.3 | 0.3 | m |
    | `environment_state` | 2 | cosine of the block's yaw | -1 | 1 | – |
    | `environment_state` | 3 | sine of the block's yaw | -1 | 1 | – |
    | `environment_state` | 4 | x of the pusher in the block's frame | -0.8 | 0.8 | m |
    | `environment_state` | 5 | y of the pusher in the block's frame | -0.8 | 0.8 | m |

    With `obs_type="pixels_agent_pos"` there is `pixels` [96, 96, 3], uint8, seen from above, in place of
    `environment_state`. In the block's frame y points from the T's bar to the end of its stem.

    ## Reward
    The coverage after the step: area of the intersection of block and goal / area of the goal, 0 … 1.

    ## Start and end
    The block's x and y ~ U(-0.1, 0.1) m, its yaw ~ U(-π, π). The pusher's x and y ~ U(-0.22, 0.22) m, at least
    0.11 m from the block's centre of mass. Both are at rest. The goal is x = y = 0, yaw = π/4.
    An episode terminates at a coverage of 0.9 (success) and is truncated after 300 steps (30 s).

    ## Info
    `success` (bool), `coverage` (float).

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 10}

    def __init__(self, obs_type: ObsType = "state", **kwargs: Any) -> None:
        """Build the simulation.

        Args:
            obs_type: "state" or "pixels_agent_pos".
            **kwargs: For `Task`, such as `render_mode`, `width` and `height` [px].

        Raises:
            ValueError: No such `obs_type`.
        """
        high = np.array([0.3, 0.3, 1, 1, 0.8, 0.8])
        super().__init__(
            "pusht.xml",
            frame_skip=20,
            agent_pos=spaces.Box(-0.3, 0.3, (2,), np.float64),
            environment_state=spaces.Box(-high, high, dtype=np.float64),
            action=spaces.Box(-REACH, REACH, (2,), np.float64),
            obs_type=obs_type,
            **kwargs,
        )

    def reset_model(self) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        """Place block and pusher at random, apart from each other."""
        block = self.np_random.uniform([-START_RANGE, -START_RANGE, -np.pi], [START_RANGE, START_RANGE, np.pi])
        pusher = block[:2]
        while np.linalg.norm(pusher - block[:2]) < START_DISTANCE:
            pusher = self.np_random.uniform(-0.22, 0.22, 2)
        self.data.ctrl[:] = pusher
        self.set_state(np.concatenate([block, pusher]), np.zeros(5))
        return self._observation()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive the servos towards `action` [m] for 0.1 s."""
        self.do_simulation(np.clip(action, -REACH, REACH), self.frame_skip)
        if self.render_mode == "human":
            self.render()
        info = self._get_reset_info()
        return self._observation(), info["coverage"], info["success"], False, info

    def _get_reset_info(self) -> dict[str, Any]:
        covered = coverage(tuple(self.data.qpos[:3]))
        return {"success": covered >= SUCCESS_COVERAGE, "coverage": covered}

    def _observation(self) -> Observation:
        x, y, yaw = self.data.qpos[:3]
        pusher = self.data.qpos[3:].copy()
        relative = rotation(-yaw) @ (pusher - (x, y))
        return self.show(pusher, np.array([x, y, np.cos(yaw), np.sin(yaw), *relative]))
