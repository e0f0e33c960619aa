"""The image encoder of LeRobot's diffusion policies, with the parameter names of its `DiffusionRgbEncoder`.

A residual network (arXiv 1512.03385) without its last two layers, a spatial softmax (arXiv 1504.00702, 1509.06113) that
turns each of its feature maps into a point, and a linear layer.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from asd_policy.networks.vision.frames import middle
from asd_policy.networks.vision.pooling import SpatialSoftmax
from asd_policy.networks.vision.resnet import DEPTHS, STRIDE, count_channels, resnet


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
        self.backbone = resnet(config.vision_backbone, config.use_group_norm)
        rows, columns = (-(-pixels // STRIDE) for pixels in config.seen)
        channels = count_channels(config.vision_backbone)
        self.pool = SpatialSoftmax(channels, rows, columns, config.spatial_softmax_num_keypoints)
        self.out = nn.Linear(config.size, config.size)

    def forward(self, frames: Tensor) -> Tensor:
        """Resize, crop the middle, and encode."""
        if self.config.resize_shape and tuple(frames.shape[-2:]) != self.config.resize_shape:
            frames = functional.interpolate(frames, self.config.resize_shape, mode="bilinear", antialias=True)
        if self.config.crop_shape:
            frames = middle(frames, *self.config.crop_shape)
        return functional.relu(self.out(self.pool(self.backbone(frames)).flatten(1)))
