"""robomimic's checkpoints: its network, its normalisation, and every way in which one can be broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import asd_policy
from asd_policy.checkpoints.robomimic import describe_robomimic
from asd_policy.errors import AsdError
from support import training_files as files

PREFIX = "policy.noise_pred_net."
OBSERVATION = {"robot0_eef_pos": np.array([1.0, 2.0, 3.0]), "object": np.array([0.5, -0.5]), "robot0_joint_pos": 1}


def load(folder: Path, **changes: Any) -> asd_policy.Policy:
    return asd_policy.load_policy(files.save_robomimic(folder / "model.pth", files.robomimic(**changes)))


def test_network_is_that_of_its_library(tmp_path: Path) -> None:
    policy = load(tmp_path)
    x = files.fill({"x": (3, 8, 2)}, 1.5)["x"]
    cond = files.fill({"c": (3, 2, files.OBS_DIM)}, 1.5)["c"].flatten(1)
    golden = load_file(files.GOLDEN)["robomimic/output"]
    torch.testing.assert_close(policy.network(x, files.TIMESTEPS, cond), golden, rtol=0, atol=2e-6)


def test_normalisation_and_order_are_its_own(tmp_path: Path) -> None:
    """(x − offset) / scale; observations in the order of all_shapes, actions in that of action_keys."""
    policy = load(tmp_path)
    assert policy.observation_dims == {"object": 2, "robot0_eef_pos": 3}
    policy.select_action(OBSERVATION)
    (plan,) = policy.plans
    now = [(0.5 + 1) / 0.5, -0.5, 0.9, (2 - 0.2) / 2, (3 - 0.3) / 4]
    torch.testing.assert_close(plan.cond[0], torch.tensor([*now, *now]))
    torch.testing.assert_close(plan.chunk[..., 0], plan.sample[..., 0] * 3 + 0.5)
    torch.testing.assert_close(plan.chunk[..., 1], plan.sample[..., 1])
    assert torch.equal(plan.actions, plan.chunk[:, 1:5])


def test_without_statistics_there_is_no_normalisation(tmp_path: Path) -> None:
    payload = files.robomimic()
    payload["config"]["train"]["hdf5_normalize_obs"] = False
    for name in ("obs_normalization_stats", "action_normalization_stats"):
        del payload[name]
    policy = asd_policy.load_policy(files.save_robomimic(tmp_path / "model.pth", payload))
    policy.select_action(OBSERVATION)
    (plan,) = policy.plans
    assert plan.cond[0, :5].tolist() == [0.5, -0.5, 1, 2, 3]
    assert torch.equal(plan.chunk, plan.sample)


def test_averaged_weights_are_used_where_they_were_kept(tmp_path: Path) -> None:
    averaged = load(tmp_path).network
    config = files.robomimic()["config"]
    config["algo"]["ema"]["enabled"] = False
    last = load(tmp_path, config=config).network
    assert isinstance(averaged, nn.Module) and isinstance(last, nn.Module)
    for mine, other in zip(averaged.parameters(), last.parameters(), strict=True):
        assert torch.equal(0.5 * mine, other)


def test_accelerates(tmp_path: Path) -> None:
    fast = asd_policy.accelerate(load(tmp_path), "asd:window=4")
    for _ in range(9):
        fast.select_action(OBSERVATION)
    assert len(fast.plans) == 3
    assert all(plan.stats.steps == files.STEPS and plan.stats.rounds[0] < files.STEPS for plan in fast.plans)


def test_description(tmp_path: Path) -> None:
    description = describe_robomimic(files.save_robomimic(tmp_path / "model.pth", files.robomimic()))
    assert description.parameters == sum(value.numel() for value in files.robomimic()["model"]["nets"].values())
    assert description.horizons == {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 4}
    assert description.observation == {"object": [2], "robot0_eef_pos": [3]}
    assert description.scheduler["_class_name"] == "DDPMScheduler"
    assert set(description.normalization) == {"object", "robot0_eef_pos", "action"}
    assert description.num_inference_steps == files.STEPS


def config(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value of the configuration, by its dotted path."""

    def change(payload: dict[str, Any]) -> None:
        files.put(payload["config"], path.split("."), value)

    return change


