"""LeRobot folders with cameras: what is read, and every way in which that part can be broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.errors import CheckpointError
from asd_policy.networks.vision import RgbEncoder
from asd_policy.policy.observation import STATE
from asd_policy.policy.sensors import SensorEncoder, encode_history
from support.small_checkpoints import camera_config, save_cameras

IMAGE = "observation.image"
WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "policy_preprocessor.json"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
CONV, SOFTMAX = "diffusion.rgb_encoder.backbone.0.weight", "diffusion.rgb_encoder.pool.pos_grid"
VARIANCE = "diffusion.rgb_encoder.backbone.1.running_var"
Change = Callable[[Path], object]


@pytest.fixture
def folder(camera_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(camera_checkpoint, tmp_path / "copy"))


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(raw | values))

    return change


def without(name: str) -> Change:
    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        del raw[name]
        (folder / CONFIG).write_text(json.dumps(raw))

    return change


def camera(**values: Any) -> Change:
    """Change the camera in config.json."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        raw["input_features"][IMAGE] |= values
        (folder / CONFIG).write_text(json.dumps(raw))

    return change


def tensor(file: str, name: str, value: torch.Tensor | None) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        tensors.pop(name, None)
        save_file(tensors | ({} if value is None else {name: value}), folder / file)

    return change


def second_camera(folder: Path) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    raw["input_features"]["observation.other"] = {"type": "VISUAL", "shape": [3, 40, 50]}
    (folder / CONFIG).write_text(json.dumps(raw))


