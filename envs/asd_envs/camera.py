"""Image observations of the MuJoCo environments of this package."""

from typing import Literal

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

ObsType = Literal["state", "pixels_agent_pos"]
"""What an environment shows: numbers, or an image and the numbers of the robot itself (LeRobot's names)."""


class Camera:
    """Draws a model's camera, whatever the environment's own `render_mode`."""

    size = 96  # [px]
    space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def __init__(self, model: mujoco.MjModel, name: str) -> None:
        """Open a renderer; without a screen that takes MUJOCO_GL=egl.

        Args:
            model: Of the environment.
            name: Of the camera.
        """
        self._renderer = mujoco.Renderer(model, self.size, self.size)
        self._name = name

    def image(self, data: mujoco.MjData) -> npt.NDArray[np.uint8]:
        """Return what the camera sees now [size, size, 3]."""
        self._renderer.update_scene(data, self._name)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
