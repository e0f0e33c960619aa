"""What a checkpoint's scheduler means here: the chain that `asd` is exact on, and its own plan where that is DDIM's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.scheduler_options import (
    adds_no_noise,
    check_options,
    configuration,
    trained_configuration,
)
from asd_policy.chain.scheduler_steps import choose_timesteps
from asd_policy.policy.law import CHECKPOINT, TRAINED, Law, Stochastic
from asd_policy.samplers.ddim import OwnDdim
from asd_policy.samplers.euler import OwnEuler


@dataclass(frozen=True)
class Schedule:
    """A chain, and the plan that the file's own scheduler makes where it adds no noise."""

    chain: GaussianChain
    """The scheduler's own; for DDIM with η = 0 the DDPM chain that the network was trained for, for a flow a chain with
    noise, η = 1."""
    own: OwnDdim | OwnEuler | None
    """The file's own plan; None where it is the chain's."""

    @property
    def law(self) -> Law:
        """The law of the chain, beside which the file's own is known."""
        gaussian = Stochastic().spec if isinstance(self.own, OwnEuler) else TRAINED
        return Law(self.chain, self.own, CHECKPOINT if self.own is None else gaussian)


def schedule_of(scheduler: Mapping[str, Any], num_inference_steps: Any, eta: Any = None) -> Schedule:
    """Read a checkpoint's scheduler.

    Args:
        scheduler: Its configuration by diffusers' names, `_class_name` included.
        num_inference_steps: As the file has it; None for all the training steps.
        eta: DDIM's η; None where the file has none, which means 0.

    Raises:
        ChainError: It cannot be sampled here.
    """
    if is_flow(scheduler):
        return _flow(scheduler, num_inference_steps)
    if not adds_no_noise(scheduler, eta):
        return Schedule(GaussianChain.from_scheduler(scheduler, num_inference_steps, eta), None)
    config = configuration(scheduler)
    check_options(config)
    steps = config["num_train_timesteps"] if num_inference_steps is None else num_inference_steps
    choose_timesteps(config, steps)
    own = OwnDdim(
        steps=steps,
        own_steps=steps,
        timestep_spacing=config["timestep_spacing"],
        steps_offset=config["steps_offset"],
        set_alpha_to_one=config["set_alpha_to_one"],
    )
    return Schedule(GaussianChain.from_scheduler(trained_configuration(config)), own)


def _flow(scheduler: Mapping[str, Any], num_inference_steps: Any) -> Schedule:
    """Read the scheduler of a flow whose network has integer timesteps; its own plan is Euler's."""
    train = scheduler["num_train_timesteps"]
    steps = train if num_inference_steps is None else num_inference_steps
    chain = GaussianChain.from_flow(steps, 1.0, scheduler["convention"], scheduler["sigma_min"], train)
    return Schedule(chain, OwnEuler(steps=steps, own_steps=steps))
