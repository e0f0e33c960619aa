"""What the samplers through diffusers' own schedulers share: few large steps over the chain's noise schedule."""

import abc
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy._common.extras import needed
from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.samplers.base import Sampler, Samples, Target, check_count
from asd_policy.samplers.fallback import fall_back
from asd_policy.samplers.records import sequential_costs
from asd_policy.samplers.warm_start import WarmStart

EXTRA = "diffusers"
"""What these samplers need beyond what `asd` does: diffusers, and PyTorch."""


@dataclass(frozen=True)
class FewSteps(Sampler):
    """A scheduler of diffusers with the chain's configuration. Approximate: another law than the full chain's."""

    steps: int = 10
    """Number of network calls."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        check_count(self._steps, self.steps)

    @property
    def exact(self) -> bool:
        """False."""
        return False

    def check(self, chain: GaussianChain) -> None:
        """Refuse more steps than the chain has, and noise schedules that diffusers has no numbers for."""
        check_count(self._steps, self.steps, chain)
        check_diffusion(self.spec, chain)
        with needed(self.spec, EXTRA, SpecError):
            _scheduler(self, chain)

    @abc.abstractmethod
    def scheduler(self, chain: GaussianChain) -> Any:
        """Make the scheduler.

        Raises:
            SpecError: It lacks an option of the chain's configuration.
        """

    def step_options(self, noise: Array) -> dict[str, Any]:
        """Give the options of `scheduler.step` beyond output, timestep and point; noise [B, *event] is the tape's."""
        return {}

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk the shortened chain once."""
        x = tape.initial
        if arrays.device_of(x) == NUMPY:
            raise SpecError(f"{self.spec} runs through diffusers' schedulers, which need PyTorch; ddpm and asd do not")
        import torch

        scheduler = copy.deepcopy(_scheduler(self, target.chain))  # it remembers what it has seen of a plan
        rows = torch.arange(len(x), device=x.device)
        places, timesteps = self._places(target), scheduler.timesteps.tolist()
        if target.deadline is not None:
            first = torch.full_like(rows, timesteps[0]), torch.full_like(rows, places[0])
            target.deadline.reserve(partial(self._jump, target, x, *first))
        for k, timestep in enumerate(timesteps):
            now, step = torch.full_like(rows, timestep), torch.full_like(rows, places[k])
            x = x if target.inpainting is None else target.inpainting.show(x, step)
            if not target.allows("step"):
                sample, calls = fall_back(target, partial(self._jump, target, x, now, step), rows, warm_start)
                return Samples(sample, sequential_costs((k + calls).tolist(), cut=True))
            output = self._output(target, x, now, step)
            x = self._step(scheduler, output, timestep, x, tape.normals[:, k])
        return Samples(x, sequential_costs([self.steps] * len(x)))

    def _output(self, target: Target, x: Array, timestep: Array, step: Array) -> Array:
        """Call the network at points x of timesteps [B], the chain's steps [B], with the guidance in its output."""
        output = target.output(x, timestep)
        return output if target.inpainting is None else target.inpainting.guide_output(x, output, step, target.chain)

    def _places(self, target: Target) -> list[int]:
        """Find the chain's step at each of the timesteps, if given coordinates have to be known there.

        Raises:
            SpecError: The chain leaves some of them out.
        """
        if target.inpainting is None or target.inpainting.noisy_values is None:
            return [0] * self.steps  # which nothing looks at
        timesteps = _scheduler(self, target.chain).timesteps.tolist()
        places = {timestep: step for step, timestep in enumerate(target.chain.timesteps.tolist())}
        if not places.keys() >= set(timesteps):
            raise SpecError(
                f"{self.spec} has timesteps that the chain of {len(target.chain)} steps leaves out: what is given "
                "along the chain is not known there"
            )
        return [places[timestep] for timestep in timesteps]

    def _jump(self, target: Target, x: Array, timestep: Array, step: Array) -> Array:
        """Predict x̂0 [B, *event] at points x of timesteps [B], all equal."""
        output = self._output(target, x, timestep, step)
        taken = _predictor(self.steps, target.chain).step(output[..., None], int(timestep[0]), x[..., None])
        return taken.pred_original_sample.squeeze(-1)

    @property
    def _steps(self) -> str:
        """How errors call the number of steps."""
        return f"{self.spec.partition(':')[0]} steps {self.steps}"

    def _step(self, scheduler: Any, output: Array, timestep: int, x: Array, noise: Array) -> Array:
        """Take one step from x [B, *event]."""
        # An axis more, because thresholding in diffusers fails on events of one axis.
        output, x, noise = (values[..., None] for values in (output, x, noise))
        return scheduler.step(output, timestep, x, return_dict=False, **self.step_options(noise))[0].squeeze(-1)


