"""The target law: a noise scheduler's configuration as a chain of Gaussian transitions.

    x̂0      = clip(output_scale_k · output + input_scale_k · x_k)
    x_{k+1} = a_k · x̂0 + b_k · x_k + σ_k · ξ_k,   ξ_k ~ N(0, I),   k = 0 … K−1

The law is what the scheduler of diffusers computes, rounding of its float32 coefficients included: near the
end of the chain 1 − ᾱ loses digits in float32, and a chain that kept them would have another law.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy.errors import ChainError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")

# Defaults of diffusers' DDPMScheduler; what a configuration leaves out has these values.
_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}

Schedule = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChainTables:
    """A chain's coefficients as tensors of one device and dtype, each of shape [K]."""

    timesteps: Tensor
    a: Tensor
    b: Tensor
    sigma: Tensor
    output_scale: Tensor
    input_scale: Tensor


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """A sequential sampler of K Gaussian steps; index k = 0 is the noisiest. Arrays have shape [K]."""

    timesteps: npt.NDArray[np.int64]
    """What the network is told at step k."""
    a: Schedule
    """Weight of the predicted clean sample in the mean."""
    b: Schedule
    """Weight of the current point in the mean."""
    sigma: Schedule
    """Standard deviation of the step's noise."""
    output_scale: Schedule
    """Weight of the network's output in x̂0."""
    input_scale: Schedule
    """Weight of the current point in x̂0."""
    clip_range: float | None
    """x̂0 is clamped to ± this, or not at all."""
    config: Mapping[str, Any] = field(repr=False)
    """The scheduler configuration that the chain was made from, defaults filled in."""
    _tables: dict[tuple[torch.device, torch.dtype], ChainTables] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """Return the number of steps K."""
        return len(self.timesteps)

    @classmethod
    def from_scheduler(cls, scheduler: Any, num_inference_steps: int | None = None) -> "GaussianChain":
        """Read the chain of a diffusers `DDPMScheduler`.

        Args:
            scheduler: The scheduler object, its `config`, or the same as a mapping (the JSON file, loaded).
            num_inference_steps: Number of steps K; None for all the training steps.

        Returns:
            The chain whose every step has the law of `scheduler.step` (Ho et al., arXiv 2006.11239, eq. 7).

        Raises:
            ChainError: The configuration is not one of a Gaussian chain with network-independent variance.
        """
        given = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
        if not isinstance(given, Mapping):
            raise ChainError(f"{type(scheduler).__name__} is no noise scheduler: pass a DDPMScheduler or its config")
        config = {**_DEFAULTS, **given}
        _check(config)
        steps = config["num_train_timesteps"] if num_inference_steps is None else num_inference_steps
        timesteps = _timesteps(config, steps)
        cumulative = torch.cumprod(1.0 - _betas(config), dim=0)

        # From here on float32, torch's arithmetic and DDPMScheduler.step's order of operations, for equal bits:
        # numpy's square root differs from torch's by an ulp one time in five, and an ulp counts where ᾱ is near 0.
        now = cumulative[torch.from_numpy(timesteps)]
        before = torch.cat([now[1:], torch.ones(1)])
        if config["prediction_type"] == "epsilon" and not bool((now > 0).all()):
            raise ChainError(
                "prediction_type 'epsilon' with rescale_betas_zero_snr divides by a signal of zero; "
                "zero-SNR chains need 'v_prediction' or 'sample'"
            )
        alpha = now / before
        beta = 1 - alpha
        variance = beta if config["variance_type"] == "fixed_large" else (1 - before) / (1 - now) * beta
        # The scheduler adds no noise at timestep 0, and elsewhere not less than this.
        sigma = torch.where(torch.from_numpy(timesteps) > 0, variance.clamp(min=1e-20).sqrt(), 0.0)
        # √ᾱ and √(1 − ᾱ) are float32 too, but what the scheduler does with them has the sample's precision.
        signal, noise = now.sqrt().double(), (1 - now).sqrt().double()
        ones, zeros = torch.ones_like(signal), torch.zeros_like(signal)
        output_scale, input_scale = {
            "epsilon": (-noise / signal, ones / signal),
            "sample": (ones, zeros),
            "v_prediction": (-noise, signal),
        }[config["prediction_type"]]

        def schedule(values: Tensor) -> Schedule:
            return values.double().numpy()

        return cls(
            timesteps=timesteps,
            a=schedule(before.sqrt() * beta / (1 - now)),
            b=schedule(alpha.sqrt() * (1 - before) / (1 - now)),
            sigma=schedule(sigma),
            output_scale=schedule(output_scale),
            input_scale=schedule(input_scale),
            clip_range=float(config["clip_sample_range"]) if config["clip_sample"] else None,
            config=config,
        )

    def tables(self, device: torch.device, dtype: torch.dtype) -> ChainTables:
        """Return the coefficients as tensors; made once per device and dtype."""
        key = (device, dtype)
        if key not in self._tables:

            def tensor(values: Schedule) -> Tensor:
                return torch.as_tensor(values, dtype=dtype, device=device)

            self._tables[key] = ChainTables(
                timesteps=torch.as_tensor(self.timesteps, device=device),
                a=tensor(self.a),
                b=tensor(self.b),
                sigma=tensor(self.sigma),
                output_scale=tensor(self.output_scale),
                input_scale=tensor(self.input_scale),
            )
        return self._tables[key]

    def predict(self, x: Tensor, output: Tensor, output_scale: Tensor, input_scale: Tensor) -> Tensor:
        """Turn network outputs into predictions of the clean sample x̂0.

        Args:
            x: Points [N, *event] the network was called on.
            output: What it returned [N, *event].
            output_scale: The chain's coefficients at the points' steps, shaped to broadcast against x.
            input_scale: Likewise.

        Returns:
            x̂0 [N, *event], clipped as the scheduler says.
        """
        clean = x * input_scale + output * output_scale
        return clean if self.clip_range is None else clean.clamp(-self.clip_range, self.clip_range)


