"""LeRobot's `DiffusionPolicy`, live: `DiffusionModel.conditional_sample` is the one place where it samples.

The same in lerobot 0.4.4 and 0.6.1 (`lerobot/policies/diffusion/modeling_diffusion.py`). Observation queues, encoders
and processors are outside it, and stay as they are.
"""

from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Generator
from asd_policy.policy.adapters.base import Acceleration, Adapter, LiveParts, Patch, check_own
from asd_policy.policy.adapters.lerobot_sampling import LeRobotSampling, parts_of, sampling_patches, twin_of
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.sensors import Sensor, SensorEncoder

_MODULE = "lerobot.policies.diffusion.modeling_diffusion"


class _Sampling(LeRobotSampling):
    """`DiffusionModel` has the loop, its `generate_actions` encodes and samples."""

    known = (f"{_MODULE}.DiffusionPolicy",)
    loops = (f"{_MODULE}.DiffusionModel",)

    @staticmethod
    def loop_of(policy: Any) -> Any:
        """Find the `DiffusionModel`."""
        return policy.diffusion

    @staticmethod
    def denoiser_of(policy: Any) -> Any:
        """Find the U-Net."""
        return policy.diffusion.unet

    @staticmethod
    def planning_of(policy: Any) -> tuple[Any, str]:
        """Find what encodes and samples."""
        return policy.diffusion, "generate_actions"

    @staticmethod
    def run_loop(policy: Any, network: Any, cond: Array) -> Array:
        """Run the loop of the model."""
        return twin_of(policy.diffusion, unet=network).conditional_sample(len(cond), global_cond=cond)

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Array | None = None,
        generator: Generator | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Sample plans [batch_size, horizon, action_dim] given observations [batch_size, cond_dim]; see `sample`."""
        config = self.policy.config
        shape = (batch_size, config.horizon, config.action_feature.shape[0])
        return self.sample(self.policy.diffusion.unet, shape, "global_cond", global_cond, generator, noise)


def _patches(policy: Any, wanted: Acceleration) -> list[Patch]:
    parts_of(policy, _Sampling)
    check_own(policy.diffusion, _Sampling.loops, ("conditional_sample", "generate_actions"))
    return sampling_patches(policy, wanted, _Sampling, policy.diffusion)


def _parts(policy: Any, processors: Any) -> LiveParts:
    """Take a policy apart; its conditioning is compared with what LeRobot's own method makes."""
    from asd_policy.policy.adapters.encoders import check_encoder, check_same, normalized, random_observations
    from asd_policy.policy.adapters.networks import denoiser_of
    from asd_policy.policy.adapters.processors import ACTION, live_normalization

    model, config = policy.diffusion, policy.config
    check_own(policy, ADAPTER.classes, ("select_action", "predict_action_chunk"))
    check_own(
        model,
        (f"{_MODULE}.DiffusionModel",),
        ("conditional_sample", "generate_actions", "_prepare_global_conditioning"),
    )
    cameras = {name: tuple(feature.shape) for name, feature in config.image_features.items()}
    shapes = {STATE: tuple(config.robot_state_feature.shape), **cameras}
    if config.env_state_feature:
        shapes[ENVIRONMENT_STATE] = tuple(config.env_state_feature.shape)
    action = tuple(config.action_feature.shape)
    device = next(model.parameters()).device
    maps = live_normalization(policy, processors, {**shapes, ACTION: action})
    maps = {name: each.to(device) for name, each in maps.items()}
    networks = [model.rgb_encoder] * len(cameras) if cameras else []
    if cameras and config.use_separate_rgb_encoder_per_camera:
        networks = list(model.rgb_encoder)
    features: dict[str, Affine | Sensor] = {name: maps[name] for name in shapes}
    for (name, shape), network in zip(cameras.items(), networks, strict=True):
        features[name] = Sensor(shape, maps[name], network, network.feature_dim)
    encoder = SensorEncoder(features)

    def own(seen: dict[str, Array]) -> Array:
        batch = {name: each[:, None] for name, each in seen.items()}
        if cameras:
            batch["observation.images"] = arrays.namespace(seen[STATE]).stack([batch[name] for name in cameras], -4)
        return model._prepare_global_conditioning(batch)

    seen = random_observations(shapes, 2)
    theirs = check_encoder(own, normalized(seen, {name: maps[name] for name in shapes}, device))
    check_same(encoder.look(seen, device), theirs, "the features")
    horizons = Horizons(config.n_obs_steps, config.horizon, config.n_action_steps)
    return LiveParts(
        denoiser_of(model.unet, "global_cond"),
        encoder,
        maps[ACTION],
        horizons,
        model.noise_scheduler,
        model.num_inference_steps,
    )


ADAPTER = Adapter(_Sampling.known, _patches, _parts)
