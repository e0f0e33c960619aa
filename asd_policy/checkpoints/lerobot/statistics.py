"""LeRobot's normalisation statistics: in the files of its processors since 0.4, before that among the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asd_policy.checkpoints.lerobot.config import ACTION, IDENTITY, DiffusionConfig, as_object, check_types
from asd_policy.checkpoints.untrusted.reading import read_json, read_tensors
from asd_policy.errors import CheckpointError
from asd_policy.policy.normalisation import EPSILON, Affine, make_affine

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
WEIGHTS = "model.safetensors"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"

Statistics = dict[str, dict[str, Tensor]]
"""Feature name → statistic name (`min`, `max`, `mean`, `std`) → tensor [feature_dim]."""

# Steps that only move and reshape; any other may compute something that the policy needs.
_NEUTRAL_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")
_NORMALIZER_OPTIONS = ("eps", "features", "norm_map", "normalize_observation_keys")
_OPTIONS = {
    "rename_observations_processor": ("rename_map",),
    "to_batch_processor": (),
    "device_processor": ("device", "float_dtype"),
    NORMALIZER: _NORMALIZER_OPTIONS,
    UNNORMALIZER: _NORMALIZER_OPTIONS,
}
"""Options of each step, LeRobot 0.4 … 0.6; another may make it compute something else."""


@dataclass(frozen=True)
class Normalization:
    """The normalisation of a policy's features."""

    observation: dict[str, Affine]
    """By feature that is a vector, in the order the network reads them."""
    colours: dict[str, Affine]
    """By camera."""
    action: Affine


def read_normalization(folder: Path, config: DiffusionConfig, tensors: dict[str, Tensor]) -> Normalization:
    """Read how a checkpoint normalises.

    lerobot before 0.4 widened every range by 1e-8, and later versions widen a range only if it is zero; like LeRobot's
    own migration (lerobot/processor/migrate_policy_normalization.py) this uses the old statistics in the new way.

    Args:
        folder: The checkpoint.
        config: Its configuration.
        tensors: What model.safetensors holds.

    Raises:
        CheckpointError: Statistics are missing or broken, or the processors do something else than normalise.
    """
    inputs = [*config.input_dims, *config.vision.cameras]
    if (folder / PREPROCESSOR).exists():
        before = _from_processor(folder, PREPROCESSOR, NORMALIZER, config, inputs)
        after = _from_processor(folder, POSTPROCESSOR, UNNORMALIZER, config, [ACTION])
    else:
        before = _from_buffers(tensors, "normalize_inputs", inputs)
        after = _from_buffers(tensors, "unnormalize_outputs", [ACTION])
        for feature in (before | after).keys():
            if config.mode_of(feature) == IDENTITY:  # for which LeRobot makes no buffers
                raise CheckpointError(
                    f"{WEIGHTS} has statistics of {feature!r}, which config.json does not normalise: its mode is "
                    "missing in normalization_mapping"
                )
        if not before and not after:
            raise CheckpointError(
                f"{folder / PREPROCESSOR} is missing: normalisation statistics are read from the processor files of "
                "lerobot 0.4 and later, or from buffers such as 'unnormalize_outputs.buffer_action.min' of earlier "
                "versions in model.safetensors; there are neither"
            )

    def affine(statistics: Statistics, feature: str, dim: int) -> Affine:
        return make_affine(config.mode_of(feature), statistics.get(feature, {}), feature, dim)

    return Normalization(
        {name: affine(before, name, dim) for name, dim in config.input_dims.items()},
        {
            name: make_affine(config.mode_of(name), _colours(before.get(name, {}), name), name, 3)
            for name in config.vision.cameras
        },
        affine(after, ACTION, config.action_dim),
    )


def _colours(statistics: dict[str, Tensor], camera: str) -> dict[str, Tensor]:
    """Bring the statistics of frames, one for each colour, from LeRobot's [3, 1, 1] to [3]."""
    for name in ("min", "max", "mean", "std"):
        if name in statistics and tuple(statistics[name].shape) != (3, 1, 1):
            shape = tuple(statistics[name].shape)
            raise CheckpointError(f"statistic {name!r} of {camera!r} has shape {shape}, not (3, 1, 1)")
    return {name: value.flatten() for name, value in statistics.items()}


