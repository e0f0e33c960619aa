"""The base of this package's own MuJoCo environments: a model, a camera, and their observation."""

import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

ObsType = Literal["state", "pixels_agent_pos"]
"""What is observed: numbers, or an image and the robot's own numbers (LeRobot's names)."""
Observation = dict[str, npt.NDArray[Any]]
View = tuple[str, int]
"""Name of a camera of the model, and width and height of its images [px]."""


def check_obs_type(obs_type: ObsType) -> ObsType:
    """Refuse an observation that there is not.

    Raises:
        ValueError: It is none of `ObsType`.
    """
    if obs_type not in get_args(ObsType):
        raise ValueError(f"no obs_type {obs_type!r}; there are {', '.join(get_args(ObsType))}")
    return obs_type


class Task(MujocoEnv):
    """An environment with a model of its own, which has a camera `top`.

    With `obs_type="pixels_agent_pos"` it shows `pixels` [size, size, 3], uint8, of its view in the place of
    `environment_state`. Where there is no screen, EGL draws them, as if MUJOCO_GL=egl were set.
    """

    def __init__(
        self,
        model: str,
        frame_skip: int,
        agent_pos: spaces.Box,
        environment_state: spaces.Box,
        action: spaces.Box,
        obs_type: ObsType,
        view: View = ("top", 96),
        **kwargs: Any,
    ) -> None:
        """Build the simulation.

        Args:
            model: Name of the MJCF file in this folder.
            frame_skip: Simulation steps of a control step.
            agent_pos: Space of the robot's own numbers.
            environment_state: Space of the others.
            action: Space of actions.
            obs_type: "state" or "pixels_agent_pos".
            view: What `pixels` show.
            **kwargs: For `gymnasium.envs.mujoco.MujocoEnv`, such as `render_mode`, `width` and `height` [px].

        Raises:
            ValueError: No such `obs_type`.
        """
        check_obs_type(obs_type)
        shown: dict[str, spaces.Space[Any]] = {"agent_pos": agent_pos}
        if obs_type == "state":
            shown["environment_state"] = environment_state
        else:
            shown["pixels"] = spaces.Box(0, 255, (view[1], view[1], 3), np.uint8)
        super().__init__(
            str(Path(__file__).with_name(model)),
            frame_skip,
            spaces.Dict(shown),
            camera_name=kwargs.pop("camera_name", "top"),
            **kwargs,
        )
        self.action_space = action
        self.environment_state: npt.NDArray[Any] | None = None
        """The environment's numbers at present, also where `pixels` are shown in their place."""
        # Not the renderer of `render_mode`, whose size and camera are the user's.
        self._camera: MujocoRenderer | None = None
        if "pixels" in shown:
            if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
                os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default would look for a screen
            self._camera = MujocoRenderer(self.model, self.data, None, view[1], view[1], camera_name=view[0])

    def close(self) -> None:
        """Close the renderers."""
        if self._camera is not None:
            self._camera.close()
        super().close()

    def show(self, agent_pos: npt.NDArray[Any], environment_state: npt.NDArray[Any]) -> Observation:
        """Make the observation of the present state, given its numbers."""
        self.environment_state = environment_state
        if self._camera is None:
            return {"agent_pos": agent_pos, "environment_state": environment_state}
        return {"agent_pos": agent_pos, "pixels": _draw(self._camera, "rgb_array")}

    def render(self) -> Any:
        """Render the frame that `render_mode` asks for, in a window or as an array."""
        return _draw(self.mujoco_renderer, self.render_mode)


def _draw(renderer: MujocoRenderer, mode: str | None) -> Any:
    viewer: Any = renderer.viewer
    if viewer is not None:  # a new renderer is current anyway; with two, the other one may be
        viewer.make_context_current()
    return renderer.render(mode)
