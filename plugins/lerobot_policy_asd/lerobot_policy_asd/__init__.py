"""Diffusion policies of LeRobot's, accelerated; importing this package, as LeRobot's plugin discovery does, is all.

Policies of the types `diffusion` and `multi_task_dit` that LeRobot loads plan with asd_policy from then on, and there
is a policy type of its own, `asd_diffusion`.
"""

from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig
from lerobot_policy_asd.hook import install

install()

__all__ = ["AsdDiffusionConfig"]
