"""Episodes to learn from: the steps of all of them in a row, and windows of them by index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics
from asd_policy.policy.observation import ENVIRONMENT_KEYS, IMAGE, PIXELS

Demonstration = dict[str, npt.NDArray[Any]]
"""`agent_pos` [T, …], `environment_state` [T, …] or `pixels` [T, height, width, 3], and `action` [T, action_dim]."""
UNSEEN = "unseen"
"""Key of a demonstration with frames: the environment's state [T, …], which the policy does not observe."""
KEYS = {**ENVIRONMENT_KEYS, IMAGE: PIXELS, ACTION: ACTION}
"""Policy feature → key of a demonstration."""


@dataclass(frozen=True)
class Episodes:
    """The steps of all episodes, one after the other."""

    features: Mapping[str, Tensor]
    """By the policy's name: vectors and actions [T, dim] in float32, frames [T, height, width, 3] in uint8."""
    lengths: Sequence[int]
    """Steps of each episode; their sum is T."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Where they come from, for training.json."""
    unseen: Tensor | None = None
    """What the policy does not observe, and its encoder may learn to predict, [T, dim]."""
    frame: tuple[int, int] | None = None
    """Height and width of the cameras' own frames, where those in `features` are resized [pixels]."""

    @property
    def vectors(self) -> dict[str, int]:
        """Length of each feature that is a vector and observed."""
        return {name: each.shape[1] for name, each in self.features.items() if each.ndim == 2 and name != ACTION}

    @property
    def cameras(self) -> dict[str, tuple[int, int, int]]:
        """Shape of each camera's own frames: 3, height, width."""
        frames = {name: each for name, each in self.features.items() if each.ndim == 4}
        return {name: (3, *(self.frame or (each.shape[1], each.shape[2]))) for name, each in frames.items()}


def join(demonstrations: Sequence[Demonstration]) -> Episodes:
    """Put demonstrations in a row, by the policy's names for what they hold."""
    return Episodes(
        {
            name: torch.from_numpy(np.concatenate([each[key] for each in demonstrations]))
            for name, key in KEYS.items()
            if key in demonstrations[0]
        },
        [len(each[ACTION]) for each in demonstrations],
        unseen=torch.from_numpy(np.concatenate([each[UNSEEN] for each in demonstrations]))
        if UNSEEN in demonstrations[0]
        else None,
    )


def window_rows(lengths: Sequence[int], n_obs_steps: int, horizon: int) -> tuple[Tensor, Tensor]:
    """Find every step's observation history and action chunk; an episode's edges are repeated.

    A chunk begins with the action for the oldest observation of the history.

    Returns:
        Rows of `Episodes.features`: of histories [T, n_obs_steps], and of chunks [T, horizon].
    """
    past, chunk, start = [], [], 0
    for length in lengths:
        here = np.arange(length)[:, None]
        past.append(start + np.clip(here + np.arange(1 - n_obs_steps, 1), 0, length - 1))
        chunk.append(start + np.clip(here + np.arange(1 - n_obs_steps, 1 - n_obs_steps + horizon), 0, length - 1))
        start += length
    return torch.from_numpy(np.concatenate(past)), torch.from_numpy(np.concatenate(chunk))


def make_windows(demonstrations: Sequence[Demonstration], config: DiffusionConfig) -> dict[str, Tensor]:
    """Cut every step's observation history and action chunk out of demonstrations without frames.

    Returns:
        Each observation feature [N, n_obs_steps, dim] and the action chunks [N, horizon, action_dim].
    """
    episodes = join(demonstrations)
    past, chunk = window_rows(episodes.lengths, config.n_obs_steps, config.horizon)
    windows = {name: episodes.features[name][past] for name in config.input_dims}
    return {**windows, ACTION: episodes.features[ACTION][chunk]}


def measure_statistics(features: Mapping[str, Tensor]) -> Statistics:
    """Compute minimum, maximum, mean and standard deviation of every feature, of frames those of the three colours.

    A coordinate that (almost) never moves gets a range of 1 either way: scaled by its own tiny range, the first
    unseen value would be thrown far outside of what the network knows.
    """
    return {name: _of_frames(each) if each.ndim == 4 else _of_vectors(each) for name, each in features.items()}


def _of_vectors(values: Tensor) -> dict[str, Tensor]:
    low, high = values.amin(0), values.amax(0)
    still = high - low < 1e-4
    return {
        "min": torch.where(still, low - 1, low),
        "max": torch.where(still, high + 1, high),
        "mean": values.mean(0),
        "std": values.std(0),
    }


def _of_frames(frames: Tensor) -> dict[str, Tensor]:
    """Compute them in 0 … 1, [3, 1, 1], by how often each of the 256 values occurs."""
    counts = sum(
        torch.stack([torch.bincount(part[..., colour].flatten().int(), minlength=256) for colour in range(3)])
        for part in frames.split(256)
    )
    assert isinstance(counts, Tensor)  # there are frames
    values, share = torch.arange(256) / 255, counts.double() / counts[0].sum()
    mean = share @ values.double()
    variance = share @ values.double().square() - mean.square()
    seen = [values[row > 0] for row in counts]
    found = {
        "min": torch.stack([row[0] for row in seen]),
        "max": torch.stack([row[-1] for row in seen]),
        "mean": mean.float(),
        # A colour that never changes has no spread to scale by.
        "std": torch.where(variance > 1e-8, variance.clamp(min=0).sqrt(), torch.ones_like(variance)).float(),
    }
    return {name: value[:, None, None] for name, value in found.items()}
