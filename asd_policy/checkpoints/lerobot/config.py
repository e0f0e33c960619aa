"""LeRobot's config.json of a diffusion policy: the fields that decide what a policy computes."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from asd_policy._common.names import unknown_names, unknown_note, warn_of_unknown
from asd_policy.chain.flow import FLOW_PREDICTION, flow_config
from asd_policy.checkpoints.lerobot.vision import VISION_FIELDS, VISUAL, Vision, as_object, is_count, parse_vision
from asd_policy.errors import CheckpointError
from asd_policy.networks.unet import UnetConfig
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE

ACTION, IDENTITY = "action", "IDENTITY"
FLOW_TYPE = "Flow"
"""The `noise_scheduler_type` of a flow; LeRobot has none."""
MAX_HORIZON = 4096  # [control steps]; nothing in the weights bounds it, and a plan needs memory for all of it

_FEATURE_TYPES = {STATE: "STATE", ENVIRONMENT_STATE: "ENV", ACTION: "ACTION"}
_FIRST_LAYOUT = {"input_shapes", "output_shapes", "num_train_timesteps", "down_dims"}


@dataclass(frozen=True)
class DiffusionConfig:
    """The fields of LeRobot's `DiffusionConfig` that decide what a policy computes."""

    input_dims: dict[str, int]
    """Length of each observation feature that is a vector, by LeRobot's name, in the order the network reads them."""
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
    vision: Vision = field(default_factory=Vision)
    """Its cameras."""

    @property
    def unet(self) -> UnetConfig:
        """The network's sizes."""
        return UnetConfig(
            action_dim=self.action_dim,
            cond_dim=self.n_obs_steps * (sum(self.input_dims.values()) + self.vision.size),
            down_dims=self.down_dims,
            kernel_size=self.kernel_size,
            n_groups=self.n_groups,
            diffusion_step_embed_dim=self.diffusion_step_embed_dim,
            use_film_scale_modulation=self.use_film_scale_modulation,
        )

    @property
    def is_flow(self) -> bool:
        """Whether the network predicts a flow's velocity; LeRobot's own diffusion policies do not, and refuse it."""
        return self.prediction_type == FLOW_PREDICTION

    @property
    def scheduler(self) -> dict[str, Any]:
        """The noise scheduler's configuration by diffusers' names; of a flow by those of `chain.flow`."""
        if self.is_flow:
            return flow_config("timestep", 0.0, self.num_train_timesteps, 0.0)
        names = "num_train_timesteps beta_schedule beta_start beta_end prediction_type clip_sample clip_sample_range"
        return {"_class_name": f"{self.noise_scheduler_type}Scheduler"} | {
            name: getattr(self, name) for name in names.split()
        }

    @property
    def features(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The input and the output features as LeRobot writes them."""
        shapes = {name: [dim] for name, dim in {**self.input_dims, ACTION: self.action_dim}.items()}
        shapes |= {name: list(shape) for name, shape in self.vision.cameras.items()}
        entries = {name: {"type": feature_type(name), "shape": shape} for name, shape in shapes.items()}
        return {name: entry for name, entry in entries.items() if name != ACTION}, {ACTION: entries[ACTION]}

    def mode_of(self, feature: str, mapping: dict[str, str] | None = None) -> str:
        """Find how a feature is normalised, by the mapping of the configuration or another."""
        return (self.normalization_mapping if mapping is None else mapping).get(feature_type(feature), IDENTITY)


PLAIN_FIELDS = [f for f in fields(DiffusionConfig) if f.name not in ("input_dims", "action_dim", "vision")]
"""The fields that are in config.json under their own names."""


_OTHER_FIELDS = (
    *("type", "input_features", "output_features", "sampler"),  # the last is the plugin's
    *("device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags", "license"),
    *("pretrained_path", "pretrained_revision", "drop_n_last_frames", "do_mask_loss_for_padding"),
    *("crop_is_random", "pretrained_backbone_weights", *VISION_FIELDS),
    *("gradient_checkpointing", "compile_model", "compile_mode"),
    *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay"),
    *("scheduler_name", "scheduler_warmup_steps"),
    *("input_shapes", "output_shapes", "input_normalization_modes", "output_normalization_modes"),  # until 2025
)
"""Fields of LeRobot 0.1 … 0.6 that no policy depends on, or that are read elsewhere."""
_KNOWN = {spec.name for spec in PLAIN_FIELDS}.union(_OTHER_FIELDS)
FEATURE_TYPES = (VISUAL, "STATE", "ENV", "ACTION", "REWARD", "LANGUAGE")
_FIRST_MODES = ("min_max", "mean_std")
PLUGIN = "asd_diffusion"
"""The policy type of the plugin `lerobot_policy_asd`, which has the network and the chain of LeRobot's."""


def feature_type(feature: str) -> str:
    """Find LeRobot's type of a feature by its name; what is no vector is a camera."""
    return _FEATURE_TYPES.get(feature, VISUAL)


def is_diffusion(raw: dict[str, Any]) -> bool:
    """Tell whether a config.json is one of a LeRobot diffusion policy, of any version since 0.1."""
    return raw.get("type") in ("diffusion", PLUGIN) or ("type" not in raw and raw.keys() >= _FIRST_LAYOUT)


def modernize(raw: dict[str, Any]) -> dict[str, Any]:
    """Translate a config.json to the names of lerobot since February 2025; one that has them stays as it is.

    Before, it had a shape and a normalisation mode (`min_max`, `mean_std`) for each feature, and no policy type
    (lerobot/common/policies/diffusion/configuration_diffusion.py at that time).
    """
    if "type" in raw:
        return raw
    mapping: dict[str, str] = {}
    features: dict[str, dict[str, Any]] = {}
    for kind in ("input", "output"):
        shapes, modes = as_object(raw.get(f"{kind}_shapes")), as_object(raw.get(f"{kind}_normalization_modes"))
        types = {name: feature_type(name) for name in shapes}
        features[f"{kind}_features"] = {name: {"type": types[name], "shape": shapes[name]} for name in shapes}
        mapping |= {types[name]: str(mode).upper() for name, mode in modes.items() if name in types}
    return raw | features | {"type": "diffusion", "normalization_mapping": mapping}


def parse_config(raw: dict[str, Any]) -> DiffusionConfig:
    """Check the fields that matter one by one; LeRobot's other fields are ignored.

    Args:
        raw: config.json, modern.

    Raises:
        CheckpointError: A field is missing, misspelt, of the wrong kind, out of range or contradicts another.
    """
    warn_of_unknown(unknown_names(raw, _KNOWN, "config.json", CheckpointError), "config.json")
    _check_first_modes(raw)
    inputs, outputs = raw.get("input_features"), raw.get("output_features")
    if not isinstance(inputs, dict) or not isinstance(outputs, dict):
        raise CheckpointError("config.json has no input_features and output_features")
    if ACTION not in outputs or STATE not in inputs:
        raise CheckpointError(
            f"config.json needs {STATE!r} among input_features and {ACTION!r} among output_features; "
            f"it has {sorted(inputs)} and {sorted(outputs)}"
        )
    cameras = {name: entry for name, entry in inputs.items() if as_object(entry).get("type") == VISUAL}
    unknown = [name for name in inputs if name not in (STATE, ENVIRONMENT_STATE, *cameras)]
    if unknown:
        raise CheckpointError(
            f"the policy observes {', '.join(unknown)}; only {STATE}, {ENVIRONMENT_STATE} and cameras, features of "
            f"the type {VISUAL}, can be read here"
        )
    if "normalization_mapping" not in raw:
        raise CheckpointError("config.json has no normalization_mapping")
    check_types(raw["normalization_mapping"], "normalization_mapping of config.json")
    values: dict[str, Any] = {}
    for spec in PLAIN_FIELDS:
        if spec.name in raw:
            values[spec.name] = _parse_field(spec.name, raw[spec.name], spec.default)
    config = DiffusionConfig(
        input_dims={name: _dim(name, inputs[name]) for name in (STATE, ENVIRONMENT_STATE) if name in inputs},
        action_dim=_dim(ACTION, outputs[ACTION]),
        vision=parse_vision(raw, cameras),
        **values,
    )
    problem = _contradiction(config)
    if problem:
        raise CheckpointError(f"config.json: {problem}")
    return config


def unknown_fields(raw: dict[str, Any]) -> tuple[str, ...]:
    """Write a note on unknown fields, as newer versions of LeRobot may add them."""
    return unknown_note([name for name in raw if name not in _KNOWN], "config.json")


def check_types(mapping: Any, where: str) -> None:
    """Refuse a normalisation mapping in which the type of a feature is misspelt: it would not be normalised."""
    unknown_names(map(str, as_object(mapping)), FEATURE_TYPES, where, CheckpointError)


def _check_first_modes(raw: dict[str, Any]) -> None:
    """Refuse a configuration of the first layout in which a feature has no mode, or a mode no feature."""
    for kind in ("input", "output"):
        if f"{kind}_shapes" not in raw:
            continue
        modes, shapes = (as_object(raw.get(f"{kind}_{name}")) for name in ("normalization_modes", "shapes"))
        for feature in shapes:
            if modes.get(feature) not in _FIRST_MODES:
                raise CheckpointError(
                    f"config.json: {kind}_normalization_modes of {feature!r} is {modes.get(feature)!r}, not one of "
                    f"{', '.join(_FIRST_MODES)}"
                )
        for feature in modes:
            if feature not in shapes:
                raise CheckpointError(
                    f"config.json: {kind}_normalization_modes has {feature!r}, {kind}_shapes only {', '.join(shapes)}"
                )


def _contradiction(config: DiffusionConfig) -> str | None:
    """Explain why fields that each have the right type do not fit together; None if they do."""
    flow = config.noise_scheduler_type == FLOW_TYPE
    if config.is_flow != flow:
        wanted, other = (FLOW_PREDICTION, "prediction_type") if flow else (FLOW_TYPE, "noise_scheduler_type")
        this = f"noise_scheduler_type {FLOW_TYPE!r}" if flow else f"prediction_type {FLOW_PREDICTION!r}"
        return f"{this} goes with {other} {wanted!r}, not {getattr(config, other)!r}"
    if config.horizon > MAX_HORIZON:  # first: it bounds the number of down_dims
        return f"horizon {config.horizon} is not in 1 … {MAX_HORIZON}"
    longest = config.horizon - config.n_obs_steps + 1
    if config.n_action_steps > longest:
        return f"n_action_steps {config.n_action_steps} is not in 1 … {longest} (horizon − n_obs_steps + 1)"
    return config.unet.problem(config.horizon)


def _parse_field(name: str, value: Any, default: Any) -> Any:
    """Read a field's value; check that it has the type of its default and that counts are positive."""
    if name == "num_inference_steps":
        valid, kind = value is None or is_count(value), "null or a positive integer"
    elif name == "normalization_mapping":
        valid = isinstance(value, dict) and all(isinstance(mode, str) for mode in value.values())
        kind = "an object of names"
    elif name == "down_dims":
        valid = isinstance(value, list) and value and all(is_count(channels) for channels in value)
        kind, value = "a list of positive integers", tuple(value) if isinstance(value, list) else value
    elif isinstance(default, bool):
        valid, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        valid, kind = is_count(value), "a positive integer"
    elif isinstance(default, float):
        valid = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        kind = "a finite number"
    else:
        valid, kind = isinstance(value, str), "a string"
    if not valid:
        raise CheckpointError(f"config.json: {name} {value!r} is not {kind}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _dim(feature: str, entry: Any) -> int:
    shape, kind = as_object(entry).get("shape"), as_object(entry).get("type", _FEATURE_TYPES[feature])
    if not (isinstance(shape, list) and len(shape) == 1 and is_count(shape[0])):
        raise CheckpointError(f"config.json: shape {shape!r} of {feature!r} is not a list of one positive integer")
    if kind != _FEATURE_TYPES[feature]:  # its normalisation goes by the type
        raise CheckpointError(f"config.json: type {kind!r} of {feature!r} is not {_FEATURE_TYPES[feature]!r}")
    return shape[0]
