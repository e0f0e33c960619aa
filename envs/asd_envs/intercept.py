"""`asd/Intercept-v0`: a paddle meets pucks that bounce over a table, and misses them if it moves late."""

import math
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from asd_envs.task import Observation, ObsType, Task

PUCKS = 3  # in an episode
PUCK_RADIUS = 0.02  # [m]
WALL_X = 0.3 - PUCK_RADIUS  # [m] where the centre of a puck turns
PADDLE_Y = PUCK_RADIUS  # [m] where the centre of a puck meets the paddle
GOAL_Y = -0.05  # [m]
REACH = 0.25  # [m] of the paddle's centre, either way
TOUCH = 0.04 + PUCK_RADIUS  # [m] between the centres of paddle and puck at the paddle's ends
PAUSE = 3  # control steps from the one in which a puck ends to the one that ends with the next serve

SERVE_Y = 0.8  # [m]
SPEED_ALONG = (1.2, 1.5)  # [m/s] towards the paddle
SPEED_ACROSS = (0.4, 1.8)  # [m/s]
DISTANCE = (0.15, 0.4)  # [m] from where the last puck was to be met
DAMPING = (40.0, 160.0)  # [1/s] of the walls in contact; 0.91 … 0.69 of the speed across them is left
RESTITUTION = 0.79  # at the mean of DAMPING

Array = npt.NDArray[np.float64]


def predict_crossing(x: float, y: float, across: float, along: float) -> tuple[float, int]:
    """Predict where a puck will meet the paddle's line [m], and after how many bounces, at the mean restitution.

    Args:
        x: Position of its centre across the table [m].
        y: Along the table, not behind the paddle's line [m].
        across: Velocity in x [m/s].
        along: In y, towards the paddle, so negative [m/s].
    """
    left, bounces = (PADDLE_Y - y) / along, 0
    while across:
        wall = math.copysign(WALL_X, across)
        reached = max((wall - x) / across, 0.0)  # a puck that is turning is a little beyond
        if reached >= left:
            break
        x, across, left, bounces = wall, -across * RESTITUTION, left - reached, bounces + 1
    return x + across * left, bounces


@dataclass(frozen=True)
class Serve:
    """How a puck starts."""

    x: float
    """Position across the table [m]."""
    across: float
    """Velocity in x [m/s]."""
    along: float
    """Velocity in y [m/s]."""
    damping: float
    """Of its contacts with the walls [1/s]."""

    @property
    def crossing(self) -> tuple[float, int]:
        """As `predict_crossing`."""
        return predict_crossing(self.x, SERVE_Y, self.across, self.along)


def draw_serve(rng: np.random.Generator, last: float) -> Serve:
    """Draw serves until one bounces and is to be met far enough from the last one.

    Args:
        rng: Source of all numbers.
        last: Where the last puck was to be met [m].
    """
    while True:
        serve = Serve(
            x=rng.uniform(-REACH, REACH),
            across=rng.uniform(*SPEED_ACROSS) * rng.choice((-1.0, 1.0)),
            along=-rng.uniform(*SPEED_ALONG),
            damping=rng.uniform(*DAMPING),
        )
        x, bounces = serve.crossing
        near, far = DISTANCE
        if abs(x) <= REACH and near <= abs(x - last) <= far and bounces > 0:
            return serve


