"""The target law: a noise scheduler's configuration as a chain of Gaussian transitions.

    raw     = output_scale_k · output + input_scale_k · x_k
    x̂0      = clip(raw) + excess_k · (clip(raw) − raw)
    x_{k+1} = a_k · x̂0 + b_k · x_k + σ_k · ξ_k,   ξ_k ~ N(0, I),   k = 0 … K−1

The law is that of diffusers' scheduler, the rounding of its float32 coefficients included: near the end of the chain 1
− ᾱ loses digits in float32, and a chain that kept them would have another law.

DDPM (Ho et al., arXiv 2006.11239, eq. 7) has excess 0. DDIM with noise (Song et al., arXiv 2010.02502, eq. 12) points
along the noise ε of the raw prediction, whatever the clipping:

    m = A · clip(raw) + d · ε,   ε = (x − √ᾱ · raw) / √(1 − ᾱ),   A = √ᾱ_prev,   d = √(1 − ᾱ_prev − σ²)

With B = d √ᾱ / √(1 − ᾱ) that is the form above for a = A − B, b = d / √(1 − ᾱ) and excess = B / (A − B).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.extras import needed

T = TypeVar("T")
Schedule = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChainTables:
    """A chain's coefficients as tensors of one device and dtype, each of shape [K]."""

    timesteps: Array
    a: Array
    b: Array
    sigma: Array
    output_scale: Array
    input_scale: Array
    excess: Array | None


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding (Saharia et al., arXiv 2205.11487, section 2.3)."""

    ratio: float
    """The quantile of |raw| in a sample that becomes its range, 0 … 1."""
    maximum: float
    """The largest range; the smallest is 1."""


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """A sequential sampler of K Gaussian steps; index k = 0 is the noisiest. Arrays have shape [K]."""

    timesteps: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    """What the network gets at step k as its timestep: an integer, or a time of a flow, a number of float32."""
    a: Schedule
    """Weight of the predicted clean sample in the mean; positive, as the couplings take it to be."""
    b: Schedule
    """Weight of the current point in the mean."""
    sigma: Schedule
    """Standard deviation of the step's noise."""
    output_scale: Schedule
    """Weight of the network's output in the raw prediction."""
    input_scale: Schedule
    """Weight of the current point in the raw prediction."""
    excess: Schedule | None
    """How far x̂0 overshoots the clipped prediction, in units of the change by clipping; None for not at all."""
    config: Mapping[str, Any] = field(repr=False)
    """The scheduler's `_class_name` and all its options, defaults filled in."""
    unit: Schedule | None = None
    """Standard deviation of the noise with η = 1, which tolerances are in units of where η = 0 adds none."""
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies and pickles what is kept: a copy makes its own, in memory of its own."""
        return vars(self) | {"_kept": {}}

    @property
    def noise_steps(self) -> int:
        """Steps that a tape has noise for: all."""
        return len(self)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def has_integer_timesteps(self) -> bool:
        """Whether the network gets integers; not so for a flow whose network gets times in 0 … 1."""
        return self.timesteps.dtype.kind == "i"

    @property
    def adds_noise(self) -> bool:
        """Whether any step does; one that is deterministic has nothing to draft and verify exactly."""
        return self.keep("adds_noise", lambda: bool((self.sigma > 0).any()))  # each plan asks

    @property
    def predicts_sample(self) -> bool:
        """Whether x̂0 is a prediction of the sample; in Langevin dynamics it is the force on it."""
        return self.config["prediction_type"] != "gradient"

    @property
    def clip_range(self) -> float | None:
        """The raw prediction is clamped to ± this, or not at all."""
        clips = self.config["clip_sample"] and not self.config["thresholding"]  # that comes first, as in the scheduler
        return float(self.config["clip_sample_range"]) if clips else None

    @property
    def threshold(self) -> Threshold | None:
        """The raw prediction is thresholded like this, or not at all."""
        if not self.config["thresholding"]:
            return None
        return Threshold(float(self.config["dynamic_thresholding_ratio"]), float(self.config["sample_max_value"]))

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, num_inference_steps: int | None = None, eta: float | None = None
    ) -> "GaussianChain":
        """Read the chain of a diffusers `DDPMScheduler`, or of a `DDIMScheduler` that adds noise.

        Args:
            scheduler: The scheduler object, its `config`, or the same as a mapping (the JSON file, loaded). A mapping
                without `_class_name` is a DDPMScheduler's, or a DDIMScheduler's if it has `set_alpha_to_one`.
            num_inference_steps: Number of steps K; None for all the training steps.
            eta: DDIM's share of noise, in (0, 1]: the argument of that name of `DDIMScheduler.step`. None for DDPM.

        Returns:
            The chain whose every step has the law of `scheduler.step`.

        Raises:
            ChainError: The configuration is not one of a Gaussian chain with network-independent variance.
        """
        with needed("the chain of a noise scheduler", "torch"):
            from asd_policy.chain.scheduler_steps import read_schedule  # here, because it needs PyTorch

        coefficients, config = read_schedule(scheduler, num_inference_steps, eta)
        return cls(config=config, **coefficients)

    @classmethod
    def from_flow(
        cls,
        steps: int,
        eta: float = 1.0,
        convention: str = "noise",
        sigma_min: float = 0.0,
        num_train_timesteps: int | None = None,
    ) -> "GaussianChain":
        """Make the chain of a network that predicts a flow's velocity, with a share of noise; see `chain.flow`.

        At `eta` 0 a step is Euler's, and adds no noise. Above it the chain has a law of its own: `asd` is exact with
        respect to that law, not to the plans of Euler's steps.

        Args:
            steps: Number of steps K from noise to data, equal in time.
            eta: Share of noise, 0 … 1, as DDIM's: 1 adds as much as the ancestral step of DDPM at the same levels.
            convention: What the network calls time and velocity, one of `flow.CONVENTIONS`: "noise" as LeRobot's
                common/flow_matching.py has it (π0, SmolVLA), "data" as its multi_task_dit, "timestep" for integers.
            sigma_min: Noise that is left at the data's end of the path, in [0, 1); of the convention "data" alone.
            num_train_timesteps: Number of integers T, of the convention "timestep" alone.

        Raises:
            ChainError: An option is out of range.
        """
        from asd_policy.chain.flow import flow_config, read_flow  # here, because few chains are a flow's

        coefficients = read_flow(steps, eta, convention, sigma_min, num_train_timesteps)
        return cls(config=flow_config(convention, sigma_min, num_train_timesteps, eta), **coefficients)

    @classmethod
    def langevin(cls, step_sizes: Sequence[float] | npt.NDArray[np.float64]) -> "GaussianChain":
        """Make the chain of unadjusted Langevin dynamics, x ← x − h_k ∇E(x) + √(2 h_k) ξ; see `chain.langevin`.

        The denoiser of this chain is called as `gradient(x, step, cond)` and returns ∇E at points x, the gradient of
        the energy, minus the score. `step` is the index k, for energies that are annealed. The start of a chain is the
        tape's, standard normal if nothing else is given (`NoiseTape.draw(…, initial=…)`).

        Args:
            step_sizes: h_k of each step [K]. Stable are those below 2 over the largest curvature of the energy.

        Raises:
            ChainError: They are no list of positive, finite numbers, or grow from each to the next.
        """
        from asd_policy.chain.langevin import check_step_sizes, langevin_config, read_langevin  # as in `from_flow`

        sizes = check_step_sizes(step_sizes)
        return cls(config=langevin_config(sizes), **read_langevin(sizes))

    def tables(self, device: Device, dtype: Any) -> ChainTables:
        """Convert the coefficients to tensors, once per device and dtype."""

        def make() -> ChainTables:
            def tensor(values: Schedule) -> Array:
                return arrays.asarray(values, device, dtype)

            return ChainTables(
                timesteps=arrays.asarray(self.timesteps, device, None if self.has_integer_timesteps else dtype),
                a=tensor(self.a),
                b=tensor(self.b),
                sigma=tensor(self.sigma),
                output_scale=tensor(self.output_scale),
                input_scale=tensor(self.input_scale),
                excess=None if self.excess is None else tensor(self.excess),
            )

        return self.keep((device, dtype), make)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """Give what is made of the coefficients, and kept from the first time on, by its key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def predict(self, x: Array, output: Array, step: int | Array, effective: bool = True) -> Array:
        """Turn network outputs into predictions of the clean sample x̂0.

        Nothing here waits for the device, so a CUDA graph can hold it; the first call for a device and dtype makes
        the tables, which a graph cannot, and has to come before the capture.

        Args:
            x: Points [N, *event] the network was called on.
            output: What it returned [N, *event].
            step: Index k of the points' steps: one for all, or int64 [N] on the device of x.
            effective: Whether it is for a step, see the module, or the sample itself. They differ where DDIM clips.

        Returns:
            x̂0 [N, *event], clipped as the scheduler says.
        """
        tables = self.tables(arrays.device_of(x), x.dtype)
        shape = (-1,) + (1,) * (x.ndim - 1)
        raw = x * tables.input_scale[step].reshape(shape)
        raw += output * tables.output_scale[step].reshape(shape)
        if self.threshold is not None:
            clipped = _threshold(raw, self.threshold)
        elif self.clip_range is not None:
            clipped = raw.clip(-self.clip_range, self.clip_range)
        else:
            return raw
        # Not `raw + (1 + excess) (clipped − raw)`: raw is 1e4 at high noise, and float32 would lose the clipped sample.
        if tables.excess is None or not effective:
            return clipped
        return clipped + tables.excess[step].reshape(shape) * (clipped - raw)


