"""LeRobot's earlier layouts load to the same policy; files that lead elsewhere are not followed."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.errors import CheckpointError
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE

WEIGHTS, CONFIG = "model.safetensors", "config.json"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
GOLDEN = Path(__file__).parents[1] / "support/golden/lerobot-0.3.2"
MODES = {STATE: ("min", "max"), ENVIRONMENT_STATE: ("mean", "std"), "action": ("min", "max")}


def to_buffers(folder: Path) -> None:
    """Into the layout of lerobot 0.1 to 0.3: statistics are parameters of Normalize and Unnormalize modules.

    Names and shapes as `create_stats_buffers` makes them (lerobot/common/policies/normalize.py): only the statistics
    that a feature's mode needs.
    """
    statistics = load_file(folder / STATISTICS)
    tensors = load_file(folder / WEIGHTS)
    for feature, names in MODES.items():
        modules = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
        for module in modules:
            for name in names:
                tensors[f"{module}.buffer_{feature.replace('.', '_')}.{name}"] = statistics[f"{feature}.{name}"].clone()
    save_file(tensors, folder / WEIGHTS)
    for path in folder.glob("policy_*"):
        path.unlink()


def to_first(folder: Path) -> None:
    """Into the layout before February 2025: no policy type, and a shape and a mode for each feature.

    The fields are those of `DiffusionConfig` (lerobot/common/policies/diffusion/configuration_diffusion.py) then.
    """
    to_buffers(folder)
    config = json.loads((folder / CONFIG).read_text())
    for key in ("type", "device", "normalization_mapping"):
        del config[key]
    shapes = {kind: {k: v["shape"] for k, v in config.pop(f"{kind}_features").items()} for kind in ("input", "output")}
    config |= {
        "input_shapes": shapes["input"],
        "output_shapes": shapes["output"],
        "input_normalization_modes": {STATE: "min_max", ENVIRONMENT_STATE: "mean_std"},
        "output_normalization_modes": {"action": "min_max"},
        "vision_backbone": "resnet18",
        "crop_shape": [84, 84],
        "crop_is_random": True,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": 32,
        "do_mask_loss_for_padding": False,
    }
    (folder / CONFIG).write_text(json.dumps(config))


def compiled(folder: Path) -> None:
    """As lerobot saves a policy with `compile_model`: the network's names have torch.compile's prefix."""
    tensors = load_file(folder / WEIGHTS)
    save_file({k.replace("unet.", "unet._orig_mod."): v for k, v in tensors.items()}, folder / WEIGHTS)


def first_plan(folder: Path) -> Any:
    policy = asd_policy.load_policy(folder)
    policy.reset(seed=0)
    policy.select_action([0.1, -0.2, 0.3, 0.0, 0.5, -0.5, 1.0])
    return policy.plans[0].chunk


@pytest.mark.parametrize("layout", [to_buffers, to_first, compiled])
def test_earlier_layouts_are_the_same_policy(layout: Callable[[Path], None], checkpoint: Path) -> None:
    expected = first_plan(checkpoint)
    said = inspection.inspect(str(checkpoint))
    layout(checkpoint)
    assert torch.equal(first_plan(checkpoint), expected)
    again = inspection.inspect(str(checkpoint))
    for key in (
        "format",
        "observation",
        "action",
        "horizons",
        "scheduler",
        "normalization",
        "ranges",
        "chain",
        "runs_here",
    ):
        assert again[key] == said[key], key


def test_a_checkpoint_that_lerobot_0_3_2_saved_plans_as_it_did_there() -> None:
    """Of random weights and known statistics, and what its `select_action` returned.

    Made with lerobot 0.3.2 and torch 2.13.0: `torch.manual_seed(0)`, `DiffusionPolicy(config, dataset_stats=…)` of the
    sizes in config.json, `save_pretrained`; then four calls of `select_action` with the observation below. The chain's
    start and the noise of its steps were `torch.randn((1, 6, 8, 2))` of a generator with seed 7, given to it in the
    place of `torch.randn` and of the scheduler's `randn_tensor`.
    """
    expected = load_file(GOLDEN / "expected_actions.safetensors")["actions"]
    policy = asd_policy.load_policy(GOLDEN)
    policy.generator.manual_seed(7)
    observation = {"agent_pos": [0.1, -0.2, 0.3, 0.0], "environment_state": [0.5, -0.5, 1.0]}
    actions = torch.stack([torch.from_numpy(policy.select_action(observation)) for _ in expected])
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-5)


def test_statistics_that_training_never_filled_are_refused(checkpoint: Path) -> None:
    """LeRobot's modules begin with infinity in them."""
    to_buffers(checkpoint)
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["unnormalize_outputs.buffer_action.max"].fill_(float("inf"))
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(CheckpointError, match="statistic 'max' of 'action' holds NaN or infinity"):
        asd_policy.load_policy(checkpoint)


LATER = {
    "use_amp": False, "use_peft": False, "push_to_hub": True, "repo_id": None, "private": None, "tags": None,
    "license": None, "pretrained_path": None, "pretrained_revision": None, "drop_n_last_frames": 7,
    "vision_backbone": "resnet18", "resize_shape": None, "crop_ratio": 1.0, "crop_shape": None,
    "crop_is_random": True, "pretrained_backbone_weights": None, "use_group_norm": False,
    "spatial_softmax_num_keypoints": 32, "use_separate_rgb_encoder_per_camera": True,
    "gradient_checkpointing": False, "compile_model": False, "compile_mode": "reduce-overhead",
    "do_mask_loss_for_padding": False, "optimizer_lr": 1e-4, "optimizer_betas": [0.95, 0.999],
    "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-6,
    "scheduler_name": "cosine", "scheduler_warmup_steps": 500,
}  # fmt: skip
"""What `DiffusionConfig` of lerobot 0.6.1 writes beside the fields that are read."""