BROKEN: list[tuple[Change, str]] = [
    (camera(shape=[40, 48, 3]), "shape [40, 48, 3] of 'observation.image' is not [3, height, width]"),
    (camera(shape=[3, 40]), "shape [3, 40] of 'observation.image'"),
    (camera(shape=[3, 40, 10**6]), "is not null or [height, width] in 1 … 4096"),
    (camera(shape=[3, 40, True]), "is not null or [height, width] in 1 … 4096"),
    (camera(type="DEPTH"), "the policy observes observation.image; only"),
    (camera(shape=[3, 40, 70]), "takes 'observation.image' for {'type': 'VISUAL', 'shape': [3, 40, 48]}"),
    (config(resize_shape=[40, 70]), "diffusion.rgb_encoder.pool.pos_grid has shape (4, 2), not (6, 2)"),
    (second_camera, "the cameras' shapes are not the same"),
    (config(vision_backbone="resnet101"), "vision_backbone 'resnet101' is not one of resnet18, resnet34, resnet50"),
    (config(vision_backbone=["resnet18"]), "is not one of resnet18"),
    (config(vision_backbone="resnet34"), "does not fit the cameras of config.json"),
    (config(use_group_norm=False), "tensors missing, 0 unknown, first diffusion.rgb_encoder.backbone.1.running_mean"),
    (config(use_group_norm=1), "use_group_norm 1 is not true or false"),
    (config(use_separate_rgb_encoder_per_camera=True), "first diffusion.rgb_encoder.0.backbone.0.weight"),
    (config(use_separate_rgb_encoder_per_camera="no"), "is not true or false"),
    (config(crop_shape=[41, 48]), "crop_shape [41, 48] is larger than frames of 40 × 48"),
    (config(crop_shape=32), "crop_shape 32 is not null or [height, width]"),
    (config(crop_shape=[32, 0]), "crop_shape [32, 0] is not null or [height, width]"),
    (config(resize_shape=[32, 32], crop_shape=[30, 30]), "crop_shape [30, 30] is not what crop_ratio 1.0 leaves"),
    (config(crop_ratio=0), "crop_ratio 0 is not a number in 0 … 1"),
    (config(crop_ratio="all"), "crop_ratio 'all' is not a number"),
    (config(spatial_softmax_num_keypoints=10**9), "is not a whole number in 1 … 4096"),
    (config(spatial_softmax_num_keypoints=8), "does not fit"),
    (without("crop_shape"), "config.json has cameras and no crop_shape"),
    (without("use_group_norm"), "config.json has cameras and no use_group_norm"),
    (config(crop_shap=None), "crop_shap"),
    (tensor(WEIGHTS, CONV, None), f"1 tensors missing, 0 unknown, first {CONV}"),
    (tensor(WEIGHTS, CONV, torch.zeros(64, 1, 7, 7)), f"{CONV} has shape (64, 1, 7, 7), not (64, 3, 7, 7)"),
    (tensor(WEIGHTS, CONV, torch.full((64, 3, 7, 7), torch.nan)), f"{CONV} holds NaN or infinity"),
    (tensor(WEIGHTS, SOFTMAX, torch.zeros(4, 2)), f"{SOFTMAX} is not what the cameras of config.json makes it"),
    (tensor(WEIGHTS, "diffusion.rgb_encoder.fc.weight", torch.zeros(1)), "1 unknown, first diffusion.rgb_encoder.fc"),
    (tensor(STATISTICS, f"{IMAGE}.mean", None), "'observation.image' needs the statistic 'mean'"),
    (tensor(STATISTICS, f"{IMAGE}.std", torch.ones(3)), "'observation.image' has shape (3,), not (3, 1, 1)"),
    (tensor(STATISTICS, f"{IMAGE}.std", -torch.ones(3, 1, 1)), "statistic 'std' of 'observation.image' is negative"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_is_broken_is_named_in_one_line(change: Change, message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        asd_policy.load_policy(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    inspection.inspect(str(folder))


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    folder = save_cameras(tmp_path / "batch", camera_config([IMAGE], use_group_norm=False))
    tensor(WEIGHTS, VARIANCE, -torch.ones(64))(folder)
    with pytest.raises(CheckpointError, match=r"a variance of diffusion.rgb_encoder.*backbone.1 is negative"):
        asd_policy.load_policy(folder)


def test_what_a_folder_has_is_described(camera_checkpoint: Path) -> None:
    said = inspection.inspect(str(camera_checkpoint))
    assert said["runs_here"] and said["is_policy"]
    assert said["observation"] == {STATE: [2], IMAGE: [3, 40, 48]}
    assert said["normalization"][IMAGE] == "MEAN_STD"
    assert said["parameters"] > 11_000_000 > said["network_parameters"]
    (note,) = said["notes"]
    assert note.startswith("cameras observation.image: 11,") and "vision_backbone 'resnet18'" in note
    assert {each["spec"]: each["exact"] for each in said["samplers"]}["asd"]
    assert len(said["ranges"][IMAGE]["at_one"]) == 3


def test_the_order_is_that_of_the_network(tmp_path: Path) -> None:
    """State, then the cameras as config.json has them, each with its own weights."""
    front, wrist = "observation.images.wrist", "observation.images.front"
    folder = save_cameras(tmp_path / "two", camera_config([front, wrist], separate=True))
    policy = asd_policy.load_policy(folder)
    assert list(policy.observation_shapes.items()) == [(STATE, (2,)), (front, (3, 40, 48)), (wrist, (3, 40, 48))]
    assert policy.observation_dims == {STATE: 2}
    assert policy.cond_dim == 2 * (2 + 8 + 8)
    encoder = policy.encoder
    assert isinstance(encoder, SensorEncoder)
    one, two = (each.network for each in encoder.sensors.values())
    stored = load_file(folder / WEIGHTS)
    for index, network in enumerate((one, two)):
        assert isinstance(network, RgbEncoder)
        weight = network.state_dict()["backbone.0.weight"]
        assert torch.equal(weight, stored[f"diffusion.rgb_encoder.{index}.backbone.0.weight"].float())


def test_batches_that_were_counted_are_not_looked_at(tmp_path: Path) -> None:
    """Torch's batch normalisation has a whole number beside its statistics, which nothing is computed of."""
    folder = save_cameras(tmp_path / "batch", camera_config([IMAGE], use_group_norm=False))
    before = asd_policy.load_policy(folder)
    tensor(WEIGHTS, VARIANCE.replace("running_var", "num_batches_tracked"), torch.tensor(7))(folder)
    frame = np.random.default_rng(0).integers(0, 256, (1, 2, 40, 48, 3), np.uint8)
    history, device = {STATE: np.zeros((1, 2, 2)), IMAGE: frame}, torch.device("cpu")
    expected = encode_history(before.encoder, history, 2, device)
    assert torch.equal(encode_history(asd_policy.load_policy(folder).encoder, history, 2, device), expected)
