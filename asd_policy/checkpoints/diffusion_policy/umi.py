"""The encoder of UMI's policies (arXiv 2402.10329), `TimmObsEncoder`: timm's networks, each feature with a horizon.

Its quirks are kept: frames stay in 0 … 1 whatever `imagenet_norm` says, and pretrained networks keep their batch
normalisation. Its random crop and its colour jitter also run when it plans; here the middle is taken and the colours
stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.diffusion_policy.observed import (
    LOW_DIM,
    PREFIX,
    RGB,
    Feature,
    Observed,
    read_encoder,
)
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights, without_counts
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision.frames import Crop, Resize
from asd_policy.networks.vision.pooling import (
    AttentionPool2d,
    MaxPool,
    MeanPool,
    SoftAttentionPool,
    SpatialEmbeddingPool,
)
from asd_policy.networks.vision.resnet import STRIDE, count_channels, resnet
from asd_policy.networks.vision.vit import VITS, VisionTransformer
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.sensors import Sensor, SensorEncoder

MODELS = "key_model_map."
MOST_STEPS = 1000
"""Observations of a feature that condition the network."""
_OPTIONS = {
    *("_target_", "shape_meta", "model_name", "pretrained", "frozen", "global_pool", "transforms", "use_group_norm"),
    *("share_rgb_model", "imagenet_norm", "feature_aggregation", "downsample_ratio", "position_encording"),
}
_RESNETS = ("resnet18", "resnet34")
_JITTER = ("ColorJitter",)
_AGGREGATIONS = ("attention_pool_2d", "avg", "max", "soft_attention", "spatial_embedding")
_HEAD = 64  # channels of a head of its attention pooling


@dataclass(frozen=True)
class _Eye:
    """The network that looks at every camera's frames."""

    name: str
    """timm's, without the weights it began with."""
    side: int
    """Height and width of a frame [pixels]."""
    group_norm: bool
    levels: int
    """Resolutions of a residual network."""
    aggregation: str
    """What makes features of its maps."""
    crop: int | None
    """Height and width of the middle that is looked at [pixels]; None for all of the frame."""

    @property
    def size(self) -> int:
        """Numbers that a frame becomes."""
        return VITS[self.name].width if self.name in VITS else count_channels(self.name, self.levels)

    def build(self) -> nn.Module:
        """Build the backbone."""
        return (
            VisionTransformer(VITS[self.name]) if self.name in VITS else resnet(self.name, self.group_norm, self.levels)
        )

    def pool(self) -> nn.Module:
        """Build what makes features of the backbone's maps."""
        if self.name in VITS:
            return nn.Identity()
        side = self.side * 2 ** (4 - self.levels) // STRIDE
        if self.aggregation == "attention_pool_2d":
            return nn.ModuleDict({self.aggregation: AttentionPool2d(side, self.size, self.size // _HEAD)})
        if self.aggregation == "spatial_embedding":
            return SpatialEmbeddingPool(side**2, self.size)
        if self.aggregation == "soft_attention":
            return SoftAttentionPool(self.size)
        return MeanPool() if self.aggregation == "avg" else MaxPool()

    def before(self) -> list[nn.Module]:
        """List what is done before the network looks."""
        if self.crop is None:
            return []
        return [Crop(self.crop, self.crop), Resize(self.side, self.side, antialias=True)]

    def __str__(self) -> str:
        seen = f"the middle {self.crop} × {self.crop} resized to {self.side} × {self.side}, " if self.crop else ""
        if self.name in VITS:
            return f"{seen}{self.name}, class token"
        norm = "groups" if self.group_norm else "batches"
        return f"{seen}{self.name} with normalised {norm}, {self.levels} resolutions, {self.aggregation}"


def read_umi(policy: Settings, source: str) -> Observed:
    """Read what the configuration says of the encoder.

    Raises:
        CheckpointError: A value is missing, of the wrong kind, or contradicts another.
    """
    encoder, features = read_encoder(policy, "TimmObsEncoder", _OPTIONS, source)
    ignored = _ignored(policy, features)
    used = {name: features[name] for name in sorted(features) if name not in ignored}
    used = {name: used[name] for name in sorted(used, key=lambda name: (used[name].kind != RGB, name))}
    steps = _read_horizons(policy, used)
    cameras = [name for name, feature in used.items() if feature.kind == RGB]
    if not cameras:
        raise CheckpointError(f"{source}: policy.shape_meta has no camera")
    eye, random = _read_eye(encoder, used[cameras[0]], source)
    if any(used[name].frame != (eye.side, eye.side) for name in cameras):
        raise CheckpointError(
            f"{source}: not all cameras have frames of {eye.side} × {eye.side} pixels, as the first has"
        )
    shared = encoder.flag("share_rgb_model", False)

    def load(tensors: Mapping[str, Tensor], normalizer: Normalizer) -> SensorEncoder:
        networks = _load_eyes(eye, cameras[:1] if shared else cameras, tensors, source)
        encoded: dict[str, Affine | Sensor] = {}
        for name, feature in used.items():
            if feature.kind == RGB:
                colours = normalizer.affine(name, 3, frame=True)
                network = networks[cameras[0] if shared else name]
                encoded[name] = Sensor(feature.shape, colours, network, eye.size, steps[name])
            else:
                size = feature.shape[0]
                affine = normalizer.affine(name, size)
                as_it_is = Sensor(feature.shape, affine, nn.Identity(), size, steps[name])
                encoded[name] = affine if steps[name] == max(steps.values()) else as_it_is
        return SensorEncoder(encoded, by_feature=True, random_crop=random)

    def first_name(name: str) -> str:
        head, found, rest = name.partition(MODELS)
        camera, _, tensor = rest.partition(".")
        return f"{head}{MODELS}{cameras[0]}.{tensor}" if shared and found and camera in cameras else name

    return Observed(
        sizes={name: eye.size if each.kind == RGB else each.shape[0] for name, each in used.items()},
        load=load,
        fields=tuple(features),
        steps=steps,
        first_name=first_name,
        encoder=f"{', '.join(cameras)}: {eye}",
        random_crop=random,
    )


def _read_horizons(policy: Settings, features: Mapping[str, Feature]) -> dict[str, int]:
    """Read how many observations of each feature condition the network."""
    meta = policy.section("shape_meta").section("obs")
    return {name: meta.section(name).count("horizon", most=MOST_STEPS) for name in features}


def _ignored(policy: Settings, features: Mapping[str, Feature]) -> set[str]:
    """List the vectors that the policy does not look at; it looks at every camera, whatever its flag says."""
    meta = policy.section("shape_meta").section("obs")
    return {
        name
        for name, feature in features.items()
        if feature.kind == LOW_DIM and meta.section(name).flag("ignore_by_policy", False)
    }


def _read_eye(encoder: Settings, camera: Feature, source: str) -> tuple[_Eye, str | None]:
    """Read the network, and what its library does at random when it plans."""
    where = f"{source}: policy.obs_encoder"
    whole = encoder.text("model_name")
    name = whole.partition(".")[0]
    if name not in VITS and name not in _RESNETS:
        raise CheckpointError(f"{where}.model_name {whole[:80]!r} is none of {', '.join((*_RESNETS, *VITS))}")
    if encoder.text("global_pool") != "":
        raise CheckpointError(f"{where}.global_pool {encoder.text('global_pool')[:80]!r} is not ''")
    side, ratio = camera.frame[0], encoder.count("downsample_ratio", STRIDE)
    aggregation = encoder.plain().get("feature_aggregation", "spatial_embedding")
    if name in VITS:
        if aggregation == "all_tokens":
            raise CheckpointError(f"{where}.feature_aggregation 'all_tokens' is not known; the class token is")
        if side != VITS[name].side:
            raise CheckpointError(f"{source}: {name} is for frames of {VITS[name].side} pixels, not of {side}")
    else:
        if aggregation not in _AGGREGATIONS:
            raise CheckpointError(
                f"{where}.feature_aggregation {aggregation!r} is none of {', '.join(_AGGREGATIONS)} (its transformer "
                "attends from one robot's frames to another's)"
            )
        if ratio not in (STRIDE // 2, STRIDE) or side % ratio:
            raise CheckpointError(f"{where}.downsample_ratio {ratio} is not 16 or 32, or does not divide {side} pixels")
    crop, random = _read_transforms(encoder, side, where)
    group_norm = encoder.flag("use_group_norm", False) and not encoder.flag("pretrained")
    levels = 4 if ratio == STRIDE else 3
    return _Eye(name, side, group_norm, levels, str(aggregation), crop), random


def _read_transforms(encoder: Settings, side: int, where: str) -> tuple[int | None, str | None]:
    """Read the size of the random crop, and say what is done at random; None for both where nothing is."""
    if encoder.plain().get("transforms") is None:
        return None, None
    first, *others = encoder.sections("transforms") or [encoder]
    if first.text("type", "") != "RandomCrop":
        raise CheckpointError(f"{where}.transforms does not begin with a RandomCrop, as its library asks for")
    kinds = [each.text("_target_", "").rpartition(".")[2] for each in others]
    for kind in kinds:
        if kind not in _JITTER:
            raise CheckpointError(f"{where}.transforms has {kind!r}; RandomCrop and {' and '.join(_JITTER)} are known")
    crop = int(side * first.number("ratio", least=1 / side, most=1.0))
    done = "crops frames and jitters their colours" if kinds else "crops frames"
    return crop, f"its library {done} at random when it plans"


def _load_eyes(eye: _Eye, cameras: list[str], tensors: Mapping[str, Tensor], source: str) -> dict[str, nn.Module]:
    """Load the network of each camera, each with the pooling that all share."""
    whole = load_weights(
        lambda: nn.ModuleList([eye.pool(), *(eye.build() for _ in cameras)]),
        without_counts(tensors),
        lambda key: _file_name(key, cameras),
        source,
        "its configuration of cameras",
    )
    pool, *backbones = whole
    pool = pool["attention_pool_2d"] if isinstance(pool, nn.ModuleDict) else pool
    return {name: nn.Sequential(*eye.before(), each, pool) for name, each in zip(cameras, backbones, strict=True)}


def _file_name(key: str, cameras: list[str]) -> str:
    number, _, inner = key.partition(".")
    return PREFIX + (inner if number == "0" else f"{MODELS}{cameras[int(number) - 1]}.{inner}")
