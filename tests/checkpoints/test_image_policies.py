"""Files of Diffusion Policy, UMI and DP3 with cameras or clouds: equal to their own libraries' encoders and plans."""

import copy
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.diffusion_policy.hybrid import read_hybrid
from asd_policy.checkpoints.diffusion_policy.multi_image import read_multi_image
from asd_policy.checkpoints.robomimic.cameras import read_observations
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import AsdError
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder, encode_history
from support import image_files as images
from support import training_files as files

GOLDEN = load_file(images.GOLDEN)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*images.CASES, *images.ROBOMIMIC_CASES])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Policy]:
    path = images.save(tmp_path_factory.mktemp("files"), request.param)
    policy = asd_policy.load_policy(path, fixed_crop=request.param.startswith("umi"))
    path.unlink()
    return request.param, policy


def seen(case: str, policy: Policy) -> dict[str, Any]:
    return images.history(images.observations(case), policy.horizons.n_obs_steps)


def test_features_are_those_of_its_library(loaded: tuple[str, Policy]) -> None:
    case, policy = loaded
    found = encode_history(policy.encoder, seen(case, policy), policy.horizons.n_obs_steps, CPU)
    wanted = GOLDEN[f"{case}/features"].reshape(images.ROWS, -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_plans_are_those_of_its_library(loaded: tuple[str, Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    case, policy = loaded
    start, steps = files.tape(images.ROWS, policy.event)
    drawn = NoiseTape.draw((images.ROWS, *policy.event), len(policy.chain), torch.Generator().manual_seed(0))
    normals = drawn.normals.clone() if policy.law.own else steps
    monkeypatch.setattr(NoiseTape, "draw", lambda *_, **__: replace(drawn, initial=start, normals=normals))
    chunk = policy.plan(seen(case, policy)).chunk
    wanted = GOLDEN[f"{case}/chunk"]
    scale = float(wanted.max() - wanted.min())
    torch.testing.assert_close(chunk, wanted, rtol=0, atol=1e-4 * scale)


def test_nothing_of_the_libraries_is_imported(loaded: tuple[str, Policy]) -> None:
    assert loaded[1].encoder.cond_dim(loaded[1].horizons.n_obs_steps) == loaded[1].cond_dim
    libraries = {"torchvision", "timm", "robomimic", "diffusion_policy", "diffusion_policy_3d", "hydra", "omegaconf"}
    assert not libraries & sys.modules.keys()


def test_whose_law_has_random_crops_is_said(loaded: tuple[str, Policy]) -> None:
    """UMI's crop always; those of hybrid policies where robomimic 0.2 makes them."""
    case, policy = loaded
    random = policy.encoder.random_crop
    assert (random is not None) == (case.startswith("umi") and case != "umi-pretrained")
    assert random is None or ("at random when it plans" in random and "\n" not in random)


def test_random_crops_of_hybrid_policies() -> None:
    """As `eval_fixed_crop` says, where there is a crop."""
    for values, random in (({"eval_fixed_crop": False}, True), ({}, False), ({"crop_shape": None}, False)):
        section = images.hybrid({"image": images.FRAME}, **values)
        assert (read_hybrid(Settings(section, "policy", "x"), "x").random_crop is not None) == random


Change = Callable[[dict[str, Any]], Any]


def setting(path: str, value: Any) -> Change:
    """Return what sets a value of the policy's section, by its dotted path; Ellipsis removes it."""
    return lambda payload: files.put(payload["cfg"]["policy"], path.split("."), value)


def meta(path: str, value: Any) -> Change:
    """Return what sets a value of `shape_meta`, of the encoder's, too."""

    def change(payload: dict[str, Any]) -> None:
        policy = payload["cfg"]["policy"]
        for section in (policy, policy.get("obs_encoder")):
            if section:
                files.put(section, f"shape_meta.{path}".split("."), value)

    return change


RGB = "obs_encoder.rgb_model"
SETTINGS: list[tuple[str, Change, str]] = [
    ("hybrid", setting("shape_meta", ...), "has no cfg.policy.shape_meta"),
    ("hybrid", meta("action.shape", [10**9]), "cfg.policy.shape_meta.action.shape is a list, not a list of 1 … 2"),
    ("hybrid", meta("obs.front.shape", [40, 48, 3]), "shape_meta.obs.front of type 'rgb' and shape [40, 48, 3] is no"),
    ("hybrid", meta("obs.front.shape", [3, 40, 9999]), "is no camera of shape [3, height, width], sides of 1 … 4096"),
    ("hybrid", meta("obs.front.type", "depth"), "of type 'depth'"),
    ("hybrid", meta("obs.pos.shape", [3, 3]), "shape_meta.obs.pos of type 'low_dim' and shape [3, 3] is no vector"),
    ("hybrid", meta("obs.pos.shape", "3"), "cfg.policy.shape_meta.obs.pos.shape is '3', not a list of 1 … 3 integers"),
    ("hybrid", meta("obs", {f"c{i}": images.FRAME for i in range(65)}), "has 65 cameras; 64 are the most"),
    ("hybrid", setting("crop_shape", [37]), "crop_shape is a list, not null or [height, width] in 1 … 4096"),
    ("hybrid", setting("crop_shape", [41, 44]), "a crop of 41 × 44 is larger than frames of 40 × 48"),
    ("hybrid", setting("eval_fixed_crop", "yes"), "eval_fixed_crop is 'yes', not true or false"),
    ("hybrid", setting("obs_encoder_group_norm", 1), "obs_encoder_group_norm is 1, not true or false"),
    ("hybrid", setting("obs_encoder_batch_norm", True), "cfg.policy.obs_encoder_batch_norm is not known here; known"),
    ("hybrid", setting("n_action_steps", 8), "n_action_steps 8 from action 1 on are more than the horizon 8 has"),
    ("transformer", setting("horizon", 10**6), "cfg.policy.horizon is 1000000, not an integer in 1 … 100000"),
    ("transformer-actions", setting("obs_as_cond", False), "pred_action_steps_only leaves no room for"),
    ("image", setting("obs_encoder", ...), "has no cfg.policy.obs_encoder"),
    ("image", setting("obs_encoder._target_", "x.Mine"), "policy.obs_encoder is a Mine; only MultiImageObsEncoder"),
    ("image", setting("obs_encoder.shape_meta.obs.pos.shape", [4]), "obs_encoder.shape_meta is not the same as policy"),
    ("image", setting("obs_encoder.jitter", 1), "cfg.policy.obs_encoder.jitter is not known here; known are"),
    ("image", setting(f"{RGB}.name", "resnet101"), "is get_resnet of 'resnet101'; known are get_resnet and get_r3m of"),
    ("image", setting(f"{RGB}._target_", "os.system"), "is system of 'resnet18'; known are get_resnet"),
    ("image", setting(f"{RGB}.width", 2), "rgb_model.width is not known here"),
    ("image", setting("obs_encoder.crop_shape", [33, 40]), "crop_shape [33, 40] is larger than frames of 32 × 44"),
    (
        "image",
        setting("obs_encoder.resize_shape", {"front": [32, 44]}),
        "resize_shape has no size of 'a_wrist'",
    ),
    ("dp3", setting("condition_type", "cross_attention_film"), "condition_type 'cross_attention_film' with use_down"),
    ("dp3", setting("use_mid_condition", False), "use_mid_condition, use_up_condition is not known; 'film' with all"),
    ("dp3", setting("pointnet_type", "dp3"), "policy.pointnet_type 'dp3' is not 'pointnet'"),
    ("dp3", setting("encoder_output_dim", 17), "encoder_output_dim is 17, the encoder of the cloud makes 16 numbers"),
    ("dp3", setting("pointcloud_encoder_cfg.final_norm", "batch"), "final_norm 'batch' is not 'none' or 'layernorm'"),
    ("dp3", setting("pointcloud_encoder_cfg.depth", 3), "pointcloud_encoder_cfg.depth is not known here; known"),
    ("dp3", setting("use_pc_color", True), "point_cloud has points of 3 numbers, its encoder looks at 6"),
    ("dp3", setting("eta", 0.5), "cfg.policy.eta is not known here"),
    ("dp3", meta("obs.point_cloud.shape", [10**5, 3]), "is not [points, channels] of 65536 × 64 at most"),
    ("dp3", meta("obs.agent_pos", ...), "has no policy.shape_meta.obs.agent_pos"),
    ("dp3", meta("obs.imagin_robot", {"shape": [9, 7], "type": "point_cloud"}), "observes imagin_robot, points of the"),
    ("umi", setting("obs_encoder._target_", "x.TransformerObsEncoder"), "only TimmObsEncoder is known here"),
    ("umi", setting("obs_encoder.model_name", "convnext_base.clip"), "model_name 'convnext_base.clip' is none of resn"),
    ("umi", setting("obs_encoder.global_pool", "avg"), "global_pool 'avg' is not ''"),
    ("umi", setting("obs_encoder.feature_aggregation", "transformer"), "(its transformer attends from one robot's"),
    ("umi", setting("obs_encoder.feature_aggregation", None), "feature_aggregation None is none of attention_pool_2d"),
    ("umi", setting("obs_encoder.downsample_ratio", 8), "downsample_ratio 8 is not 16 or 32, or does not divide 96"),
    ("umi", setting("obs_encoder.transforms", []), "transforms does not begin with a RandomCrop"),
    ("umi", setting("obs_encoder.transforms", [3]), "obs_encoder.transforms[0] is 3, not a mapping"),
    ("umi", setting("obs_encoder.transforms", [{"type": "RandomCrop", "ratio": 2}]), "ratio is 2, not a number in 0.0"),
    (
        "umi",
        setting("obs_encoder.transforms", [{"type": "RandomCrop", "ratio": 0.9}, {"_target_": "x.RandomRotation"}]),
        "transforms has 'RandomRotation'; RandomCrop and ColorJitter are known",
    ),
    ("umi", meta("obs.camera0_rgb.shape", [3, 96, 64]), "not all cameras have frames of 96 × 96 pixels"),
    ("umi", meta("obs.camera1_rgb.horizon", 10**9), "camera1_rgb.horizon is 1000000000, not an integer in 1 … "),
    ("umi", meta("obs.camera1_rgb.horizon", ...), "has no cfg.policy.shape_meta.obs.camera1_rgb.horizon"),
    ("umi", meta("action.horizon", ...), "has no cfg.policy.shape_meta.action.horizon"),
    ("umi-vit", setting("obs_encoder.feature_aggregation", "all_tokens"), "'all_tokens' is not known; the class token"),
    ("umi-vit", meta("obs.camera0_rgb.shape", [3, 96, 96]), "is for frames of 224 pixels, not of 96"),
]


@pytest.mark.parametrize(("case", "change", "message"), SETTINGS, ids=[message for *_, message in SETTINGS])
def test_broken_configurations_are_named_before_weights_are_read(
    case: str, change: Change, message: str, tmp_path: Path
) -> None:
    payload = images.without_weights(case)
    change(payload)
    torch.save(payload, tmp_path / "latest.ckpt")
    check_refused(tmp_path / "latest.ckpt", message)


def check_refused(path: Path, message: str, described: bool = True) -> None:
    """Check that a file is refused in one line, and described all the same."""
    with pytest.raises(AsdError) as error:
        asd_policy.load_policy(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not described or not inspection.inspect(str(path))["runs_here"]


def tensor(name: str, value: Any) -> Change:
    """Return what sets a tensor of the policy, by its name; None removes it."""

    def change(payload: dict[str, Any]) -> None:
        state = payload["state_dicts"]["ema_model"]
        if value is None:
            del state[name]
        else:
            state[name] = value

    return change


CAM = "obs_encoder.obs_nets.image."
EYE = "obs_encoder.key_model_map.camera"
IMAGE_SCALE = "normalizer.params_dict.image.scale"
TENSORS: list[tuple[str, Change, str]] = [
    ("hybrid-ddim", tensor(f"{CAM}backbone.nets.0.weight", None), f"1 tensors missing, 1 unknown, first {CAM}backbone"),
    (
        "hybrid-ddim",
        tensor(f"{CAM}nets.3.weight", torch.zeros(64, 32)),
        "nets.3.weight has shape (64, 32), not (64, 6",
    ),
    ("hybrid-ddim", tensor(f"{CAM}nets.3.bias", torch.full((64,), torch.nan)), "nets.3.bias holds NaN or infinity"),
    ("hybrid-ddim", tensor(f"{CAM}nets.3.bias", torch.zeros(64).long()), "nets.3.bias holds torch.int64, not floating"),
    ("hybrid-ddim", tensor(f"{CAM}nets.0.nets.1.bias", torch.zeros(64)), "nets.0.nets.1.bias is not the same as obs_"),
    ("hybrid-ddim", tensor(f"{CAM}nets.1.pos_x", torch.zeros(1, 4)), f"{CAM}nets.1.pos_x is not the same as {CAM}pool"),
    ("hybrid-ddim", tensor(f"{CAM}pool.temperature", torch.ones(1) / 2), "nets.1.temperature is not the same as obs_"),
    ("hybrid-ddim", tensor(f"{CAM}backbone.nets.1.running_var", -torch.ones(64)), "nets.1.running_var is not the same"),
    ("hybrid-ddim", tensor("obs_encoder.obs_nets.wrist.nets.3.bias", torch.ones(1)), "0 tensors missing, 1 unknown"),
    ("hybrid-ddim", setting("obs_encoder_group_norm", True), "does not fit its configuration of cameras: 0 tensors"),
    ("hybrid-ddim", setting("crop_shape", [20, 20]), f"{CAM}pool.pos_x has shape (1, 4), not (1, 1)"),
    ("hybrid-ddim", tensor(IMAGE_SCALE, None), "the normaliser has no image.scale; was the policy saved before its"),
    ("hybrid-ddim", tensor(IMAGE_SCALE, torch.ones(3)), f"{IMAGE_SCALE} has shape (3,), not (1,)"),
    ("hybrid-ddim", tensor(IMAGE_SCALE, torch.zeros(1)), f"{IMAGE_SCALE} holds a scale of 0, or one next to it"),
    ("hybrid-ddim", tensor("normalizer.params_dict.wrist.scale", torch.ones(1)), "has 'wrist.scale'; only 'agent_pos'"),
    (
        "hybrid-ddim",
        tensor("vision.weight", torch.ones(1)),
        "vision.weight belongs to neither the network nor",
    ),
    ("umi-embedding", setting("obs_encoder.model_name", "resnet34"), "does not fit its configuration of cameras"),
    (
        "umi-embedding",
        tensor(f"{EYE}1_rgb.1.bias", torch.zeros(64)),
        f"{EYE}1_rgb.1.bias is not the same as {EYE}0",
    ),
    ("umi-embedding", tensor("obs_encoder.spatial_embedding", torch.ones(9, 256)), "has shape (9, 256), not (16, 256)"),
    ("umi-embedding", setting("obs_encoder.feature_aggregation", "avg"), "1 unknown, first obs_encoder.spatial_embed"),
    (
        "umi-pretrained",
        setting("obs_encoder.pretrained", False),
        "unknown, first obs_encoder.key_model_map.camera0",
    ),
    ("umi-embedding", setting("down_dims", [8, 24]), "does not fit its configuration: model."),
    ("dp3", tensor("obs_encoder.extractor.mlp.0.weight", None), "1 tensors missing, 0 unknown, first obs_encoder.extr"),
    ("dp3", tensor("obs_encoder.state_mlp.0.weight", torch.ones(64, 4)), "mlp.0.weight has shape (64, 4), not (64, 3)"),
    ("dp3", setting("pointcloud_encoder_cfg.use_layernorm", False), "unknown, first obs_encoder.extractor.mlp.1.bias"),
    ("dp3", setting("obs_as_global_cond", False), "does not fit its configuration: model."),
    ("dp3", meta("obs.point_cloud.shape", [20, 4]), "point_cloud.scale has shape (3,), not (4,)"),
]


@pytest.mark.parametrize(("case", "change", "message"), TENSORS, ids=[message for *_, message in TENSORS])
def test_broken_weights_are_named(case: str, change: Change, message: str, tmp_path: Path) -> None:
    payload = images.halves(case)
    change(payload)
    torch.save(payload, tmp_path / "latest.ckpt")
    check_refused(tmp_path / "latest.ckpt", message, described=False)


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    payload = images.halves("hybrid-ddim")
    for name in ("backbone.nets.1", "nets.0.nets.1"):
        tensor(f"{CAM}{name}.running_var", -torch.ones(64))(payload)
    torch.save(payload, tmp_path / "latest.ckpt")
    check_refused(tmp_path / "latest.ckpt", f"a variance of {CAM}backbone.nets.1 is negative")


def test_doubles_that_are_no_ties_may_be_in_a_file(tmp_path: Path) -> None:
    """A tool that rewrote the file may have copied them."""
    torch.save(images.halves("hybrid-ddim"), tmp_path / "latest.ckpt")
    policy = asd_policy.load_policy(tmp_path / "latest.ckpt")
    assert policy.observation_shapes == {"agent_pos": (2,), "image": (3, 40, 48)}


def test_prefixes_of_wrappers_are_stripped_with_cameras(tmp_path: Path) -> None:
    payload = images.workspace("umi-embedding")
    state = payload["state_dicts"]["ema_model"]
    payload["state_dicts"]["ema_model"] = OrderedDict((f"module.{name}", value) for name, value in state.items())
    torch.save(payload, tmp_path / "latest.ckpt")
    policy = asd_policy.load_policy(tmp_path / "latest.ckpt", fixed_crop=True)
    assert policy.cond_dim == 779
    assert "'module.'" in " ".join(inspection.inspect(str(tmp_path / "latest.ckpt"))["notes"])


ROBOMIMIC: list[tuple[str, Any, str]] = [
    ("core_class", "ScanCore", "observation.encoder.rgb.core_class 'ScanCore' is not 'VisualCore'"),
    ("core_kwargs.backbone_class", "R3MConv", "backbone 'R3MConv' is none of ResNet18Conv, ResNet50Conv"),
    ("core_kwargs.backbone_kwargs.input_coord_conv", True, "or sees the places of pixels"),
    ("core_kwargs.pool_class", "SpatialMeanPool", "only pool_class 'SpatialSoftmax' without variances, flattened"),
    ("core_kwargs.pool_kwargs.num_kp", 10**9, "num_kp is 1000000000, not an integer in 1 … 4096"),
    ("core_kwargs.pool_kwargs.temperature", 0, "temperature is 0, not a number in 1e-06 … "),
    ("core_kwargs.pool_kwargs.depth", 1, "pool_kwargs.depth is not known here; known are"),
    ("core_kwargs.feature_dimension", None, "core_kwargs.feature_dimension is None, not an integer"),
    ("obs_randomizer_class", "CropResizeRandomizer", "obs_randomizer_class 'CropResizeRandomizer' is not null, CropR"),
    ("obs_randomizer_kwargs.pos_enc", True, "a CropRandomizer with pos_enc is not known"),
    ("obs_randomizer_kwargs.crop_height", 41, "a crop of 41 × 44 is larger than frames of 40 × 48"),
]
ROBOMIMIC_WEIGHTS: list[tuple[str, Any, str]] = [
    ("core_kwargs.pool_kwargs.num_kp", 9, "pool.nets.weight has shape (8, 512, 1, 1), not (9, "),
    ("core_kwargs.backbone_class", "ResNet50Conv", "does not fit its configuration of cameras"),
    ("core_kwargs.feature_dimension", 17, "for 2 action and 74 observation numbers, the configuration says 2 and 78"),
]


@pytest.mark.parametrize(("path", "value", "message"), ROBOMIMIC, ids=[message for *_, message in ROBOMIMIC])
def test_broken_files_of_robomimic_are_named(path: str, value: Any, message: str, tmp_path: Path) -> None:
    payload = images.without_weights("robomimic")
    files.put(payload["config"]["observation"]["encoder"]["rgb"], path.split("."), value)
    check_refused(files.save_robomimic(tmp_path / "model.pth", payload), message)


@pytest.mark.parametrize(("path", "value", "message"), ROBOMIMIC_WEIGHTS, ids=[m for *_, m in ROBOMIMIC_WEIGHTS])
def test_weights_that_do_not_fit_robomimics_configuration(path: str, value: Any, message: str, tmp_path: Path) -> None:
    payload = copy.copy(_robomimic())
    payload["config"] = copy.deepcopy(payload["config"])
    files.put(payload["config"]["observation"]["encoder"]["rgb"], path.split("."), value)
    check_refused(files.save_robomimic(tmp_path / "model.pth", payload), message, described=False)


def test_robomimic_with_statistics_of_pixels_is_refused(tmp_path: Path) -> None:
    payload = _robomimic() | {"obs_normalization_stats": {"hand": {"offset": [[0.0]], "scale": [[1.0]]}}}
    check_refused(files.save_robomimic(tmp_path / "model.pth", payload), "normalise each pixel of a camera, which is")


@cache
def _robomimic() -> dict[str, Any]:
    return images.robomimic("robomimic")


def test_what_a_file_has_is_described(tmp_path: Path) -> None:
    """Cameras, encoder, crop, and which law runs."""
    torch.save(images.workspace("umi-embedding"), tmp_path / "latest.ckpt")
    refused = inspection.inspect(str(tmp_path / "latest.ckpt"))
    assert not refused["runs_here"] and "--fixed-crop" in refused["missing"][0]
    said = inspection.inspect(str(tmp_path / "latest.ckpt"), fixed_crop=True)
    assert said["runs_here"] and refused["notes"] == said["notes"]
    assert said["network"] == "DiffusionUnetTimmPolicy"
    assert said["horizons"] == {"n_obs_steps": 3, "horizon": 8, "n_action_steps": 8}
    assert said["observation"]["camera1_rgb"] == [3, 64, 64]
    assert said["own_plan"] == "ddim:5"
    encoder, random = said["notes"]
    assert "numbers in its encoder of observations; camera0_rgb, camera1_rgb: the middle 60 × 60 resized to" in encoder
    assert "resnet18 with normalised groups, 3 resolutions, spatial_embedding" in encoder
    assert random == "its library crops frames and jitters their colours at random when it plans"


def test_interpolations_are_resolved(tmp_path: Path) -> None:
    """DP3 saves its configuration as it is written."""
    payload = images.workspace("dp3")
    policy = json.loads(json.dumps(payload["cfg"]["policy"]))
    values = {"task": {"shape_meta": policy["shape_meta"]}, "shape_meta": "${task.shape_meta}", "horizon": 8}
    policy |= {"shape_meta": "${shape_meta}", "horizon": "${horizon}"}
    policy["pointcloud_encoder_cfg"]["out_channels"] = "${policy.encoder_output_dim}"
    payload["cfg"] = {**payload["cfg"], **values, "policy": policy}
    torch.save(payload, tmp_path / "latest.ckpt")
    loaded = asd_policy.load_policy(tmp_path / "latest.ckpt")
    assert loaded.observation_shapes == {"point_cloud": (20, 3), "agent_pos": (3,)}
    said = inspection.inspect(str(tmp_path / "latest.ckpt"))
    assert said["observation"] == {"point_cloud": [20, 3], "agent_pos": [3]}
    assert said["horizons"]["horizon"] == 8 and "PointNet with layer normalisation" in said["notes"][0]


def test_horizons_of_features_may_differ(tmp_path: Path) -> None:
    """UMI's encoder takes the last observations of each feature, one feature after the other."""
    path = images.save_halves(tmp_path, "umi-embedding")
    policy = asd_policy.load_policy(path, fixed_crop=True)
    history = images.history(images.observations("umi-embedding"), 3)
    cond = encode_history(policy.encoder, history, 3, CPU)
    changed = {name: each.copy() for name, each in history.items()}
    changed["camera1_rgb"][:, :2] = 0  # it looks at the last frame alone
    changed["robot0_gripper_width"][:, :1] = 9
    assert torch.equal(encode_history(policy.encoder, changed, 3, CPU), cond)
    changed["robot0_eef_pos"][:, :1] = 9
    different = (encode_history(policy.encoder, changed, 3, CPU) != cond).any(dim=0).nonzero().flatten()
    assert different.tolist() == [768, 769, 770]


def test_cameras_that_share_a_network_share_it(tmp_path: Path) -> None:
    """So that a backend prepares it once."""
    policy = asd_policy.load_policy(images.save_halves(tmp_path, "umi-embedding"), fixed_crop=True)
    assert isinstance(policy.encoder, SensorEncoder)
    one, other = (policy.encoder.sensors[f"camera{number}_rgb"].network for number in (0, 1))
    assert one is other


def test_cameras_may_have_networks_and_sizes_of_their_own() -> None:
    """As `rgb_model`, `resize_shape` and `crop_shape` by camera say."""
    section = images.image({"front": images.FRAME, "wrist": images.FRAME, "pos": images.low_dim(3)})
    encoder = section["obs_encoder"]
    other = {**encoder["rgb_model"], "name": "resnet50"}
    encoder |= {
        "rgb_model": {"front": encoder["rgb_model"], "wrist": other},
        "resize_shape": {"front": None, "wrist": [32, 32]},
        "crop_shape": {"front": [40, 40], "wrist": [30, 30]},
    }
    observed = read_multi_image(Settings(section, "policy", "x"), "x")
    assert observed.sizes == {"front": 512, "wrist": 2048, "pos": 3}
    assert "front: the middle 40 × 40, resnet18" in observed.encoder
    assert "wrist: resized to 32 × 32 without antialiasing, the middle 30 × 30, resnet50" in observed.encoder


def test_randomizers_of_robomimic_that_do_nothing_in_a_plan() -> None:
    config = images.robomimic_config("robomimic")
    rgb = config["observation"]["encoder"]["rgb"] = dict(config["observation"]["encoder"]["rgb"])
    for kinds, options, crop in (
        (["ColorRandomizer", "CropRandomizer"], [{}, {"crop_height": 30, "crop_width": 32}], (30, 32)),
        ("GaussianNoiseRandomizer", {}, None),
    ):
        rgb |= {"obs_randomizer_class": kinds, "obs_randomizer_kwargs": options}
        shapes = Settings({"all": dict(images.ROBOMIMIC_SHAPES)}, "", "x").section("all")
        observed = read_observations(Settings(config, "", "x"), shapes, "x")
        assert {name: each.size for name, each in observed.crops.items()} == {"hand": crop, "a_view": crop}
