"""LeRobot folders with random weights, with cameras and without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics, save_lerobot
from asd_policy.checkpoints.lerobot.vision import Vision
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.observation import STATE

SMALL: dict[str, Any] = {
    "down_dims": (8, 16),
    "kernel_size": 3,
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "num_train_timesteps": 10,
}
"""Options of a network of a few thousand parameters."""


def save_random(folder: Path, small_config: DiffusionConfig) -> Path:
    torch.manual_seed(0)
    statistics = _statistics(small_config)
    save_lerobot(folder, small_config, ConditionalUnet1d(small_config.unet).state_dict(), statistics, {"seed": 0})
    return folder


def camera_config(
    cameras: Sequence[str], frame: tuple[int, int] = (40, 48), separate: bool = False, state: int = 2, **options: Any
) -> DiffusionConfig:
    """A policy of a state [state] and cameras; `options` are those of `VisionConfig`."""
    vision: dict[str, Any] = {"spatial_softmax_num_keypoints": 4} | options
    return DiffusionConfig(
        input_dims={STATE: state},
        action_dim=2,
        normalization_mapping={"STATE": "MIN_MAX", "VISUAL": "MEAN_STD", "ACTION": "MIN_MAX"},
        **SMALL,
        vision=Vision({name: (3, *frame) for name in cameras}, VisionConfig(frame, **vision), separate),
    )


def save_cameras(folder: Path, config: DiffusionConfig) -> Path:
    """Write a policy with cameras, in half precision, which halves the 45 MB of a ResNet-18."""
    torch.manual_seed(0)
    assert config.vision.encoder is not None
    count = len(config.vision.cameras) if config.vision.separate else 1
    encoders = nn.ModuleList(RgbEncoder(config.vision.encoder) for _ in range(count))
    state = (encoders if config.vision.separate else encoders[0]).state_dict()
    halves = {name: value if name.endswith("pos_grid") else value.half() for name, value in state.items()}
    unet = ConditionalUnet1d(config.unet).state_dict()
    save_lerobot(folder, config, unet, _statistics(config), {"seed": 0}, halves)
    return folder


def _statistics(config: DiffusionConfig) -> Statistics:
    """Statistics of all features."""
    dims = {**config.input_dims, ACTION: config.action_dim}
    statistics = {
        name: {
            "min": torch.linspace(-1.0, -0.5, dim),
            "max": torch.linspace(0.5, 2.0, dim),
            "mean": torch.linspace(-0.1, 0.1, dim),
            "std": torch.linspace(0.5, 1.5, dim),
        }
        for name, dim in dims.items()
    }
    colours = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "min": (0.0, 0.0, 0.0), "max": (1.0, 1.0, 0.9)}
    for name in config.vision.cameras:
        statistics[name] = {key: torch.tensor(value)[:, None, None] for key, value in colours.items()}
    return statistics
