"""The image encoder of LeRobot's diffusion policies, with the parameter names of its `DiffusionRgbEncoder`.

A residual network (arXiv 1512.03385) without its last two layers, a spatial softmax (arXiv 1504.00702, 1509.06113) that
turns each of its feature maps into a point, and a linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
"""Blocks at each resolution, by torchvision's names."""
_WIDTHS = (64, 128, 256, 512)
_BOTTLENECK = "resnet50"
_EXPANSION = 4
STRIDE = 32
"""Pixels of a frame to one of the feature maps."""
GROUP_CHANNELS = 16
"""Channels of each group, where groups are normalised and not batches."""


@dataclass(frozen=True)
class VisionConfig:
    """The options that fix the encoder; all but `frame` have the names of LeRobot's `DiffusionConfig`."""

    frame: tuple[int, int]
    """Height and width of the frames that come [pixels]."""
    crop_shape: tuple[int, int] | None = None
    """Height and width of the part in the middle that is looked at, after the resize [pixels]; None for all."""
    resize_shape: tuple[int, int] | None = None
    """Height and width that frames are resized to [pixels]; None for their own."""
    vision_backbone: str = "resnet18"
    use_group_norm: bool = True
    spatial_softmax_num_keypoints: int = 32

    @property
    def size(self) -> int:
        """Numbers that a frame becomes."""
        return 2 * self.spatial_softmax_num_keypoints

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of what the backbone is given [pixels]."""
        return self.crop_shape or self.resize_shape or self.frame

    def problem(self) -> str | None:
        """Explain why this is no encoder; None if it is one."""
        if self.vision_backbone not in DEPTHS:
            return f"vision_backbone {self.vision_backbone!r} is not one of {', '.join(DEPTHS)}"
        height, width = self.resize_shape or self.frame
        if self.crop_shape and (self.crop_shape[0] > height or self.crop_shape[1] > width):
            return f"crop_shape {list(self.crop_shape)} is larger than frames of {height} × {width}"
        return None


class RgbEncoder(nn.Module):
    """Turns normalised frames [N, 3, H, W] into features [N, size]."""

    def __init__(self, config: VisionConfig) -> None:
        """Build an encoder with random weights."""
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        rows, columns = (-(-pixels // STRIDE) for pixels in config.seen)
        self.pool = SpatialSoftmax(_channels(config), rows, columns, config.spatial_softmax_num_keypoints)
        self.out = nn.Linear(config.size, config.size)

    def forward(self, frames: Tensor) -> Tensor:
        """Resize, crop the middle, and encode."""
        if self.config.resize_shape and tuple(frames.shape[-2:]) != self.config.resize_shape:
            frames = functional.interpolate(frames, self.config.resize_shape, mode="bilinear", antialias=True)
        if self.config.crop_shape:
            frames = _middle(frames, *self.config.crop_shape)
        return functional.relu(self.out(self.pool(self.backbone(frames)).flatten(1)))


class SpatialSoftmax(nn.Module):
    """Turns feature maps [N, C, H, W] into the expected places [N, keypoints, 2] of as many mixtures of them."""

    pos_grid: Tensor

    def __init__(self, channels: int, rows: int, columns: int, keypoints: int) -> None:
        """Lay out the places: x and y from −1 to 1, row by row."""
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        x, y = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, rows))
        grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        self.register_buffer("pos_grid", torch.from_numpy(grid))

    def forward(self, maps: Tensor) -> Tensor:
        """Average the places, weighted by the softmax of each mixture."""
        return self.nets(maps).flatten(2).softmax(dim=-1) @ self.pos_grid


class BatchNorm(nn.Module):
    """Batch normalisation at inference: statistics are weights, so a row does not depend on its neighbours."""

    def __init__(self, channels: int) -> None:
        """Begin as the identity."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise each channel by its statistics."""
        return functional.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias)


Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        """Build one that leads from `channels` to `width`."""
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, width, 3, stride), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), norm(width)
        self.downsample = _shortcut(channels, width, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Add the convolutions' output to the shortcut's."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(hidden)) + (self.downsample(maps) if self.downsample else maps))


class Bottleneck(nn.Module):
    """A 3 × 3 convolution between two 1 × 1 ones beside a shortcut; the stride is that of the 3 × 3 one."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        """Build one that leads from `channels` to four times `width`."""
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, width, 1), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = _conv(width, _EXPANSION * width, 1), norm(_EXPANSION * width)
        self.downsample = _shortcut(channels, _EXPANSION * width, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Add the convolutions' output to the shortcut's."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return functional.relu(self.bn3(self.conv3(hidden)) + (self.downsample(maps) if self.downsample else maps))


def _channels(config: VisionConfig) -> int:
    """Count the feature maps of a backbone."""
    return _WIDTHS[-1] * (_EXPANSION if config.vision_backbone == _BOTTLENECK else 1)


def _backbone(config: VisionConfig) -> nn.Sequential:
    """Build a residual network up to its last feature maps, 32 times smaller than the frame."""
    norm: Norm = _group_norm if config.use_group_norm else BatchNorm
    bottleneck = config.vision_backbone == _BOTTLENECK
    layers, channels = [], _WIDTHS[0]
    for level, (width, depth) in enumerate(zip(_WIDTHS, DEPTHS[config.vision_backbone], strict=True)):
        blocks = []
        for index in range(depth):
            block = Bottleneck if bottleneck else BasicBlock
            blocks.append(block(channels, width, 2 if level and not index else 1, norm))
            channels = width * (_EXPANSION if bottleneck else 1)
        layers.append(nn.Sequential(*blocks))
    stem = (_conv(3, _WIDTHS[0], 7, 2), norm(_WIDTHS[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *layers)


def _conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


def _shortcut(channels: int, width: int, stride: int, norm: Norm) -> nn.Sequential | None:
    """Build what brings a block's input into the form of its output; None where it has that."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(_conv(channels, width, 1, stride), norm(width))


def _middle(frames: Tensor, height: int, width: int) -> Tensor:
    """Crop the middle; where it is between two pixels, at the even one, as torchvision does."""
    top, left = (round((have - want) / 2) for have, want in zip(frames.shape[-2:], (height, width), strict=True))
    return frames[..., top : top + height, left : left + width]
