"""Noise schedulers' configurations as the coefficients of a chain, by diffusers' own arithmetic in float32."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import ChainError

MAX_TRAIN_TIMESTEPS = 100_000
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = {
    "DDPMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
    "DDIMScheduler": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")

# Defaults of diffusers' schedulers; what a configuration leaves out has these values.
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

_Kind = type | tuple[type, ...]
_INTEGER, _NUMBER = (int, np.integer), (int, float, np.integer, np.floating)
_FLAG = (bool, lambda value: True, "True or False")
_SIZE = (_NUMBER, lambda value: 0 < value <= torch.finfo(torch.float32).max, "a finite number above 0")
_BETA = (_NUMBER, lambda value: 0 < value <= 1, "a number in (0, 1]")
# Key → type, test and description of its valid values. Configurations come from untrusted checkpoints.
_VALID: dict[str, tuple[_Kind, Callable[[Any], bool], str]] = {
    "num_train_timesteps": (
        _INTEGER,
        lambda value: 1 <= value <= MAX_TRAIN_TIMESTEPS,
        f"an integer in 1 … {MAX_TRAIN_TIMESTEPS}",
    ),
    "steps_offset": (
        _INTEGER,
        lambda value: 0 <= value < MAX_TRAIN_TIMESTEPS,
        f"an integer in 0 … {MAX_TRAIN_TIMESTEPS - 1}",
    ),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "clip_sample": _FLAG,
    "clip_sample_range": _SIZE,
    "thresholding": _FLAG,
    "dynamic_thresholding_ratio": (_NUMBER, lambda value: 0 <= value <= 1, "a number in 0 … 1"),
    "sample_max_value": _SIZE,
    "rescale_betas_zero_snr": _FLAG,
    "set_alpha_to_one": _FLAG,
}


def read_schedule(
    scheduler: Any, num_inference_steps: int | None, eta: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the coefficients of a scheduler's steps by the names of `GaussianChain`, and its whole configuration.

    Arguments and errors are those of `GaussianChain.from_scheduler`.
    """
    config = _configuration(scheduler)
    _check(config)
    _check_eta(config["_class_name"], eta)
    timesteps = _timesteps(
        config, config["num_train_timesteps"] if num_inference_steps is None else num_inference_steps
    )

    # From here on float32, torch's arithmetic and the scheduler's order of operations, for equal bits:
    # numpy's square root differs from torch's by an ulp one time in five, and an ulp counts where ᾱ is near 0.
    cumulative = torch.cumprod(1.0 - _betas(config), dim=0)
    now = cumulative[timesteps]
    if config["prediction_type"] == "epsilon" and not bool((now > 0).all()):
        raise ChainError(
            "prediction_type 'epsilon' with rescale_betas_zero_snr (or betas near 1) divides by a signal of zero; "
            "zero-SNR chains need 'v_prediction' or 'sample'"
        )
    # √ᾱ and √(1 − ᾱ) are float32 too, but what the scheduler does with them has the sample's precision.
    signal, noise = now.sqrt().double(), (1 - now).sqrt().double()
    ones, zeros = torch.ones_like(signal), torch.zeros_like(signal)
    output_scale, input_scale = {
        "epsilon": (-noise / signal, ones / signal),
        "sample": (ones, zeros),
        "v_prediction": (-noise, signal),
    }[config["prediction_type"]]
    if eta is None:
        (a, b, sigma), excess = _ddpm(config, timesteps, now), None
    else:
        a, b, sigma, excess = _ddim(config, timesteps, cumulative, eta)
    for values in (a, b, sigma, output_scale, input_scale, zeros if excess is None else excess):
        if not bool(values.isfinite().all()):
            raise ChainError(
                f"{config['_class_name']}.step is not finite at timestep {_first(timesteps, ~values.isfinite())}: "
                "ᾱ rounds to 1 or to 0 in float32; use betas that are larger near timestep 0 or smaller at the end"
            )
    coefficients = {
        "a": a,
        "b": b,
        "sigma": sigma,
        "output_scale": output_scale,
        "input_scale": input_scale,
        "excess": excess,
    }
    arrays = {name: None if values is None else values.double().numpy() for name, values in coefficients.items()}
    return {"timesteps": timesteps.numpy(), **arrays}, config