def _check(config: Mapping[str, Any]) -> None:
    name = config.get("_class_name", "DDPMScheduler")
    if name != "DDPMScheduler":
        raise ChainError(
            f"scheduler {name!r} has no exact acceleration here; 'DDPMScheduler' has. Sample the same weights with a "
            "DDPMScheduler of the same betas, or run this scheduler's own sampler"
        )
    if config["variance_type"] in ("learned", "learned_range"):
        raise ChainError(
            f"variance_type {config['variance_type']!r} depends on the network, so draft and target share no "
            "covariance to couple; use one of " + ", ".join(VARIANCE_TYPES)
        )
    if config["thresholding"]:
        raise ChainError("dynamic thresholding (thresholding=True) is not supported; clip_sample=True is")
    for key, valid in (
        ("variance_type", VARIANCE_TYPES),
        ("prediction_type", PREDICTION_TYPES),
        ("beta_schedule", BETA_SCHEDULES),
        ("timestep_spacing", TIMESTEP_SPACINGS),
    ):
        if config[key] not in valid:
            raise ChainError(f"{key} {config[key]!r} is not one of {', '.join(valid)}")
    steps = config["num_train_timesteps"]
    if not isinstance(steps, int) or steps < 1:
        raise ChainError(f"num_train_timesteps {steps!r} is not a positive integer")


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Return the float32 noise variances β [num_train_timesteps] of the schedule's name."""
    count, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        if tuple(betas.shape) != (count,):
            raise ChainError(f"trained_betas has shape {tuple(betas.shape)}, not ({count},)")
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif config["beta_schedule"] == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
    else:  # squaredcos_cap_v2: Nichol and Dhariwal, arXiv 2102.09672, eq. 17
        # math.cos, not numpy's: an ulp in a β near 1 is many in ᾱ.
        edges = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(edges)], dtype=torch.float32)
    if config["rescale_betas_zero_snr"]:  # Lin et al., arXiv 2305.08891, algorithm 1
        root = torch.cumprod(1.0 - betas, dim=0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        cumulative = ((root - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return betas


def _timesteps(config: Mapping[str, Any], steps: int) -> npt.NDArray[np.int64]:
    """Return the K timesteps, noisiest first, as `set_timesteps` chooses them (arXiv 2305.08891, table 2)."""
    train = config["num_train_timesteps"]
    if not 1 <= steps <= train:
        raise ChainError(f"num_inference_steps {steps} is not in 1 … {train} (num_train_timesteps)")
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
    return timesteps


def transition(a: Tensor, clean: Tensor, sigma: Tensor, noise: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Take one step x_{k+1} = a·x̂0 + σ·ξ + b·x_k, coefficients shaped to broadcast.

    Every sampler steps through here and in this order of operations, so that equal inputs give equal bits: a plan
    whose drafts are all right is the sequential plan, not one that is close to it.
    """
    return push(a, clean, sigma, noise) + b * x


def push(a: Tensor, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the part of a step that does not depend on the current point, a·x̂0 + σ·ξ."""
    return a * clean + sigma * noise
