"""Checkpoints of policies with cameras or clouds, as the training code of their libraries writes them.

`golden/cameras.safetensors` has what the libraries' own classes compute on the weights, observations and noise made
here: for each case `<case>/features`, its encoder's output, and `<case>/chunk`, the plan of its `predict_action` with
all its random draws taken from the tape. Its metadata has the names and shapes of each policy's state dict, and the
versions. scripts/maintenance/golden_policies.py writes it.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from support import training_files as files

GOLDEN = Path(__file__).parent / "golden" / "cameras.safetensors"
ROWS, STEPS = 2, 10
PERIOD = 65521  # a prime, so that no two rows of a weight are the same
ACTION = "action"
DDPM = files.SCHEDULER
DDIM = {
    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    "num_train_timesteps": 50,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
}
FRAME = {"shape": [3, 40, 48], "type": "rgb"}
UNET = {"diffusion_step_embed_dim": 8, "down_dims": [8, 16], "kernel_size": 5, "n_groups": 8}
HORIZONS = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4}


def low_dim(size: int) -> dict[str, Any]:
    return {"shape": [size], "type": "low_dim"}


def policy(kind: str, obs: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return the `policy` section of a configuration, of a policy class given by module and name."""
    return {
        "_target_": f"diffusion_policy.policy.{kind}",
        "shape_meta": {"obs": dict(obs), "action": {"shape": [2]}},
        "noise_scheduler": DDPM,
        "num_inference_steps": STEPS,
        **values,
    }