def _configuration(scheduler: Any) -> dict[str, Any]:
    """Return a supported scheduler's `_class_name` and options, defaults filled in; other keys are left out."""
    given = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(given, Mapping):
        raise ChainError(
            f"{type(scheduler).__name__} is no noise scheduler: pass a DDPMScheduler, a DDIMScheduler or its config"
        )
    if given is not scheduler:  # the config of an object does not say whose it is; the file that it saves does
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
    return {"_class_name": name} | {key: given.get(key, default) for key, default in _DEFAULTS[name].items()}


def _check(config: Mapping[str, Any]) -> None:
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
        if key in config and not (_is(config[key], kind) and valid(config[key])):
            raise ChainError(f"{key} {config[key]!r} is not {description}")


def _check_eta(name: str, eta: Any) -> None:
    """Refuse an eta for DDPM, and for DDIM one outside (0, 1]."""
    if name == "DDPMScheduler":
        if eta is not None:
            raise ChainError(f"eta={eta!r} is DDIMScheduler's; a DDPMScheduler's noise is set by its variance_type")
    elif eta is None or eta == 0:
        raise ChainError(
            "DDIMScheduler with eta=0, its default, adds no noise, so it has no exact acceleration; give an eta in "
            "(0, 1], or use a DDPMScheduler with the same betas and, for few approximate steps, the sampler ddim:n"
        )
    elif not (_is(eta, _NUMBER) and 0 < eta <= 1):
        raise ChainError(f"eta={eta!r} is not a number in (0, 1]")


def _is(value: Any, kind: _Kind) -> bool:
    """Return whether a value is of a type, where True is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _ddpm(config: Mapping[str, Any], timesteps: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and σ [K] of `DDPMScheduler.step` at ᾱ = `now` [K].

    diffusers 0.42 takes the logarithm of the variance for fixed_large_log and then, where its exponential is due, its
    square root: not a number below β = 1. What is left are chains that add no noise at all: a single step, or two
    from zero SNR, where β = 1 and the logarithm is 0.
    """
    before = torch.cat([now[1:], torch.ones(1)])
    alpha = now / before
    beta = 1 - alpha
    small = ((1 - before) / (1 - now) * beta).clamp(min=1e-20)
    sigma = {
        "fixed_small": small.sqrt(),
        "fixed_small_log": torch.exp(0.5 * small.log()),
        "fixed_large": beta.sqrt(),
        "fixed_large_log": beta.log().sqrt(),
    }[config["variance_type"]]
    sigma = torch.where(timesteps > 0, sigma, 0.0)  # the scheduler adds no noise at timestep 0
    if config["variance_type"] == "fixed_large_log" and not bool(sigma.isfinite().all()):
        raise ChainError(
            "variance_type 'fixed_large_log' makes DDPMScheduler.step take the square root of a negative logarithm at "
            f"timestep {_first(timesteps, ~sigma.isfinite())}; use fixed_large, which is the variance that it means"
        )
    return before.sqrt() * beta / (1 - now), alpha.sqrt() * (1 - before) / (1 - now), sigma


