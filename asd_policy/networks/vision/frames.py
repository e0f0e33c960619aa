"""What libraries do to frames before their networks look: resize, crop the middle, shift the colours."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours in ImageNet's training set, as torchvision's models take them."""


def middle(frames: Tensor, height: int, width: int, rounded: Callable[[float], int] = round) -> Tensor:
    """Crop the middle of frames [..., H, W].

    Args:
        frames: Of that size or larger.
        height: Of the middle.
        width: Of the middle.
        rounded: Where it is between two pixels: `round`, the even one, as torchvision does; `int`, the first, as
            robomimic does.
    """
    top, left = (rounded((have - want) / 2) for have, want in zip(frames.shape[-2:], (height, width), strict=True))
    return frames[..., top : top + height, left : left + width]


class Crop(nn.Module):
    """Crops the middle of frames; arguments are those of `middle`."""

    def __init__(self, height: int, width: int, rounded: Callable[[float], int] = round) -> None:
        """Keep the arguments."""
        super().__init__()
        self.size, self.rounded = (height, width), rounded

    def forward(self, frames: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 3, height, width]."""
        return middle(frames, *self.size, self.rounded)


class Resize(nn.Module):
    """Resizes frames by bilinear interpolation."""

    def __init__(self, height: int, width: int, antialias: bool) -> None:
        """Keep the size; with antialias, a smaller frame's pixel is a mean over all that it stands for."""
        super().__init__()
        self.size, self.antialias = (height, width), antialias

    def forward(self, frames: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 3, height, width]."""
        return functional.interpolate(frames, self.size, mode="bilinear", antialias=self.antialias)


class Colours(nn.Module):
    """Standardises the three colours of frames."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """Keep the mean and the standard deviation of each colour."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Map [N, 3, H, W] to the same shape."""
        return (frames - self.mean) / self.deviation