def hybrid(obs: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return policy(
        "diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        obs,
        **HORIZONS,
        **UNET,
        **{
            "obs_as_global_cond": True,
            "crop_shape": [37, 44],
            "obs_encoder_group_norm": True,
            "eval_fixed_crop": True,
            "cond_predict_scale": True,
        }
        | values,
    )


def transformer(obs: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return policy(
        "diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
        obs,
        **HORIZONS,
        **{
            "crop_shape": [36, 44],
            "obs_encoder_group_norm": True,
            "eval_fixed_crop": True,
            "n_layer": 2,
            "n_cond_layers": 0,
            "n_head": 2,
            "n_emb": 8,
            "p_drop_emb": 0.0,
            "p_drop_attn": 0.3,
            "causal_attn": True,
            "time_as_cond": True,
            "obs_as_cond": True,
        }
        | values,
    )


def image(obs: Mapping[str, Any], **encoder: Any) -> dict[str, Any]:
    return policy(
        "diffusion_unet_image_policy.DiffusionUnetImagePolicy",
        obs,
        **HORIZONS,
        **UNET,
        obs_as_global_cond=True,
        cond_predict_scale=True,
        obs_encoder={
            "_target_": "diffusion_policy.model.vision.multi_image_obs_encoder.MultiImageObsEncoder",
            "shape_meta": {"obs": dict(obs), "action": {"shape": [2]}},
            "rgb_model": {
                "_target_": "diffusion_policy.model.vision.model_getter.get_resnet",
                "name": "resnet18",
                "weights": None,
            },
            "resize_shape": [32, 44],
            "crop_shape": [29, 40],
            "random_crop": True,
            "use_group_norm": True,
            "share_rgb_model": False,
            "imagenet_norm": True,
            **encoder,
        },
    )


def dp3(points: Sequence[int], **values: Any) -> dict[str, Any]:
    obs = {"point_cloud": {"shape": list(points), "type": "point_cloud"}, "agent_pos": low_dim(3)}
    return policy(
        "x",
        obs,
        **HORIZONS,
        **UNET,
        **{
            "_target_": "diffusion_policy_3d.policy.dp3.DP3",
            "use_point_crop": True,
            "condition_type": "film",
            "use_down_condition": True,
            "use_mid_condition": True,
            "use_up_condition": True,
            "crop_shape": [80, 80],
            "encoder_output_dim": 16,
            "noise_scheduler": {**DDIM, "prediction_type": "sample"},
            "num_inference_steps": 5,
            "obs_as_global_cond": True,
            "use_pc_color": False,
            "pointnet_type": "pointnet",
            "pointcloud_encoder_cfg": {
                "in_channels": 3,
                "out_channels": 16,
                "use_layernorm": True,
                "final_norm": "layernorm",
                "normal_channel": False,
            },
        }
        | values,
    )


def umi(side: int, **encoder: Any) -> dict[str, Any]:
    """Features have horizons of their own, and one is ignored."""
    obs = {
        "robot0_eef_pos": {**low_dim(3), "horizon": 3, "ignore_by_policy": False},
        "camera1_rgb": {"shape": [3, side, side], "type": "rgb", "horizon": 1},
        "camera0_rgb": {"shape": [3, side, side], "type": "rgb", "horizon": 2},
        "robot0_gripper_width": {**low_dim(1), "horizon": 2, "ignore_by_policy": False},
        "robot0_wrist": {**low_dim(6), "horizon": 2, "ignore_by_policy": True},
    }
    meta = {"obs": obs, "action": {"shape": [2], "horizon": 8}}
    return policy(
        "diffusion_unet_timm_policy.DiffusionUnetTimmPolicy",
        obs,
        **UNET,
        **{"shape_meta": meta, "noise_scheduler": DDIM, "num_inference_steps": 5},
        obs_as_global_cond=True,
        cond_predict_scale=True,
        input_pertub=0.1,
        train_diffusion_n_samples=1,
        obs_encoder={
            "_target_": "diffusion_policy.model.vision.timm_obs_encoder.TimmObsEncoder",
            "shape_meta": meta,
            "model_name": "resnet18.a1_in1k",
            "pretrained": False,
            "frozen": False,
            "global_pool": "",
            "feature_aggregation": "attention_pool_2d",
            "position_encording": "sinusoidal",
            "downsample_ratio": 32,
            "transforms": [
                {"type": "RandomCrop", "ratio": 0.95},
                {"_target_": "torchvision.transforms.ColorJitter", "brightness": 0.3, "hue": 0.08},
            ],
            "use_group_norm": True,
            "share_rgb_model": True,
            "imagenet_norm": True,
            **encoder,
        },
    )


_TWO = {"front": FRAME, "pos": low_dim(3), "a_wrist": FRAME}
_ONE = {"agent_pos": low_dim(2), "image": FRAME}
CASES: dict[str, dict[str, Any]] = {
    "hybrid": hybrid(_TWO),
    "hybrid-ddim": hybrid(
        _ONE,
        crop_shape=None,
        obs_encoder_group_norm=False,
        eval_fixed_crop=False,
        noise_scheduler=DDIM,
        num_inference_steps=8,
    ),
    "hybrid-inpainting": hybrid(_ONE, obs_as_global_cond=False, crop_shape=[36, 44]),
    "transformer": transformer(_ONE),
    "transformer-actions": transformer(_ONE, causal_attn=False, n_cond_layers=1, pred_action_steps_only=True),
    "image": image(_TWO),
    "image-shared": image(
        {**_TWO, "a_pos": low_dim(1)},
        resize_shape=None,
        crop_shape=[20, 20],
        random_crop=False,
        share_rgb_model=True,
        imagenet_norm=False,
    ),
    "dp3": dp3([20, 3]),
    "dp3-colours": dp3(
        [20, 6],
        use_pc_color=True,
        pointcloud_encoder_cfg={"in_channels": 6, "out_channels": 16, "use_layernorm": False, "final_norm": "none"},
    ),
    "dp3-uncoloured": dp3([20, 6]),
    "umi-vit": umi(224, model_name="vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"),
    "umi": umi(96),
    "umi-pretrained": umi(64, pretrained=True, downsample_ratio=16, feature_aggregation="avg", transforms=None),
    "umi-embedding": umi(64, downsample_ratio=16, feature_aggregation="spatial_embedding"),
    "umi-attention": umi(64, downsample_ratio=16, feature_aggregation="soft_attention"),
    "umi-max": umi(64, downsample_ratio=16, feature_aggregation="max", share_rgb_model=False),
}
"""The `policy` sections of Diffusion Policy, DP3 and UMI; each has a golden output."""
ROBOMIMIC_CASES: dict[str, dict[str, Any]] = {
    "robomimic": {
        "core_class": "VisualCore",
        "core_kwargs": {
            "feature_dimension": 16,
            "flatten": True,
            "backbone_class": "ResNet18Conv",
            "backbone_kwargs": {"pretrained": False, "input_coord_conv": False},
            "pool_class": "SpatialSoftmax",
            "pool_kwargs": {
                "num_kp": 8,
                "learnable_temperature": False,
                "temperature": 0.5,
                "noise_std": 0.0,
                "output_variance": False,
            },
        },
        "obs_randomizer_class": "CropRandomizer",
        "obs_randomizer_kwargs": {"crop_height": 37, "crop_width": 44, "num_crops": 1, "pos_enc": False},
    },
    "robomimic-defaults": {
        "core_class": "VisualCore",
        "core_kwargs": {},
        "obs_randomizer_class": None,
        "obs_randomizer_kwargs": {},
    },
}
"""The section `observation.encoder.rgb` of robomimic's configurations."""
NETWORKS = {
    "resnet34": 64,
    "resnet50": 64,
    "vit_tiny_patch16_224": 224,
    "vit_small_patch16_224": 224,
    "vit_base_patch16_224": 224,
    "vit_base_patch16_clip_224": 224,
}
"""Networks of torchvision and timm that no case above has, with the side of their frames: each has a golden output."""
ROBOMIMIC_SHAPES = OrderedDict(hand=[3, 40, 48], object=[2], a_view=[3, 40, 48], robot0_eef_pos=[3], unused=[4])
MODALITIES = {"low_dim": ["robot0_eef_pos", "object"], "rgb": ["a_view", "hand"], "depth": [], "scan": []}


def uniform(number: int, shape: Sequence[int]) -> Tensor:
    """Return numbers in −1 … 1 that look random, and are the same everywhere; large tensors repeat."""
    size = math.prod(shape)
    index = torch.arange(min(size, PERIOD), dtype=torch.float64)
    values = (12.9898 * index + 78.233 * (number + 1)).sin_().mul_(43758.5453)
    values = (2 * (values - values.floor()) - 1).float()
    return values.repeat(-(-size // PERIOD))[:size].view(*shape)


def constant(name: str, shapes: Mapping[str, Sequence[int]]) -> Tensor | None:
    """Return a tensor that is no weight; None for a weight."""
    stem, _, last = name.rpartition(".")
    if last == "num_batches_tracked":
        return torch.tensor(7)
    if last == "temperature":
        return torch.ones(1)
    if last in ("pos_x", "pos_y"):
        rows, columns = 2, 2  # of frames of 33 … 64 pixels
        assert shapes[name] == [1, rows * columns]
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        return (x if last == "pos_x" else y).reshape(1, -1)
    if name == "model.mask":
        return torch.full(tuple(shapes[name]), -math.inf).triu(1)
    if name == "model.memory_mask":
        return torch.full(tuple(shapes[name]), -math.inf).triu(2)
    return torch.empty(0) if last == "_dummy_variable" else None


def weight(number: int, name: str, shape: Sequence[int]) -> Tensor:
    """Return a weight at whose size signals neither vanish nor explode."""
    values = uniform(number, shape)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return 1 + 0.3 * values
    return values * (math.sqrt(4 / math.prod(shape[1:])) if len(shape) > 1 else 0.1)


def _twin(name: str) -> str:
    """Return the first name of a tensor that a robomimic encoder lists twice."""
    name = re.sub(r"(obs_nets\.\w+)\.nets\.0\.", r"\1.backbone.", name)
    return re.sub(r"(obs_nets\.\w+)\.nets\.1\.", r"\1.pool.", name)


def state_of(shapes: Mapping[str, Sequence[int]], shared: bool = False) -> "OrderedDict[str, Tensor]":
    """Return a state dict by the names and shapes of a policy's own, tied tensors tied.

    Args:
        shapes: By name.
        shared: Whether UMI's cameras share one network.
    """

    def twin(name: str) -> str:
        return _twin(name.replace("camera1_rgb", "camera0_rgb") if shared and "key_model_map" in name else name)

    state: OrderedDict[str, Tensor] = OrderedDict()
    for number, name in enumerate(sorted(shapes)):
        first = twin(name)
        if name.startswith("normalizer."):
            state[name] = statistic(name, shapes[name])
        elif first == name:
            given = constant(name, shapes)
            state[name] = weight(number, name, shapes[name]) if given is None else given
    return OrderedDict((name, state[twin(name)]) for name in shapes)


def statistic(name: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor of a `LinearNormalizer`; frames become −1 … 1."""
    if list(shape) == [1] and not name.endswith("input_stats.std"):
        return torch.tensor([2.0 if name.endswith("scale") else -1.0])
    return torch.linspace(0.4, 1.3, shape[0]) if name.endswith("scale") else torch.linspace(-0.3, 0.2, shape[0])


def normalizer_shapes(section: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes of the normaliser of a policy, as its data sets fit it."""
    shapes = {}
    for name, meta in {**section["shape_meta"]["obs"], ACTION: section["shape_meta"][ACTION]}.items():
        size = 1 if meta.get("type") == "rgb" else meta["shape"][-1]
        for part in ("offset", "scale", *(f"input_stats.{each}" for each in ("max", "mean", "min", "std"))):
            shapes[f"normalizer.params_dict.{name}.{part}"] = [size]
    return shapes


def is_shared(case: str) -> bool:
    """Return whether UMI's cameras share one network."""
    return case.startswith("umi") and CASES[case]["obs_encoder"]["share_rgb_model"]


def network_frames(name: str) -> Tensor:
    """Return what a network of `NETWORKS` is shown."""
    side = NETWORKS[name]
    return uniform(9, (2, 3, side, side))


def golden_shapes(case: str) -> dict[str, list[int]]:
    """Return the names and shapes of a policy's state dict, as its own library has them."""
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["shapes"])[case]


def history(obs: Mapping[str, Mapping[str, Any]], steps: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return observations [ROWS, steps, …]: frames uint8 with colours last, all else float32."""
    seen = {}
    for number, (name, meta) in enumerate(obs.items()):
        values = uniform(100 + number, (ROWS, steps, *meta["shape"]))
        if meta.get("type") == "rgb":
            seen[name] = np.moveaxis(((values + 1) * 127.5).round().numpy().astype(np.uint8), 2, -1).copy()
        else:
            seen[name] = 1.5 * values.numpy()
    return seen


def workspace(case: str) -> dict[str, Any]:
    """Return what a training workspace saves."""
    return {
        "cfg": {"name": "train", "policy": CASES[case], "training": {"use_ema": True}},
        "state_dicts": {"ema_model": state_of(golden_shapes(case), is_shared(case))},
        "pickles": {},
    }


def robomimic_observations() -> dict[str, Any]:
    """Return the observed features by name, in the order of `ROBOMIMIC_SHAPES`."""
    observed = [*MODALITIES["low_dim"], *MODALITIES["rgb"]]
    return {
        name: {"shape": shape, "type": "rgb" if name in MODALITIES["rgb"] else "low_dim"}
        for name, shape in ROBOMIMIC_SHAPES.items()
        if name in observed
    }


def robomimic_config(case: str) -> dict[str, Any]:
    """Return robomimic's configuration of a policy with cameras."""
    config = files.robomimic()["config"]
    config["train"]["hdf5_normalize_obs"] = False
    config["observation"]["modalities"]["obs"] = MODALITIES
    config["observation"]["encoder"]["rgb"] = ROBOMIMIC_CASES[case]
    return config


def robomimic_state(case: str, shapes: Mapping[str, Sequence[int]]) -> "OrderedDict[str, Tensor]":
    """Return the state dict of a policy of robomimic."""
    temperature = ROBOMIMIC_CASES[case]["core_kwargs"].get("pool_kwargs", {}).get("temperature", 1.0)
    state = state_of(shapes)
    return OrderedDict(
        (name, torch.full((1,), temperature) if name.endswith("temperature") else value)
        for name, value in state.items()
    )


def robomimic(case: str) -> dict[str, Any]:
    """Return what robomimic saves of a policy with cameras."""
    return robomimic_payload(case, robomimic_state(case, golden_shapes(case)))


def robomimic_payload(case: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what robomimic saves of a policy with cameras, with given weights."""
    payload = files.robomimic(
        config=robomimic_config(case),
        model={"nets": state, "ema": state, "optimizers": {}, "lr_schedulers": {}},
        shape_metadata={
            "ac_dim": files.ACTION_DIM,
            "all_shapes": ROBOMIMIC_SHAPES,
            "all_obs_keys": list(ROBOMIMIC_SHAPES),
            "use_images": True,
        },
        variable_state={"epoch": 3},
    )
    for name in ("obs_normalization_stats", "action_normalization_stats"):
        del payload[name]
    return payload


def observations(case: str) -> dict[str, Any]:
    """Return the features that a policy looks at, with their shapes and types."""
    if case in ROBOMIMIC_CASES:
        return robomimic_observations()
    obs = CASES[case]["shape_meta"]["obs"]
    return {name: meta for name, meta in obs.items() if not meta.get("ignore_by_policy")}


def save(folder: Path, case: str) -> Path:
    """Write a checkpoint."""
    if case in ROBOMIMIC_CASES:
        return files.save_robomimic(folder / "model.pth", robomimic(case))
    torch.save(workspace(case), folder / "latest.ckpt")
    return folder / "latest.ckpt"


def without_weights(case: str) -> dict[str, Any]:
    """Return what a checkpoint holds beside its weights, nothing in it shared."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    if case in ROBOMIMIC_CASES:
        state["policy.noise_pred_net.none"] = torch.zeros(1)  # an empty state dict is refused before all else
        payload = json.loads(json.dumps(robomimic_payload(case, {})))
        return {**payload, "model": {"nets": state, "ema": state, "optimizers": {}, "lr_schedulers": {}}}
    policy = json.loads(json.dumps(CASES[case]))
    return {
        "cfg": {"policy": policy, "training": {"use_ema": True}},
        "state_dicts": {"ema_model": state},
        "pickles": {},
    }


@cache
def half_state(case: str) -> Mapping[str, Tensor]:
    """Return the state dict of a workspace's policy in half precision; tensors that were tied are not."""
    return {
        name: value.half() if value.dtype == torch.float32 and not name.endswith(("pos_x", "pos_y")) else value
        for name, value in workspace(case)["state_dicts"]["ema_model"].items()
    }


def halves(case: str) -> dict[str, Any]:
    """Return a workspace's checkpoint in half precision, which is faster to write."""
    payload = without_weights(case)
    payload["state_dicts"]["ema_model"] = OrderedDict(half_state(case))
    return payload


def save_halves(folder: Path, case: str) -> Path:
    """Write a workspace's checkpoint in half precision."""
    torch.save(halves(case), folder / "latest.ckpt")
    return folder / "latest.ckpt"
