"""The robot type `pusht`: gym-pusht behind LeRobot's interface of robots, for lerobot-rollout.

Its joints are the disc's x and y [px], its camera `front` sees the table. The simulation goes on by a step with each
action, and stands still while the policy plans.
"""

import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

# Of LeRobot's environment alone: the types of this repository's own do not know it.
_base: Any = importlib.import_module("lerobot.robots.robot")
_config: Any = importlib.import_module("lerobot.robots.config")
JOINTS = ("x.pos", "y.pos")
SIDE = 96  # [px] of the camera's frames


@_config.RobotConfig.register_subclass("pusht")
@dataclass(kw_only=True)
class PushTConfig(_config.RobotConfig):
    """One episode of Push-T."""

    record: Path
    """File to which each action's time [s] and reward are appended, as a line of JSON."""
    seed: int = 0
    """Of the episode's start."""


class PushT(_base.Robot):
    """A disc that pushes a T. After the end of the episode it stands still."""

    config_class = PushTConfig
    name = "pusht"

    def __init__(self, config: PushTConfig) -> None:
        """Build it; `connect` begins the episode."""
        super().__init__(config)
        self._config = config
        self._env: gymnasium.Env[Any, Any] | None = None
        self._seen: dict[str, Any] = {}
        self._done = False

    @property
    def observation_features(self) -> dict[str, Any]:
        """Where the disc is, and the frame."""
        return {**self.action_features, "front": (SIDE, SIDE, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Where the disc is to go."""
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self) -> bool:
        """Whether there is a simulation."""
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        """There is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Begin the episode."""
        gymnasium.register_envs(importlib.import_module("gym_pusht"))
        self._env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
        self._seen, _ = self._env.reset(seed=self._config.seed)

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def get_observation(self) -> dict[str, Any]:
        """Look at disc and table."""
        places = map(float, self._seen["agent_pos"])
        return {**dict(zip(JOINTS, places, strict=True)), "front": np.array(self._seen["pixels"])}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Simulate a step."""
        if self._env is not None and not self._done:
            target = np.array([action[name] for name in JOINTS], np.float32)
            self._seen, reward, terminated, truncated, _ = self._env.step(target)
            self._done = terminated or truncated
            with self._config.record.open("a") as file:
                file.write(json.dumps({"time": time.perf_counter(), "reward": float(reward)}) + "\n")
        return action

    def disconnect(self) -> None:
        """End it."""
        if self._env is not None:
            self._env.close()
        self._env = None
