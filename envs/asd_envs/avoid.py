"""`asd/Avoid-v0`, `asd/AvoidPixels-v0`: cross a field of staggered pillars, by any of 24 equally rewarded ways."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from asd_envs.task import Observation, ObsType, Task

PILLAR_SPACING = 0.14  # [m] between the centres of neighbouring pillars of a row
FINISH_Y = 0.52  # [m]
START_Y = -0.05  # [m]
WORKSPACE_LOW = np.array([-0.35, -0.1])  # [m]
WORKSPACE_HIGH = np.array([0.35, 0.6])  # [m]
ROW_Y = (0.1, 0.25, 0.4)  # [m]; row r has r + 1 pillars and so r + 2 gaps
HOMOTOPY_CLASSES = tuple("-".join(map(str, gaps)) for gaps in itertools.product(range(2), range(3), range(4)))

Array = npt.NDArray[np.float64]


def gap_of(x: float, row: int, offset: float) -> int:
    """Find the gap of a row in which the position x [m] lies, counted from the left.

    Args:
        x: Position along the row [m].
        row: Row index, 0 … 2.
        offset: The row's displacement in this episode [m].
    """
    return int(np.clip(np.floor((x - offset) / PILLAR_SPACING + (row + 2) / 2), 0, row + 1))


def gap_centre(gap: int, row: int, offset: float) -> float:
    """Compute the middle of a gap [m], the inverse of `gap_of`. The outer gaps count as wide as the others."""
    return offset + (gap - (row + 1) / 2) * PILLAR_SPACING


class AvoidEnv(Task):
    """A position-controlled end-effector crosses three rows of staggered pillars to a finish line.

    The layout (rows of one, two and three pillars) follows the Avoiding task of D3IL
    (arXiv 2402.14606): gaps 2 × 3 × 4 make 24 homotopy classes, and each of them earns the same reward, so a
    sampler that loses modes shows in the entropy of `info["homotopy_class"]` over many episodes.

    ## Action space: `Box(2)`, the target position of the end-effector

    | Index | Action | Min | Max | Actuator | Unit |
    |---|---|---|---|---|---|
    | 0 | target x, along the rows | -0.35 | 0.35 | position servo `x` | m |
    | 1 | target y, towards the finish | -0.1 | 0.6 | position servo `y` | m |

    The servos (400 N/m, critically damped, at most 20 N on 1 kg) are driven at 10 Hz.

    ## Observation space: `Dict`

    | Key | Index | Observation | Min | Max | Unit |
    |---|---|---|---|---|---|
    | `agent_pos` | 0 | position x | -1 | 1 | m |
    | `agent_pos` | 1 | position y | -1 | 1 | m |
    | `agent_pos` | 2 | velocity x | -10 | 10 | m/s |
    | `agent_pos` | 3 | velocity y | -10 | 10 | m/s |
    | `environment_state` | 0 … 2 | displacement along x of pillar row 0 … 2 | -0.03 | 0.03 | m |

    With `obs_type="pixels_agent_pos"` there is `pixels` [96, 96, 3], uint8, seen from above, in place of
    `environment_state`.

    `asd/AvoidPixels-v0` shows `pixels` [64, 64, 3] from nearer, and displaces rows by up to 0.06 m in place of 0.03 m:
    farther than a gap is wide, so that what does not look at the pixels touches a pillar more often than not.

    ## Reward
    1 for the step that crosses the finish line, y > 0.52 m, else 0.

    ## Start and end
    The end-effector rests at x ~ U(-0.04, 0.04) m, y = -0.05 m; each row is displaced by U(-0.03, 0.03) m
    (`asd/AvoidPixels-v0`: U(-0.06, 0.06) m).
    An episode terminates at the finish line (success) or when a pillar is touched (failure), and is truncated
    after 100 steps (10 s).

    ## Info
    `success` (bool), `collision` (bool), `homotopy_class` (str): the gap taken in each row crossed so far,
    counted from the left, as in `"1-0-2"`; empty before the first row.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 10}

    def __init__(self, obs_type: ObsType = "state", displacement: float = 0.03, **kwargs: Any) -> None:
        """Build the simulation.

        Args:
            obs_type: "state" or "pixels_agent_pos".
            displacement: The most that a row is displaced to either side [m].
            **kwargs: For `Task`, such as `view`, `render_mode`, `width` and `height` [px].

        Raises:
            ValueError: No such `obs_type`.
        """
        high = np.array([1.0, 1, 10, 10])
        super().__init__(
            "avoid.xml",
            frame_skip=20,
            agent_pos=spaces.Box(-high, high, dtype=np.float64),
            environment_state=spaces.Box(-displacement, displacement, (3,), np.float64),
            action=spaces.Box(WORKSPACE_LOW, WORKSPACE_HIGH, dtype=np.float64),
            obs_type=obs_type,
            **kwargs,
        )
        self._rows = [self.model.body(f"row_{row}").id for row in range(len(ROW_Y))]
        self._displacement = displacement
        self._effector = self.model.geom("effector").id
        self._gaps: list[int] = []

    def reset_model(self) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        """Place the end-effector and displace the rows at random."""
        self.model.body_pos[self._rows, 0] = self.np_random.uniform(-self._displacement, self._displacement, len(ROW_Y))
        start = np.array([self.np_random.uniform(-0.04, 0.04), START_Y])
        self.data.ctrl[:] = start
        self.set_state(start, np.zeros(2))
        self._gaps = []
        return self._observation()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]  # Dict space
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive the servos towards `action` [m] for 0.1 s."""
        collision = False
        for _ in range(self.frame_skip):
            self.do_simulation(np.clip(action, WORKSPACE_LOW, WORKSPACE_HIGH), 1)
            collision = collision or self._touches_pillar()
            self._track_gaps()
        success = bool(self.data.qpos[1] > FINISH_Y) and not collision
        if self.render_mode == "human":
            self.render()
        info = self._info(success, collision)
        return self._observation(), float(success), success or collision, False, info

    def _get_reset_info(self) -> dict[str, Any]:
        return self._info(success=False, collision=False)

    def _info(self, success: bool, collision: bool) -> dict[str, Any]:
        return {
            "success": success,
            "collision": collision,
            "homotopy_class": "-".join(map(str, self._gaps)),
        }

    def displaced(self) -> Array:
        """Measure how far each row is displaced in this episode [3] [m]."""
        return self.model.body_pos[self._rows, 0].copy()

    def _observation(self) -> Observation:
        return self.show(np.concatenate([self.data.qpos, self.data.qvel]), self.displaced())

    def _touches_pillar(self) -> bool:
        return bool(np.any(self.data.contact.geom == self._effector))

    def _track_gaps(self) -> None:
        """Record a row's gap when it is crossed, and forget it when it is crossed back."""
        x, y = self.data.qpos
        crossed = sum(y > row_y for row_y in ROW_Y)
        while len(self._gaps) > crossed:
            self._gaps.pop()
        while len(self._gaps) < crossed:
            row = len(self._gaps)
            self._gaps.append(gap_of(x, row, self.model.body_pos[self._rows[row], 0]))


