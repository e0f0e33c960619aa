"""What robomimic's configuration says of observations: vectors as they are, cameras through a `VisualCore`."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from asd_policy.checkpoints.robomimic.visual_core import (
    BACKBONES,
    CropOptions,
    describe_core,
    load_visual_cores,
    with_crop,
)
from asd_policy.checkpoints.untrusted.settings import MOST_CAMERAS, MOST_PIXELS, Settings
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision.visual_core import VisualCoreConfig
from asd_policy.policy.normalisation import Affine, make_affine
from asd_policy.policy.sensors import Sensor, SensorEncoder

PREFIX = "policy.obs_encoder.nets.obs."
MOST_KEYPOINTS = 4096
"""Keypoints of a camera."""
_LOW_DIM, _RGB = "low_dim", "rgb"
_CORE = ("backbone_class", "backbone_kwargs", "pool_class", "pool_kwargs", "flatten", "feature_dimension")
_BACKBONE = ("pretrained", "input_coord_conv", "input_channel")
_POOL = ("num_kp", "temperature", "learnable_temperature", "output_variance", "noise_std")
_CROP = ("crop_height", "crop_width", "num_crops", "pos_enc")
_IDLE = ("ColorRandomizer", "GaussianNoiseRandomizer")  # they do nothing when a policy plans


@dataclass(frozen=True)
class Observations:
    """The observations of a policy, in the order in which the network reads them (`Algo._create_shapes`)."""

    vectors: Mapping[str, int]
    """Length of each vector."""
    crops: Mapping[str, CropOptions]
    """What is looked at of each camera's frames."""
    core: VisualCoreConfig | None
    """Of all cameras but for the size of what they look at; None where there are none."""
    order: tuple[str, ...]

    def config(self, name: str) -> VisualCoreConfig:
        """Give the options of one camera's encoder."""
        assert self.core is not None
        core = self.core
        return VisualCoreConfig(
            self.crops[name].seen, core.backbone, True, core.keypoints, core.temperature, core.features
        )

    @property
    def dim(self) -> int:
        """Numbers that one observation becomes."""
        cameras = len(self.crops) * self.core.features if self.core else 0
        return sum(self.vectors.values()) + cameras

    @property
    def encoder(self) -> str:
        """What encodes the cameras, in a few words; empty where there are none."""
        return "; ".join(f"{name}: {describe_core(self.config(name), crop)}" for name, crop in self.crops.items())

    def load(self, maps: Mapping[str, Affine], tensors: Mapping[str, Tensor], source: str) -> SensorEncoder:
        """Load the encoder.

        Args:
            maps: Normalisation of each vector.
            tensors: The tensors with `PREFIX`, each once.
            source: The file, for messages.

        Raises:
            CheckpointError: A tensor is missing, unknown, misshapen or not finite.
        """
        configs = {name: self.config(name) for name in self.crops}
        cores = load_visual_cores(configs, tensors, PREFIX, source)
        plain = make_affine("IDENTITY", {}, _RGB, 3)
        sensors = {
            name: Sensor((3, *crop.frame), plain, with_crop(cores[name], crop, int), configs[name].features)
            for name, crop in self.crops.items()
        }
        return SensorEncoder({name: sensors[name] if name in sensors else maps[name] for name in self.order})


def read_observations(config: Settings, shapes: Settings, source: str) -> Observations:
    """Read the observations and their encoders.

    Args:
        config: robomimic's configuration.
        shapes: Of everything in its data, `shape_metadata.all_shapes`.
        source: The file, for messages.

    Raises:
        CheckpointError: There is something else than vectors and cameras, or a value is missing or of the wrong kind.
    """
    observation = config.section("observation")
    groups = observation.section("modalities")
    for group in groups:
        for modality in groups.section(group):
            if groups.section(group).names(modality) and (group, modality) not in (("obs", _LOW_DIM), ("obs", _RGB)):
                raise CheckpointError(
                    f"{source} observes {group}.{modality}: only obs.{_LOW_DIM} and obs.{_RGB} can be read here (a "
                    "policy with depth or goals needs robomimic itself)"
                )
    encoder = observation.section("encoder").section(_LOW_DIM).plain()
    if encoder.get("core_class") is not None or encoder.get("obs_randomizer_class") is not None:
        raise CheckpointError(f"{source}: observation.encoder.low_dim encodes or randomises; only plain ones are known")
    obs = groups.section("obs")
    low_dim, rgb = obs.names(_LOW_DIM), obs.names(_RGB) if _RGB in obs else []
    vectors = {name: shapes.counts(name, most=1)[0] for name in shapes if name in low_dim}
    frames = {name: _frame(shapes, name, source) for name in shapes if name in rgb}
    if not vectors and not frames:
        raise CheckpointError(f"{source}: shape_metadata has none of the observations in obs.{_LOW_DIM} and obs.{_RGB}")
    if len(frames) > MOST_CAMERAS:
        raise CheckpointError(f"{source} has {len(frames)} cameras; {MOST_CAMERAS} are the most")
    order = tuple(name for name in shapes if name in vectors or name in frames)
    if not frames:
        return Observations(vectors, {}, None, order)
    cameras = observation.section("encoder").section(_RGB)
    size = _read_crop(cameras, source)
    crops = {name: CropOptions(frame, size) for name, frame in frames.items()}
    for crop in crops.values():
        if problem := crop.problem():
            raise CheckpointError(f"{source}: observation.encoder.rgb: {problem}")
    return Observations(vectors, crops, _read_core(cameras, source), order)


