"""Environments that fail, or are odd, in one way or another, by gymnasium ids such as `faulty_envs:faulty/Raise-v0`.

They are found as `module:id` in whatever process needs them. A policy for asd/Avoid-v0 fits all of them.
"""

import os
import random
import time
from typing import Any

import gymnasium
import numpy as np
import torch

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


class Odd(Faulty):
    """An episode in which nothing goes wrong, and one thing is as few environments have it."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, oddity: str, render_mode: str | None = None) -> None:
        """Take the name of what is odd."""
        super().__init__("none", render_mode)
        self.oddity = oddity
        self.drawn = np.random.uniform()
        if oddity == "constructor":
            raise FileNotFoundError("no mesh [/meshes/arm]\nin the package")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start at a random place."""
        seen = super().reset(seed=seed)
        if self.oddity == "chatty":
            print("scene loaded")
            os.write(1, b"scene loaded by a library\n")
        return seen

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move a little, in an odd way."""
        observation, reward, over, _, info = super().step(action)
        if self.oddity == "random":
            reward = self.drawn + np.random.uniform() + random.random() + torch.rand(()).item()
            np.random.seed(1)  # as careless environments do
        if self.oddity == "vector":
            reward, info["success"] = np.array([reward]), np.array([True])
        if self.oddity == "rewards":
            reward = np.array([reward, reward])
        if self.oddity == "successes":
            info["success"] = np.array([True, False])
        if self.oddity == "topics":
            raise TimeoutError("no message on [/joint_states, /tf] for 1 s")
        return observation, reward, over and self.oddity != "endless", False, info

    def render(self) -> Any:
        """Show nothing."""
        return None

    def close(self) -> None:
        """Close, or fail to."""
        if self.oddity == "close":
            raise RuntimeError("the viewer is gone")


def unfilmed() -> Faulty:
    """Make an environment that takes no render mode."""
    return Faulty("none")


for name in ("constructor", "chatty", "random", "vector", "rewards", "successes", "topics", "endless", "close"):
    gymnasium.register(f"faulty/Odd-{name}-v0", f"{__name__}:Odd", kwargs={"oddity": name})
gymnasium.register("faulty/Unfilmed-v0", f"{__name__}:unfilmed")
for name in ("none", "stuck", "reset", "raise", "die", "reward", "observation", "shape"):
    gymnasium.register(f"faulty/{name.capitalize()}-v0", f"{__name__}:Faulty", kwargs={"fault": name})
