"""`asd/GymPushT-…` observes what LeRobot's Push-T policies were trained on, under the names that LeRobot gives it."""

import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

import asd_envs  # noqa: F401  registers the environments
import asd_policy
from conftest import IMAGE, STATE, make_config

# Of lerobot/diffusion_pusht and lerobot/diffusion_pusht_keypoints; the latter are the fixtures' own.
FEATURES = {
    "pixels": {
        STATE: PolicyFeature(FeatureType.STATE, (2,)),
        IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
    },
    "keypoints": make_config().input_features,
}


@pytest.mark.parametrize("observed", list(FEATURES))
def test_lerobots_policies_fit(observed: str) -> None:
    torch.manual_seed(0)
    policy = DiffusionPolicy(make_config(input_features=FEATURES[observed])).eval()
    asd_policy.accelerate(policy, "asd:window=4")
    env = gymnasium.make(f"asd/GymPushT-{observed}-v0")
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        batch = preprocess_observation(observation)
        shapes = {name: tuple(value.shape[1:]) for name, value in batch.items()}
        assert shapes == {name: feature.shape for name, feature in (policy.config.input_features or {}).items()}
        with torch.inference_mode():
            action = policy.select_action(batch)[0].numpy()
        assert env.action_space.shape == action.shape
        observation, *_ = env.step(np.clip(256 * (action + 1), 0, 512))
    env.close()