def _frame(shapes: Settings, name: str, source: str) -> tuple[int, int]:
    """Read height and width of a camera's frames."""
    shape = shapes.counts(name, most=3)
    if len(shape) != 3 or shape[0] != 3 or max(shape) > MOST_PIXELS:
        raise CheckpointError(
            f"{source}: shape_metadata.all_shapes.{name[:80]} {list(shape)} is not [3, height, width], sides of "
            f"1 … {MOST_PIXELS} pixels"
        )
    return shape[1], shape[2]


def _read_core(cameras: Settings, source: str) -> VisualCoreConfig:
    """Read the options of the cameras' encoders; defaults are those of `VisualCore`."""
    where = f"{source}: observation.encoder.rgb"
    if (kind := cameras.text("core_class")) != "VisualCore":
        raise CheckpointError(f"{where}.core_class {kind[:80]!r} is not 'VisualCore'")
    options = cameras.find("core_kwargs")
    options.only(_CORE)
    backbone, pool = options.find("backbone_kwargs"), options.find("pool_kwargs")
    backbone.only(_BACKBONE)
    pool.only(_POOL)
    name, pooling = options.text("backbone_class", "ResNet18Conv"), options.text("pool_class", "SpatialSoftmax")
    if name not in BACKBONES or backbone.flag("input_coord_conv", False):
        raise CheckpointError(
            f"{where}: backbone {name[:80]!r} is none of {', '.join(BACKBONES)}, or sees the places of pixels"
        )
    if pooling != "SpatialSoftmax" or pool.flag("output_variance", False) or not options.flag("flatten", True):
        raise CheckpointError(f"{where}: only pool_class 'SpatialSoftmax' without variances, flattened, is known")
    learned = pool.flag("learnable_temperature", False)
    return VisualCoreConfig(
        seen=(1, 1),
        backbone=BACKBONES[name],
        keypoints=pool.count("num_kp", 32, most=MOST_KEYPOINTS),
        temperature=None if learned else pool.number("temperature", 1.0, least=1e-6),
        features=options.count("feature_dimension", 64),
    )


def _read_crop(cameras: Settings, source: str) -> tuple[int, int] | None:
    """Read the size of the crop, whose middle robomimic takes when it plans; None where there is none."""
    kinds, options = cameras.plain().get("obs_randomizer_class"), [cameras.find("obs_randomizer_kwargs")]
    if isinstance(kinds, list):
        options = cameras.sections("obs_randomizer_kwargs")
    crops = []
    for kind, given in zip(kinds if isinstance(kinds, list) else [kinds], options, strict=False):
        if kind == "CropRandomizer":
            given.only(_CROP)
            if given.flag("pos_enc", False):
                raise CheckpointError(f"{source}: a CropRandomizer with pos_enc is not known")
            crops.append((given.count("crop_height", 76), given.count("crop_width", 76)))
        elif kind is not None and kind not in _IDLE:
            raise CheckpointError(
                f"{source}: observation.encoder.rgb.obs_randomizer_class {kind!r} is not null, CropRandomizer, "
                f"{' or '.join(_IDLE)}"
            )
    if len(crops) > 1:
        raise CheckpointError(f"{source}: observation.encoder.rgb crops {len(crops)} times; once is known")
    return crops[0] if crops else None