def entry(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value of the file, by its path with slashes; Ellipsis removes it."""

    def change(payload: dict[str, Any]) -> None:
        files.put(payload, path.split("/"), value)

    return change


BIAS = f"{PREFIX}mid_modules.0.blocks.1.block.0.bias"
BREAKAGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (entry("algo_name", "bc"), "holds a policy of algorithm 'bc'; only 'diffusion_policy' is known"),
    (entry("model/ema", None), "model.ema is None, not a mapping"),
    (entry(f"model/ema/{BIAS}", ...), f"1 tensors missing, 0 unknown, first {BIAS}"),
    (entry(f"model/ema/{BIAS}", torch.full((16,), torch.nan)), f"{BIAS} holds NaN or infinity"),
    (entry("model/ema/policy.obs_encoder.weight", torch.zeros(1)), "0 tensors missing, 1 unknown"),
    (entry(f"model/ema/{PREFIX}down_modules.0.0.blocks.0.block.0.weight", torch.zeros(8)), "has no network: "),
    (entry(f"model/ema/{PREFIX}mid_modules.0.cond_encoder.1.weight", torch.zeros(0, 3)), "has no network: "),
    (entry("shape_metadata/ac_dim", 3), "for 2 action and 10 observation numbers, the configuration says 3 and 10"),
    (entry("shape_metadata/all_shapes", {"object": [3, 84, 84]}), "shape_metadata.all_shapes.object is a list, not"),
    (entry("shape_metadata/all_shapes", {"image": [3]}), "shape_metadata has none of the observations in obs.low_dim"),
    (entry("obs_normalization_stats", None), "train.hdf5_normalize_obs is set, but there are no"),
    (entry("obs_normalization_stats/object", {"mean": [[0.0]]}), "has no obs_normalization_stats.object.offset"),
    (entry("obs_normalization_stats/object/scale", [[1.0, 0.0]]), "not a list of one list of 2 finite nonzero numbers"),
    (entry("obs_normalization_stats/object/offset", [1.0, 0.0]), "not a list of one list of 2 finite numbers"),
    (entry("obs_normalization_stats/object/offset", [[1.0, torch.inf]]), "not a list of one list of 2 finite numbers"),
    (entry("action_normalization_stats/gripper/offset", [[1, 2]]), "scale is a list, not a list of one list of 2"),
    (config("train.action_keys", ["position"]), "action_normalization_stats are for 1 numbers, not 2"),
    (config("train.action_keys", "position"), "train.action_keys is 'position', not a list of names"),
    (config("train.action_config.position.format", "rot_6d"), "'position' is a rotation that robomimic converts"),
    (config("observation.modalities.obs.depth", ["image"]), "observes obs.depth: only obs.low_dim and obs.rgb can"),
    (config("observation.modalities.goal.low_dim", ["object"]), "observes goal.low_dim: only obs.low_dim and obs.rgb"),
    (config("observation.encoder.low_dim.core_class", "MLP"), "observation.encoder.low_dim encodes or randomises"),
    (config("algo.unet.n_group", 4), "algo.unet has 'n_group', which is not known; did you mean 'n_groups'?"),
    (
        config("algo.ddpm.beta_schedul", "linear"),
        "has 'beta_schedul', which is not known; did you mean 'beta_schedule'?",
    ),
    (config("algo.unet.enabled", False), "algo.unet is not enabled"),
    (config("algo.unet.n_groups", 4), "n_groups other than 8"),
    (config("algo.horizon.prediction_horizon", 4), "action_horizon 4 after observation_horizon 2 is more than"),
    (config("algo.horizon.prediction_horizon", 9), "horizon 9 is not a multiple of 2"),
    (config("algo.horizon.observation_horizon", 3), "for 2 action and 10 observation numbers, the configuration says"),
    (config("algo.ddpm.num_inference_timesteps", 0), "num_inference_steps 0 is not in 1 … 10"),
    (config("algo.ddpm.beta_schedule", "x"), "beta_schedule 'x' is not one of"),
    (entry("config", ["x"]), "is a list, not a mapping"),
]


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES, ids=[message for _, message in BREAKAGES])
def test_broken_checkpoints_are_named(breakage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    payload = files.robomimic()
    breakage(payload)
    path = files.save_robomimic(tmp_path / "model.pth", payload)
    with pytest.raises(AsdError) as error:
        asd_policy.load_policy(path)
    assert message in str(error.value)


def test_a_key_twice_in_the_configuration(tmp_path: Path) -> None:
    payload = files.robomimic()
    text = json.dumps(payload["config"]).replace("{", '{"algo_name": "bc", ', 1)
    torch.save({**payload, "config": text}, tmp_path / "model.pth")
    with pytest.raises(AsdError, match="its configuration is not JSON: the key 'algo_name' is there twice"):
        asd_policy.load_policy(tmp_path / "model.pth")


def test_prefixes_of_wrappers_are_stripped_and_named(tmp_path: Path) -> None:
    expected = load(tmp_path).network
    payload = files.robomimic()
    for name in ("ema", "nets"):
        payload["model"][name] = {
            key.replace(PREFIX, f"{PREFIX}module."): v for key, v in payload["model"][name].items()
        }
    path = files.save_robomimic(tmp_path / "wrapped.pth", payload)
    found = asd_policy.load_policy(path).network
    assert isinstance(expected, nn.Module) and isinstance(found, nn.Module)
    for mine, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert describe_robomimic(path).notes == (
        f"all its names have the prefix '{PREFIX}module.', which is left out here",
    )