def _from_buffers(tensors: dict[str, Tensor], module: str, features: list[str]) -> Statistics:
    """Read the statistics that lerobot before 0.4 kept as parameters of its modules `Normalize`, `Unnormalize`."""
    statistics: Statistics = {}
    for feature in features:
        prefix = f"{module}.buffer_{feature.replace('.', '_')}."
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            statistics[feature] = found
    return statistics


def _from_processor(folder: Path, name: str, step: str, config: DiffusionConfig, features: list[str]) -> Statistics:
    """Read the statistics that a processor pipeline's step keeps beside it, after a check of all its steps."""
    path = folder / name
    steps = read_json(folder, name).get("steps")
    if not isinstance(steps, list):
        raise CheckpointError(f"{path} has no list of steps")
    entries = [as_object(entry) for entry in steps]
    names = [entry.get("registry_name") for entry in entries]
    if names.count(step) != 1:
        raise CheckpointError(f"{path} has no step {step!r}, or several; its steps are {names}")
    unknown = [other for other in names if other != step and other not in _NEUTRAL_STEPS]
    if unknown:
        raise CheckpointError(
            f"{path} has a step {unknown[0]!r}, which is not known here; known are {', '.join((step, *_NEUTRAL_STEPS))}"
        )
    for registered, entry in zip(names, entries, strict=True):
        _check_options(path, str(registered), as_object(entry.get("config")))
    entry = entries[names.index(step)]
    _check_agreement(path, as_object(entry.get("config")), config, features)
    state_file = entry.get("state_file")
    if not isinstance(state_file, str):
        raise CheckpointError(f"{path} has no step {step!r} with a state_file")
    if Path(state_file).name != state_file:
        raise CheckpointError(f"{path}: state_file {state_file!r} is not a plain file name")
    statistics: Statistics = {}
    for key, value in read_tensors(folder, state_file).items():
        feature, _, statistic = key.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = value
    return statistics


def _check_options(path: Path, step: str, options: dict[str, Any]) -> None:
    """Refuse options of a step that change what a policy computes, and those that are not known."""
    if options.get("rename_map"):
        raise CheckpointError(f"{path} renames observations, which is not done here: {options['rename_map']}")
    if options.get("float_dtype") not in (None, "float32"):
        raise CheckpointError(f"{path}: float_dtype {options['float_dtype']!r} of {step} is not null or 'float32'")
    for name in options:
        if name not in _OPTIONS[step]:
            known = ", ".join(_OPTIONS[step]) or "none"
            raise CheckpointError(f"{path}: the option {name!r} of {step} is not known here; known are {known}")


def _check_agreement(path: Path, options: dict[str, Any], config: DiffusionConfig, features: list[str]) -> None:
    """Refuse a normaliser that normalises otherwise than config.json says."""
    mapping = as_object(options.get("norm_map", config.normalization_mapping))
    only = options.get("normalize_observation_keys")
    for feature in features:
        said, mode = config.mode_of(feature), config.mode_of(feature, mapping)
        if isinstance(only, list) and feature != ACTION and feature not in only:
            mode = "IDENTITY"
        if mode != said:
            raise CheckpointError(f"{path} normalises {feature!r} by {mode!r}, config.json by {said!r}")
    if options.get("eps", EPSILON) != EPSILON:
        raise CheckpointError(f"{path}: eps {options['eps']!r} is not {EPSILON}, LeRobot's own")
    if not isinstance(options.get("norm_map"), dict):
        raise CheckpointError(f"{path} has no norm_map, an object of normalisation modes by type of feature")
    check_types(mapping, f"norm_map of {path}")
    described = as_object(options.get("features"))
    for feature in features:
        if config.mode_of(feature) != IDENTITY and feature not in described:
            raise CheckpointError(
                f"{path} has no {feature!r} among its features ({', '.join(described) or 'none'}): LeRobot would not "
                f"normalise it, and config.json says {config.mode_of(feature)!r}"
            )
        said, wanted = as_object(described.get(feature)), {**config.features[0], **config.features[1]}[feature]
        if feature in described and any(said.get(key) != value for key, value in wanted.items()):
            raise CheckpointError(f"{path} takes {feature!r} for {said}, config.json for {wanted}")
