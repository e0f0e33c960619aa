"""The encoder of Diffusion Policy's image policies, `MultiImageObsEncoder`: torchvision's residual networks.

Its quirks are kept: `random_crop: False` does not crop at all, ImageNet's statistics are applied to frames already in
−1 … 1, a shared network keeps its batch normalisation, and resized frames are not smoothed, as in torchvision 0.13.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.diffusion_policy.observed import LOW_DIM, PREFIX, RGB, Feature, Observed, read_encoder
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights, without_counts
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision.frames import IMAGENET_DEVIATION, IMAGENET_MEAN, Colours, Crop, Resize
from asd_policy.networks.vision.pooling import MeanPool
from asd_policy.networks.vision.resnet import DEPTHS, count_channels, resnet, torchvision_name
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.sensors import Sensor, SensorEncoder

MODELS, SHARED = "key_model_map.", "rgb"
_OPTIONS = {
    *("_target_", "shape_meta", "rgb_model", "resize_shape", "crop_shape", "random_crop", "use_group_norm"),
    *("share_rgb_model", "imagenet_norm"),
}
_RESNET = {"_target_", "name", "weights"}
_GETTERS = ("get_resnet", "get_r3m")


@dataclass(frozen=True)
class _Camera:
    """What is done to a camera's frames."""

    model: str
    """The name of its network in `MODELS`."""
    backbone: str
    group_norm: bool
    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    imagenet: bool

    def before(self) -> list[nn.Module]:
        """List what is done before the network looks."""
        steps: list[nn.Module] = []
        if self.resize:
            steps.append(Resize(*self.resize, antialias=False))
        if self.crop:
            steps.append(Crop(*self.crop))
        return [*steps, Colours(IMAGENET_MEAN, IMAGENET_DEVIATION)] if self.imagenet else steps

    def __str__(self) -> str:
        steps = [f"resized to {self.resize[0]} × {self.resize[1]} without antialiasing"] if self.resize else []
        steps += [f"the middle {self.crop[0]} × {self.crop[1]}"] if self.crop else []
        norm = "groups" if self.group_norm else "batches"
        return ", ".join([*steps, f"{self.backbone} with normalised {norm}, mean over places"])


def read_multi_image(policy: Settings, source: str) -> Observed:
    """Read what the configuration says of the encoder; defaults are those of its constructor.

    Raises:
        CheckpointError: A value is missing, of the wrong kind, or contradicts another.
    """
    encoder, features = read_encoder(policy, "MultiImageObsEncoder", _OPTIONS, source)
    cameras = {
        name: _camera(name, features[name], encoder, source) for name in sorted(features) if features[name].kind == RGB
    }
    vectors = {name: features[name].shape[0] for name in sorted(features) if features[name].kind == LOW_DIM}
    networks = {each.model: each for each in cameras.values()}

    def load(tensors: Mapping[str, Tensor], normalizer: Normalizer) -> SensorEncoder:
        loaded = _load_networks(networks, tensors, source)
        whole = {camera: nn.Sequential(*camera.before(), loaded[camera.model]) for camera in cameras.values()}
        encoded: dict[str, Affine | Sensor] = {}
        for name, camera in cameras.items():
            colours = normalizer.affine(name, 3, frame=True)
            encoded[name] = Sensor(features[name].shape, colours, whole[camera], count_channels(camera.backbone))
        return SensorEncoder(encoded | {name: normalizer.affine(name, size) for name, size in vectors.items()})

    return Observed(
        sizes={name: count_channels(camera.backbone) for name, camera in cameras.items()} | vectors,
        load=load,
        fields=tuple(features),
        encoder="; ".join(f"{name}: {camera}" for name, camera in cameras.items()),
    )


def _camera(name: str, feature: Feature, encoder: Settings, source: str) -> _Camera:
    """Read what is done to the frames of one camera."""
    shared = encoder.flag("share_rgb_model", False)
    resize = _sides(encoder, "resize_shape", name, source)
    crop = _sides(encoder, "crop_shape", name, source) if encoder.flag("random_crop", True) else None
    model = encoder.section("rgb_model")
    model = model if shared or "_target_" in model else model.section(name)
    getter, backbone = model.text("_target_").rpartition(".")[2], model.text("name")
    if getter not in _GETTERS or backbone not in DEPTHS:
        raise CheckpointError(
            f"{source}: policy.obs_encoder.rgb_model is {getter} of {backbone[:80]!r}; known are "
            f"{' and '.join(_GETTERS)} of {', '.join(DEPTHS)}"
        )
    model.only(_RESNET)
    camera = _Camera(
        model=SHARED if shared else name,
        backbone=backbone,
        group_norm=encoder.flag("use_group_norm", False) and not shared,
        resize=resize,
        crop=crop,
        imagenet=encoder.flag("imagenet_norm", False),
    )
    height, width = camera.resize or feature.frame
    if camera.crop and (camera.crop[0] > height or camera.crop[1] > width):
        raise CheckpointError(
            f"{source}: policy.obs_encoder.crop_shape {list(camera.crop)} is larger than frames of {height} × {width}"
        )
    return camera


def _sides(encoder: Settings, option: str, name: str, source: str) -> tuple[int, int] | None:
    """Read a size that all cameras have in common, or each by its name."""
    by_name = encoder.find(option)
    if not list(by_name):
        return encoder.sides(option)
    if name not in by_name:
        raise CheckpointError(f"{source}: policy.obs_encoder.{option} has no size of {name[:80]!r}")
    return by_name.sides(name)


def _load_networks(networks: Mapping[str, _Camera], tensors: Mapping[str, Tensor], source: str) -> dict[str, nn.Module]:
    """Load the networks by their names in `MODELS`."""
    names = list(networks)
    every = load_weights(
        lambda: nn.ModuleList(
            nn.Sequential(resnet(each.backbone, each.group_norm), MeanPool()) for each in networks.values()
        ),
        without_counts(tensors),
        lambda key: _file_name(key, names),
        source,
        "its configuration of cameras",
    )
    return dict(zip(names, every, strict=True))


def _file_name(key: str, names: list[str]) -> str:
    number, _, inner = key.partition(".")
    return f"{PREFIX}{MODELS}{names[int(number)]}.{torchvision_name(inner.removeprefix('0.'))}"
