"""Shared fixtures: a short chain, analytic denoisers, a small random LeRobot folder."""

from pathlib import Path

import pytest
import torch

from asd_policy.chain import GaussianChain
from asd_policy.checkpoints.lerobot import ACTION, DiffusionConfig, save_lerobot
from asd_policy.models.analytic import MixtureDenoiser
from asd_policy.models.unet import ConditionalUnet1d
from asd_policy.policy import ENVIRONMENT_STATE, STATE

DTYPE = torch.float64


@pytest.fixture(scope="session")
def chain() -> GaussianChain:
    """Twelve steps, so coarse that drafts are often wrong."""
    return GaussianChain.from_scheduler(
        {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 12
    )


@pytest.fixture(scope="session")
def schedule(chain: GaussianChain) -> GaussianChain:
    """Every timestep of the same noise schedule: what networks know, and few-step samplers may ask for."""
    return GaussianChain.from_scheduler(chain.config)


@pytest.fixture(scope="session")
def gaussian(schedule: GaussianChain) -> MixtureDenoiser:
    """Data from one Gaussian with a standard deviation of its own in each coordinate; events [2, 2]."""
    means = torch.tensor([[[0.5, -0.2], [0.1, 1.0]]], dtype=DTYPE)
    return MixtureDenoiser(schedule, means, torch.tensor([[0.3, 1.0, 0.05, 2.0]], dtype=DTYPE))


@pytest.fixture(scope="session")
def mixture(schedule: GaussianChain) -> MixtureDenoiser:
    """Data from three unequal, narrow modes; events [2, 2]."""
    means = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, -0.5], [0.2, -1.0, -1.0, 1.0]], dtype=DTYPE)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=DTYPE)
    return MixtureDenoiser(schedule, means.view(3, 2, 2), torch.tensor([0.05, 0.1, 0.2], dtype=DTYPE), weights)


@pytest.fixture(scope="session")
def small_config() -> DiffusionConfig:
    """A policy of a few thousand parameters for asd/Avoid-v0."""
    return DiffusionConfig(
        input_dims={STATE: 4, ENVIRONMENT_STATE: 3},
        action_dim=2,
        normalization_mapping={"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
        down_dims=(8, 16),
        kernel_size=3,
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_train_timesteps=10,
    )


@pytest.fixture
def checkpoint(tmp_path: Path, small_config: DiffusionConfig) -> Path:
    """A LeRobot folder with random weights."""
    torch.manual_seed(0)
    dims = {**small_config.input_dims, ACTION: small_config.action_dim}
    statistics = {
        name: {
            "min": torch.linspace(-1.0, -0.5, dim),
            "max": torch.linspace(0.5, 2.0, dim),
            "mean": torch.linspace(-0.1, 0.1, dim),
            "std": torch.linspace(0.5, 1.5, dim),
        }
        for name, dim in dims.items()
    }
    folder = tmp_path / "checkpoint"
    save_lerobot(folder, small_config, ConditionalUnet1d(small_config.unet).state_dict(), statistics, {"seed": 0})
    return folder
