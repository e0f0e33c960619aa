"""Writes checkpoints as the training code of diffusion_policy and robomimic does, without either installed.

`golden/networks.safetensors` has what their own networks and policies compute, on the weights, inputs and noise
of `fill`: for each case `<case>/output`, its network's output at timesteps 0, 3 and 9, and `<case>/chunk` and
`<case>/actions`, its policy's `predict_action` with each of its random draws, in their order, taken from the tape. Its
metadata has the names and shapes of each network's state dict. It was made with real-stanford/diffusion_policy (commit
5ba07ac) and ARISE-Initiative/robomimic (0.5, commit d309eae), whose classes were built from the configurations here, on
torch 2.13 and diffusers 0.42 (CPU). robomimic's has no `chunk`, as its policy does not run without its data sets.

`golden/omegaconf-2.2.3.ckpt` is what a workspace saves, by dill 0.3.5.1 in a program of hydra 1.3.2: the resolved
configuration with the `policy` section `CASES["unet"]`, where `horizon` was `${horizon}` and `model.input_dim` an
`${eval:…}`, and with run folders by hydra's `${now:…}`; in the place of a policy's weights, those of a
`torch.nn.Linear(3, 3)` after one step of AdamW.
"""

import json
import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

OBS_DIM, ACTION_DIM, STEPS = 5, 2, 10
TIMESTEPS = torch.tensor([0, 3, 9])
GOLDEN = Path(__file__).parent / "golden" / "networks.safetensors"
GOLDEN_WORKSPACE = GOLDEN.with_name("omegaconf-2.2.3.ckpt")

SCHEDULER = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "num_train_timesteps": STEPS,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
POLICY = {
    "noise_scheduler": SCHEDULER,
    "horizon": 8,
    "obs_dim": OBS_DIM,
    "action_dim": ACTION_DIM,
    "n_action_steps": 4,
    "n_obs_steps": 2,
    "num_inference_steps": STEPS,
    "pred_action_steps_only": False,
}


def unet(model: Mapping[str, Any], **policy: Any) -> dict[str, Any]:
    """Return the `policy` section of a U-Net policy's configuration."""
    told = policy.get("obs_as_global_cond", False)
    return {
        "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        "model": {
            "_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D",
            "input_dim": ACTION_DIM + (0 if told else OBS_DIM),
            "local_cond_dim": None,
            "global_cond_dim": 2 * OBS_DIM if told else None,
            "diffusion_step_embed_dim": 8,
            "down_dims": [8, 16],
            "kernel_size": 5,
            "n_groups": 8,
            **model,
        },
        **POLICY,
        "obs_as_local_cond": False,
        "obs_as_global_cond": False,
        "oa_step_convention": True,
        **policy,
    }


def transformer(model: Mapping[str, Any], **policy: Any) -> dict[str, Any]:
    """Return the `policy` section of a transformer policy's configuration."""
    told = policy.get("obs_as_cond", False)
    width = ACTION_DIM + (0 if told else OBS_DIM)
    return {
        "_target_": "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
        "model": {
            "_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion",
            "input_dim": width,
            "output_dim": width,
            "horizon": 8,
            "n_obs_steps": 2,
            "cond_dim": OBS_DIM if told else 0,
            "n_layer": 2,
            "n_head": 2,
            "n_emb": 8,
            "p_drop_emb": 0.0,
            "p_drop_attn": 0.3,
            "causal_attn": True,
            "time_as_cond": True,
            "obs_as_cond": told,
            "n_cond_layers": 0,
            **model,
        },
        **POLICY,
        "obs_as_cond": told,
        **policy,
    }


CASES: dict[str, dict[str, Any]] = {
    "unet": unet({"cond_predict_scale": True}, obs_as_global_cond=True),
    "unet-bias": unet({"kernel_size": 3}, obs_as_global_cond=True, oa_step_convention=False),
    "unet-actions": unet({"cond_predict_scale": True}, obs_as_global_cond=True, pred_action_steps_only=True),
    "unet-inpainting": unet({"cond_predict_scale": True}),
    "transformer": transformer({}, obs_as_cond=True),
    "transformer-encoder": transformer({"n_cond_layers": 1, "causal_attn": False}, obs_as_cond=True),
    "transformer-actions": transformer({"causal_attn": False}, obs_as_cond=True, pred_action_steps_only=True),
    "transformer-inpainting": transformer({}),
    "transformer-bert": transformer({"time_as_cond": False}),
}
"""The `policy` sections of configurations; each has a golden output."""


