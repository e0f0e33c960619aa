"""The encoder of DP3's policies (arXiv 2403.03954): a PointNet for the cloud, a perceptron for the robot's state."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.diffusion_policy.observed import LOW_DIM, PREFIX, Observed, read_features
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision.pointnet import STATE_WIDTH, PointNet, PointNetConfig, state_network
from asd_policy.policy.sensors import Sensor, SensorEncoder

FIELDS = (
    *("shape_meta", "encoder_output_dim", "use_pc_color", "pointnet_type", "pointcloud_encoder_cfg"),
    *("crop_shape", "use_point_crop"),
)
"""Options of a policy that decide what its encoder does; the last two nothing reads."""
CLOUD, STATE = "point_cloud", "agent_pos"
MOST_POINTS, MOST_CHANNELS = 2**16, 64
"""Points of a cloud and numbers of a point: nothing in the weights bounds these."""
_ROBOT = "imagin_robot"
_POINT_CLOUD = "point_cloud"
_OTHERS = ("rgb", "depth", "low_dimx")  # types in its configurations of what no network looks at
_OPTIONS = {"in_channels", "out_channels", "use_layernorm", "final_norm", "normal_channel", "use_projection"}


@dataclass(frozen=True)
class _Sizes:
    """Shapes of the two features."""

    cloud: tuple[int, ...]
    state: int


def read_point_cloud(policy: Settings, source: str) -> Observed:
    """Read what the configuration says of the encoder; defaults are those of its constructors.

    Raises:
        CheckpointError: A value is missing, of the wrong kind, or contradicts another.
    """
    sizes, config = _read_sizes(policy, source), _read_config(policy, source)
    if sizes.cloud[1] < config.channels:
        raise CheckpointError(
            f"{source}: {CLOUD} has points of {sizes.cloud[1]} numbers, its encoder looks at {config.channels}"
        )

    def load(tensors: Mapping[str, Tensor], normalizer: Normalizer) -> SensorEncoder:
        cloud, state = load_weights(
            lambda: nn.ModuleList([PointNet(config), state_network(sizes.state)]),
            tensors,
            lambda key: PREFIX + key.replace("0.", "extractor.", 1) if key[0] == "0" else _state_name(key),
            source,
            "its configuration of the cloud's encoder",
        )
        return SensorEncoder(
            {
                CLOUD: Sensor(sizes.cloud, normalizer.affine(CLOUD, sizes.cloud[1]), cloud, config.size),
                STATE: Sensor((sizes.state,), normalizer.affine(STATE, sizes.state), state, STATE_WIDTH),
            }
        )

    norm = "with layer normalisation" if config.layer_norm else "without normalisation"
    return Observed(
        sizes={CLOUD: config.size, STATE: STATE_WIDTH},
        load=load,
        fields=tuple(policy.section("shape_meta").section("obs")),
        encoder=f"{CLOUD}: PointNet {norm}, {config.channels} numbers of each of {sizes.cloud[0]} points; {STATE}: MLP",
    )


def _state_name(key: str) -> str:
    return PREFIX + key.replace("1.", "state_mlp.", 1)


def _read_sizes(policy: Settings, source: str) -> _Sizes:
    features = read_features(policy.section("shape_meta"), source, (_POINT_CLOUD, LOW_DIM, *_OTHERS))
    if _ROBOT in features:
        raise CheckpointError(f"{source} observes {_ROBOT}, points of the robot beside the cloud, which is not known")
    for name in (CLOUD, STATE):
        if name not in features:
            raise CheckpointError(f"{source} has no policy.shape_meta.obs.{name}")
    cloud, state = features[CLOUD].shape, features[STATE].shape
    if len(cloud) != 2 or cloud[0] > MOST_POINTS or cloud[1] > MOST_CHANNELS:
        raise CheckpointError(
            f"{source}: {CLOUD} of shape {list(cloud)} is not [points, channels] of {MOST_POINTS} × {MOST_CHANNELS} at "
            "most"
        )
    if len(state) != 1:
        raise CheckpointError(f"{source}: {STATE} of shape {list(state)} is no vector")
    return _Sizes(cloud, state[0])


def _read_config(policy: Settings, source: str) -> PointNetConfig:
    kind = policy.text("pointnet_type", "pointnet")
    if kind != "pointnet":
        raise CheckpointError(f"{source}: policy.pointnet_type {kind[:80]!r} is not 'pointnet'")
    options = policy.section("pointcloud_encoder_cfg")
    options.only(_OPTIONS)
    final = options.text("final_norm", "none")
    if final not in ("none", "layernorm"):
        raise CheckpointError(
            f"{source}: pointcloud_encoder_cfg.final_norm {final[:80]!r} is not 'none' or 'layernorm'"
        )
    coloured = policy.flag("use_pc_color", False)
    config = PointNetConfig(
        coloured=coloured,
        features=options.count("out_channels", 1024),
        layer_norm=options.flag("use_layernorm", False),
        final_norm=final == "layernorm",
        projection=options.flag("use_projection", True) or coloured,
    )
    wanted = policy.count("encoder_output_dim", 256)
    if config.size != wanted:
        raise CheckpointError(
            f"{source}: policy.encoder_output_dim is {wanted}, the encoder of the cloud makes {config.size} numbers"
        )
    return config
