"""LeRobot diffusion folders: config.json, model.safetensors and the processor files, read and written.

Folders are written in the format of lerobot 0.4 (`PreTrainedPolicy.save_pretrained` and
`PolicyProcessorPipeline.save_pretrained`); earlier formats are read too. Nothing of lerobot is imported, and
nothing but JSON and safetensors is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asd_policy._common.files import atomic_folder, write_json
from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.lerobot.config import (
    ACTION,
    IDENTITY,
    PLAIN_FIELDS,
    PLUGIN,
    DiffusionConfig,
    as_object,
    is_diffusion,
    modernize,
    parse_config,
    unknown_fields,
)
from asd_policy.checkpoints.lerobot.statistics import NORMALIZER, UNNORMALIZER, WEIGHTS, Statistics, read_normalization
from asd_policy.checkpoints.lerobot.vision import PREFIX as RGB_PREFIX
from asd_policy.checkpoints.lerobot.vision import camera_notes
from asd_policy.checkpoints.schedule import schedule_of
from asd_policy.checkpoints.untrusted.reading import count_numbers, find_json, read_json, read_shapes, read_tensors
from asd_policy.checkpoints.untrusted.weights import load_weights, stripped_notes, unwrap_names
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import Sensor, SensorEncoder
from asd_policy.samplers import Sampler

__all__ = ["ACTION", "FORMAT", "DiffusionConfig", "Statistics", "load_lerobot", "save_lerobot"]

CONFIG = "config.json"
UNET_PREFIX = "diffusion.unet."
STEMS = ("", "diffusion.", UNET_PREFIX)
HUB_FILES = (CONFIG, WEIGHTS, "policy_*processor*.json", "policy_*processor*.safetensors")


def is_lerobot(folder: Path) -> bool:
    """Tell whether a folder holds a LeRobot policy of the diffusion type."""
    return is_diffusion(find_json(folder, CONFIG))


def describe_lerobot(folder: Path) -> Description:
    """Describe a LeRobot diffusion folder, even one that cannot be loaded here.

    Raises:
        CheckpointError: config.json or model.safetensors cannot be read.
    """
    raw = modernize(read_json(folder, CONFIG))
    shapes, stripped = unwrap_names(read_shapes(folder, WEIGHTS), STEMS)
    inputs, outputs = as_object(raw.get("input_features")), as_object(raw.get("output_features"))
    modes = as_object(raw.get("normalization_mapping"))
    stored: dict[str, Any] = {spec.name: raw[spec.name] for spec in PLAIN_FIELDS if spec.name in raw}
    config = DiffusionConfig(**{"input_dims": {}, "action_dim": 0, "normalization_mapping": {}} | stored)
    return Description(
        network="DiffusionConditionalUnet1d",
        parameters=count_numbers(shapes),
        network_parameters=count_numbers({key: shape for key, shape in shapes.items() if key.startswith(UNET_PREFIX)}),
        observation={name: as_object(entry).get("shape") for name, entry in inputs.items()},
        action={name: as_object(entry).get("shape") for name, entry in outputs.items()},
        horizons={name: getattr(config, name) for name in ("n_obs_steps", "horizon", "n_action_steps")},
        scheduler=config.scheduler,
        num_inference_steps=config.num_inference_steps,
        normalization={
            name: modes.get(str(as_object(entry).get("type")), IDENTITY) for name, entry in (inputs | outputs).items()
        },
        notes=(*_plugin_note(raw), *camera_notes(raw, inputs, shapes), *unknown_fields(raw), *stripped_notes(stripped)),
    )


def _plugin_note(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a note on what the plugin's policy type adds to LeRobot's."""
    if raw.get("type") != PLUGIN:
        return ()
    return (
        f"in LeRobot its plugin plans with the sampler {raw.get('sampler', 'asd')!r}; here the one that is asked for",
    )


