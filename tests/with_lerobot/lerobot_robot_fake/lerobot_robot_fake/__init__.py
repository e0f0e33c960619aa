"""A robot without hardware, as a plugin of LeRobot's: `--robot.type=fake`."""

from lerobot_robot_fake.config_fake import FakeConfig
from lerobot_robot_fake.fake import Fake

__all__ = ["Fake", "FakeConfig"]