def _ddim(
    config: Mapping[str, Any], timesteps: Tensor, cumulative: Tensor, eta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a, b, σ and excess [K] of `DDIMScheduler.step`, from ᾱ [num_train_timesteps]."""
    # The step's own idea of the timestep before, which is not the next of the chain where spacings are uneven.
    previous = timesteps - config["num_train_timesteps"] // len(timesteps)
    last = torch.tensor(1.0) if config["set_alpha_to_one"] else cumulative[0]
    now, before = cumulative[timesteps], torch.where(previous >= 0, cumulative[previous.clamp(min=0)], last)
    variance = (1 - before) / (1 - now) * (1 - now / before)
    sigma = float(eta) * variance.sqrt()
    square = 1 - before - sigma**2
    if bool((square < 0).any()):
        raise ChainError(
            f"eta={eta!r} makes DDIMScheduler.step take the square root of {square.min():.1e}, a rounding error, at "
            f"timestep {_first(timesteps, square < 0)}; use an eta that is smaller by 1e-6 or more, or a DDPMScheduler"
        )
    direction = square.sqrt().double()
    target = before.sqrt().double()  # A of the module's docstring
    aside = direction * now.sqrt().double() / (1 - now).sqrt().double()  # B
    # At timestep 0 without set_alpha_to_one ᾱ_prev = ᾱ, A = B, and the network moves the point by what it clips alone.
    # a = 0 could not say that; 1e-9 can, and is far below the rounding of the coefficients, 6e-8.
    a = (target - aside).maximum(1e-9 * target)
    return a, direction / (1 - now).sqrt().double(), sigma, aside / a


def _first(timesteps: Tensor, where: Tensor) -> int:
    """Return the first timestep where a condition [K] holds."""
    return int(timesteps[where][0])


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Return the float32 noise variances β [num_train_timesteps] of the schedule's name."""
    count, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        betas = torch.tensor(_trained_betas(config), dtype=torch.float32)
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif config["beta_schedule"] == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
    else:
        signal = _cosine if config["beta_schedule"] == "squaredcos_cap_v2" else _laplace
        edges = [signal(i / count) for i in range(count + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(edges)], dtype=torch.float32)
    if config["rescale_betas_zero_snr"]:  # Lin et al., arXiv 2305.08891, algorithm 1
        root = torch.cumprod(1.0 - betas, dim=0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        cumulative = ((root - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return betas


def _trained_betas(config: Mapping[str, Any]) -> list[float]:
    """Return the β that a configuration lists, checked."""
    given, count = config["trained_betas"], config["num_train_timesteps"]
    betas = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(betas, list | tuple):
        raise ChainError(f"trained_betas {betas!r} is not a list of {count} numbers")
    if len(betas) != count:
        raise ChainError(f"trained_betas has {len(betas)} entries, not {count} (num_train_timesteps)")
    kind, valid, description = _BETA
    for beta in betas:
        if not (_is(beta, kind) and valid(beta)):
            raise ChainError(f"trained_betas holds {beta!r}, which is not {description}")
    return [float(beta) for beta in betas]


# math's functions, not numpy's: an ulp in a β near 1 is many in ᾱ.
def _cosine(time: float) -> float:
    """Return ᾱ at a time in 0 … 1 (Nichol and Dhariwal, arXiv 2102.09672, eq. 17)."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(time: float) -> float:
    """Return what diffusers takes for ᾱ at a time in 0 … 1: the root of that of Hang et al., arXiv 2407.03297."""
    offset = 0.5 - time
    ratio = math.exp(-0.5 * math.copysign(1, offset) * math.log(1 - 2 * abs(offset) + 1e-6))
    return math.sqrt(ratio / (1 + ratio))


def _timesteps(config: Mapping[str, Any], steps: Any) -> Tensor:
    """Return the K timesteps, noisiest first, as `set_timesteps` chooses them (arXiv 2305.08891, table 2)."""
    train = config["num_train_timesteps"]
    if not _is(steps, _INTEGER) or not 1 <= steps <= train:
        raise ChainError(f"num_inference_steps {steps!r} is not in 1 … {train} (an integer up to num_train_timesteps)")
    if config["timestep_spacing"] == "linspace":
        ascending = np.linspace(0, train - 1, steps).round()
    elif config["timestep_spacing"] == "leading":
        ascending = np.arange(steps) * (train // steps) + config["steps_offset"]
    else:
        ascending = (np.round(np.arange(train, 0, -train / steps)) - 1)[::-1]
    timesteps = ascending[::-1].astype(np.int64)
    if timesteps[-1] < 0:  # the range of diffusers runs one step over where train / steps rounds up
        raise ChainError(
            f"timestep_spacing 'trailing' with num_inference_steps {steps} of {train} gives timestep -1; "
            "use another number of steps or another spacing"
        )
    if timesteps[0] >= train:
        raise ChainError(f"steps_offset {config['steps_offset']} puts timestep {timesteps[0]} beyond {train - 1}")
    return torch.from_numpy(timesteps)
