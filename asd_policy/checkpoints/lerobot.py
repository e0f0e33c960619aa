"""LeRobot diffusion folders: config.json, model.safetensors and the processor files, read and written.

The format is that of lerobot 0.4 (`PreTrainedPolicy.save_pretrained` and `PolicyProcessorPipeline.save_pretrained`);
nothing of lerobot is imported, and nothing but JSON and safetensors is read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asd_policy.chain import GaussianChain
from asd_policy.checkpoints.weights import load_weights
from asd_policy.errors import CheckpointError
from asd_policy.files import atomic_folder, write_json
from asd_policy.models.unet import ConditionalUnet1d, UnetConfig
from asd_policy.normalize import Affine, make_affine
from asd_policy.policy import ENVIRONMENT_STATE, STATE, Horizons, Policy
from asd_policy.samplers import Sampler

ACTION = "action"
UNET_PREFIX = "diffusion.unet."

Statistics = dict[str, dict[str, Tensor]]
"""Feature name → statistic name (`min`, `max`, `mean`, `std`) → tensor [feature_dim]."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The fields of LeRobot's `DiffusionConfig` that decide what a state-based policy computes."""

    input_dims: dict[str, int]
    """Length of each observation feature, by LeRobot's name, in the order the network reads them."""
    action_dim: int
    normalization_mapping: dict[str, str]
    """Feature type (STATE, ENV, ACTION) → mode; a type that is absent is not normalised."""
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    use_film_scale_modulation: bool = True
    noise_scheduler_type: str = "DDPM"
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    num_inference_steps: int | None = None

    @property
    def unet(self) -> UnetConfig:
        """The network's sizes."""
        return UnetConfig(
            action_dim=self.action_dim,
            cond_dim=self.n_obs_steps * sum(self.input_dims.values()),
            down_dims=self.down_dims,
            kernel_size=self.kernel_size,
            n_groups=self.n_groups,
            diffusion_step_embed_dim=self.diffusion_step_embed_dim,
            use_film_scale_modulation=self.use_film_scale_modulation,
        )

    @property
    def scheduler(self) -> dict[str, Any]:
        """The noise scheduler's configuration in diffusers' words."""
        names = "num_train_timesteps beta_schedule beta_start beta_end prediction_type clip_sample clip_sample_range"
        return {"_class_name": f"{self.noise_scheduler_type}Scheduler"} | {
            name: getattr(self, name) for name in names.split()
        }

    def mode_of(self, feature: str) -> str:
        """Return how a feature is normalised: MIN_MAX, MEAN_STD or IDENTITY."""
        return self.normalization_mapping.get(_FEATURE_TYPES[feature], "IDENTITY")


_FEATURE_TYPES = {STATE: "STATE", ENVIRONMENT_STATE: "ENV", ACTION: "ACTION"}
_PLAIN_FIELDS = [f for f in fields(DiffusionConfig) if f.name not in ("input_dims", "action_dim")]


