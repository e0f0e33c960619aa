"""The encoder of Diffusion Policy's hybrid policies: robomimic's, as its image policies of behaviour cloning have it.

What is not in a file is what `get_robomimic_config` of the policies takes: a ResNet-18 for each camera, a spatial
softmax of 32 keypoints, 64 numbers for each frame; vectors stay as they are.
"""

from collections.abc import Mapping

from torch import Tensor

from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.diffusion_policy.observed import LOW_DIM, PREFIX, RGB, Observed, read_features
from asd_policy.checkpoints.robomimic.visual_core import (
    CropOptions,
    describe_core,
    first_name,
    load_visual_cores,
    with_crop,
)
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision.visual_core import VisualCoreConfig
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.sensors import Sensor, SensorEncoder

FIELDS = ("shape_meta", "crop_shape", "obs_encoder_group_norm", "eval_fixed_crop")
"""Options of a policy that decide what its encoder does."""
_CROP = (76, 76)
_RANDOM = "its library crops frames at random when it plans (robomimic 0.2, with eval_fixed_crop false)"


def read_hybrid(policy: Settings, source: str) -> Observed:
    """Read what the configuration says of the encoder; defaults are those of the policy's constructor.

    Raises:
        CheckpointError: A value is missing, of the wrong kind, or contradicts another.
    """
    features = read_features(policy.section("shape_meta"), source)
    size, group_norm = policy.sides("crop_shape", _CROP), policy.flag("obs_encoder_group_norm", False)
    crops = {name: CropOptions(each.frame, size) for name, each in features.items() if each.kind == RGB}
    for crop in crops.values():
        if problem := crop.problem():
            raise CheckpointError(f"{source}: policy.crop_shape: {problem}")
    configs = {name: VisualCoreConfig(crop.seen, group_norm=group_norm) for name, crop in crops.items()}
    random = _RANDOM if crops and size and not policy.flag("eval_fixed_crop", False) else None

    def load(tensors: Mapping[str, Tensor], normalizer: Normalizer) -> SensorEncoder:
        cores = load_visual_cores(configs, tensors, PREFIX, source)
        encoded: dict[str, Affine | Sensor] = {}
        for name, feature in features.items():
            if feature.kind == LOW_DIM:
                encoded[name] = normalizer.affine(name, feature.shape[0])
            else:
                colours = normalizer.affine(name, 3, frame=True)
                network = with_crop(cores[name], crops[name])
                encoded[name] = Sensor(feature.shape, colours, network, configs[name].features)
        return SensorEncoder(encoded, random_crop=random)

    return Observed(
        sizes={name: configs[name].features if each.kind == RGB else each.shape[0] for name, each in features.items()},
        load=load,
        fields=tuple(features),
        first_name=first_name,
        encoder="; ".join(f"{name}: {describe_core(configs[name], crop)}" for name, crop in crops.items()),
        random_crop=random,
    )