def _threshold(raw: Array, threshold: Threshold) -> Array:
    """Clamp each sample of [N, *event] to a quantile of its own and scale it to ±1."""
    # In float32 at least, like the scheduler: neither quantiles nor clamps by tensors exist for all shorter types.
    xp = arrays.namespace(raw)
    wide = raw if raw.dtype in (xp.float32, xp.float64) else xp.astype(raw, xp.float32)
    flat = wide.reshape(len(raw), -1)
    limit = xp.quantile(xp.abs(flat), threshold.ratio, axis=1, keepdims=True).clip(min=1, max=threshold.maximum)
    return xp.astype((flat.clip(-limit, limit) / limit).reshape(raw.shape), raw.dtype, copy=False)


def transition(a: Array, x0_pred: Array, sigma: Array, noise: Array, b: Array, x: Array) -> Array:
    """Take one step x_{k+1} = a·x̂0 + σ·ξ + b·x_k, coefficients shaped to broadcast.

    Every sampler steps through here and in this order of operations, so that equal inputs give equal bits: a plan
    whose drafts are all right is the sequential plan, not one that is close to it.
    """
    return push(a, x0_pred, sigma, noise) + b * x


def push(a: Array, x0_pred: Array, sigma: Array, noise: Array) -> Array:
    """Compute the part of a step that does not depend on the current point, a·x̂0 + σ·ξ."""
    return a * x0_pred + sigma * noise
