"""Cut demonstrations into training data: windows of observations and action chunks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig
from asd_policy.policy.observation import ENVIRONMENT_KEYS

Demonstration = dict[str, np.ndarray]
"""`agent_pos` [T, …], `environment_state` [T, …] and `action` [T, action_dim] of one episode."""


def make_windows(demonstrations: Sequence[Demonstration], config: DiffusionConfig) -> dict[str, Tensor]:
    """Cut every step's observation history and action chunk out of the episodes; edges are repeated.

    Returns:
        Each observation feature [N, n_obs_steps, dim] and the action chunks [N, horizon, action_dim].
    """
    windows: dict[str, list[np.ndarray]] = {name: [] for name in [*config.input_dims, ACTION]}
    history = 1 - config.n_obs_steps
    for episode in demonstrations:
        length = len(episode["action"])
        here = np.arange(length)[:, None]
        past = np.clip(here + np.arange(history, 1), 0, length - 1)
        chunk = np.clip(here + np.arange(history, history + config.horizon), 0, length - 1)
        for name in config.input_dims:
            windows[name].append(episode[ENVIRONMENT_KEYS[name]][past])
        windows[ACTION].append(episode["action"][chunk])
    return {name: torch.from_numpy(np.concatenate(parts)) for name, parts in windows.items()}
