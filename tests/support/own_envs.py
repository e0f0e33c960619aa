"""A user's own environments, as `module:id` finds them: a point that is done where it started."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

SIZE = 7  # numbers that the policy of the fixture `checkpoint` observes, 4 of the robot and 3 of what is around it


class OwnEnv(gymnasium.Env[Any, npt.NDArray[np.float32]]):
    """Noise to look at, a plane to move in; the end after four steps is a success."""

    def __init__(self, form: str) -> None:
        """Make it.

        Args:
            form: "flat", "dict", or "silent", which is flat and reports no success.
        """
        self.form = form
        box = spaces.Box(-np.inf, np.inf, (SIZE,), np.float64)
        agent, environment = spaces.Box(-np.inf, np.inf, (4,)), spaces.Box(-np.inf, np.inf, (3,))
        parts = spaces.Dict({"agent_pos": agent, "environment_state": environment})
        self.observation_space = parts if form == "dict" else box
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start anew."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), self._info(False)

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count."""
        self._steps += 1
        done = self._steps == 4
        return self._observe(), 0.25, done, False, self._info(done)

    def _observe(self) -> Any:
        values = self.np_random.normal(size=SIZE)
        if self.form != "dict":
            return values
        return {"agent_pos": values[:4].astype(np.float32), "environment_state": values[4:].astype(np.float32)}

    def _info(self, success: bool) -> dict[str, Any]:
        return {"time": self._steps} if self.form == "silent" else {"success": success}


for _form in ("flat", "dict", "silent"):
    gymnasium.register(f"own/{_form}-v0", entry_point=f"{__name__}:OwnEnv", kwargs={"form": _form})
