"""The encoders of DP3 (arXiv 2403.03954): a PointNet (arXiv 1612.00593) for clouds, a perceptron for states."""

from dataclasses import dataclass

from torch import Tensor, nn

_COORDINATES, _COLOURED = (64, 128, 256), (64, 128, 256, 512)
STATE_WIDTH = 64
"""Numbers that a state becomes."""


@dataclass(frozen=True)
class PointNetConfig:
    """The options of the encoder of clouds."""

    coloured: bool
    """Whether points have colours: 6 channels in place of 3, and one layer more, without an activation."""
    features: int
    """Numbers that a cloud becomes."""
    layer_norm: bool
    """Whether the hidden layers are normalised."""
    final_norm: bool
    """Whether the features are."""
    projection: bool = True
    """Whether there is a last linear layer at all; without one the features are the largest of each channel."""

    @property
    def channels(self) -> int:
        """Numbers of a point that are looked at."""
        return 6 if self.coloured else 3

    @property
    def size(self) -> int:
        """Numbers that a cloud becomes."""
        return self.features if self.projection else _COORDINATES[-1]


class PointNet(nn.Module):
    """Turns clouds [N, points, channels or more] into features [N, size] that do not depend on the points' order."""

    def __init__(self, config: PointNetConfig) -> None:
        """Build an encoder with random weights."""
        super().__init__()
        self.channels = config.channels
        widths = _COLOURED if config.coloured else _COORDINATES
        layers: list[nn.Module] = []
        for before, width in zip((config.channels, *widths), widths, strict=False):
            layers += [nn.Linear(before, width), nn.LayerNorm(width) if config.layer_norm else nn.Identity(), nn.ReLU()]
        self.mlp = nn.Sequential(*(layers[:-2] if config.coloured else layers))
        last = nn.Linear(widths[-1], config.features)
        if not config.projection:
            self.final_projection: nn.Module = nn.Identity()
        else:
            self.final_projection = nn.Sequential(last, nn.LayerNorm(config.features)) if config.final_norm else last

    def forward(self, points: Tensor) -> Tensor:
        """Encode each point, and take the largest of each channel."""
        return self.final_projection(self.mlp(points[..., : self.channels]).amax(dim=1))


def state_network(size: int) -> nn.Sequential:
    """Build DP3's encoder of states [N, size], with random weights."""
    return nn.Sequential(nn.Linear(size, STATE_WIDTH), nn.ReLU(), nn.Linear(STATE_WIDTH, STATE_WIDTH))
