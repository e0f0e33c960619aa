"""Fixtures: small LeRobot policies with random weights, one that observes numbers and one that observes images too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dit_policies import condition_dit, make_dit, task_of
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor

from asd_policy.policy.adapters.base import AsdStats
from asd_policy.samplers.asd.experience import Experience

STATE, ENVIRONMENT_STATE, IMAGE = "observation.state", "observation.environment_state", "observation.image"
STEPS = 12


def make_config(**changes: object) -> DiffusionConfig:
    """A policy of a few thousand parameters for gym-pusht without images; what differs between versions is said."""
    sizes = {"down_dims": (8, 16), "kernel_size": 3, "n_groups": 4, "diffusion_step_embed_dim": 16}
    horizons = {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8}
    encoder = {
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
    }
    values: dict[str, object] = {
        "input_features": {
            STATE: PolicyFeature(FeatureType.STATE, (2,)),
            ENVIRONMENT_STATE: PolicyFeature(FeatureType.ENV, (16,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
        "num_train_timesteps": STEPS,
        "device": "cpu",
        **sizes,
        **horizons,
        **encoder,
        **changes,
    }
    return DiffusionConfig(**values)  # pyright: ignore[reportArgumentType]  # a mapping of mixed types


def make_policy(kind: str) -> Any:
    """Of the kind "state", "image" or "dit"; the last has another class, and cameras and a task."""
    if kind == "dit":
        return make_dit(1)
    torch.manual_seed(0)
    changes: dict[str, object] = {}
    if kind == "image":
        image = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
        changes["input_features"] = {STATE: PolicyFeature(FeatureType.STATE, (2,)), IMAGE: image}
    return DiffusionPolicy(make_config(**changes)).eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in one test is not known in the next; policies of their own type are not accelerated unasked."""
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ASD_POLICY_SAMPLER", "off")


@pytest.fixture(params=["state", "image"])
def policy(request: pytest.FixtureRequest) -> DiffusionPolicy:
    return make_policy(request.param)


@pytest.fixture(params=["state", "image", "dit"])
def any_policy(request: pytest.FixtureRequest) -> Any:
    """Of either class."""
    return make_policy(request.param)


@pytest.fixture
def state_policy() -> DiffusionPolicy:
    return make_policy("state")


@pytest.fixture
def folder(state_policy: DiffusionPolicy, tmp_path: Path) -> Path:
    """What LeRobot saves of a trained policy."""
    path = tmp_path / "trained"
    state_policy.save_pretrained(path)
    dims = {STATE: 2, ENVIRONMENT_STATE: 16, "action": 2}
    statistics = {name: {"min": torch.zeros(dim), "max": torch.full((dim,), 512.0)} for name, dim in dims.items()}
    for pipeline in make_pre_post_processors(state_policy.config, dataset_stats=statistics):
        pipeline.save_pretrained(path)
    return path


def stats_of(policy: Any) -> AsdStats:
    """`policy.asd_stats`, with its type: LeRobot's class does not know it."""
    stats = policy.asd_stats
    assert isinstance(stats, AsdStats)
    return stats


def experience_of(policy: DiffusionPolicy) -> Experience:
    """What an accelerated policy's planner has learned."""
    return vars(policy.diffusion)["conditional_sample"].__self__.planner.experience


def unet_of(policy: DiffusionPolicy) -> Any:
    """The U-Net, whose layers torch's types do not tell."""
    return policy.diffusion.unet


def network_place(policy: Any) -> tuple[Any, str]:
    """Where the network is: the object, and the attribute's name."""
    return (policy, "noise_predictor") if policy.name == "multi_task_dit" else (policy.diffusion, "unet")


def call_network(policy: Any, network: Any, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    """Call a network as the policy does."""
    told = "conditioning_vec" if policy.name == "multi_task_dit" else "global_cond"
    return network(x, timestep, **{told: cond})


def sample_plans(policy: Any, cond: Tensor, seed: int) -> Tensor:
    """Sample given conditioning by the method that a sampler takes the place of, from torch's global generator."""
    torch.manual_seed(seed)
    with torch.no_grad():
        if policy.name == "multi_task_dit":
            return policy.objective.conditional_sample(policy.noise_predictor, len(cond), cond)
        return policy.diffusion.conditional_sample(len(cond), cond)


def observe(policy: Any, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Observations at random, normalised [batch, …]."""
    generator = torch.Generator().manual_seed(seed)
    features = policy.config.input_features or {}
    seen = {name: torch.rand((batch, *feature.shape), generator=generator) for name, feature in features.items()}
    return {**seen, **task_of(batch, seed)} if policy.name == "multi_task_dit" else seen


def condition(policy: Any, batch: int = 1, seed: int = 0) -> Tensor:
    """The same as the network is told of them [batch, cond_dim]."""
    if policy.name == "multi_task_dit":
        return condition_dit(policy, batch, seed)
    features = unet_of(policy).mid_modules[0].cond_encoder[1].in_features
    dims = features - policy.config.diffusion_step_embed_dim
    return 2 * torch.rand((batch, dims), generator=torch.Generator().manual_seed(seed)) - 1