def fill(shapes: Mapping[str, Sequence[int]], scale: float = 0.3) -> dict[str, Tensor]:
    """Return tensors of these shapes that look random, and are the same everywhere; masks are left out."""
    tensors = {}
    for number, name in enumerate(sorted(name for name in shapes if not name.endswith("mask"))):
        index = torch.arange(math.prod(shapes[name]), dtype=torch.float64)
        values = (12.9898 * index + 78.233 * (number + 1)).sin() * 43758.5453
        tensors[name] = (scale * (2 * (values - values.floor()) - 1)).float().view(*shapes[name])
    return tensors


def tape(rows: int, event: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the start of a chain [B, *event] and the noise of its steps [B, STEPS, *event]."""
    noise = fill({"start": (rows, *event), "steps": (rows, STEPS, *event)}, scale=1.7)
    return noise["start"], noise["steps"]


def history() -> Tensor:
    """Return observations [2, n_obs_steps, OBS_DIM]."""
    return fill({"obs": (2, 2, OBS_DIM)}, scale=3.0)["obs"]


def golden_shapes(case: str) -> dict[str, list[int]]:
    """Return the names and shapes of a network's state dict, as its own library has them."""
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["shapes"])[case]


def causal_masks(case: str) -> dict[str, Tensor]:
    """Return the masks in a transformer's state dict: with 8 steps, a timestep and 2 observations."""
    shapes = golden_shapes(case)
    masks = {"mask": torch.full((9, 9), -math.inf).triu(1), "memory_mask": torch.full((8, 3), -math.inf).triu(2)}
    return {name: masks[name][: shapes[name][0], : shapes[name][1]] for name in masks if name in shapes}


def normalizer() -> dict[str, Tensor]:
    """Return a `LinearNormalizer`'s part of a policy's state dict."""
    state = {}
    for field, dim in (("obs", OBS_DIM), ("action", ACTION_DIM)):
        prefix = f"normalizer.params_dict.{field}"
        state[f"{prefix}.offset"] = torch.linspace(-0.5, 0.4, dim)
        state[f"{prefix}.scale"] = torch.linspace(0.3, 1.9, dim)
        for statistic in ("max", "mean", "min", "std"):
            state[f"{prefix}.input_stats.{statistic}"] = torch.linspace(0, 1, dim)
    return state


def state_dict(case: str) -> "OrderedDict[str, Tensor]":
    """Return the state dict of a policy of diffusion_policy."""
    network = {**fill(golden_shapes(case)), **causal_masks(case)}
    empty = {f"{owner}_dummy_variable": torch.empty(0) for owner in ("", "mask_generator.")}
    return OrderedDict({**empty, **{f"model.{name}": value for name, value in network.items()}, **normalizer()})


def workspace(case: str) -> dict[str, Any]:
    """Return what a training workspace saves: a plain configuration, to be wrapped, and state dicts."""
    policy = state_dict(case)
    config = {
        "name": "train",
        "policy": CASES[case],
        "training": {"device": "cuda:0", "use_ema": True},
        "dataloader": {"batch_size": 256, "shuffle": True},
        "logging": {"tags": ["a", "b"], "id": None},
    }
    other = OrderedDict((name, value * 0.5 if name.startswith("model.") else value) for name, value in policy.items())
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    return {
        "cfg": config,
        "state_dicts": {"model": other, "ema_model": policy, "optimizer": optimizer},
        "pickles": {"epoch": pickle.dumps(3)},
    }


def save_workspace(path: Path, payload: dict[str, Any]) -> Path:
    """Write a workspace's checkpoint, its configuration in omegaconf's classes."""
    with stand_ins() as names:
        torch.save({**payload, "cfg": _wrap(payload["cfg"], None, None, names)}, path)
    return path


