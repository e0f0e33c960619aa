"""LeRobot folders: round trip, and every way in which one can be broken."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.errors import AsdError, CheckpointError
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE

PROCESSOR = "policy_preprocessor.json"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_round_trip(checkpoint: Path, small_config: DiffusionConfig) -> None:
    policy = asd_policy.load_policy(checkpoint)
    assert policy.observation_dims == small_config.input_dims == {STATE: 4, ENVIRONMENT_STATE: 3}
    assert policy.action_dim == 2
    assert len(policy.chain) == 10
    assert policy.sampler.spec == "ddpm"
    network = policy.network
    assert isinstance(network, ConditionalUnet1d)
    stored = load_file(checkpoint / "model.safetensors")
    assert {f"diffusion.unet.{key}" for key in network.state_dict()} == set(stored)
    for key, value in network.state_dict().items():
        assert torch.equal(value, stored[f"diffusion.unet.{key}"])
    assert not network.training


def test_normalisation_is_lerobots(checkpoint: Path) -> None:
    """MIN_MAX maps [min, max] to [-1, 1], MEAN_STD divides by std + 1e-8, a constant feature maps to -1."""
    edit_tensors(
        checkpoint / STATISTICS,
        lambda t: t.update({f"{STATE}.max": torch.cat([t[f"{STATE}.min"][:1], t[f"{STATE}.max"][1:]])}),
    )
    policy = asd_policy.load_policy(checkpoint)
    statistics = load_file(checkpoint / STATISTICS)
    low, high = statistics[f"{STATE}.min"], statistics[f"{STATE}.max"]
    mean, deviation = statistics[f"{ENVIRONMENT_STATE}.mean"], statistics[f"{ENVIRONMENT_STATE}.std"]
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        assert cond is not None
        seen.append(cond)
        return torch.zeros_like(x)

    policy.denoiser = spy
    state, environment = torch.stack([low, (low + high) / 2]), torch.stack([mean, mean + 2 * deviation])
    policy.plan({STATE: state[None], ENVIRONMENT_STATE: environment[None]})
    expected = torch.tensor([-1.0, -1, -1, -1, 0, 0, 0, -1, 0, 0, 0, 2, 2, 2])
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=1e-5)


def test_half_precision_weights_are_computed_in_float32(checkpoint: Path) -> None:
    edit_tensors(checkpoint / "model.safetensors", lambda t: t.update({k: v.half() for k, v in t.items()}))
    network = asd_policy.load_policy(checkpoint).network
    assert isinstance(network, ConditionalUnet1d)
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_statistics_survive_a_rename_of_their_file(checkpoint: Path) -> None:
    """The processor's JSON says where they are; the name is not fixed."""
    (checkpoint / STATISTICS).rename(checkpoint / "elsewhere.safetensors")
    edit_json(checkpoint / PROCESSOR, lambda c: c["steps"][3].update(state_file="elsewhere.safetensors"))
    asd_policy.load_policy(checkpoint)


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(values))


def set_shape(kind: str, feature: str, shape: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c[kind][feature].update(shape=shape))


