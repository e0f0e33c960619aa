"""The loop that a sampler takes the place of: its library's own, on an untouched scheduler, and not changed since."""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import ChainError, SpecError
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.adapters.base import SCHEDULERS, STEP_METHODS, check_own, qualified
from asd_policy.samplers import make_sampler

AGAIN = "accelerate the policy again"
_PER_PLAN = ("timesteps", "num_inference_steps", "custom_timesteps")  # what `set_timesteps` writes before each plan
_HELPERS = ("previous_timestep",)  # methods that differ between versions, see `STEP_METHODS`
_TOLERANCE = 0.01  # as for a single step, see `check_step`


class OwnLoop:
    """A live policy's own loop, as it was when a sampler took its place."""

    def __init__(
        self, owner: Any, known: Sequence[str], methods: Sequence[str], options: Mapping[str, Any] | None = None
    ) -> None:
        """Look at a loop and its scheduler, whose steps `read_chain` has seen.

        Args:
            owner: The object that samples, with its `noise_scheduler` and `num_inference_steps`.
            known: Qualified names of classes whose loop is known.
            methods: Those of the owner that sample.
            options: What the scheduler's step is given.

        Raises:
            ChainError: The scheduler's coefficients are not those of its configuration.
            SpecError: A method of the owner or the scheduler is not its class's own.
        """
        check_own(owner, known, methods)
        self._known, self._methods = known, methods
        self._scheduler, self.steps = owner.noise_scheduler, int(owner.num_inference_steps)
        self._options = dict(options or {})
        _check_noise(self._scheduler)
        self._state = _copied(_state(self._scheduler))
        for name, value in _state(_made_anew(self._scheduler)).items():
            if not (name.startswith("config") or name in _HELPERS or _same(value, self._state.get(name))):
                raise ChainError(
                    f"{name} of this {type(self._scheduler).__name__} is not what its configuration makes it: it was "
                    "changed after it was made"
                )

    def check(self, owner: Any, options: Mapping[str, Any] | None = None) -> None:
        """Refuse a loop that has become another one; called before each plan.

        Args:
            owner: As before.
            options: What its scheduler's step is given.

        Raises:
            ChainError: It has another scheduler, or this was changed, or samples another number of steps.
            SpecError: A method was replaced.
        """
        scheduler, steps = owner.noise_scheduler, owner.num_inference_steps
        if scheduler is not self._scheduler:
            raise ChainError(f"the policy was accelerated with another noise scheduler; {AGAIN}")
        if steps != self.steps:
            raise ChainError(
                f"the policy was accelerated with {self.steps} inference steps, it now has {steps}; {AGAIN}"
            )
        if dict(options or {}) != self._options:
            raise ChainError(f"the options of the scheduler's step were {self._options} at accelerate; {AGAIN}")
        check_own(owner, self._known, self._methods, self._methods)
        check_own(scheduler, SCHEDULERS, STEP_METHODS)
        _check_noise(scheduler)
        now = _state(scheduler)
        for name, value in self._state.items():
            if not _same(value, now.get(name)):
                raise ChainError(f"{name} of this {type(scheduler).__name__} was changed after accelerate; {AGAIN}")


def check_sampling(
    own: Callable[[Denoiser, Array], Array],
    chain: GaussianChain,
    shape: tuple[int, ...],
    device: Device,
    who: str,
    pace: float = 1 / 7,
) -> None:
    """Refuse a loop that does not sample its chain: of a network that is known it makes another plan than ours.

    Args:
        own: Samples plans of `shape` by the loop itself, given the network and conditioning [B, 1].
        chain: Of the loop.
        shape: Of the plans (B, horizon, action_dim).
        device: Where the loop runs.
        who: Whose loop it is, and what is tested, for the message.
        pace: How fast the known network's output changes with its timestep.

    Raises:
        SpecError: It is another one, or fails.
    """
    import torch  # whose policy this is

    def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
        told = 0 if cond is None else 0.2 * cond[:, :1, None]
        return 0.6 * x + 0.3 * torch.cos(timestep.to(x.dtype) * pace)[:, None, None] + told

    cond = arrays.asarray(np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None], device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        tape = NoiseTape.draw(shape, len(chain), None, device)
        expected = make_sampler("ddpm").sample(denoise, chain, shape, cond, tape).sample
        torch.manual_seed(0)
        try:
            found = own(denoise, cond)
        except (AssertionError, AttributeError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SpecError(f"{who}: its loop fails where it is known ({line})") from error
    same = found.shape == expected.shape
    change = float(abs(found - expected).max()) if same else float("inf")
    if not change <= _TOLERANCE * float(abs(expected).max()):
        raise SpecError(f"{who}: its loop is another one than is known, or draws its noise in another way")


def _check_noise(scheduler: Any) -> None:
    """Refuse a scheduler whose module draws its noise by a function that is not diffusers'.

    Raises:
        SpecError: It is replaced.
    """
    module = next(each.__module__ for each in type(scheduler).__mro__ if qualified(each) in SCHEDULERS)
    draw = getattr(sys.modules[module], "randn_tensor", None)
    written = getattr(draw, "__globals__", {}).get("__name__", type(draw).__module__)
    if draw is not None and not written.startswith("diffusers."):
        raise SpecError(
            f"{module}.randn_tensor, which draws the scheduler's noise, was replaced by a function of {written}"
        )


def _made_anew(scheduler: Any) -> Any:
    """Make a scheduler of the same configuration."""
    cls = next(each for each in type(scheduler).__mro__ if qualified(each) in SCHEDULERS)
    takes = inspect.signature(cls.__init__).parameters
    return cls(**{name: value for name, value in scheduler.config.items() if name in takes})


def _state(scheduler: Any) -> dict[str, Any]:
    """List what the steps of a scheduler depend on, by name.

    The configuration twice: it is read here as a mapping, and by the steps as an object.
    """
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    own = {name: each for name, each in vars(scheduler).items() if not name.startswith("_") and name not in _PER_PLAN}
    read = {f"config.{name}": getattr(scheduler.config, name, None) for name in config}
    items = {f"config[{name!r}]": value for name, value in config.items()}
    helpers = {name: getattr(type(scheduler), name, None) for name in _HELPERS}
    return {**helpers, **own, **read, **items}


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch  # whose policy this is

    return {
        name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


def _same(before: Any, now: Any) -> bool:
    import torch  # whose policy this is

    if isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor):
        return before.dtype == now.dtype and torch.equal(before, now.detach().cpu())
    if isinstance(before, np.ndarray) or isinstance(now, np.ndarray):
        return np.array_equal(before, now)
    return type(before) is type(now) and before == now
