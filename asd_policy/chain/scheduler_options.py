"""The configurations of noise schedulers: the supported ones, the valid values of their options, and the defaults."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from asd_policy._common.names import unknown_names, unknown_note, warn_of_unknown
from asd_policy.errors import ChainError

MAX_TRAIN_TIMESTEPS = 20_000  # the longest chains that were published have 4000
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = {
    "DDPMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
    "DDIMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")

# Defaults of diffusers' schedulers; options that a configuration leaves out have these values.
_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
_DEFAULTS = {
    "DDPMScheduler": _COMMON | {"variance_type": "fixed_small"},
    "DDIMScheduler": _COMMON | {"set_alpha_to_one": True},
}

_KNOWN = set().union(*_DEFAULTS.values(), ["predict_epsilon"])
_WHERE = "the noise scheduler's configuration"

_Kind = type | tuple[type, ...]
INTEGER, _NUMBER = (int, np.integer), (int, float, np.integer, np.floating)
_FLAG = (bool, lambda value: True, "True or False")
_SIZE = (_NUMBER, lambda value: 1e-6 <= value <= 1e6, "a finite number above 0, in 1e-6 … 1e6")
BETA = (_NUMBER, lambda value: 0 < value <= 1, "a number in (0, 1]")
# Key → type, test and description of its valid values. Configurations come from untrusted checkpoints.
_VALID: dict[str, tuple[_Kind, Callable[[Any], bool], str]] = {
    "num_train_timesteps": (
        INTEGER,
        lambda value: 1 <= value <= MAX_TRAIN_TIMESTEPS,
        f"an integer in 1 … {MAX_TRAIN_TIMESTEPS}",
    ),
    "steps_offset": (
        INTEGER,
        lambda value: 0 <= value < MAX_TRAIN_TIMESTEPS,
        f"an integer in 0 … {MAX_TRAIN_TIMESTEPS - 1}",
    ),
    "beta_start": BETA,
    "beta_end": BETA,
    "clip_sample": _FLAG,
    "clip_sample_range": _SIZE,
    "thresholding": _FLAG,
    "dynamic_thresholding_ratio": (_NUMBER, lambda value: 0 <= value <= 1, "a number in 0 … 1"),
    "sample_max_value": _SIZE,
    "rescale_betas_zero_snr": _FLAG,
    "set_alpha_to_one": _FLAG,
}


def unknown_options(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a note on unknown options of a scheduler's configuration; none where there are none."""
    return unknown_note([name for name in _names(config) if name not in _KNOWN], _WHERE)


def _names(config: Mapping[str, Any]) -> list[str]:
    """List the names of a configuration's options; other names begin with an underscore."""
    return [str(name) for name in config if not str(name).startswith("_")]


def _prediction(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the flag `predict_epsilon` of diffusers before 0.13, if it is there, to a `prediction_type`."""
    flag = config.get("predict_epsilon")
    if flag is None or "prediction_type" in config:
        return {}
    if not isinstance(flag, bool):
        raise ChainError(f"predict_epsilon {flag!r} is not True or False")
    return {"prediction_type": "epsilon" if flag else "sample"}


def configuration(scheduler: Any) -> dict[str, Any]:
    """Read a supported scheduler's `_class_name` and options, defaults filled in; other keys are left out."""
    given = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(given, Mapping):
        raise ChainError(
            f"{type(scheduler).__name__} is no noise scheduler: pass a DDPMScheduler, a DDIMScheduler or its config"
        )
    if given is not scheduler:  # an object's config lacks the class name; its saved file has it
        name = type(scheduler).__name__
    elif "_class_name" in given:
        name = given["_class_name"]
    else:
        name = "DDIMScheduler" if "set_alpha_to_one" in given else "DDPMScheduler"
        unknown = [key for key in given if key not in _DEFAULTS[name] and not str(key).startswith("_")]
        if unknown:
            raise ChainError(
                f"{unknown[0]!r} is no option of a {name}, whose configuration this looks like; "
                "pass the scheduler itself or add its '_class_name'"
            )
    if "FlowMatch" in str(name):
        raise ChainError(
            f"scheduler {name!r} follows a flow without noise, and its weights fit no DDPMScheduler; "
            "run them with the scheduler's own sampler"
        )
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise ChainError(
            f"scheduler {name!r} is no chain of Gaussian steps that can be accelerated exactly; a DDPMScheduler with "
            "the same betas gives an exact chain of the same weights, and ddim:n or dpmsolver:n then samples it "
            "approximately in n steps"
        )
    if given is scheduler:  # an object has already refused or ignored the rest
        warn_of_unknown(unknown_names(_names(given), _KNOWN, _WHERE, ChainError), _WHERE)
        given = {**given, **_prediction(given)}
    return {"_class_name": name} | {key: given.get(key, default) for key, default in _DEFAULTS[name].items()}


def check_options(config: Mapping[str, Any]) -> None:
    """Refuse values that are of the wrong type or out of range, and variances that depend on the network."""
    variance_type = config.get("variance_type")
    if variance_type in ("learned", "learned_range"):
        raise ChainError(
            f"variance_type {variance_type!r} depends on the network, so draft and target share no "
            "covariance to couple; use one of fixed_small, fixed_small_log, fixed_large"
        )
    choices = [("prediction_type", PREDICTION_TYPES), ("timestep_spacing", TIMESTEP_SPACINGS)]
    if "variance_type" in config:
        choices.append(("variance_type", VARIANCE_TYPES))
    if config["trained_betas"] is None:
        choices.append(("beta_schedule", BETA_SCHEDULES[config["_class_name"]]))
    for key, names in choices:
        if not isinstance(config[key], str) or config[key] not in names:
            raise ChainError(f"{key} {config[key]!r} is not one of {', '.join(names)}")
    for key, (kind, valid, description) in _VALID.items():
        if key in config and not (is_a(config[key], kind) and valid(config[key])):
            raise ChainError(f"{key} {config[key]!r} is not {description}")


def adds_no_noise(scheduler: Mapping[str, Any], eta: Any) -> bool:
    """Tell whether a configuration with its `_class_name` is DDIM's, and its η 0: a sampler that adds no noise."""
    return scheduler.get("_class_name") == "DDIMScheduler" and (eta is None or eta == 0)


def trained_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Write the configuration of the DDPM chain that the network of a DDIM configuration was trained for.

    Both have one training loss: it knows betas and prediction type, not how plans are made (arXiv 2010.02502, section
    3). The chain has all training timesteps and clips as DDIM does; which of them DDIM takes is not its affair.

    Args:
        config: As `configuration` reads it.
    """
    shared = {key: config[key] for key in _COMMON if key not in ("timestep_spacing", "steps_offset")}
    return {"_class_name": "DDPMScheduler"} | shared


def check_eta(name: str, eta: Any) -> None:
    """Refuse an eta for DDPM, and for DDIM one outside (0, 1]."""
    if name == "DDPMScheduler":
        if eta is not None:
            raise ChainError(f"eta={eta!r} is DDIMScheduler's; a DDPMScheduler's noise is set by its variance_type")
    elif eta is None or eta == 0:
        raise ChainError(
            "DDIMScheduler with eta=0, its default, adds no noise, so it has no exact acceleration; give an eta in "
            "(0, 1], or use a DDPMScheduler with the same betas and, for few approximate steps, the sampler ddim:n"
        )
    elif not (is_a(eta, _NUMBER) and 0 < eta <= 1):
        raise ChainError(f"eta={eta!r} is not a number in (0, 1]")


def is_a(value: Any, kind: _Kind) -> bool:
    """Tell whether a value is of a type; True and False are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
