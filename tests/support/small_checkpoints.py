"""LeRobot folders with random weights."""

from pathlib import Path

import torch

from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, save_lerobot
from asd_policy.networks.unet import ConditionalUnet1d


def save_random(folder: Path, small_config: DiffusionConfig) -> Path:
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
    save_lerobot(folder, small_config, ConditionalUnet1d(small_config.unet).state_dict(), statistics, {"seed": 0})
    return folder
