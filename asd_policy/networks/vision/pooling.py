"""From feature maps to numbers: the poolings of the libraries, with their parameter names."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class SpatialSoftmax(nn.Module):
    """Turns feature maps [N, C, H, W] into the expected places [N, keypoints, 2] of as many mixtures of them."""

    pos_grid: Tensor

    def __init__(self, channels: int, rows: int, columns: int, keypoints: int) -> None:
        """Lay out the places: x and y from −1 to 1, row by row."""
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        self.register_buffer("pos_grid", _places(rows, columns))

    def forward(self, maps: Tensor) -> Tensor:
        """Average the places, weighted by the softmax of each mixture."""
        return self.nets(maps).flatten(2).softmax(dim=-1) @ self.pos_grid


class KeypointSoftmax(nn.Module):
    """The spatial softmax of robomimic: `SpatialSoftmax` with a temperature, and with its own names."""

    temperature: Tensor
    pos_x: Tensor
    pos_y: Tensor

    def __init__(self, channels: int, rows: int, columns: int, keypoints: int, temperature: float | None = 1.0) -> None:
        """Lay out the places; a temperature of None is a weight."""
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        if temperature is None:
            self.temperature = nn.Parameter(torch.ones(1))
        else:
            self.register_buffer("temperature", torch.full((1,), temperature))
        grid = _places(rows, columns)
        self.register_buffer("pos_x", grid[None, :, 0].contiguous())
        self.register_buffer("pos_y", grid[None, :, 1].contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, rows, columns] to the expected places [N, keypoints, 2]."""
        weights = (self.nets(maps).flatten(2) / self.temperature).softmax(dim=-1)
        return torch.stack([(weights * self.pos_x).sum(-1), (weights * self.pos_y).sum(-1)], dim=-1)


class AttentionPool2d(nn.Module):
    """CLIP's pooling (arXiv 2103.00020): the maps' mean asks all places, and itself, for what is there."""

    def __init__(self, side: int, channels: int, heads: int) -> None:
        """Build one for feature maps of `side` × `side` places."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, channels))
        self.k_proj, self.q_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.c_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, side, side] to [N, channels]."""
        places = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1) + self.positional_embedding
        query, key, value = (
            project(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, part in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.c_proj(seen.transpose(1, 2).flatten(1))


class SoftAttentionPool(nn.Module):
    """A mean over places, weighted by the softmax of a linear map."""

    def __init__(self, channels: int) -> None:
        """Build the map."""
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(channels, 1, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, channels]."""
        places = maps.flatten(2).transpose(1, 2)
        return (places * self.attention(places).softmax(dim=1)).sum(dim=1)


class SpatialEmbeddingPool(nn.Module):
    """A mean over places, each channel of each place with a weight of its own."""

    def __init__(self, places: int, channels: int) -> None:
        """Build one for `places` in each feature map."""
        super().__init__()
        self.spatial_embedding = nn.Parameter(torch.ones(places, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, channels]."""
        return (maps.flatten(2).transpose(1, 2) * self.spatial_embedding).mean(dim=1)


class MeanPool(nn.Module):
    """The mean over places."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, channels]."""
        return maps.mean(dim=(-2, -1))


class MaxPool(nn.Module):
    """The largest number of each feature map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, channels]."""
        return maps.amax(dim=(-2, -1))


def _places(rows: int, columns: int) -> Tensor:
    """Lay out x and y from −1 to 1, row by row [rows · columns, 2]."""
    x, y = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, rows))
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32))
