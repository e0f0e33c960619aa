"""The cameras of a LeRobot diffusion policy: what config.json says of them, and the encoders of their frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from asd_policy.checkpoints.untrusted.reading import count_numbers
from asd_policy.checkpoints.untrusted.settings import MOST_CAMERAS, MOST_PIXELS
from asd_policy.checkpoints.untrusted.weights import load_weights, without_counts
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.sensors import Sensor

VISUAL = "VISUAL"
"""LeRobot's type of a camera's feature."""
VISION_FIELDS = (
    *("vision_backbone", "use_group_norm", "spatial_softmax_num_keypoints"),
    *("use_separate_rgb_encoder_per_camera", "crop_shape", "resize_shape", "crop_ratio"),
)
"""The fields of config.json that decide what the encoders compute."""
PREFIX = "diffusion.rgb_encoder."
MOST_KEYPOINTS = 4096
"""Keypoints of a camera."""
_REQUIRED = ("crop_shape", "use_group_norm")


@dataclass(frozen=True)
class Vision:
    """The cameras of a policy, and their encoders."""

    cameras: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Shape of each camera's frames (3, height, width), all the same, in the order the network reads them."""
    encoder: VisionConfig | None = None
    """Of a camera; None where there are none."""
    separate: bool = False
    """Whether each camera has an encoder of its own."""
    crop_ratio: float = 1.0
    """Part of a resized frame's sides that is looked at."""

    @property
    def size(self) -> int:
        """Numbers that the frames of one observation step become."""
        return len(self.cameras) * self.encoder.size if self.encoder else 0

    @property
    def stored(self) -> dict[str, Any]:
        """The fields of config.json that say so; none where there are no cameras."""
        if self.encoder is None:
            return {}
        names = [each.name for each in fields(self.encoder) if each.name != "frame"]
        return {
            **{name: getattr(self.encoder, name) for name in names},
            "crop_ratio": self.crop_ratio,
            "use_separate_rgb_encoder_per_camera": self.separate,
            "pretrained_backbone_weights": None,  # or LeRobot since 0.6 downloads some, to replace them by these
        }

    def features(self, colours: Mapping[str, Affine], tensors: Mapping[str, Tensor], source: str) -> dict[str, Sensor]:
        """Load the encoders.

        Args:
            colours: Normalisation of each camera.
            tensors: What `source` holds.
            source: The file with the weights, for messages.

        Raises:
            CheckpointError: A tensor is missing, unknown, misshapen or not finite.
        """
        if self.encoder is None:
            return {}
        networks = load_encoders(self.encoder, len(self.cameras) if self.separate else None, tensors, source)
        every = networks if self.separate else networks * len(self.cameras)
        return {
            name: Sensor(shape, colours[name], network, self.encoder.size)
            for (name, shape), network in zip(self.cameras.items(), every, strict=True)
        }


def load_encoders(
    config: VisionConfig, count: int | None, tensors: Mapping[str, Tensor], source: str
) -> list[RgbEncoder]:
    """Load `count` encoders of a policy's weights, or the one that all cameras share where `count` is None.

    Raises:
        CheckpointError: A tensor is missing, unknown, misshapen or not finite.
    """
    weights = without_counts({name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)})
    encoders = load_weights(
        lambda: nn.ModuleList(RgbEncoder(config) for _ in range(count or 1)),
        weights,
        lambda key: PREFIX + (key.partition(".")[2] if count is None else key),
        source,
        "the cameras of config.json",
    )
    return [encoder for encoder in encoders if isinstance(encoder, RgbEncoder)]


