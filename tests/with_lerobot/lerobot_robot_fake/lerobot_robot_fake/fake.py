"""The robot type `fake`: it writes down what it was told, and when."""

import json
import time
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot

from lerobot_robot_fake.config_fake import FakeConfig


class Fake(Robot):
    """Its joints are at once where they are told to be. Each event goes to the file `record` of its configuration."""

    config_class = FakeConfig
    name = "fake"

    def __init__(self, config: FakeConfig) -> None:
        """Build it; `connect` starts it."""
        super().__init__(config)
        self._config = config
        self._positions = {f"joint{number}.pos": 0.0 for number in range(config.joints)}
        self._frames = np.random.default_rng(0)
        self._observed = 0
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        """Positions, and the camera `front`."""
        return {**self.action_features, "front": (self._config.pixels, self._config.pixels, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Positions."""
        return dict.fromkeys(self._positions, float)

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called, and `disconnect` not since."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """There is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Start."""
        self._connected = True
        self._write("connect")

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def get_observation(self) -> dict[str, Any]:
        """Look at joints and camera."""
        self._observed += 1
        if 0 < self._config.broken_at <= self._observed:
            self._positions = dict.fromkeys(self._positions, float("nan"))
        self._write("observe", list(self._positions.values()))
        shape = self.observation_features["front"]
        return {**self._positions, "front": self._frames.integers(0, 256, shape, np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move."""
        self._positions = {name: float(action[name]) for name in self._positions}
        self._write("act", list(self._positions.values()))
        return action

    def disconnect(self) -> None:
        """Stop."""
        self._connected = False
        self._write("disconnect")

    def _write(self, event: str, values: list[float] | None = None) -> None:
        with self._config.record.open("a") as file:
            file.write(json.dumps({"event": event, "time": time.perf_counter(), "values": values}) + "\n")
