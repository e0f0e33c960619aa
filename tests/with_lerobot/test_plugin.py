"""The policy type `asd_diffusion`: found by LeRobot, loads what is there, saves what loads again."""

import json
from pathlib import Path

import pytest
import torch
from conftest import STEPS, make_config, observe
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import PushtEnv
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from torch import Tensor

import asd_policy
from lerobot_policy_asd import AsdDiffusionConfig
from lerobot_policy_asd.modeling_asd_diffusion import AsdDiffusionPolicy
from lerobot_policy_asd.processor_asd_diffusion import make_asd_diffusion_pre_post_processors


def drive(policy: DiffusionPolicy) -> list[Tensor]:
    """Two plans; each has a seed of its own, as samplers differ in how many numbers they draw."""
    policy.reset()
    actions = []
    for step in range(9):
        torch.manual_seed(step)
        actions.append(policy.select_action(observe(policy, 1, step)))
    return actions


def test_lerobot_finds_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        register_third_party_plugins()
    assert "Imported third-party plugin: lerobot_policy_asd" in caplog.text
    assert PreTrainedConfig.get_choice_class("asd_diffusion") is AsdDiffusionConfig
    assert get_policy_class("asd_diffusion") is AsdDiffusionPolicy


def test_it_loads_a_diffusion_checkpoint(folder: Path, state_policy: DiffusionPolicy) -> None:
    """All of its configuration, all of its weights, and its numbers with a window of one."""
    policy = AsdDiffusionPolicy.from_pretrained(folder)
    theirs = vars(DiffusionPolicy.from_pretrained(folder).config)
    assert vars(policy.config) == {**theirs, "sampler": "asd"}
    config = AsdDiffusionConfig(device="cpu", sampler="asd:window=1")
    policy = AsdDiffusionPolicy.from_pretrained(folder, config=config)
    for (name, new), old in zip(policy.state_dict().items(), state_policy.state_dict().values(), strict=True):
        assert torch.equal(new, old), name
    for new, old in zip(drive(policy), drive(state_policy), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert policy.asd_stats.rounds == 2 * STEPS


def test_what_is_set_wins_over_the_checkpoint(folder: Path) -> None:
    """As `--policy.type=asd_diffusion --policy.pretrained_path=… --policy.n_action_steps=4` sets it."""
    config = AsdDiffusionConfig(device="cpu", sampler="ddpm", n_action_steps=4, num_inference_steps=6)
    config.pretrained_path = folder
    policy = make_policy(config, env_cfg=PushtEnv(obs_type="environment_state_agent_pos"))
    assert isinstance(policy, AsdDiffusionPolicy)
    assert policy.config is config
    assert (config.n_action_steps, config.num_inference_steps) == (4, 6)
    assert (config.down_dims, config.num_train_timesteps) == ((8, 16), STEPS)
    drive(policy)
    assert (policy.asd_stats.plans, policy.asd_stats.rounds) == (3, 18)


def test_saved_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    """With the processors that LeRobot makes for the type, and as `--policy.path` loads it."""
    config = AsdDiffusionConfig(device="cpu", sampler="asd:window=5,draft=picard")
    policy = AsdDiffusionPolicy.from_pretrained(folder, config=config)
    saved = tmp_path / "saved"
    policy.save_pretrained(saved)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats={}):
        pipeline.save_pretrained(saved)
    assert json.loads((saved / "config.json").read_text())["type"] == "asd_diffusion"
    again = AsdDiffusionPolicy.from_pretrained(saved)
    assert again.config.sampler == "asd:window=5,draft=picard"
    for new, old in zip(drive(again), drive(policy), strict=True):
        assert torch.equal(new, old)
    given = PreTrainedConfig.from_pretrained(saved, cli_overrides=["--sampler=ddpm"])
    drive(policy := AsdDiffusionPolicy.from_pretrained(saved, config=given))
    assert policy.asd_stats.rounds == 2 * STEPS


def test_processors_by_lerobots_convention(state_policy: DiffusionPolicy) -> None:
    """The diffusion policy's, whether LeRobot asks for them by class or by name."""
    config = AsdDiffusionConfig(**vars(make_config()))
    pipelines = [make(config) for make in (make_pre_post_processors, make_asd_diffusion_pre_post_processors)]
    pipelines.append(make_pre_post_processors(make_config()))
    kinds = [[[type(step) for step in pipeline.steps] for pipeline in pair] for pair in pipelines]
    assert kinds[0] == kinds[1] == kinds[2]


def test_training_is_as_before(folder: Path) -> None:
    """The loss and its gradients do not go through the sampler."""
    policies = [DiffusionPolicy.from_pretrained(folder), AsdDiffusionPolicy.from_pretrained(folder)]
    batch = {name: values.unsqueeze(1).expand(-1, 2, -1) for name, values in observe(policies[0], 3).items()}
    batch |= {"action": torch.rand(3, 16, 2), "action_is_pad": torch.zeros(3, 16).bool()}
    gradients = []
    for policy in policies:
        torch.manual_seed(0)
        policy.train()
        loss, _ = policy.forward(dict(batch))
        loss.backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    assert all(torch.equal(new, old) for new, old in zip(*gradients, strict=True))


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(asd_policy.SpecError, match="no sampler 'fast' in 'fast'; there are ddpm"):
        AsdDiffusionPolicy.from_pretrained(folder, config=AsdDiffusionConfig(sampler="fast"))
    with pytest.raises(asd_policy.SpecError, match="window=99 is not in 1 … 12"):
        AsdDiffusionPolicy.from_pretrained(folder, config=AsdDiffusionConfig(sampler="asd:window=99"))
    with pytest.raises(asd_policy.ChainError, match="DDIMScheduler with eta=0"):
        AsdDiffusionPolicy.from_pretrained(folder, config=AsdDiffusionConfig(noise_scheduler_type="DDIM"))
    with pytest.raises(asd_policy.SpecError, match="config is a DiffusionConfig, which has no sampler"):
        AsdDiffusionPolicy.from_pretrained(folder, config=make_config())
    ACTConfig(device="cpu").save_pretrained(tmp_path / "act")
    with pytest.raises(asd_policy.CheckpointError, match="of the type 'act'; asd_diffusion loads those of the types"):
        AsdDiffusionPolicy.from_pretrained(tmp_path / "act")
    with pytest.raises(RuntimeError, match="size mismatch"):
        AsdDiffusionPolicy.from_pretrained(folder, config=AsdDiffusionConfig(down_dims=(16, 32)))