class AvoidExpert:
    """Follows a polyline through one gap of each row: the middle of a gap on both sides of its row."""

    speed = 0.018  # [m] per step
    clearance = 0.055  # [m] before and after a row within which it moves straight ahead

    def __init__(self, homotopy_class: str | None = None, displaced: Callable[[], Array] | None = None) -> None:
        """Choose the way.

        Args:
            homotopy_class: One of `HOMOTOPY_CLASSES`, or None for a uniform draw in each episode.
            displaced: Says how far each row is displaced [3] [m]; by default that is read from `environment_state`.

        Raises:
            ValueError: No such class.
        """
        if homotopy_class is not None and homotopy_class not in HOMOTOPY_CLASSES:
            raise ValueError(f"no homotopy class {homotopy_class!r}; there are {', '.join(HOMOTOPY_CLASSES)}")
        self._fixed, self._displaced = homotopy_class, displaced
        self._gaps: tuple[int, ...] = ()
        self._next = 0

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        chosen = self._fixed or HOMOTOPY_CLASSES[rng.integers(len(HOMOTOPY_CLASSES))]
        self._gaps = tuple(map(int, chosen.split("-")))
        self._next = 0

    def act(self, observation: dict[str, Array]) -> Array:
        """Choose a target position [m] one step ahead on the way."""
        position = observation["agent_pos"][:2]
        points = self._waypoints(self._displaced() if self._displaced else observation["environment_state"])
        while self._next < len(points) - 1 and self._reached(position, points):
            self._next += 1
        ahead, target = self.speed * 2, position.astype(np.float64)
        for point in points[self._next :]:  # walk `ahead` along the polyline: corners are cut a little
            leg = point - target
            length = float(np.linalg.norm(leg))
            if length >= ahead:
                target = target + leg / length * ahead
                break
            target, ahead = point, ahead - length
        step = target - position
        return np.clip(
            position + step * (self.speed * 2 / max(float(np.linalg.norm(step)), 1e-9)), WORKSPACE_LOW, WORKSPACE_HIGH
        )

    def _reached(self, position: Array, points: list[Array]) -> bool:
        return float(np.linalg.norm(points[self._next] - position)) < 0.02

    def _waypoints(self, offsets: Array) -> list[Array]:
        points = []
        for row, (gap, y) in enumerate(zip(self._gaps, ROW_Y, strict=True)):
            x = gap_centre(gap, row, offsets[row])
            points += [np.array([x, y - self.clearance]), np.array([x, y + self.clearance])]
        return [*points, np.array([points[-1][0], FINISH_Y + 0.05])]
