"""What a configuration says of a policy's observations, before any weight is read."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.untrusted.settings import MOST_CAMERAS, MOST_PIXELS, Settings
from asd_policy.errors import CheckpointError
from asd_policy.policy.observation import OBS
from asd_policy.policy.sensors import SensorEncoder

PREFIX = "obs_encoder."
"""Of the names of an encoder's tensors."""
RGB, LOW_DIM = "rgb", "low_dim"


@dataclass(frozen=True)
class Feature:
    """One entry of `shape_meta.obs`."""

    kind: str
    """Its type, `RGB` or `LOW_DIM`, or another."""
    shape: tuple[int, ...]

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of a camera's frames [pixels]."""
        return self.shape[1], self.shape[2]


@dataclass(frozen=True)
class Observed:
    """How a policy encodes its observations: sizes, and how to load the networks that do it."""

    sizes: Mapping[str, int]
    """Numbers that each feature of one observation becomes, in the order the network reads them."""
    load: Callable[[Mapping[str, Tensor], Normalizer], SensorEncoder]
    """Makes the encoder of the tensors with `PREFIX`, each once; raises a `CheckpointError` where they do not fit."""
    fields: Collection[str] = (OBS,)
    """Fields that the normaliser may have beside the action."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """How many of the last observations of a feature condition the network, where not all do."""
    first_name: Callable[[str], str] = str
    """As for `TorchArchive.state_dict`."""
    encoder: str = ""
    """What encodes cameras or clouds, in a few words; empty where nothing does."""
    random_crop: str | None = None
    """As `ObservationEncoder.random_crop`."""

    @property
    def dim(self) -> int:
        """Numbers that one observation becomes."""
        return sum(self.sizes.values())

    def cond_dim(self, n_obs_steps: int) -> int:
        """Count the numbers of the conditioning of one plan."""
        return sum(size * self.steps.get(name, n_obs_steps) for name, size in self.sizes.items())


def read_features(meta: Settings, source: str, kinds: Collection[str] = (RGB, LOW_DIM)) -> dict[str, Feature]:
    """Read the section `shape_meta.obs`, in its order.

    Args:
        meta: The section `shape_meta`.
        source: The file, for messages.
        kinds: Types that are known.

    Raises:
        CheckpointError: A type is unknown, or a shape is not what its type asks for.
    """
    section = meta.section("obs")
    features = {}
    for name in section:
        entry = section.section(name)
        feature = Feature(entry.text("type", LOW_DIM), entry.counts("shape", most=3))
        what = f"{source}: shape_meta.obs.{name[:80]} of type {feature.kind[:80]!r} and shape {list(feature.shape)}"
        if feature.kind not in kinds:
            raise CheckpointError(f"{what}: only the types {' and '.join(kinds)} are known for this policy")
        if feature.kind == RGB and not (
            len(feature.shape) == 3 and feature.shape[0] == 3 and max(feature.shape) <= MOST_PIXELS
        ):
            raise CheckpointError(f"{what} is no camera of shape [3, height, width], sides of 1 … {MOST_PIXELS} pixels")
        if feature.kind == LOW_DIM and len(feature.shape) != 1:
            raise CheckpointError(f"{what} is no vector")
        features[name] = feature
    cameras = sum(feature.kind == RGB for feature in features.values())
    if cameras > MOST_CAMERAS:
        raise CheckpointError(f"{source} has {cameras} cameras; {MOST_CAMERAS} are the most")
    return features


def read_encoder(
    policy: Settings, known: str, options: Collection[str], source: str
) -> tuple[Settings, dict[str, Feature]]:
    """Open the section of an encoder that has `shape_meta.obs` once more.

    Args:
        policy: The policy's section.
        known: The class that the encoder has to be.
        options: Arguments of it.
        source: The file, for messages.

    Returns:
        The section, and the features.

    Raises:
        CheckpointError: As `read_features`; or it is of another class or has other options, or the features are not
            the policy's.
    """
    encoder = policy.section("obs_encoder")
    kind = encoder.text("_target_").rpartition(".")[2]
    if kind != known:
        raise CheckpointError(f"{source}: policy.obs_encoder is a {kind}; only {known} is known here")
    encoder.only({*options})
    features = read_features(encoder.section("shape_meta"), source)
    if features != read_features(policy.section("shape_meta"), source):
        raise CheckpointError(f"{source}: policy.obs_encoder.shape_meta is not the same as policy.shape_meta")
    return encoder, features