def set_tensor(file: str, name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return lambda folder: edit_tensors(folder / file, change)


def truncate(file: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


def set_step(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / PROCESSOR, lambda c: c["steps"][3].update(values))


def add_step(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / PROCESSOR, lambda c: c["steps"].append(values))


def del_config(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.pop(name))


def misspell(name: str, wrong: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update({wrong: c.pop(name)}))


def set_option(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / PROCESSOR, lambda c: c["steps"][3]["config"].update(values))


def set_feature(value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / PROCESSOR, lambda c: c["steps"][3]["config"]["features"].update({STATE: value})
    )


def del_option(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / PROCESSOR, lambda c: c["steps"][3]["config"].pop(name))


def twice(file: str, entry: str) -> Callable[[Path], Any]:
    """Put an entry before all others of an object."""
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace("{", "{" + entry + ",", 1))


def set_modes(**modes: str) -> Callable[[Path], None]:
    """In config.json and in both processors, as one mistake would be."""

    def update(processor: dict[str, Any]) -> None:
        for step in processor["steps"]:
            step["config"].get("norm_map", {}).update(modes)

    def change(folder: Path) -> None:
        edit_json(folder / "config.json", lambda c: c["normalization_mapping"].update(modes))
        edit_json(folder / PROCESSOR, update)
        edit_json(folder / "policy_postprocessor.json", update)

    return change


BIAS = "diffusion.unet.mid_modules.0.conv1.block.0.bias"
BREAKAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / "model.safetensors").unlink(), "No such file"),
    (truncate("model.safetensors"), "is not a whole safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
    (set_tensor("model.safetensors", BIAS, None), f"1 tensors missing, 0 unknown, first {BIAS}"),
    (set_tensor("model.safetensors", "diffusion.unet.extra", torch.zeros(1)), "0 tensors missing, 1 unknown"),
    (set_tensor("model.safetensors", BIAS, torch.zeros(7)), "has shape (7,), not (16,)"),
    (set_tensor("model.safetensors", BIAS, torch.full((16,), math.nan)), f"{BIAS} holds NaN or infinity"),
    (set_config(down_dims=[8, 32]), "does not fit config.json"),
    (set_config(down_dims=[8, 10**6]), "does not fit config.json"),
    (set_config(down_dims=[8, 10**9]), "describes no possible network"),
    (set_config(down_dims="8"), "down_dims '8' is not a list of positive integers"),
    (set_config(down_dims=[6, 9]), "not multiples of n_groups 4"),
    (set_config(kernel_size=4), "kernel_size 4 is not odd"),
    (set_config(diffusion_step_embed_dim=3), "diffusion_step_embed_dim 3"),
    (set_config(horizon=15), "horizon 15 is not a multiple of 2"),
    (set_config(n_action_steps=16), "n_action_steps 16 is not in 1 … 15"),
    (set_config(n_obs_steps=0), "n_obs_steps 0 is not a positive integer"),
    (set_config(n_obs_steps=True), "n_obs_steps True is not a positive integer"),
    (set_config(clip_sample=1), "clip_sample 1 is not true or false"),
    (set_config(beta_end="big"), "beta_end 'big' is not a finite number"),
    (set_config(beta_schedule=3), "beta_schedule 3 is not a string"),
    (set_config(num_inference_steps=0), "num_inference_steps 0 is not null or a positive integer"),
    (set_config(num_inference_steps=11), "num_inference_steps 11 is not in 1 … 10"),
    (set_config(normalization_mapping=[1]), "normalization_mapping [1] is not an object"),
    (set_modes(ACTION="LOG"), "normalisation mode 'LOG' of 'action'"),
    (set_config(normalization_mapping={}), "normalises 'observation.state' by 'MIN_MAX', config.json by 'IDENTITY'"),
    (set_step(config={"normalize_observation_keys": []}), "normalises 'observation.state' by 'IDENTITY'"),
    (set_step(config={"eps": 0.1}), "eps 0.1 is not 1e-08"),
    (add_step(registry_name="delta_action_processor"), "has a step 'delta_action_processor', which is not known here"),
    (add_step(**{"class": "os.system"}), "has a step None, which is not known here"),
    (add_step(registry_name="device_processor", config={"rename_map": {"a": "b"}}), "renames observations"),
    (add_step(registry_name="device_processor", config={"float_dtype": "float16"}), "float_dtype 'float16' of device_"),
    (
        add_step(registry_name="to_batch_processor", config={"axis": 1}),
        "the option 'axis' of to_batch_processor is not",
    ),
    (
        set_option(clip=True),
        "the option 'clip' of normalizer_processor is not known here; known are eps, features, norm",
    ),
    (set_option(features={}), f"has no '{STATE}' among its features (none): LeRobot would not normalise it"),
    (set_option(features=None), f"has no '{STATE}' among its features (none)"),
    (
        set_option(features={"observation.stat": {"type": "STATE", "shape": [4]}}),
        "(observation.stat): LeRobot would not",
    ),
    (
        set_feature({"type": "ENV", "shape": [4]}),
        f"takes '{STATE}' for {{'type': 'ENV', 'shape': [4]}}, config.json for",
    ),
    (
        set_feature({"type": "STATE", "shape": [5]}),
        f"takes '{STATE}' for {{'type': 'STATE', 'shape': [5]}}, config.json",
    ),
    (set_feature(None), f"takes '{STATE}' for {{}}, config.json for {{'type': 'STATE', 'shape': [4]}}"),
    (set_option(norm_map=None), "normalises 'observation.state' by 'IDENTITY', config.json by 'MIN_MAX'"),
    (del_option("norm_map"), "has no norm_map, an object of normalisation modes"),
    (
        set_modes(STAT="MIN_MAX"),
        "normalization_mapping of config.json has 'STAT', which is not known; did you mean 'STATE'",
    ),
    (set_modes(action="MIN_MAX"), "did you mean 'ACTION'?"),
    (misspell("num_train_timesteps", "num_train_timestep"), "did you mean 'num_train_timesteps'?"),
    (
        misspell("beta_schedule", "beta_schedule2"),
        "has 'beta_schedule2', which is not known; did you mean 'beta_schedule'",
    ),
    (set_config(clip_sample_range=1e-300), "clip_sample_range 1e-300 is not a finite number above 0, in 1e-6 … 1e6"),
    (set_config(num_train_timesteps=100_000), "num_train_timesteps 100000 is not an integer in 1 … 20000"),
    (
        set_config(**{f"z{index}": 0 for index in range(300)}),
        "config.json has 300 names that are not known, more than 200",
    ),
    (twice("config.json", '"horizon": 8'), "config.json is not JSON: the key 'horizon' is there twice"),
    (twice(PROCESSOR, '"steps": []'), f"{PROCESSOR} is not JSON: the key 'steps' is there twice"),
    (
        set_tensor(STATISTICS, f"{STATE}.min", torch.zeros(4, dtype=torch.int64)),
        "holds torch.int64, not floating-point",
    ),
    (set_tensor(STATISTICS, f"{STATE}.min", torch.zeros(4, dtype=torch.bool)), "holds torch.bool, not floating-point"),
    (
        set_tensor(STATISTICS, f"{STATE}.min", torch.zeros(4, dtype=torch.complex64)),
        "holds torch.complex64, not floating",
    ),
    (
        set_tensor(STATISTICS, f"{STATE}.min", torch.full((4,), -1e300, dtype=torch.float64)),
        "holds NaN or infinity, or numbers beyond",
    ),
    *(
        (set_tensor("model.safetensors", BIAS, torch.zeros(16).to(kind)), f"{BIAS} holds {kind}, not floating-point")
        for kind in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.uint16)
    ),
    (
        set_tensor("model.safetensors", BIAS, torch.full((16,), 1e300, dtype=torch.float64)),
        f"{BIAS} holds NaN or infinity, or numbers",
    ),
    (del_config("normalization_mapping"), "has no normalization_mapping"),
    (set_config(horizon=10**9), "horizon 1000000000 is not in 1 … 4096"),
    (set_config(horizon=4096, num_train_timesteps=20_000), "163840000 random numbers; 134217728 are the most"),
    (set_config(down_dims=[8] * 10**5), "horizon 16 is not a multiple of"),
    (set_config(beta_end=10**400), "is not a finite number"),
    (set_config(input_features={STATE: {"type": "ENV", "shape": [4]}}), f"type 'ENV' of '{STATE}' is not 'STATE'"),
    (set_config(input_features=None), "no input_features"),
    (set_config(input_features={}), "needs 'observation.state'"),
    (
        set_config(input_features={STATE: {"shape": [4]}, "observation.image": {"shape": [3, 9, 9]}}),
        "and cameras,",
    ),
    (set_shape("input_features", STATE, [4, 4]), "shape [4, 4] of 'observation.state'"),
    (set_shape("input_features", STATE, [5]), "does not fit config.json"),
    (set_shape("output_features", "action", [0]), "shape [0] of 'action'"),
    (lambda f: (f / PROCESSOR).unlink(), "is missing: normalisation statistics"),
    (lambda f: (f / PROCESSOR).write_text("["), "is not JSON"),
    (lambda f: (f / PROCESSOR).write_text("[]"), "holds a JSON list, not an object"),
    (lambda f: (f / PROCESSOR).write_text("{}"), "has no list of steps"),
    (set_step(registry_name="other"), "has no step 'normalizer_processor'"),
    (set_step(state_file="../../secret.safetensors"), "is not a plain file name"),
    (set_step(state_file="none.safetensors"), "No such file"),
    (set_tensor(STATISTICS, f"{STATE}.min", None), f"MIN_MAX of '{STATE}' needs the statistic 'min'"),
    (set_tensor(STATISTICS, f"{STATE}.max", torch.full((4,), -9.0)), f"'max' of '{STATE}' is below 'min'"),
    (set_tensor(STATISTICS, f"{ENVIRONMENT_STATE}.std", torch.full((3,), -1.0)), "is negative"),
    (set_tensor(STATISTICS, f"{STATE}.min", torch.zeros(3)), "has shape (3,), not (4,)"),
    (
        set_tensor(STATISTICS, f"{STATE}.min", torch.full((4,), math.inf)),
        f"statistic 'min' of '{STATE}' holds NaN or infinity",
    ),
]


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES, ids=[message for _, message in BREAKAGES])
def test_broken_checkpoints_are_named(breakage: Callable[[Path], Any], message: str, checkpoint: Path) -> None:
    breakage(checkpoint)
    with pytest.raises(AsdError) as error:
        asd_policy.load_policy(checkpoint)
    assert message in str(error.value)