def check_diffusion(spec: str, chain: GaussianChain) -> None:
    """Refuse a chain that has no noise schedule of a diffusion's.

    Raises:
        SpecError: It is a flow's, or that of Langevin dynamics.
    """
    if is_flow(chain.config):
        raise SpecError(f"{spec} needs a diffusion's noise schedule, and this chain is a flow's: euler:n follows it")
    if not chain.predicts_sample:
        raise SpecError(f"{spec} needs a diffusion's noise schedule, and Langevin dynamics have none")


def configured(kind: Callable[..., Any], chain: GaussianChain, **options: Any) -> Any:
    """Make a scheduler of another kind than the chain's with the same noise schedule.

    Args:
        kind: The scheduler's class.
        chain: Whose configuration it gets, as far as it has these options.
        options: Options in place of the configuration's.
    """
    # Imported here: diffusers takes a second to import, and only these samplers need it.
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    def make(kind: Callable[..., Any], config: dict[str, Any]) -> Any:
        return kind(**{key: config[key] for key in inspect.signature(kind).parameters if key in config})

    # The β themselves, because the other schedulers do not know all of DDPM's by name. Each rescales them as it likes.
    plain = make(DDPMScheduler, {**chain.config, "rescale_betas_zero_snr": False})
    return make(kind, {**chain.config, "trained_betas": plain.betas.tolist(), **options})


@lru_cache(maxsize=16)
def _predictor(steps: int, chain: GaussianChain) -> Any:
    """Make a scheduler whose steps give x̂0 and leave nothing behind; made once, because a deadline waits for it."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    with arrays.on_cpu():
        scheduler = configured(DDIMScheduler, chain)
        scheduler.set_timesteps(steps)
    return scheduler


@lru_cache(maxsize=16)
def _scheduler(sampler: FewSteps, chain: GaussianChain) -> Any:
    """Make a sampler's scheduler for a chain, with its timesteps; made once, and not to be stepped."""
    with arrays.on_cpu():
        scheduler = sampler.scheduler(chain)
        scheduler.set_timesteps(sampler.steps)
    timesteps = scheduler.timesteps.tolist()
    config, name = chain.config, f"{sampler.spec} through {type(scheduler).__name__}"
    falling = all(later < earlier for earlier, later in pairwise(timesteps))
    inside = 0 <= timesteps[-1] and timesteps[0] < config["num_train_timesteps"]
    if not (len(timesteps) == sampler.steps and falling and inside):
        raise SpecError(
            f"{name} has no {sampler.steps} timesteps in 0 … {config['num_train_timesteps'] - 1} with timestep_spacing "
            f"{scheduler.config.timestep_spacing!r} and steps_offset {scheduler.config.steps_offset}; use another "
            "number of steps"
        )
    import torch

    trial, x = copy.deepcopy(scheduler), torch.full((1, 1), 0.5, dtype=torch.float32, device="cpu")
    for timestep in timesteps:
        x = sampler._step(trial, x, timestep, x, x)
        if not bool(x.isfinite().all()):
            raise SpecError(f"{name} is not finite at timestep {timestep} of this noise schedule")
    return scheduler