def robomimic(**changes: Any) -> dict[str, Any]:
    """Return what robomimic saves; `changes` replace entries."""
    policy = {f"policy.noise_pred_net.{name}": value for name, value in fill(golden_shapes("robomimic")).items()}
    config = {
        "algo_name": "diffusion_policy",
        "train": {
            "hdf5_normalize_obs": True,
            "action_keys": ["position", "gripper"],
            "action_config": {"position": {"normalization": "min_max"}, "gripper": {"normalization": None}},
        },
        "algo": {
            "horizon": {"observation_horizon": 2, "action_horizon": 4, "prediction_horizon": 8},
            "unet": {"enabled": True, "diffusion_step_embed_dim": 256, "down_dims": [256, 512, 1024], "n_groups": 8},
            "ema": {"enabled": True, "power": 0.75},
            "ddpm": {
                "enabled": True,
                "num_train_timesteps": STEPS,
                "num_inference_timesteps": STEPS,
                "beta_schedule": "squaredcos_cap_v2",
                "clip_sample": True,
                "prediction_type": "epsilon",
            },
            "ddim": {"enabled": False, "num_train_timesteps": STEPS, "num_inference_timesteps": 5},
        },
        "observation": {
            "modalities": {
                "obs": {"low_dim": ["robot0_eef_pos", "object"], "rgb": [], "depth": [], "scan": []},
                "goal": {"low_dim": [], "rgb": [], "depth": [], "scan": []},
            },
            "encoder": {"low_dim": {"core_class": None, "obs_randomizer_class": None}},
        },
    }
    return {
        "model": {
            "nets": OrderedDict((name, 0.5 * value) for name, value in policy.items()),
            "optimizers": {"policy": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
            "lr_schedulers": {"policy": None},
            "ema": OrderedDict(policy),
        },
        "config": config,
        "algo_name": "diffusion_policy",
        "env_metadata": {"env_name": "Lift", "type": 1, "env_kwargs": {"has_renderer": False}},
        "shape_metadata": {
            "ac_dim": ACTION_DIM,
            "all_shapes": OrderedDict(object=[2], robot0_eef_pos=[3], robot0_joint_pos=[7]),
            "all_obs_keys": ["object", "robot0_eef_pos", "robot0_joint_pos"],
            "use_images": False,
        },
        "variable_state": {"epoch": 3, "best_valid_loss": np.float64(0.25), "best_return": {"Lift": np.zeros(1)}},
        "obs_normalization_stats": {
            "robot0_eef_pos": {"offset": [[0.1, 0.2, 0.3]], "scale": [[1.0, 2.0, 4.0]]},
            "object": {"offset": [[-1.0, 0.0]], "scale": [[0.5, 1.0]]},
        },
        "action_normalization_stats": {
            "gripper": {"offset": [[0.0]], "scale": [[1.0]]},
            "position": {"offset": [[0.5]], "scale": [[3.0]]},
        },
        **changes,
    }


def save_robomimic(path: Path, payload: dict[str, Any]) -> Path:
    """Write a robomimic checkpoint."""
    torch.save({**payload, "config": json.dumps(payload["config"])}, path)
    return path


@contextmanager
def stand_ins() -> Iterator[dict[str, Any]]:
    """Offer classes under the names of omegaconf's and dill's, to be pickled by; they are gone when a file is read."""
    modules = {
        name: ModuleType(name)
        for name in (
            *("omegaconf", "omegaconf.base", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.nodes"),
            *("dill", "dill._dill"),
        )
    }
    made: dict[str, Any] = {}
    for module, name in (
        ("omegaconf.base", "Metadata"),
        ("omegaconf.base", "ContainerMetadata"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("omegaconf.listconfig", "ListConfig"),
        ("omegaconf.nodes", "AnyNode"),
    ):
        made[name] = type(name, (), {"__module__": module})
        setattr(modules[module], name, made[name])

    def _load_type(name: str) -> Any:
        raise AssertionError(f"{name} was loaded")

    _load_type.__module__, _load_type.__qualname__ = "dill._dill", "_load_type"
    setattr(modules["dill._dill"], "_load_type", _load_type)  # noqa: B010  # a module has no such attribute for pyright
    made["dict"] = type("_DictType", (), {"__reduce__": lambda _: (_load_type, ("DictType",))})()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _wrap(value: Any, key: Any, parent: Any, names: Mapping[str, Any]) -> Any:
    """Return omegaconf's node for a plain value; the state is that of omegaconf 2.2."""
    kind = "DictConfig" if isinstance(value, dict) else "ListConfig" if isinstance(value, list) else "AnyNode"
    node = names[kind]()
    metadata = names["Metadata" if kind == "AnyNode" else "ContainerMetadata"]()
    # What resolvers have said, such as hydra's `now`, is kept with the root, by the tuple of their arguments.
    cache = {"now": {("%Y.%m.%d",): "2023.01.16"}} if parent is None else {}
    metadata.__dict__.update(
        ref_type=Any, object_type=names["dict"], optional=True, key=key, flags={}, resolver_cache=cache
    )
    node.__dict__.update(_metadata=metadata, _parent=parent)
    if isinstance(value, dict):
        node.__dict__["_content"] = {name: _wrap(item, name, node, names) for name, item in value.items()}
    elif isinstance(value, list):
        node.__dict__["_content"] = [_wrap(item, index, node, names) for index, item in enumerate(value)]
    else:
        node.__dict__["_val"] = value
    return node


def put(section: Any, way: Sequence[str], value: Any) -> None:
    """Set a value in nested mappings, by the keys on the way to it; Ellipsis removes it."""
    *parents, last = way
    for parent in parents:
        section = section[parent]
    if value is ...:
        del section[last]
    else:
        section[last] = value