def parse_vision(raw: Mapping[str, Any], features: Mapping[str, Any]) -> Vision:
    """Check what config.json says of cameras.

    Args:
        raw: config.json, modern.
        features: The entries of the cameras in it, in their order.

    Raises:
        CheckpointError: A field is missing, of the wrong kind, out of range or contradicts another.
    """
    if not features:
        return Vision()
    if len(features) > MOST_CAMERAS:
        raise CheckpointError(f"config.json has {len(features)} cameras; {MOST_CAMERAS} are the most")
    cameras = {name: _frame(name, as_object(entry).get("shape")) for name, entry in features.items()}
    if len(set(cameras.values())) > 1:
        shapes = ", ".join(f"{name!r} {shape}" for name, shape in cameras.items())
        raise CheckpointError(f"config.json: the cameras' shapes are not the same, as LeRobot's are: {shapes}")
    for name in _REQUIRED:
        if name not in raw:  # defaults of LeRobot's versions differ
            raise CheckpointError(f"config.json has cameras and no {name}")
    resize, crop = (_sides(name, raw.get(name)) for name in ("resize_shape", "crop_shape"))
    ratio, keypoints = raw.get("crop_ratio", 1.0), raw.get("spatial_softmax_num_keypoints", 32)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise CheckpointError(f"config.json: crop_ratio {ratio!r} is not a number in 0 … 1")
    if resize is not None:
        derived = None if ratio == 1 else (int(resize[0] * ratio), int(resize[1] * ratio))
        if crop != derived:
            raise CheckpointError(
                f"config.json: crop_shape {raw['crop_shape']!r} is not what crop_ratio {ratio!r} leaves of "
                f"resize_shape {list(resize)}, {list(derived) if derived else None!r}"
            )
    if not is_count(keypoints) or keypoints > MOST_KEYPOINTS:
        raise CheckpointError(
            f"config.json: spatial_softmax_num_keypoints {keypoints!r} is not a whole number in 1 … {MOST_KEYPOINTS}"
        )
    backbone = raw.get("vision_backbone", "resnet18")
    _, height, width = next(iter(cameras.values()))
    group_norm = _flag("use_group_norm", raw["use_group_norm"])
    separate = _flag("use_separate_rgb_encoder_per_camera", raw.get("use_separate_rgb_encoder_per_camera", False))
    encoder = VisionConfig((height, width), crop, resize, str(backbone), group_norm, keypoints)
    if problem := encoder.problem():
        raise CheckpointError(f"config.json: {problem}")
    return Vision(cameras, encoder, separate, float(ratio))


def camera_notes(
    raw: Mapping[str, Any], features: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Write a note on a policy's cameras, of values as stored.

    Args:
        raw: config.json, modern.
        features: The entries of the inputs in it.
        shapes: Of all tensors.
    """
    cameras = [name for name, entry in features.items() if as_object(entry).get("type") == VISUAL]
    if not cameras:
        return ()
    said = [f"{name} {raw[name]!r}" for name in VISION_FIELDS if name in raw]
    count = count_numbers({name: shape for name, shape in shapes.items() if name.startswith(PREFIX)})
    return (f"cameras {', '.join(cameras)}: {count:,} numbers in their encoders; {', '.join(said)}",)


def _frame(name: str, shape: Any) -> tuple[int, int, int]:
    sides = isinstance(shape, list) and len(shape) == 3 and shape[0] == 3 and _sides(repr(name), shape[1:])
    if not sides:
        raise CheckpointError(f"config.json: shape {shape!r} of {name!r} is not [3, height, width]")
    return 3, sides[0], sides[1]


def _sides(name: str, value: Any) -> tuple[int, int] | None:
    """Read a height and a width, or null."""
    if value is None:
        return None
    sides = value if isinstance(value, list) and len(value) == 2 else [0, 0]
    if any(not is_count(each) or each > MOST_PIXELS for each in sides):
        raise CheckpointError(f"config.json: {name} {value!r} is not null or [height, width] in 1 … {MOST_PIXELS}")
    return sides[0], sides[1]


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {name} {value!r} is not true or false")
    return value


def as_object(value: Any) -> dict[str, Any]:
    """Read what should be a JSON object; an empty one if it is something else."""
    return value if isinstance(value, dict) else {}


def is_count(value: Any) -> bool:
    """Tell whether a value is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