def is_lerobot(folder: Path) -> bool:
    """Return whether a folder holds a LeRobot policy of the diffusion type."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("type") == "diffusion"


def load_lerobot(folder: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a state-based LeRobot diffusion policy.

    Args:
        folder: With config.json, model.safetensors and the processor files of lerobot ≥ 0.4.
        sampler: How to plan.
        device: Where to plan.

    Raises:
        CheckpointError: A file is missing or malformed, or the tensors do not fit the configuration.
        ChainError: The noise scheduler is not one that can be sampled here.
        SpecError: The sampler's options do not fit the chain.
    """
    config = _parse_config(_read_json(folder / "config.json"))
    chain = GaussianChain.from_scheduler(config.scheduler, config.num_inference_steps)
    network = _load_unet(config.unet, _read_tensors(folder / "model.safetensors"))
    before = _read_statistics(folder, "policy_preprocessor.json", "normalizer_processor")
    after = _read_statistics(folder, "policy_postprocessor.json", "unnormalizer_processor")

    def affine(statistics: Statistics, feature: str, dim: int) -> Affine:
        return make_affine(config.mode_of(feature), statistics.get(feature, {}), feature, dim)

    return Policy(
        denoiser=network.to(device),
        chain=chain,
        sampler=sampler,
        horizons=Horizons(config.n_obs_steps, config.horizon, config.n_action_steps),
        observation={name: affine(before, name, dim) for name, dim in config.input_dims.items()},
        action=affine(after, ACTION, config.action_dim),
        device=device,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: No such file")
    try:
        return load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _parse_config(raw: dict[str, Any]) -> DiffusionConfig:
    """Check the fields that matter one by one; what else LeRobot keeps in the file is not looked at."""
    inputs, outputs = raw.get("input_features"), raw.get("output_features")
    if not isinstance(inputs, dict) or not isinstance(outputs, dict):
        raise CheckpointError("config.json has no input_features and output_features")
    if ACTION not in outputs or STATE not in inputs:
        raise CheckpointError(
            f"config.json needs {STATE!r} among input_features and {ACTION!r} among output_features; "
            f"it has {sorted(inputs)} and {sorted(outputs)}"
        )
    unknown = [name for name in inputs if name not in (STATE, ENVIRONMENT_STATE)]
    if unknown:
        raise CheckpointError(
            f"the policy observes {', '.join(unknown)}; only {STATE} and {ENVIRONMENT_STATE} can be read here "
            "(a policy with images needs lerobot itself)"
        )
    values: dict[str, Any] = {}
    for spec in _PLAIN_FIELDS:
        if spec.name in raw:
            values[spec.name] = _parse_field(spec.name, raw[spec.name], spec.default)
    config = DiffusionConfig(
        input_dims={name: _dim(name, inputs[name]) for name in (STATE, ENVIRONMENT_STATE) if name in inputs},
        action_dim=_dim(ACTION, outputs[ACTION]),
        **values,
    )
    longest = config.horizon - config.n_obs_steps + 1
    problem = config.unet.problem(config.horizon) or (
        f"n_action_steps {config.n_action_steps} is not in 1 … {longest} (horizon − n_obs_steps + 1)"
        if config.n_action_steps > longest
        else None
    )
    if problem:
        raise CheckpointError(f"config.json: {problem}")
    return config


def _parse_field(name: str, value: Any, default: Any) -> Any:
    """Return a field's value, checked to be of the kind of its default; counts are positive."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if name == "num_inference_steps":
        valid, kind = value is None or is_count, "null or a positive integer"
    elif name == "normalization_mapping":
        valid = isinstance(value, dict) and all(isinstance(mode, str) for mode in value.values())
        kind = "an object of names"
    elif name == "down_dims":
        valid = isinstance(value, list) and value and all(isinstance(v, int) and v > 0 for v in value)
        kind, value = "a list of positive integers", tuple(value) if isinstance(value, list) else value
    elif isinstance(default, bool):
        valid, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        valid, kind = is_count, "a positive integer"
    elif isinstance(default, float):
        valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        kind = "a finite number"
    else:
        valid, kind = isinstance(value, str), "a string"
    if not valid:
        raise CheckpointError(f"config.json: {name} {value!r} is not {kind}")
    return value


def _dim(feature: str, entry: Any) -> int:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not (isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > 0):
        raise CheckpointError(f"config.json: shape {shape!r} of {feature!r} is not a list of one positive integer")
    return shape[0]


def _load_unet(config: UnetConfig, tensors: dict[str, Tensor]) -> ConditionalUnet1d:
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(UNET_PREFIX)}
    return load_weights(
        lambda: ConditionalUnet1d(config), weights, lambda key: UNET_PREFIX + key, "model.safetensors", "config.json"
    )


def _read_statistics(folder: Path, name: str, registry_name: str) -> Statistics:
    """Return the statistics that a processor pipeline's (un)normaliser step keeps beside it."""
    path = folder / name
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: normalisation statistics are read from the processor files of lerobot 0.4 and later"
        )
    steps = _read_json(path).get("steps")
    if not isinstance(steps, list):
        raise CheckpointError(f"{path} has no list of steps")
    entry = next((s for s in steps if isinstance(s, dict) and s.get("registry_name") == registry_name), None)
    state_file = entry.get("state_file") if entry else None
    if not isinstance(state_file, str):
        raise CheckpointError(f"{path} has no step {registry_name!r} with a state_file")
    if Path(state_file).name != state_file:
        raise CheckpointError(f"{path}: state_file {state_file!r} is not a plain file name")
    statistics: Statistics = {}
    for key, value in _read_tensors(folder / state_file).items():
        feature, _, statistic = key.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = value
    return statistics


def save_lerobot(
    folder: Path,
    config: DiffusionConfig,
    unet: Mapping[str, Tensor],
    statistics: Statistics,
    notes: Mapping[str, Any],
) -> None:
    """Write a LeRobot diffusion folder, atomically.

    Args:
        folder: Where; an older folder there is replaced when the new one is complete.
        config: The policy's configuration.
        unet: State dict of `ConditionalUnet1d`, stored in the dtype it has.
        statistics: Normalisation statistics of every feature.
        notes: What to keep beside it in training.json (command, seed, data …).
    """
    shapes = {
        name: {"type": _FEATURE_TYPES[name], "shape": [dim]}
        for name, dim in [*config.input_dims.items(), (ACTION, config.action_dim)]
    }
    inputs = {name: shapes[name] for name in config.input_dims}
    outputs = {ACTION: shapes[ACTION]}
    plain = {spec.name: getattr(config, spec.name) for spec in _PLAIN_FIELDS}
    state = {f"{feature}.{name}": t for feature, by_name in statistics.items() for name, t in by_name.items()}

    def pipeline(name: str, steps: list[tuple[str, dict[str, Any]]]) -> None:
        entries = []
        for index, (registry_name, step_config) in enumerate(steps):
            entry: dict[str, Any] = {"registry_name": registry_name, "config": step_config}
            if registry_name.endswith("normalizer_processor"):
                entry["state_file"] = f"{name}_step_{index}_{registry_name}.safetensors"
                save_file(state, temporary / entry["state_file"])
            entries.append(entry)
        write_json(temporary / f"{name}.json", {"name": name, "steps": entries})

    def normalizer(features: Mapping[str, Any]) -> dict[str, Any]:
        return {"eps": 1e-8, "features": features, "norm_map": config.normalization_mapping}

    device = {"device": "cpu", "float_dtype": None}
    with atomic_folder(folder) as temporary:
        write_json(
            temporary / "config.json",
            {"type": "diffusion", "input_features": inputs, "output_features": outputs, "device": "cpu"} | plain,
        )
        save_file({UNET_PREFIX + key: value.contiguous() for key, value in unet.items()},
                  temporary / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
        pipeline(
            "policy_preprocessor",
            [
                ("rename_observations_processor", {"rename_map": {}}),
                ("to_batch_processor", {}),
                ("device_processor", device),
                ("normalizer_processor", normalizer(shapes)),
            ],
        )
        pipeline(
            "policy_postprocessor",
            [("unnormalizer_processor", normalizer(outputs)), ("device_processor", device)],
        )
        write_json(temporary / "training.json", dict(notes))
