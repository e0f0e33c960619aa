"""Image observations of the MuJoCo environments of this package."""

from typing import Literal

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

ObsType = Literal["state", "pixels_agent_pos"]
"""What an environment shows: numbers, or an image and the numbers of the robot itself (LeRobot's names)."""


class Camera:
    """What a camera of an environment's model sees, whatever the environment's own `render_mode`."""

    size = 96  # [px]
    space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def __init__(self, env: MujocoEnv, name: str) -> None:
        """Open a renderer; without a screen that takes MUJOCO_GL=egl.

        Args:
            env: Whose model and state are drawn.
            name: Of the camera in the model.
        """
        self._env = env
        self._name = name
        self._renderer = mujoco.Renderer(env.model, self.size, self.size)

    def image(self) -> npt.NDArray[np.uint8]:
        """Return the image of the present state [size, size, 3]."""
        self._renderer.update_scene(self._env.data, self._name)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
