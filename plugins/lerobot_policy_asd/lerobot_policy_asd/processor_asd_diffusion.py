"""Processors of the policy type `asd_diffusion`: the diffusion policy's, under the name that LeRobot looks for."""

from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

make_asd_diffusion_pre_post_processors = make_diffusion_pre_post_processors
