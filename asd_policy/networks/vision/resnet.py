"""Residual networks (arXiv 1512.03385) without their last two layers, by torchvision's names of them.

A state dict has the names of a `Sequential` of torchvision's layers, as LeRobot, robomimic and UMI have them:
`0.weight`, `1.bias`, `4.0.conv1.weight`. `torchvision_name` finds those of a whole `ResNet`.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
"""Blocks at each resolution, by torchvision's names."""
STRIDE = 32
"""Pixels of a frame's side for each of its last feature maps."""
GROUP_CHANNELS = 16
"""Channels of each group, where groups are normalised and not batches."""
_WIDTHS = (64, 128, 256, 512)
_BOTTLENECK = "resnet50"
_EXPANSION = 4
_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def resnet(name: str, group_norm: bool, levels: int = len(_WIDTHS)) -> nn.Sequential:
    """Build a residual network up to its last feature maps.

    Args:
        name: One of `DEPTHS`.
        group_norm: Whether groups of channels are normalised, and not batches.
        levels: How many of its four resolutions, each half of the one before, the first a quarter of the frame's.
    """
    norm: Norm = _group_norm if group_norm else BatchNorm
    layers, channels = [], _WIDTHS[0]
    for level, (width, depth) in enumerate(zip(_WIDTHS[:levels], DEPTHS[name][:levels], strict=True)):
        blocks = []
        for index in range(depth):
            block = Bottleneck if name == _BOTTLENECK else BasicBlock
            blocks.append(block(channels, width, 2 if level and not index else 1, norm))
            channels = width * (_EXPANSION if name == _BOTTLENECK else 1)
        layers.append(nn.Sequential(*blocks))
    stem = (_conv(3, _WIDTHS[0], 7, 2), norm(_WIDTHS[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *layers)


def count_channels(name: str, levels: int = len(_WIDTHS)) -> int:
    """Count the feature maps of a residual network; arguments are those of `resnet`."""
    return _WIDTHS[levels - 1] * (_EXPANSION if name == _BOTTLENECK else 1)


def torchvision_name(key: str) -> str:
    """Find the name of a tensor in torchvision's `ResNet`."""
    return re.sub(r"^\d", lambda layer: _LAYERS[layer.group()], key)


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


def _conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


def _shortcut(channels: int, width: int, stride: int, norm: Norm) -> nn.Sequential | None:
    """Build what brings a block's input into the form of its output; None where it has that."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(_conv(channels, width, 1, stride), norm(width))