def test_names_that_a_newer_lerobot_may_add_are_listed_and_warned_about_once(checkpoint: Path) -> None:
    set_config(tea="green", future_option=[1])(checkpoint)
    note = "config.json has names that are not known here and are not looked at: tea, future_option"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            asd_policy.load_policy(checkpoint)
    assert [str(each.message) for each in caught if "config.json" in str(each.message)] == [note]
    said = inspection.inspect(str(checkpoint))
    assert said["runs_here"] and note in said["notes"]


def test_the_plugins_own_type_is_known(checkpoint: Path) -> None:
    expected = asd_policy.load_policy(checkpoint).network
    set_config(type="asd_diffusion", sampler="asd:window=8")(checkpoint)
    found = asd_policy.load_policy(checkpoint).network
    assert isinstance(expected, ConditionalUnet1d) and isinstance(found, ConditionalUnet1d)
    assert all(torch.equal(mine, other) for mine, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert "plans with the sampler 'asd:window=8'" in inspection.inspect(str(checkpoint))["notes"][0]


def test_parameters_of_encoders_are_not_the_networks(checkpoint: Path) -> None:
    before = inspection.inspect(str(checkpoint))
    set_tensor("model.safetensors", "diffusion.rgb_encoder.backbone.0.weight", torch.zeros(100))(checkpoint)
    said = inspection.inspect(str(checkpoint))
    assert said["network_parameters"] == before["network_parameters"] == before["parameters"]
    assert said["parameters"] == before["parameters"] + 100
    assert said["runs_here"]  # as before: what is no part of the network is not looked at


def test_unknown_paths_and_formats(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="the path does not exist"):
        asd_policy.load_policy(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is not a checkpoint of a known format: LeRobot diffusion folder"):
        asd_policy.load_policy(tmp_path)
    set_config(type="act")(checkpoint)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a known format"):
        asd_policy.load_policy(checkpoint)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta-data"])
def test_a_device_that_is_not_there_is_an_error(device: str, checkpoint: Path) -> None:
    with pytest.raises(asd_policy.SpecError, match=f"device '{device}' cannot be used here"):
        asd_policy.load_policy(checkpoint, device=device)
