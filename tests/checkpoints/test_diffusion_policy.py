"""diffusion_policy's checkpoints: equal to their own library's outputs, and every way in which one can be broken."""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.diffusion_policy import describe_diffusion_policy
from asd_policy.checkpoints.untrusted.archives import TorchArchive
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.cli import run
from asd_policy.errors import AsdError, CheckpointError
from asd_policy.policy.observation import OBS
from asd_policy.policy.policy import Policy
from support import training_files as files

GOLDEN = load_file(files.GOLDEN)


def load(case: str, folder: Path) -> Policy:
    return asd_policy.load_policy(files.save_workspace(folder / "latest.ckpt", files.workspace(case)))


def noise(policy: Policy, rows: int) -> NoiseTape:
    start, steps = files.tape(rows, policy.event)
    drawn = NoiseTape.draw((rows, *policy.event), len(policy.chain), torch.Generator().manual_seed(0))
    return replace(drawn, initial=start, normals=steps)


def plan_along(policy: Policy, tape: NoiseTape, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(NoiseTape, "draw", lambda *_, **__: tape)
    return policy.plan({OBS: files.history()})


@pytest.mark.parametrize("case", files.CASES)
def test_network_is_that_of_its_library(case: str, tmp_path: Path) -> None:
    policy = load(case, tmp_path)
    x = files.fill({"x": (3, *policy.event)}, 1.5)["x"]
    cond = files.fill({"c": (3, 2, files.OBS_DIM)}, 1.5)["c"].flatten(1)
    output = policy.network(x, files.TIMESTEPS, cond)
    torch.testing.assert_close(output, GOLDEN[f"{case}/output"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", files.CASES)
def test_plans_are_those_of_its_library(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisation, conditioning or inpainting, the chain, and which actions are executed."""
    policy = load(case, tmp_path)
    plan = plan_along(policy, noise(policy, 2), monkeypatch)
    torch.testing.assert_close(plan.chunk, GOLDEN[f"{case}/chunk"], rtol=0, atol=2e-5)
    torch.testing.assert_close(plan.actions, GOLDEN[f"{case}/actions"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["unet", "unet-inpainting", "transformer", "transformer-bert"])
def test_window_one_plans_as_ddpm(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(case, tmp_path)
    tape = noise(policy, 2)
    one = plan_along(asd_policy.accelerate(policy, "asd:window=1"), tape, monkeypatch)
    assert torch.equal(one.chunk, plan_along(policy, tape, monkeypatch).chunk)


def test_inpainting_holds_the_observations(tmp_path: Path) -> None:
    policy = asd_policy.accelerate(load("unet-inpainting", tmp_path), "asd:window=4")
    plan = policy.plan({OBS: files.history()})
    state = files.normalizer()
    scale, offset = (state[f"normalizer.params_dict.obs.{name}"] for name in ("scale", "offset"))
    torch.testing.assert_close(plan.sample[:, :2, files.ACTION_DIM :], files.history() * scale + offset)
    assert plan.chunk.shape == (2, 8, files.ACTION_DIM)


def test_averaged_weights_are_used_where_they_were_kept(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    averaged = asd_policy.load_policy(files.save_workspace(tmp_path / "ema.ckpt", payload)).network
    payload["cfg"]["training"]["use_ema"] = False
    last = asd_policy.load_policy(files.save_workspace(tmp_path / "last.ckpt", payload)).network
    assert isinstance(averaged, nn.Module) and isinstance(last, nn.Module)
    for mine, other in zip(averaged.parameters(), last.parameters(), strict=True):
        assert torch.equal(0.5 * mine, other)


def test_observations_by_any_name(tmp_path: Path) -> None:
    policy = load("unet", tmp_path)
    value = np.linspace(-1, 1, files.OBS_DIM)
    actions = []
    for observation in (value, {"obs": value}, {"observation.state": value}, {"agent_pos": value, "pixels": None}):
        policy.reset(seed=1)
        actions.append(policy.select_action(observation).tolist())
    assert actions[0] == actions[1] == actions[2] == actions[3]
    with pytest.raises(asd_policy.ObservationError, match="no 'obs' or 'observation.state' or 'agent_pos'"):
        policy.select_action({"state": value})


def test_closed_loop_executes_from_the_right_action(tmp_path: Path) -> None:
    """Without oa_step_convention execution begins one action later."""
    for case, first in (("unet", 1), ("unet-bias", 2), ("unet-actions", 0)):
        policy = load(case, tmp_path)
        actions = [policy.select_action(np.zeros(files.OBS_DIM)) for _ in range(5)]
        assert len(policy.plans) == 2
        executed = policy.plans[0].chunk[0, first : first + 4].numpy()
        np.testing.assert_array_equal(np.stack(actions[:4]), executed)


def test_nothing_of_the_training_libraries_is_needed_or_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import of one would fail, also where PyTorch has brought it: some versions import `dill` where it is there."""
    for name in ("omegaconf", "hydra", "dill", "diffusion_policy"):
        monkeypatch.setitem(sys.modules, name, None)
    load("unet", tmp_path)


def test_verify_and_tune_know_inpainting(tmp_path: Path) -> None:
    path = files.save_workspace(tmp_path / "latest.ckpt", files.workspace("unet-inpainting"))
    assert run(["tune", "--policy", str(path), "--plans", "4"]) == 0
    assert asd_policy.load_policy(path).experience.plans == 4
    options = ["--sampler", "asd:window=4", "--samples", "64", "--seed", "1"]
    assert run(["verify", "--policy", str(path), *options]) == 0


def test_description(tmp_path: Path) -> None:
    path = files.save_workspace(tmp_path / "latest.ckpt", files.workspace("transformer"))
    description = describe_diffusion_policy(path)
    assert description.network == "TransformerForDiffusion"
    assert description.observation == {"obs": [files.OBS_DIM]}
    assert description.horizons == {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 4}
    assert GaussianChain.from_scheduler(description.scheduler, description.num_inference_steps)


def test_a_configuration_that_omegaconf_itself_has_pickled() -> None:
    """The policy's section is as it was given, interpolations resolved."""
    with TorchArchive(files.GOLDEN_WORKSPACE) as archive:
        payload = Settings(archive.payload(), "", "x")
    wanted = Settings(files.CASES["unet"], "", "x")
    policy = payload.section("cfg").section("policy")
    assert policy.plain().keys() == wanted.plain().keys()
    scalars = policy.plain().keys() - {"model", "noise_scheduler"}
    assert all(policy.plain()[name] == wanted.plain()[name] for name in scalars)
    for section in ("model", "noise_scheduler"):
        assert policy.section(section).plain() == wanted.section(section).plain()
    assert describe_diffusion_policy(files.GOLDEN_WORKSPACE).parameters == 12


def test_the_documented_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[2] / "docs/guide/checkpoints.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "latest.ckpt" in block)
    (tmp_path / "checkpoints").mkdir()
    files.save_workspace(tmp_path / "checkpoints" / "latest.ckpt", files.workspace("unet"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"observation": np.zeros(files.OBS_DIM)}
    exec(block, names)
    assert names["action"].shape == (files.ACTION_DIM,)


DDIM = {
    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    **{name: value for name, value in files.SCHEDULER.items() if name not in ("_target_", "variance_type")},
    "set_alpha_to_one": True,
    "steps_offset": 0,
}


def test_ddim_with_noise_is_the_chain_of_its_eta(tmp_path: Path) -> None:
    """`policy.eta` is an argument of the scheduler's step."""
    payload = files.workspace("unet")
    payload["cfg"]["policy"] = {
        **payload["cfg"]["policy"],
        "noise_scheduler": DDIM,
        "num_inference_steps": 5,
        "eta": 0.7,
    }
    path = files.save_workspace(tmp_path / "latest.ckpt", payload)
    policy = asd_policy.load_policy(path, "asd:window=4")
    scheduler = DDIMScheduler(**{name: value for name, value in DDIM.items() if name != "_target_"})
    expected = GaussianChain.from_scheduler(scheduler, 5, eta=0.7)
    for name in ("timesteps", "a", "b", "sigma", "excess"):
        assert getattr(policy.chain, name).tolist() == getattr(expected, name).tolist()
    assert policy.select_action(np.zeros(files.OBS_DIM)).shape == (files.ACTION_DIM,)
    assert inspection.inspect(str(path))["chain"]["steps"] == 5


def renamed(payload: dict[str, Any], prefix: str, stem: str = "") -> None:
    """Put a prefix before the names in the averaged policy, or before those of a part of it."""
    state = payload["state_dicts"]["ema_model"]
    payload["state_dicts"]["ema_model"] = {
        stem + prefix + name.removeprefix(stem) if name.startswith(stem) else name: value
        for name, value in state.items()
    }
    payload["state_dicts"]["model"] = payload["state_dicts"]["ema_model"]


@pytest.mark.parametrize("stem", ["", "model."])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped_and_named(prefix: str, stem: str, tmp_path: Path) -> None:
    payload = files.workspace("unet")
    expected = load("unet", tmp_path).network
    renamed(payload, prefix, stem)
    path = files.save_workspace(tmp_path / "wrapped.ckpt", payload)
    found = asd_policy.load_policy(path).network
    assert isinstance(expected, nn.Module) and isinstance(found, nn.Module)
    for mine, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert f"all its names have the prefix {stem + prefix.split('.')[0]}".replace("prefix ", "prefix '") in " ".join(
        describe_diffusion_policy(path).notes
    )


def test_a_prefix_that_some_names_lack_is_not_stripped(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    renamed(payload, "module.", "model.")
    payload["state_dicts"]["ema_model"]["model.x"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        asd_policy.load_policy(files.save_workspace(tmp_path / "wrapped.ckpt", payload))


def lightning(module: str, use_ema: bool) -> dict[str, Any]:
    """Return what Lightning saves of a workspace's policy, but for the configuration."""
    whole = files.workspace("unet")
    whole["cfg"]["training"]["use_ema"] = use_ema
    state = {module + name: value for name, value in whole["state_dicts"]["ema_model"].items()}
    return {"cfg": whole["cfg"], "state_dict": state, "pytorch-lightning_version": "2.5.0", "hparams_name": "cfg"}


@pytest.mark.parametrize("module", ["model.", "policy.", ""])
def test_files_of_lightning(module: str, tmp_path: Path) -> None:
    payload = lightning(module, use_ema=False)
    expected = load("unet", tmp_path).network
    path = tmp_path / "epoch=3.ckpt"
    torch.save({"hyper_parameters": {"cfg": payload.pop("cfg")}, **payload}, path)
    found = asd_policy.load_policy(path).network
    assert isinstance(expected, nn.Module) and isinstance(found, nn.Module)
    for mine, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert describe_diffusion_policy(path).network_parameters == sum(value.numel() for value in found.parameters())


def test_files_of_lightning_that_say_too_little(tmp_path: Path) -> None:
    path = files.save_workspace(tmp_path / "a.ckpt", lightning("model.", use_ema=True))
    with pytest.raises(
        CheckpointError, match="Lightning's state_dict does not say whether it has them; set use_ema to"
    ):
        asd_policy.load_policy(path)
    torch.save({name: value for name, value in lightning("", use_ema=False).items() if name != "cfg"}, path)
    with pytest.raises(
        CheckpointError, match="is a file of Lightning without the workspace's configuration; keep it as"
    ):
        asd_policy.load_policy(path)


def test_interpolations_are_resolved(tmp_path: Path) -> None:
    """As DP3's files have them; a resolver's, which is not run, may stand where nothing is read."""
    payload = files.workspace("unet")
    payload["cfg"] |= {"horizon": "${task.horizon}", "task": {"horizon": 8}, "sched": DDIM, "pair": 2, "dims": [8, 16]}
    policy = {**payload["cfg"]["policy"], "horizon": "${horizon}", "n_obs_steps": "${..pair}", "eta": 0.5}
    policy |= {"noise_scheduler": "${sched}", "num_inference_steps": "${.n_obs_steps}"}
    policy["model"] = {**policy["model"], "input_dim": "${eval:'1+1'}", "down_dims": ["${dims.0}", 16]}
    payload["cfg"]["policy"] = policy
    path = files.save_workspace(tmp_path / "x.ckpt", payload)
    with pytest.raises(CheckpointError, match="down_dims is a list, not a list of 1"):
        asd_policy.load_policy(path)  # a list has no names to lead to
    policy["model"]["down_dims"] = "${dims}"
    policy = asd_policy.load_policy(files.save_workspace(path, payload))
    assert policy.horizons.n_obs_steps == len(policy.chain) == 2
    assert policy.horizons.horizon == 8
    assert policy.chain.config["_class_name"] == "DDIMScheduler"


def test_an_interpolation_is_relative_to_where_it_stands() -> None:
    """Also in a section that another interpolation has led to."""
    config = {"a": {"b": "${c.d}", "x": 1}, "c": {"d": {"y": "${..x}", "z": "${.w}", "w": 4}, "x": 2}}
    section = Settings(config, "cfg", "x").section("a").section("b")
    assert section.plain() == {"y": 2, "z": 4, "w": 4}


@pytest.mark.parametrize(
    "value", ["${eval:'8'}", "${oc.env:HOME}", "${a${b}}", "${......x}", "${horizon.x}", "x${task}"]
)
def test_interpolations_that_lead_nowhere_are_text(value: str, tmp_path: Path) -> None:
    payload = files.workspace("unet")
    payload["cfg"] |= {"horizon": 8, "policy": {**payload["cfg"]["policy"], "horizon": value}}
    with pytest.raises(CheckpointError) as error:
        asd_policy.load_policy(files.save_workspace(tmp_path / "x.ckpt", payload))
    assert f"cfg.policy.horizon is {value!r}, not an integer" in str(error.value)


def test_interpolations_in_a_circle_are_refused(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    payload["cfg"] |= {"a": "${b}", "b": "${a}", "policy": {**payload["cfg"]["policy"], "horizon": "${a}"}}
    path = files.save_workspace(tmp_path / "x.ckpt", payload)
    with pytest.raises(CheckpointError, match=r"cfg.policy.horizon is '\$\{a\}', which leads from one interpolation"):
        asd_policy.load_policy(path)


def test_what_can_be_described_is(tmp_path: Path) -> None:
    """Whatever else is missing."""
    whole = files.workspace("unet")
    for gone in (["training"], ["policy", "noise_scheduler"], ["policy", "model"], ["policy", "_target_"], ["policy"]):
        payload = {**whole, "cfg": json.loads(json.dumps(whole["cfg"]))}
        files.put(payload["cfg"], gone, ...)
        said = inspection.inspect(str(files.save_workspace(tmp_path / "x.ckpt", payload)))
        assert not said["runs_here"]
        assert said["parameters"] > 1000
    said = inspection.inspect(
        str(files.save_workspace(tmp_path / "x.ckpt", {**whole, "state_dicts": {"ema_model": 3}}))
    )
    assert said["horizons"]["horizon"] == 8
    assert "state_dicts.ema_model is 3, not a mapping" in said["missing"][0]


def test_fewer_steps_are_another_chain_than_the_pinned_diffusers(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    path = files.save_workspace(tmp_path / "x.ckpt", payload)
    assert describe_diffusion_policy(path).notes == ()
    payload["cfg"]["policy"] = {**payload["cfg"]["policy"], "num_inference_steps": 5}
    (note,) = describe_diffusion_policy(files.save_workspace(path, payload)).notes
    assert "num_inference_steps 5 is below num_train_timesteps 10: DDPMScheduler of diffusers 0.11" in note


def test_tied_tensors_are_counted_once_and_encoders_apart(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    state, encoder = dict(payload["state_dicts"]["model"]), torch.zeros(100)
    whole = sum(value.numel() for value in state.values())
    network = sum(value.numel() for name, value in state.items() if name.startswith("model."))
    names = ("obs_encoder.nets.0.weight", "obs_encoder.nets.1.weight")
    payload["state_dicts"]["model"] = state | dict.fromkeys(names, encoder)
    path = files.save_workspace(tmp_path / "x.ckpt", payload)
    described = describe_diffusion_policy(path)
    assert (described.parameters, described.network_parameters) == (whole + 100, network)


VIDEO = {
    "_target_": "diffusion_policy.policy.diffusion_unet_video_policy.DiffusionUnetVideoPolicy",
    "shape_meta": {"action": {"shape": [2]}, "obs": {"image": {"shape": [3, 96, 96], "type": "rgb"}}},
    "noise_scheduler": files.SCHEDULER,
}


def test_policies_of_other_encoders_are_described_and_need_their_library(tmp_path: Path) -> None:
    """Policies with cameras that can be read are in test_image_policies.py."""
    payload = files.workspace("unet")
    payload["cfg"]["policy"] = VIDEO
    path = files.save_workspace(tmp_path / "latest.ckpt", payload)
    with pytest.raises(CheckpointError, match="holds a DiffusionUnetVideoPolicy.*asd_policy.accelerate"):
        asd_policy.load_policy(path)
    assert describe_diffusion_policy(path).observation == {"image": [3, 96, 96]}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "diffusion_policy.policy.diffusion_transformer_timm_policy.DiffusionTransformerTimmPolicy",
            "and asd_policy.accelerate does not know its class either",
        ),
        ("diffusion_policy_3d.policy.simple_dp3.SimpleDP3", "pass the live policy to asd_policy.accelerate"),
    ],
)
def test_policies_are_sent_to_accelerate_if_it_takes_them(target: str, said: str, tmp_path: Path) -> None:
    """Relatives of UMI's and DP3's."""
    payload = files.workspace("unet")
    payload["cfg"]["policy"] = {**VIDEO, "_target_": target}
    with pytest.raises(CheckpointError, match=said):
        asd_policy.load_policy(files.save_workspace(tmp_path / "latest.ckpt", payload))


Change = Callable[[dict[str, Any]], Any]


def config(path: str, value: Any) -> Change:
    """Return what sets a value of the configuration, by its dotted path; Ellipsis removes it."""

    def change(payload: dict[str, Any]) -> None:
        payload["cfg"] = json.loads(json.dumps(payload["cfg"]))
        files.put(payload["cfg"], path.split("."), value)

    return change


def check_refused(case: str, breakage: Change, message: str, folder: Path) -> None:
    payload = files.workspace(case)
    breakage(payload)
    with pytest.raises(AsdError) as error:
        asd_policy.load_policy(files.save_workspace(folder / "latest.ckpt", payload))
    assert message in str(error.value)


def tensor(name: str, value: Tensor | None) -> Change:
    """Return what sets a tensor of the averaged policy, or removes it."""

    def change(payload: dict[str, Any]) -> None:
        state = payload["state_dicts"]["ema_model"]
        state.pop(name, None)
        if value is not None:
            state[name] = value

    return change


def entry(name: str, value: Any) -> Change:
    return lambda payload: payload.update({name: value})


BIAS = "model.mid_modules.0.blocks.1.block.0.bias"
SCALE = "normalizer.params_dict.obs.scale"
BREAKAGES: list[tuple[Change, str]] = [
    (entry("cfg", [1]), ": cfg is a list, not a mapping"),
    (config("policy", ...), "has no cfg.policy"),
    (config("policy._target_", "x.BETLowdimPolicy"), "holds a BETLowdimPolicy; only DiffusionUnetLowdimPolicy, "),
    (config("policy.horizon", "${horizon}"), "cfg.policy.horizon is '${horizon}', not an integer in 1 …"),
    (config("policy.horizon", True), "cfg.policy.horizon is True, not an integer"),
    (config("policy.horizon", 9), "horizon 9 is not a multiple of 2"),
    (config("policy.horizon", 10**9), "cfg.policy.horizon is 1000000000, not an integer in 1 … 100000"),
    (config("policy.horizon", 4), "n_action_steps 4 from action 1 on are more than the horizon 4 has"),
    (config("policy.n_obs_steps", 3), "does not fit its configuration: model."),
    (config("policy.obs_dim", 6), "does not fit its configuration: model."),
    (config("policy.action_dim", ...), "has no cfg.policy.action_dim"),
    (config("policy.obs_as_local_cond", True), "obs_as_local_cond, observations as a second input sequence"),
    (config("policy.obs_as_global_cond", False), "does not fit its configuration: model."),
    (config("policy.use_clipped_model_output", True), "cfg.policy.use_clipped_model_output is not known here; known"),
    (config("policy.eta", 0.5), "eta=0.5 is DDIMScheduler's; a DDPMScheduler's noise is set by its variance_type"),
    (config("policy.num_inference_steps", 11), "num_inference_steps 11 is not in 1 … 10"),
    (config("policy.noise_scheduler.prediction_type", "x"), "prediction_type 'x' is not one of"),
    (config("policy.model.down_dims", [8, 16, 32]), "does not fit its configuration: "),
    (config("policy.model.down_dims", [8] * 1000), "cfg.policy.model.down_dims is a list, not a list of 1 …"),
    (config("policy.model.down_dims", []), "cfg.policy.model.down_dims is a list, not a list of 1 …"),
    (config("policy.model.kernel_size", 4), "kernel_size 4 is not odd"),
    (config("policy.model.n_groups", 3), "are not multiples of n_groups 3"),
    (config("policy.model.cond_predict_scale", 1), "cfg.policy.model.cond_predict_scale is 1, not true or false"),
    (config("policy.model._target_", "x.Unet"), "cfg.policy.model._target_ is a Unet; only ConditionalUnet1D is known"),
    (config("policy.model.condition_type", "film"), "cfg.policy.model.condition_type is not known here; known are"),
    (config("training.use_ema", ...), "has no cfg.training.use_ema, which tells whether averaged weights were kept"),
    (config("training", ...), "add it to the cfg, true for ema_model, false for model"),
    (
        lambda payload: payload["state_dicts"].pop("ema_model"),
        "has no state_dicts.ema_model, asked for by training.use_",
    ),
    (tensor(BIAS, None), f"1 tensors missing, 0 unknown, first {BIAS}"),
    (tensor(BIAS, torch.zeros(17)), f"{BIAS} has shape (17,), not (16,)"),
    (tensor(BIAS, torch.full((16,), math.nan)), f"{BIAS} holds NaN or infinity"),
    (tensor(BIAS, torch.zeros(16, dtype=torch.int32)), f"{BIAS} holds torch.int32, not floating-point numbers"),
    (tensor("model.local_cond_encoder.0.bias", torch.zeros(1)), "0 tensors missing, 1 unknown"),
    (tensor("obs_encoder.weight", torch.zeros(1)), "obs_encoder.weight belongs to neither the network nor"),
    (tensor("_dummy_variable", torch.zeros(1)), "_dummy_variable belongs to neither the network nor"),
    (tensor(SCALE, None), "the normaliser has no obs.scale"),
    (tensor(SCALE, torch.ones(4)), f"{SCALE} has shape (4,), not (5,)"),
    (tensor(SCALE, torch.tensor([1.0, 1, 0, 1, 1])), f"{SCALE} holds a scale of 0, or one next to it"),
    (tensor(SCALE, torch.full((5,), math.inf)), f"{SCALE} holds NaN or infinity"),
    (tensor("normalizer.params_dict.image.scale", torch.ones(1)), "the normaliser has 'image.scale'"),
]


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES, ids=[message for _, message in BREAKAGES])
def test_broken_checkpoints_are_named(breakage: Change, message: str, tmp_path: Path) -> None:
    check_refused("unet", breakage, message, tmp_path)


TRANSFORMER_BREAKAGES: list[tuple[Change, str]] = [
    (config("policy.model.n_head", 3), "n_emb 8 is not even, at least 4 and a multiple of n_head 3"),
    (config("policy.model.n_layer", 10**6), "cfg.policy.model.n_layer is 1000000, not an integer in 1 …"),
    (config("policy.model._target_", "ConditionalUnet1D"), "_target_ is a ConditionalUnet1D; only TransformerForDiff"),
    (config("policy.model.n_cond_layers", 1), "does not fit its configuration"),
    (config("policy.model.causal_attn", False), "2 unknown, first model.mask"),
    (config("policy.model.time_as_cond", False), "time_as_cond false is for networks without conditioning"),
    (config("policy.model.horizon", 4), "horizon 8 is more than the network's, 4"),
    (config("policy.obs_as_cond", False), "does not fit its configuration"),
    (tensor("model.mask", torch.zeros(8, 8)), "model.mask is not what its configuration makes it"),
    (tensor("model.memory_mask", torch.full((8, 3), math.nan)), "model.memory_mask is not what its configuration"),
    (tensor("model.pos_emb", torch.full((1, 8, 8), math.inf)), "model.pos_emb holds NaN or infinity"),
]


@pytest.mark.parametrize(
    ("breakage", "message"), TRANSFORMER_BREAKAGES, ids=[message for _, message in TRANSFORMER_BREAKAGES]
)
def test_broken_transformers_are_named(breakage: Change, message: str, tmp_path: Path) -> None:
    check_refused("transformer", breakage, message, tmp_path)
