"""How a live LeRobot policy normalises: by its processors since 0.4, before that by modules inside of it."""

from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError, SpecError
from asd_policy.policy.adapters.base import qualified
from asd_policy.policy.normalisation import EPSILON, Affine, make_affine

ACTION = "action"
IDENTITY = "IDENTITY"
_MODULE = "lerobot.processor"
_NORMALIZER = f"{_MODULE}.normalize_processor.NormalizerProcessorStep"
_UNNORMALIZER = f"{_MODULE}.normalize_processor.UnnormalizerProcessorStep"
_RENAME = f"{_MODULE}.rename_processor.RenameObservationsProcessorStep"
_DEVICE = f"{_MODULE}.device_processor.DeviceProcessorStep"
_NEUTRAL = (_RENAME, _DEVICE, f"{_MODULE}.batch_processor.AddBatchDimensionProcessorStep")
"""Steps that only move and reshape; any other may compute something that the policy needs."""
TOKENIZER = f"{_MODULE}.tokenizer_processor.TokenizerProcessorStep"
"""The step that makes token numbers of a task."""


def live_normalization(
    policy: Any, processors: Any, shapes: Mapping[str, tuple[int, ...]], beside: tuple[str, ...] = ()
) -> dict[str, Affine]:
    """Read how the features of a live policy are normalised.

    Args:
        policy: The live one.
        processors: Its preprocessor and postprocessor; None for the policy's own units.
        shapes: Of its features, `ACTION` among them.
        beside: Steps of the processors, by class, that make other features.

    Returns:
        The map of each feature, the identity where nothing normalises it.

    Raises:
        SpecError: The processors do something else than normalise, or are missing where frames are normalised.
    """
    if processors is not None:
        return _of_processors(processors, shapes, (*_NEUTRAL, *beside))
    if hasattr(policy, "normalize_inputs"):
        return _of_modules(policy, shapes)
    modes = {_name(kind): _name(mode) for kind, mode in policy.config.normalization_mapping.items()}
    cameras = [name for name, shape in shapes.items() if len(shape) == 3]
    if cameras and modes.get("VISUAL", IDENTITY) != IDENTITY:
        raise SpecError(
            f"frames of {', '.join(cameras)} are normalised by {modes['VISUAL']} outside of this "
            f"{type(policy).__name__}: give processors=(preprocessor, postprocessor), as LeRobot's "
            "make_pre_post_processors returns them"
        )
    return {name: _affine(IDENTITY, {}, name, shape) for name, shape in shapes.items()}


def _of_processors(
    processors: Any, shapes: Mapping[str, tuple[int, ...]], neutral: tuple[str, ...]
) -> dict[str, Affine]:
    try:
        before, after = (list(each.steps) for each in processors)
    except (TypeError, ValueError, AttributeError):
        raise SpecError(
            "processors are not (preprocessor, postprocessor), two pipelines with steps, as LeRobot's "
            "make_pre_post_processors returns them"
        ) from None
    inputs = _of_step(_only(before, _NORMALIZER, neutral), {name: shapes[name] for name in shapes if name != ACTION})
    return inputs | _of_step(_only(after, _UNNORMALIZER, neutral), {ACTION: shapes[ACTION]})


def _only(steps: list[Any], wanted: str, neutral: tuple[str, ...]) -> Any:
    """Find the one step that normalises, after a check of all others."""
    names = [qualified(type(step)) for step in steps]
    for name, step in zip(names, steps, strict=True):
        if name != wanted and name not in neutral:
            known = ", ".join(each.rpartition(".")[2] for each in (wanted, *neutral))
            raise SpecError(f"the processors have a step {name}, which is not known here; known are {known}")
        if name == _RENAME and step.rename_map:
            raise SpecError(f"the processors rename observations, which is not done here: {step.rename_map}")
        if name == _DEVICE and step.float_dtype not in (None, "float32"):
            raise SpecError(f"the processors convert to {step.float_dtype!r}; only float32 is computed with here")
    if names.count(wanted) != 1:
        raise SpecError(f"the processors have {names.count(wanted)} steps {wanted.rpartition('.')[2]}, not one")
    return steps[names.index(wanted)]


def _of_step(step: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Affine]:
    """Read a step's maps: LeRobot hands on what has no feature, no mode or no statistics there."""
    if step.eps != EPSILON:
        raise SpecError(f"the processors normalise with eps {step.eps}, not LeRobot's own {EPSILON}")
    statistics: dict[str, dict[str, Any]] = {}
    for key, value in step.state_dict().items():
        feature, _, name = key.rpartition(".")
        statistics.setdefault(feature, {})[name] = value
    modes = {_name(kind): _name(mode) for kind, mode in step.norm_map.items()}
    maps = {}
    for name, shape in shapes.items():
        known = name in step.features and name in statistics
        if name != ACTION and step.normalize_observation_keys is not None:
            known = known and name in step.normalize_observation_keys
        mode = modes.get(_name(step.features[name].type), IDENTITY) if known else IDENTITY
        maps[name] = _affine(mode, statistics.get(name, {}), name, shape)
    return maps


def _of_modules(policy: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Affine]:
    """Read the statistics that LeRobot before 0.4 keeps in its modules `normalize_inputs` and `unnormalize_outputs`."""
    tensors = policy.state_dict()
    config = policy.config
    features = {**config.input_features, **config.output_features}
    modes = {_name(kind): _name(mode) for kind, mode in config.normalization_mapping.items()}
    maps = {}
    for name, shape in shapes.items():
        module = "unnormalize_outputs" if name == ACTION else "normalize_inputs"
        prefix = f"{module}.buffer_{name.replace('.', '_')}."
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        maps[name] = _affine(modes.get(_name(features[name].type), IDENTITY), found, name, shape)
    return maps


def _affine(mode: str, statistics: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Affine:
    """Make the map of a feature; of a frame that of its colours, whose statistics are [3, 1, 1]."""
    flat = {key: value.flatten().cpu() for key, value in statistics.items() if key != "count"}
    try:
        return make_affine(mode, flat, name, shape[0])
    except CheckpointError as error:
        raise SpecError(str(error)) from None


def _name(kind: Any) -> str:
    """The name of a member of one of LeRobot's enumerations, or of what stands for it."""
    return str(getattr(kind, "value", kind))
