"""The demonstrator of `asd/GymPushT-…-v0`: that of our own Push-T, on gym-pusht's board."""

from math import cos, pi, sin

import numpy as np
import numpy.typing as npt

from asd_envs.gym_pusht import GymPushTEnv
from asd_envs.pusht import CORNERS, rotation
from asd_envs.pusht_expert import Board, PushTExpert

Array = npt.NDArray[np.float64]

PIXEL = 0.001  # [m] with which gym-pusht's T and pusher are those of `asd/PushT-v0`
MIDDLE = 256.0  # [px] of the table, in x and y
CENTRE_Y = 45.0  # [px] y of the centre of mass in the block's own frame: gym-pusht lets bar and stem weigh the same
LEAD = 2.5
"""How far ahead the target is of where the pusher shall be a step later: its servo (100 / s², 20 / s) lags behind."""

BOARD = Board(
    CORNERS - [0, CORNERS[:, 1].min() + CENTRE_Y * PIXEL],
    goal=(-sin(pi / 4) * CENTRE_Y * PIXEL, cos(pi / 4) * CENTRE_Y * PIXEL, pi / 4),
    success=0.95,
    gyration=3000**0.5 * PIXEL,
    turn_radius=0.075,
)
"""Seen from the table's middle."""


class GymPushTExpert:
    """Drives the block as `PushTExpert` does. It reads the block's pose from the simulation: frames do not tell."""

    def __init__(self, env: GymPushTEnv) -> None:
        """Make one for an environment, whatever this observes."""
        self._simulation = env.inner
        self._expert = PushTExpert(BOARD)

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; it keeps no state and chooses nothing at random."""

    def act(self, observation: dict[str, Array]) -> Array:
        """Choose the pusher's target position [px]."""
        block, pusher = self._simulation.block, np.array(self._simulation.agent.position)
        turn = rotation(block.angle)
        centre = np.array(block.position) + turn @ (0, CENTRE_Y)
        relative = turn.T @ (pusher - centre) * PIXEL
        state = np.array([*(centre - MIDDLE) * PIXEL, cos(block.angle), sin(block.angle), *relative])
        place = self._expert.act({"environment_state": state}) / PIXEL + MIDDLE
        return np.clip(pusher + LEAD * (place - pusher), 0, 2 * MIDDLE)
