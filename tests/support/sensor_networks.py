"""Small networks of cameras and clouds, with the parts that those of the formats have."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.networks.vision import BatchNorm
from asd_policy.networks.vision.frames import Colours, Crop, Resize
from asd_policy.networks.vision.pooling import (
    AttentionPool2d,
    KeypointSoftmax,
    MaxPool,
    MeanPool,
    SoftAttentionPool,
    SpatialEmbeddingPool,
    SpatialSoftmax,
)
from asd_policy.networks.vision.resnet import BasicBlock


class Camera(nn.Module):
    """A residual network of one block, a resize before it and a crop: what `RgbEncoder` is made of."""

    def __init__(self, group_norm: bool) -> None:
        """Make it, with random weights and, where there is no group norm, random statistics."""
        super().__init__()
        torch.manual_seed(0)
        norm: Callable[[int], nn.Module] = (lambda channels: nn.GroupNorm(2, channels)) if group_norm else BatchNorm
        self.block = BasicBlock(3, 8, 2, norm)
        if not group_norm:
            for name, values in self.block.named_parameters():
                if "running_var" in name:
                    values.data.uniform_(0.1, 0.5)
        self.pool = SpatialSoftmax(8, 5, 6, 4)
        self.pool.nets.weight.data.mul_(10)  # or every place would be the middle, nearly

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames [N, 3, 15, 21]."""
        smaller = functional.interpolate(frames, (11, 13), mode="bilinear", antialias=True)
        return self.pool(self.block(smaller[..., :9, 1:])).flatten(1)


class Cloud(nn.Module):
    """A network of points, and the largest of each feature."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        torch.manual_seed(0)
        self.points = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8))
        self.out = nn.Linear(8, 5)

    def forward(self, cloud: Tensor) -> Tensor:
        """Encode clouds [N, points, 3]."""
        return self.out(self.points(cloud).max(1)[0])


class Patches(nn.Module):
    """A transformer over the patches of a frame, and a token beside them."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 8, 8, bias=False)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        self.qkv, self.norm = nn.Linear(16, 48), nn.LayerNorm(16)
        self.perceptron = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames [N, 3, 16, 16]."""
        tokens = self.embed(frames).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(frames.shape[0], -1, -1), tokens], 1) + self.places
        query, key, value = self.qkv(self.norm(tokens)).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.perceptron(tokens + seen)[:, 0]


class Pools(nn.Module):
    """What libraries do to frames before their networks, and every pooling after them, side by side."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        torch.manual_seed(0)
        before = (Resize(20, 21, antialias=False), Colours((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), Crop(16, 16, int))
        self.before = nn.Sequential(*before, nn.Conv2d(3, 8, 4, 4))
        pools = (KeypointSoftmax(8, 4, 4, 5), AttentionPool2d(4, 8, 2), SoftAttentionPool(8), MeanPool(), MaxPool())
        self.pools = nn.ModuleList((*pools, SpatialEmbeddingPool(16, 8), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)))

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames [N, 3, 24, 26]."""
        maps = self.before(frames)
        return torch.cat([pool(maps).flatten(1) for pool in self.pools], dim=1)
