"""robomimic's encoders of cameras, as its files and those of Diffusion Policy's hybrid policies have them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.untrusted.weights import load_weights, without_counts
from asd_policy.networks.vision.frames import Crop
from asd_policy.networks.vision.resnet import DEPTHS
from asd_policy.networks.vision.visual_core import VisualCore, VisualCoreConfig, robomimic_name

NETS = "obs_nets."
BACKBONES = {"ResNet18Conv": "resnet18", "ResNet50Conv": "resnet50"}
"""robomimic's names of them."""


@dataclass(frozen=True)
class CropOptions:
    """The part of a frame that an encoder looks at."""

    frame: tuple[int, int]
    """Height and width of the frames that come [pixels]."""
    size: tuple[int, int] | None
    """Height and width of the part in the middle [pixels]; None for all."""

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of what is looked at [pixels]."""
        return self.size or self.frame

    def problem(self) -> str | None:
        """Explain why this is no part; None if it is one."""
        if self.size and (self.size[0] > self.frame[0] or self.size[1] > self.frame[1]):
            return (
                f"a crop of {self.size[0]} × {self.size[1]} is larger than frames of {self.frame[0]} × {self.frame[1]}"
            )
        return None

    def __str__(self) -> str:
        whole = "{} × {}".format(*self.frame)
        return whole if self.size is None else "the middle {} × {} of {}".format(*self.size, whole)


def first_name(name: str) -> str:
    """Find the name under which robomimic lists a tensor first: `nets` has the backbone and the pool once more."""
    return re.sub(
        rf"({NETS}[^.]+)\.nets\.1\.", r"\1.pool.", re.sub(rf"({NETS}[^.]+)\.nets\.0\.", r"\1.backbone.", name)
    )


def load_visual_cores(
    configs: Mapping[str, VisualCoreConfig], tensors: Mapping[str, Tensor], prefix: str, source: str
) -> dict[str, VisualCore]:
    """Load the encoder of each camera.

    Args:
        configs: By camera.
        tensors: Of all encoders, by the file's names, each once.
        prefix: Of all these names, before `obs_nets`.
        source: The file, for messages.

    Raises:
        CheckpointError: A tensor is missing, unknown, misshapen or not finite.
    """
    every = load_weights(
        lambda: nn.ModuleList(VisualCore(config) for config in configs.values()),
        without_counts(tensors),
        lambda key: _file_name(key, list(configs), prefix),
        source,
        "its configuration of cameras",
    )
    return {name: each for name, each in zip(configs, every, strict=True) if isinstance(each, VisualCore)}


def _file_name(key: str, cameras: list[str], prefix: str) -> str:
    number, _, inner = key.partition(".")
    return f"{prefix}{NETS}{cameras[int(number)]}.{robomimic_name(inner)}"


def with_crop(core: VisualCore, crop: CropOptions, rounded: Callable[[float], int] = round) -> nn.Module:
    """Put the crop before an encoder.

    Args:
        core: The encoder.
        crop: What it looks at.
        rounded: As for `frames.middle`.
    """
    return core if crop.size is None else nn.Sequential(Crop(*crop.size, rounded), core)


def describe_core(config: VisualCoreConfig, crop: CropOptions) -> str:
    """Describe an encoder in a few words."""
    assert config.backbone in DEPTHS
    norm = "groups" if config.group_norm else "batches"
    return f"{config.backbone} with normalised {norm}, spatial softmax of {config.keypoints} keypoints, on {crop}"