class InterceptEnv(Task):
    """A paddle on rails meets three pucks, one after the other, that slide over a table and bounce off its walls.

    A puck is on its way for 0.5 … 0.65 s and the paddle needs 0.25 … 0.6 s to be there, so an action that comes late
    shows in the reward (`scripts/benchmarks/late_actions.py`). How much of its speed a wall leaves is drawn for each
    puck and not observed, so where it will arrive is known only after its last bounce.

    ## Action space: `Box(1)`, the target position of the paddle

    | Index | Action | Min | Max | Actuator | Unit |
    |---|---|---|---|---|---|
    | 0 | target x, across the table | -0.25 | 0.25 | position servo `paddle` | m |

    The servo (150 N/m, at most 7 N on 0.2 kg with 10 N s/m, so at most 0.7 m/s) is driven at 20 Hz.

    ## Observation space: `Dict`

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 | position x of the paddle | -1 | 1 | m |
    | `agent_pos` | 1 | velocity x of the paddle | -5 | 5 | m/s |
    | `environment_state` | 0 | position x of the puck, across the table | -1 | 1 | m |
    | `environment_state` | 1 | position y of the puck, from the paddle on | -1 | 1 | m |
    | `environment_state` | 2 | velocity x of the puck | -5 | 5 | m/s |
    | `environment_state` | 3 | velocity y of the puck | -5 | 5 | m/s |
    | `pixels` | – | the table from above, [96, 96, 3] uint8 | 0 | 255 | – |

    `obs_type="state"` has the first two keys, `obs_type="pixels_agent_pos"` the first and the last.

    ## Reward
    1 − |x_puck − x_paddle| / 0.06 m, at least 0, for the step in which the paddle touches a puck for the first time,
    else 0: an episode's return is at most 3.

    ## Start and end
    The paddle rests at x = 0. A puck is served at x ~ U(-0.25, 0.25) m, y = 0.8 m with velocities ±U(0.4, 1.8) m/s
    across and -U(1.2, 1.5) m/s along the table, drawn anew until it is to bounce (once or twice) and to be met within
    the paddle's reach, 0.15 … 0.4 m from where the one before was (from x = 0 for the first). The walls have no
    friction and leave 0.69 … 0.91 of the speed across them: their damping in contact, U(40, 160) / s, is drawn for each
    puck. A puck ends when the paddle touches it, or behind the goal line, y < -0.05 m; the next one is served two steps
    later. All three serves are drawn at the reset, so they do not depend on what is done. An episode terminates with
    the last puck, and is truncated after 80 steps (4 s).

    ## Info
    `success` (bool): all three pucks were touched; `intercepted` (int): how many were.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 20}

    def __init__(self, obs_type: ObsType = "state", **kwargs: Any) -> None:
        """Build the simulation.

        Args:
            obs_type: "state" or "pixels_agent_pos".
            **kwargs: For `Task`, such as `render_mode`, `width` and `height` [px].

        Raises:
            ValueError: No such `obs_type`.
        """
        paddle, puck = np.array([1.0, 5]), np.array([1.0, 1, 5, 5])
        super().__init__(
            "intercept.xml",
            frame_skip=100,
            agent_pos=spaces.Box(-paddle, paddle, dtype=np.float64),
            environment_state=spaces.Box(-puck, puck, dtype=np.float64),
            action=spaces.Box(-REACH, REACH, (1,), np.float64),
            obs_type=obs_type,
            **kwargs,
        )
        self._paddle = self.model.geom("paddle").id
        self._walls = [self.model.geom(name).id for name in ("left", "right")]
        self._serves: list[Serve] = []
        self._intercepted = 0
        self._pause = 0

    def reset_model(self) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        """Draw the episode's serves and begin with the first."""
        last, self._serves = 0.0, []
        for _ in range(PUCKS):
            self._serves.append(draw_serve(self.np_random, last))
            last, _ = self._serves[-1].crossing
        self._intercepted = self._pause = 0
        self.data.ctrl[:] = 0.0
        self.set_state(np.zeros(3), np.zeros(3))
        self._serve()
        return self._observation()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive the paddle towards `action` [m] for 0.05 s."""
        reward = 0.0
        self.data.ctrl[:] = np.clip(action, -REACH, REACH)
        for _ in range(self.frame_skip):
            # do_simulation would compute joint forces too, which takes longer than the step itself.
            mujoco.mj_step(self.model, self.data)  # pyright: ignore[reportAttributeAccessIssue]  # compiled
            if not self._pause:
                reward += self._judge()
        terminated = not self._serves
        if self._pause and not terminated:
            self._pause -= 1
            if not self._pause:
                self._serve()
        if self.render_mode == "human":
            self.render()
        return self._observation(), reward, terminated, False, self._get_reset_info()

    def _get_reset_info(self) -> dict[str, Any]:
        return {"success": self._intercepted == PUCKS, "intercepted": self._intercepted}

    def _observation(self) -> Observation:
        position, velocity = self.data.qpos, self.data.qvel
        return self.show(np.array([position[0], velocity[0]]), np.concatenate([position[1:], velocity[1:]]))

    def _serve(self) -> None:
        serve = self._serves[0]
        self.model.geom_solref[self._walls, 1] = -serve.damping
        paddle, speed = self.data.qpos[0], self.data.qvel[0]
        self.set_state(np.array([paddle, serve.x, SERVE_Y]), np.array([speed, serve.across, serve.along]))

    def _judge(self) -> float:
        """End the puck if it is touched or lost; return its reward."""
        paddle, x, y = self.data.qpos
        touched = self.data.ncon > 0 and bool(np.any(self.data.contact.geom == self._paddle))
        if not touched and y >= GOAL_Y:
            return 0.0
        self._serves.pop(0)
        self._pause = PAUSE
        self._intercepted += touched
        return max(0.0, 1.0 - abs(x - paddle) / TOUCH) if touched else 0.0


class InterceptExpert:
    """Goes to where the puck will meet the paddle's line, at the walls' mean restitution."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; the expert keeps no state and chooses nothing at random."""

    def act(self, observation: dict[str, Array]) -> Array:
        """Choose the target position [m]: the paddle's own where no puck is coming."""
        x, y, across, along = observation["environment_state"]
        target = observation["agent_pos"][0]
        if along < 0 and y > PADDLE_Y:
            target, _ = predict_crossing(x, y, across, along)
        return np.clip(np.array([target]), -REACH, REACH)
