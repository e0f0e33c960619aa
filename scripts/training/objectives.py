"""What a network learns: the noise of a diffusion's chain, or the velocity of a flow."""

from collections.abc import Callable
from typing import Any

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from asd_policy.chain.flow import FLOW_PREDICTION
from asd_policy.checkpoints.lerobot.config import FLOW_TYPE
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig

OBJECTIVES: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "flow": {"noise_scheduler_type": FLOW_TYPE, "prediction_type": FLOW_PREDICTION},
}
"""By the name of an objective, what a checkpoint's configuration says of it."""

Corruption = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of clean action chunks, noise [N, …] and timesteps [N], the points that the network sees, and what it is to say."""


def corruption_of(config: DiffusionConfig) -> Corruption:
    """Make the corruption that a configuration's network learns from."""
    if config.is_flow:
        return lambda clean, noise, timesteps: _flow(clean, noise, timesteps, config.num_train_timesteps)
    scheduler = DDPMScheduler(**{k: v for k, v in config.scheduler.items() if k != "_class_name"})

    def diffusion(clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # add_noise is annotated for 32-bit timesteps and takes any integers.
        return scheduler.add_noise(clean, noise, timesteps), noise  # pyright: ignore[reportArgumentType]

    return diffusion


def _flow(clean: Tensor, noise: Tensor, timesteps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mix data and noise along a straight line, and give its velocity (arXiv 2209.03003, eq. 1, from data to noise).

    Timestep i of T stands for the time (i + 1)/T, as in `GaussianChain.from_flow` with the convention "timestep".
    """
    time = ((timesteps + 1) / count).view(-1, *(1,) * (clean.ndim - 1))
    return (1 - time) * clean + time * noise, noise - clean
