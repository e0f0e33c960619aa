"""Environments that fail in one way or another, by gymnasium ids such as `faulty_envs:faulty/Raise-v0`.

They are found as `module:id` in whatever process needs them. A policy for asd/Avoid-v0 fits all of them.
"""

import os
import time
from typing import Any

import gymnasium
import numpy as np

STEPS = 20


class Faulty(gymnasium.Env[Any, Any]):
    """An episode of 20 steps, and a success; each second one, by its seed, goes wrong at step 10."""

    def __init__(self, fault: str, render_mode: str | None = None) -> None:
        """Take the name of what goes wrong."""
        self.fault = fault
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start at a random place."""
        super().reset(seed=seed)
        self.steps = 0
        self.state = self.np_random.uniform(-1, 1, 7)
        self.bad = self.fault != "none" and bool(self.np_random.random() < 0.5)
        if self.fault == "stuck" or (self.fault == "reset" and self.bad):
            raise RuntimeError("the door is stuck")
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move a little, or fail."""
        self.steps += 1
        self.state[:2] += 0.01 * np.asarray(action)
        observation, reward = self.state.copy(), float(self.state[0])
        if self.bad and self.steps == STEPS // 2:
            if self.fault == "raise":
                raise RuntimeError("the gripper\nfell off")
            if self.fault == "die":
                time.sleep(0.05)
                os._exit(3)
            if self.fault == "reward":
                reward = float("nan")
            if self.fault == "observation":
                observation[3] = np.inf
            if self.fault == "shape":
                observation = observation[:6]
        return observation, reward, self.steps == STEPS, False, {"success": True, "ragged": list(range(self.steps))}


for name in ("none", "stuck", "reset", "raise", "die", "reward", "observation", "shape"):
    gymnasium.register(f"faulty/{name.capitalize()}-v0", f"{__name__}:Faulty", kwargs={"fault": name})
