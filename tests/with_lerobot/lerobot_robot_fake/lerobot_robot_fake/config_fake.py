"""Configuration of the robot type `fake`."""

from dataclasses import dataclass
from pathlib import Path

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("fake")
@dataclass(kw_only=True)
class FakeConfig(RobotConfig):
    """Joints that are at once where they are told to be, and a camera that sees noise."""

    record: Path
    """File to which each event is appended, as a line of JSON."""
    joints: int = 2
    pixels: int = 32
    """Height and width of the frames."""
    broken_at: int = 0
    """The observation from which on the positions are NaN, counted from 1; 0 for none."""
