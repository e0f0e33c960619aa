"""The coefficients of a chain from a scheduler's configuration, by diffusers' own arithmetic in float32."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy._common import arrays
from asd_policy.chain.scheduler_options import BETA, INTEGER, check_eta, check_options, configuration, is_a
from asd_policy.errors import ChainError


def read_schedule(
    scheduler: Any, num_inference_steps: int | None, eta: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute the coefficients of a scheduler's steps, by the names of `GaussianChain`, and its whole configuration.

    Arguments and errors are those of `GaussianChain.from_scheduler`.
    """
    config = configuration(scheduler)
    check_options(config)
    check_eta(config["_class_name"], eta)
    with arrays.on_cpu():
        return _coefficients(config, num_inference_steps, eta), config


def read_ddim(config: Mapping[str, Any], num_inference_steps: int, eta: float) -> dict[str, Any]:
    """Compute the coefficients of `DDIMScheduler.step`, without noise (η = 0) too, which is no chain to accelerate.

    Args:
        config: A chain's, with the options that a DDIMScheduler has beside.
        num_inference_steps: Number of steps.
        eta: Share of noise, 0 … 1.

    Raises:
        ChainError: There are no such steps.
    """
    with arrays.on_cpu():
        return _coefficients({"set_alpha_to_one": True, **config}, num_inference_steps, eta)


def _coefficients(config: Mapping[str, Any], num_inference_steps: int | None, eta: float | None) -> dict[str, Any]:
    """Compute what `GaussianChain` holds beside the configuration, which has been checked."""
    timesteps = choose_timesteps(
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
    # √ᾱ and √(1 − ᾱ) are float32 too, but the scheduler computes with them in the sample's precision.
    signal, noise = now.sqrt().double(), (1 - now).sqrt().double()
    ones, zeros = torch.ones_like(signal), torch.zeros_like(signal)
    output_scale, input_scale = {
        "epsilon": (-noise / signal, ones / signal),
        "sample": (ones, zeros),
        "v_prediction": (-noise, signal),
    }[config["prediction_type"]]
    if eta is None:
        (a, b, sigma), excess, unit = _ddpm(config, timesteps, now), None, None
    else:
        a, b, sigma, excess, unit = _ddim(config, timesteps, cumulative, eta)
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
        "unit": unit,
    }
    schedules = {name: None if values is None else values.double().numpy() for name, values in coefficients.items()}
    return {"timesteps": timesteps.numpy(), **schedules}


def _ddpm(config: Mapping[str, Any], timesteps: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a, b and σ [K] of `DDPMScheduler.step` at ᾱ = `now` [K].

    diffusers 0.42 takes the logarithm of the variance for fixed_large_log and then, where its exponential is due, its
    square root: not a number below β = 1. Only chains that add no noise at all remain: a single step, or two from zero
    SNR, where β = 1 and the logarithm is 0.
    """
    before = torch.cat([now[1:], torch.ones(1, dtype=torch.float32)])
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute a, b, σ, excess and σ with η = 1 [K] of `DDIMScheduler.step`, from ᾱ [num_train_timesteps]."""
    # The step's own idea of the timestep before, which is not the next of the chain where spacings are uneven.
    previous = timesteps - config["num_train_timesteps"] // len(timesteps)
    last = torch.ones_like(cumulative[0]) if config["set_alpha_to_one"] else cumulative[0]
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
    return a, direction / (1 - now).sqrt().double(), sigma, aside / a, variance.sqrt()


def _first(timesteps: Tensor, where: Tensor) -> int:
    """Find the first timestep where a condition [K] holds."""
    return int(timesteps[where][0])


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Compute the schedule's noise variances β [num_train_timesteps], float32."""
    count, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        betas = torch.tensor(_trained_betas(config), dtype=torch.float32)
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif config["beta_schedule"] == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float32)) * (end - start) + start
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
    """Check and convert the β that a configuration lists."""
    given, count = config["trained_betas"], config["num_train_timesteps"]
    betas = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(betas, list | tuple):
        raise ChainError(f"trained_betas {betas!r} is not a list of {count} numbers")
    if len(betas) != count:
        raise ChainError(f"trained_betas has {len(betas)} entries, not {count} (num_train_timesteps)")
    kind, valid, description = BETA
    for beta in betas:
        if not (is_a(beta, kind) and valid(beta)):
            raise ChainError(f"trained_betas holds {beta!r}, which is not {description}")
    return [float(beta) for beta in betas]


# math's functions, not numpy's: an ulp in a β near 1 is many in ᾱ.
def _cosine(time: float) -> float:
    """Compute ᾱ at a time in 0 … 1 (Nichol and Dhariwal, arXiv 2102.09672, eq. 17)."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(time: float) -> float:
    """Compute diffusers' ᾱ at a time in 0 … 1: the square root of that of Hang et al., arXiv 2407.03297."""
    offset = 0.5 - time
    ratio = math.exp(-0.5 * math.copysign(1, offset) * math.log(1 - 2 * abs(offset) + 1e-6))
    return math.sqrt(ratio / (1 + ratio))


def choose_timesteps(config: Mapping[str, Any], steps: Any) -> Tensor:
    """Choose the K timesteps as `set_timesteps` does, noisiest first (arXiv 2305.08891, table 2).

    Raises:
        ChainError: There are no so many, or some are out of range.
    """
    train = config["num_train_timesteps"]
    if not is_a(steps, INTEGER) or not 1 <= steps <= train:
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