def test_later_versions_load_without_a_word(checkpoint: Path) -> None:
    config = json.loads((checkpoint / CONFIG).read_text())
    (checkpoint / CONFIG).write_text(json.dumps(config | LATER))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asd_policy.load_policy(checkpoint)
    assert inspection.inspect(str(checkpoint))["notes"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["input_normalization_modes"].pop(STATE),
            f"input_normalization_modes of '{STATE}' is None, not one",
        ),
        (
            lambda c: c.pop("output_normalization_modes"),
            "output_normalization_modes of 'action' is None, not one of min",
        ),
        (
            lambda c: c["input_normalization_modes"].update({STATE: "minmax"}),
            f"of '{STATE}' is 'minmax', not one of min_",
        ),
        (
            lambda c: c["input_normalization_modes"].update({"observation.stat": "min_max"}),
            f"input_normalization_modes has 'observation.stat', input_shapes only {STATE}, {ENVIRONMENT_STATE}",
        ),
    ],
)
def test_modes_of_the_first_layout_that_are_missing_or_misspelt(
    change: Callable[[dict[str, Any]], Any], message: str, checkpoint: Path
) -> None:
    """Each would be another policy, one that does not normalise."""
    to_first(checkpoint)
    config = json.loads((checkpoint / CONFIG).read_text())
    change(config)
    (checkpoint / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        asd_policy.load_policy(checkpoint)
    assert message in str(error.value)


def test_statistics_of_a_feature_without_a_mode(checkpoint: Path) -> None:
    to_buffers(checkpoint)
    config = json.loads((checkpoint / CONFIG).read_text())
    del config["normalization_mapping"]["STATE"]
    (checkpoint / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"has statistics of '{STATE}', which config.json does not normalise"):
        asd_policy.load_policy(checkpoint)


def test_no_statistics_at_all(checkpoint: Path) -> None:
    for path in checkpoint.glob("policy_*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="there are neither"):
        asd_policy.load_policy(checkpoint)


def test_an_image_policy_of_the_first_layout_is_described(checkpoint: Path) -> None:
    """Such as lerobot/diffusion_pusht, the best-known one, was; also where its weights are not there."""
    to_first(checkpoint)
    config = json.loads((checkpoint / CONFIG).read_text())
    config["input_shapes"] = {"observation.image": [3, 96, 96], STATE: [2]}
    config["input_normalization_modes"] = {"observation.image": "mean_std", STATE: "min_max"}
    (checkpoint / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model.safetensors does not fit config.json"):
        asd_policy.load_policy(checkpoint)
    said = inspection.inspect(str(checkpoint))
    assert said["observation"] == {"observation.image": [3, 96, 96], STATE: [2]}
    assert said["normalization"]["observation.image"] == "MEAN_STD"
    assert not said["runs_here"]
    assert "does not fit config.json" in said["missing"][0]
    assert said["chain"]["gaussian"] and said["chain"]["steps"] == 10


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "policy_preprocessor.json", STATISTICS])
def test_links_out_of_the_folder_are_not_followed(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint|not a checkpoint of a known format"):
        asd_policy.load_policy(checkpoint)


def test_a_link_inside_the_folder_and_a_link_to_it_are_followed(checkpoint: Path, tmp_path: Path) -> None:
    """Such as LeRobot's own checkpoints/last."""
    (checkpoint / WEIGHTS).rename(checkpoint / "weights")
    (checkpoint / WEIGHTS).symlink_to("weights")
    (tmp_path / "last").symlink_to(checkpoint)
    asd_policy.load_policy(tmp_path / "last")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "policy_preprocessor.json", STATISTICS])
def test_what_is_no_file_is_not_waited_for(name: str, checkpoint: Path) -> None:
    """A pipe would never end, and a device never stop."""
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match="is not a regular file|not a checkpoint of a known format"):
        asd_policy.load_policy(checkpoint)


@pytest.mark.parametrize("name", ["a" * 1000, "a\0b", "..", ".", "", "loop", "none"])
def test_names_in_a_checkpoint_that_are_no_file(name: str, checkpoint: Path) -> None:
    (checkpoint / "loop").symlink_to("loop")
    processor = json.loads((checkpoint / "policy_preprocessor.json").read_text())
    processor["steps"][3]["state_file"] = name
    (checkpoint / "policy_preprocessor.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match="has no file|leads out|is not a (regular|plain) file|No such"):
        asd_policy.load_policy(checkpoint)


BAD_JSON = ["[" * 100_000, '{"a":' * 50_000, " " * (17 * 2**20), "\ud800", "{", '{"a": 1' + "0" * 5000 + "}"]


@pytest.mark.parametrize("content", BAD_JSON, ids=range(len(BAD_JSON)))
def test_json_that_is_none(content: str, checkpoint: Path) -> None:
    (checkpoint / "policy_preprocessor.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"policy_preprocessor.json (is not JSON|has \d+ bytes)"):
        asd_policy.load_policy(checkpoint)
