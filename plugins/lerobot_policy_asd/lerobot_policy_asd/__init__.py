"""Diffusion policies of LeRobot's, accelerated; importing this package, as LeRobot's plugin discovery does, is all.

Policies of the types `diffusion` and `multi_task_dit` that LeRobot loads plan with asd_policy from then on, and there
is a policy type of its own, `asd_diffusion`.
"""

import logging

try:
    from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig
    from lerobot_policy_asd.hook import install
except ImportError as error:  # of a LeRobot whose parts lie elsewhere
    from asd_policy.policy.adapters.lerobot_sampling import tested_lerobot

    logging.getLogger(__name__).warning("policies run unchanged: %s; %s", error, tested_lerobot())
else:
    install()

__all__ = ["AsdDiffusionConfig"]
