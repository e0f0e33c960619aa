"""The policy type `asd_diffusion`: found by LeRobot, loads what is there, saves what loads again."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from draccus.argparsing import parse
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import PushtEnv
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors.torch import load_file, save_file
from torch import Tensor

import asd_policy
from conftest import STEPS, make_config, observe
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
    ours = {name: value for name, value in vars(policy.config).items() if not name.startswith("_")}
    assert ours == {**theirs, "sampler": "asd"}
    assert policy.asd_stats.trial_calls > 20  # it is warm
    torch.manual_seed(0)
    policy.select_action(observe(policy))
    assert policy.asd_stats.last is not None
    assert policy.asd_stats.last.trial_calls == 0
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


def test_what_is_said_wins_where_it_is_the_default(tmp_path: Path) -> None:
    """The way out for DDIM checkpoints: their weights, in the chain that they were trained for."""
    path = tmp_path / "ddim"
    DiffusionPolicy(make_config(noise_scheduler_type="DDIM", num_inference_steps=4, n_action_steps=4)).save_pretrained(
        path
    )
    arguments = ["--policy.type=asd_diffusion", "--policy.noise_scheduler_type=DDPM", "--policy.n_action_steps=8"]

    @dataclass
    class Command:
        policy: PreTrainedConfig

    said = [
        parse(Command, args=[*arguments, "--policy.device=cpu"]).policy,
        AsdDiffusionConfig(device="cpu", noise_scheduler_type="DDPM", n_action_steps=8),
        pickle.loads(pickle.dumps(AsdDiffusionConfig(device="cpu", noise_scheduler_type="DDPM", n_action_steps=8))),
    ]
    for config in said:
        policy = AsdDiffusionPolicy.from_pretrained(path, config=config)
        assert isinstance(policy.diffusion.noise_scheduler, DDPMScheduler)
        assert (policy.config.n_action_steps, policy.config.num_inference_steps) == (8, 4)
        assert policy.config.down_dims == (8, 16)
        policy.save_pretrained(tmp_path / "saved")
        assert "_said" not in (tmp_path / "saved/config.json").read_text()
    with pytest.raises(asd_policy.ChainError, match="DDIMScheduler with eta=0"):
        AsdDiffusionPolicy.from_pretrained(path, config=AsdDiffusionConfig(device="cpu", n_action_steps=8))


def test_weights_of_a_compiled_policy(folder: Path, state_policy: DiffusionPolicy) -> None:
    """`compile_model` saves the U-Net under other names; a policy is what its weights are, compiled or not."""
    file = folder / "model.safetensors"
    weights = {name.replace(".unet.", ".unet._orig_mod."): each for name, each in load_file(file).items()}
    save_file(weights, file)
    for compiled in (False, True):
        config = AsdDiffusionConfig(device="cpu", sampler="asd:window=1", compile_model=compiled)
        policy = AsdDiffusionPolicy.from_pretrained(folder, config=config)
        for new, old in zip(policy.parameters(), state_policy.parameters(), strict=True):
            assert torch.equal(new, old)


@pytest.mark.parametrize("strict", [{}, {"strict": False}])
def test_weights_that_do_not_fit_are_refused(folder: Path, strict: dict[str, Any]) -> None:
    """LeRobot would warn, and run on random ones."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    broken = dict(weights)
    del broken["diffusion.unet.final_conv.1.weight"], broken["diffusion.unet.final_conv.1.bias"]
    save_file(broken, file)
    with pytest.raises(asd_policy.CheckpointError, match=r"it lacks diffusion.unet.final_conv.1.bias, diffusion"):
        AsdDiffusionPolicy.from_pretrained(folder, **strict)
    save_file({**weights, "normalize_inputs.buffer.mean": torch.zeros(2)}, file)
    with pytest.raises(asd_policy.CheckpointError, match="it has, and the policy not, normalize_inputs.buffer.mean"):
        AsdDiffusionPolicy.from_pretrained(folder, **strict)
    file.write_bytes(b"nothing")
    with pytest.raises(asd_policy.CheckpointError, match="model.safetensors cannot be read"):
        AsdDiffusionPolicy.from_pretrained(folder, **strict)


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
    with pytest.raises(asd_policy.CheckpointError, match="it has in another shape diffusion.unet.down_modules"):
        AsdDiffusionPolicy.from_pretrained(folder, config=AsdDiffusionConfig(down_dims=(16, 32)))
