"""The policies that can be read, by the names of their classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.diffusion_policy import denoisers, hybrid, layouts, multi_image, pointcloud, umi
from asd_policy.checkpoints.diffusion_policy.denoisers import CONDITIONS, TRANSFORMER_FIELDS, UNET_FIELDS, Task
from asd_policy.checkpoints.diffusion_policy.layouts import Layout
from asd_policy.checkpoints.diffusion_policy.normalizer import Normalizer
from asd_policy.checkpoints.diffusion_policy.observed import Observed
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.policy.observation import OBS
from asd_policy.policy.sensors import SensorEncoder


@dataclass(frozen=True)
class Family:
    """How the files of one class of policies are read."""

    layout: Callable[[Settings, Settings, str], Layout]
    """Reads the layout of its plans from the policy's section and the whole configuration."""
    observed: Callable[[Settings, str], Observed]
    """Reads how observations are encoded."""
    network: Callable[[Settings, Task, Mapping[str, Tensor], str], nn.Module]
    """Loads its network."""
    fields: tuple[str, ...]
    """The options of its section beside `_FIELDS`."""


def read_vector(policy: Settings, _: str) -> Observed:
    """Read how a low-dimensional policy encodes its one vector: normalised, as it is."""
    dim = policy.count("obs_dim")

    def load(_: Mapping[str, Tensor], normalizer: Normalizer) -> SensorEncoder:
        return SensorEncoder({OBS: normalizer.affine(OBS, dim)})

    return Observed({OBS: dim}, load)


_FIELDS = ("_target_", "noise_scheduler", "num_inference_steps")
"""Options of every policy; any other argument goes to the scheduler's step, as eta does. DP3 passes none on."""
_HORIZONS = ("horizon", "n_action_steps", "n_obs_steps")
_LOW_DIM = ("eta", "model", "obs_dim", "action_dim", "pred_action_steps_only", *_HORIZONS)
_CAMERAS = ("eta", "shape_meta", "obs_as_global_cond", "cond_predict_scale", *UNET_FIELDS)
FAMILIES = {
    "DiffusionUnetLowdimPolicy": Family(
        layouts.read_low_dim_unet,
        read_vector,
        denoisers.load_low_dim_unet,
        (*_LOW_DIM, "obs_as_local_cond", "obs_as_global_cond", "oa_step_convention"),
    ),
    "DiffusionTransformerLowdimPolicy": Family(
        layouts.read_low_dim_transformer, read_vector, denoisers.load_low_dim_transformer, (*_LOW_DIM, "obs_as_cond")
    ),
    "DiffusionUnetHybridImagePolicy": Family(
        layouts.read_image_unet, hybrid.read_hybrid, denoisers.load_image_unet, (*_CAMERAS, *_HORIZONS, *hybrid.FIELDS)
    ),
    "DiffusionTransformerHybridImagePolicy": Family(
        layouts.read_image_transformer,
        hybrid.read_hybrid,
        denoisers.load_image_transformer,
        (*TRANSFORMER_FIELDS, *_HORIZONS, *hybrid.FIELDS, "pred_action_steps_only", "eta"),
    ),
    "DiffusionUnetImagePolicy": Family(
        layouts.read_image_unet,
        multi_image.read_multi_image,
        denoisers.load_image_unet,
        (*_CAMERAS, *_HORIZONS, "obs_encoder"),
    ),
    "DP3": Family(
        layouts.read_image_unet,
        pointcloud.read_point_cloud,
        denoisers.load_dp3_unet,
        (*_HORIZONS, *UNET_FIELDS, *CONDITIONS, "obs_as_global_cond", *pointcloud.FIELDS),
    ),
    "DiffusionUnetTimmPolicy": Family(
        layouts.read_umi_unet,
        umi.read_umi,
        denoisers.load_image_unet,
        (
            *(*_CAMERAS, "obs_encoder", "input_pertub", "inpaint_fixed_action_prefix"),
            "train_diffusion_n_samples",
        ),
    ),
}
"""Each family by the name of its policy's class."""


def check_fields(family: Family, policy: Settings) -> None:
    """Refuse options that are not the policy's.

    Raises:
        CheckpointError: There are some.
    """
    policy.only({*_FIELDS, *family.fields})
