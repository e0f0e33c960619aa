"""`asd/GymPushT-<observation>-v0`: the Push-T of gym-pusht, LeRobot's port of Diffusion Policy's."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from asd_envs.adapter import SuiteEnv, check_task, make_inner, state_space, unbounded
from asd_envs.registration import PUSHT_OBSERVATIONS

# The suite's name of each, and its space. The suite says that all is inside the walls, but a block can be squeezed out.
_IMAGE = spaces.Box(0, 255, (96, 96, 3), np.uint8)
_SPACES: dict[str, tuple[str, spaces.Space[Any]]] = {
    "state": ("state", unbounded(5)),
    "keypoints": ("environment_state_agent_pos", state_space(2, 16)),
    "pixels": ("pixels_agent_pos", spaces.Dict({"pixels": _IMAGE, "agent_pos": unbounded(2)})),
}


class GymPushTEnv(SuiteEnv):
    """A disc pushes a T-shaped block onto its goal pose in the plane (arXiv 2303.04137, package gym-pusht ≥ 0.1.8).

    The unit of length is 1/512 of the table's side, a pixel of the original.

    ## Action space: `Box(2)`

    | Index | Action | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 … 1 | position target of the disc | 0 | 512 | 1/512 |

    ## Observation space: `Box(5)` for state, else `Dict`

    | Task | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|---|
    | state | | 0 … 1 | disc position | -inf | inf | 1/512 |
    | state | | 2 … 3 | block position | -inf | inf | 1/512 |
    | state | | 4 | block angle | -inf | inf | rad |
    | keypoints, pixels | `agent_pos` | 0 … 1 | disc position | -inf | inf | 1/512 |
    | keypoints | `environment_state` | 0 … 15 | x, y of the 8 corners of the block's two boxes | -inf | inf | 1/512 |
    | pixels | `pixels` | 96, 96, 3 | image from above | 0 | 255 | – |

    These are LeRobot's `observation.state`, `observation.environment_state` and `observation.image` of `pusht` and
    `pusht_keypoints`. Diffusion Policy's own low-dimensional Push-T has 9 other keypoints: its checkpoints do not fit.

    ## Reward
    min(coverage / 0.95, 1), coverage being the part of the goal that the block covers.

    ## Start and end
    Positions of disc and block and the block's angle are drawn from the seed. An episode terminates at success and
    is truncated after 300 steps (30 s at 10 Hz).

    ## Info
    `success` (bool): coverage above 0.95. `coverage`, after steps, and others are the suite's.

    ## Version history
    v0: first version, on gym-pusht's v0.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        """Build the simulation.

        Args:
            task: One of `PUSHT_OBSERVATIONS`: what is observed.
            render_mode: None or "rgb_array".

        Raises:
            ValueError: No such observation.
            ImportError: The extra `pusht` is not installed.
        """
        check_task(task, PUSHT_OBSERVATIONS, "GymPushT")
        name, space = _SPACES[task]
        # Always "rgb_array": in "human" mode the suite observes no images.
        inner = make_inner("gym_pusht", "pusht", "gym_pusht/PushT-v0", obs_type=name, render_mode="rgb_array")
        super().__init__(inner, space)
        self.render_mode = render_mode

    @property
    def environment_state(self) -> npt.NDArray[np.float64]:
        """Where the block's corners are [16], whatever is observed."""
        return self.inner.get_keypoints(self.inner._block_shapes).flatten()

    def _observe(self, raw: Any) -> Any:
        # The image is a view of the screen that is drawn next.
        return {key: np.array(value) for key, value in raw.items()} if isinstance(raw, dict) else raw

    def _succeeded(self, raw: Any, info: dict[str, Any]) -> bool:
        return bool(info["is_success"])