def load_lerobot(folder: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a LeRobot diffusion policy, with cameras or without.

    Args:
        folder: As `lerobot` saves it, with statistics in processor files (since 0.4) or among the weights (before).
        sampler: How to plan.
        device: Where to plan.

    Raises:
        CheckpointError: A file is missing or malformed, or the tensors do not fit the configuration.
        ChainError: The noise scheduler is not one that can be sampled here.
        SpecError: The sampler's options do not fit the chain.
    """
    config = parse_config(modernize(read_json(folder, CONFIG)))
    schedule = schedule_of(config.scheduler, config.num_inference_steps)
    tensors, _ = unwrap_names(read_tensors(folder, WEIGHTS), STEMS)
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(UNET_PREFIX)}
    network = load_weights(
        lambda: ConditionalUnet1d(config.unet), weights, lambda key: UNET_PREFIX + key, WEIGHTS, CONFIG
    )
    normalization = read_normalization(folder, config, tensors)
    cameras = config.vision.features(normalization.colours, tensors, WEIGHTS)
    return Policy(
        denoiser=network.to(device),
        chain=schedule.chain,
        sampler=sampler,
        horizons=Horizons(config.n_obs_steps, config.horizon, config.n_action_steps),
        observation=_encoder(normalization.observation, cameras),
        action=normalization.action,
        device=device,
    ).with_law(schedule.law)


def _encoder(vectors: Mapping[str, Affine], cameras: Mapping[str, Sensor]) -> SensorEncoder:
    """Put an encoder together, in LeRobot's order: the robot's state, its cameras, the environment's state."""
    if not cameras:
        return SensorEncoder(vectors)
    return SensorEncoder({STATE: vectors[STATE], **cameras, **vectors})


def save_lerobot(
    folder: Path,
    config: DiffusionConfig,
    unet: Mapping[str, Tensor],
    statistics: Statistics,
    notes: Mapping[str, Any],
    encoders: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a LeRobot diffusion folder, atomically.

    Args:
        folder: Where; an older folder there is replaced when the new one is complete.
        config: The policy's configuration.
        unet: State dict of `ConditionalUnet1d`, stored in the dtype it has.
        statistics: Normalisation statistics of every feature.
        notes: Contents of training.json (command, seed, data …).
        encoders: State dict of the `RgbEncoder` that all cameras share, or of a `ModuleList` of one for each; None
            where there are no cameras.
    """
    inputs, outputs = config.features
    plain = {spec.name: getattr(config, spec.name) for spec in PLAIN_FIELDS} | config.vision.stored
    weights = {UNET_PREFIX + key: value.contiguous() for key, value in unet.items()}
    weights |= {RGB_PREFIX + key: value.contiguous() for key, value in (encoders or {}).items()}
    state = {f"{feature}.{name}": t for feature, by_name in statistics.items() for name, t in by_name.items()}

    def pipeline(name: str, steps: list[tuple[str, dict[str, Any]]]) -> None:
        entries = []
        for index, (registry_name, step_config) in enumerate(steps):
            entry: dict[str, Any] = {"registry_name": registry_name, "config": step_config}
            if registry_name in (NORMALIZER, UNNORMALIZER):
                entry["state_file"] = f"{name}_step_{index}_{registry_name}.safetensors"
                save_file(state, temporary / entry["state_file"])
            entries.append(entry)
        write_json(temporary / f"{name}.json", {"name": name, "steps": entries})

    def normalizer(features: Mapping[str, Any]) -> dict[str, Any]:
        return {"eps": 1e-8, "features": features, "norm_map": config.normalization_mapping}

    device = {"device": "cpu", "float_dtype": None}
    with atomic_folder(folder) as temporary:
        write_json(
            temporary / CONFIG,
            {"type": "diffusion", "input_features": inputs, "output_features": outputs, "device": "cpu"} | plain,
        )
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        pipeline(
            "policy_preprocessor",
            [
                ("rename_observations_processor", {"rename_map": {}}),
                ("to_batch_processor", {}),
                ("device_processor", device),
                (NORMALIZER, normalizer(inputs | outputs)),
            ],
        )
        pipeline(
            "policy_postprocessor",
            [(UNNORMALIZER, normalizer(outputs)), ("device_processor", device)],
        )
        write_json(temporary / "training.json", dict(notes))


FORMAT = Format(is_lerobot, load_lerobot, describe_lerobot, HUB_FILES)
