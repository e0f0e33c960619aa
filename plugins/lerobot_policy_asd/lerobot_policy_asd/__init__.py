"""LeRobot policy type `asd_diffusion`; importing this package registers it, as LeRobot's plugin discovery does."""

from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig

__all__ = ["AsdDiffusionConfig"]
