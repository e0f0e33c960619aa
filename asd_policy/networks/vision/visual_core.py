"""robomimic's encoder of a camera's frames, its `VisualCore`, which Diffusion Policy's hybrid policies have, too."""

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from asd_policy.networks.vision.pooling import KeypointSoftmax
from asd_policy.networks.vision.resnet import STRIDE, count_channels, resnet


@dataclass(frozen=True)
class VisualCoreConfig:
    """The options of the encoder; defaults are those of robomimic's image policies, whose files do not have them."""

    seen: tuple[int, int]
    """Height and width of the frames, cropped [pixels]."""
    backbone: str = "resnet18"
    group_norm: bool = True
    keypoints: int = 32
    temperature: float | None = 1.0
    """Of the spatial softmax; None for one that was learned."""
    features: int = 64
    """Numbers that a frame becomes."""


class VisualCore(nn.Module):
    """Turns frames [N, 3, H, W] into features [N, features]."""

    def __init__(self, config: VisualCoreConfig) -> None:
        """Build an encoder with random weights."""
        super().__init__()
        self.backbone = resnet(config.backbone, config.group_norm)
        rows, columns = (-(-pixels // STRIDE) for pixels in config.seen)
        channels = count_channels(config.backbone)
        self.pool = KeypointSoftmax(channels, rows, columns, config.keypoints, config.temperature)
        self.linear = nn.Linear(2 * config.keypoints, config.features)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames; the activation is that of robomimic's observation encoder."""
        return functional.relu(self.linear(self.pool(self.backbone(frames)).flatten(1)))


def robomimic_name(key: str) -> str:
    """Find the name of a tensor in robomimic's `VisualCore`."""
    return re.sub(r"^linear\.", "nets.3.", re.sub(r"^backbone\.", "backbone.nets.", key))
