"""LeRobot's `DiffusionPolicy`, live: `DiffusionModel.conditional_sample` is the one place where it samples.

The same in lerobot 0.4.4 and 0.6.1 (`lerobot/policies/diffusion/modeling_diffusion.py`). Observation queues, encoders
and processors are outside it, and stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asd_policy._common.arrays import Array, Generator
from asd_policy.errors import ChainError
from asd_policy.policy.adapters.base import (
    LAST_PLAN,
    WARM_UP,
    Adapter,
    LivePlanner,
    Patch,
    alone,
    check_own,
    check_step,
    read_chain,
)
from asd_policy.samplers import Sampler
from asd_policy.samplers.records import WarmUp

_MODULE = "lerobot.policies.diffusion.modeling_diffusion"


@dataclass(frozen=True, eq=False)
class _Sampling:
    """The methods that take the place of the policy's own; bound, so that a copied policy has copies of its own."""

    policy: Any
    planner: LivePlanner
    scheduler: Any
    """The noise scheduler that the planner's chain was read from."""
    own_reset: Callable[[], None]
    """The policy's own method."""

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Array | None = None,
        generator: Generator | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Sample plans [batch_size, horizon, action_dim] given observations [batch_size, cond_dim].

        Raises:
            ChainError: The policy's noise scheduler has been changed.
            DenoiserError: See `LivePlanner.sample`.
            ObservationError: The noise does not fit.
        """
        model, config = self.policy.diffusion, self.policy.config
        if model.noise_scheduler is not self.scheduler or model.num_inference_steps != len(self.planner.chain):
            raise ChainError(
                f"the policy was accelerated with another noise scheduler or {len(self.planner.chain)} inference "
                f"steps, it now has {model.num_inference_steps}; accelerate it again"
            )

        def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
            return model.unet(x, timestep, global_cond=cond)

        shape = (batch_size, config.horizon, config.action_feature.shape[0])
        device = next(model.parameters()).device
        plans = self.planner.sample(denoise, shape, config.n_action_steps, device, global_cond, generator, noise)
        setattr(self.policy, LAST_PLAN, self.planner.last_plan)
        return plans

    def warm_up(self, robots: int = 1) -> WarmUp:
        """Plan for robots whose observations are zero, encoders included; see `adapters.warm_up`.

        Raises:
            DenoiserError: See `LivePlanner.sample`.
            SpecError: The policy is in training mode.
        """
        model, config = self.policy.diffusion, self.policy.config
        shapes = {"observation.state": config.robot_state_feature.shape}
        if config.env_state_feature:
            shapes["observation.environment_state"] = config.env_state_feature.shape
        if config.image_features:
            images = list(config.image_features.values())
            shapes["observation.images"] = (len(images), *images[0].shape)
        like = next(model.parameters())
        batch = {name: like.new_zeros((robots, config.n_obs_steps, *shape)) for name, shape in shapes.items()}
        with alone(self.policy, like.device):
            return self.planner.warm_up(lambda: model.generate_actions(batch))

    def reset(self) -> None:
        """Begin an episode."""
        self.own_reset()
        self.planner.begin_episode()
        setattr(self.policy, LAST_PLAN, None)


def _patches(policy: Any, sampler: Sampler) -> list[Patch]:
    model = policy.diffusion
    check_own(model, (f"{_MODULE}.DiffusionModel",), ("conditional_sample", "generate_actions"))
    chain = read_chain(model.noise_scheduler, model.num_inference_steps)
    check_step(model.noise_scheduler, chain, {})
    planner = LivePlanner(sampler, chain, model)
    sampling = _Sampling(policy, planner, model.noise_scheduler, policy.reset)
    return [
        Patch(model, "conditional_sample", sampling.conditional_sample),
        Patch(policy, "reset", sampling.reset),
        Patch(policy, "asd_stats", planner.stats),
        Patch(policy, LAST_PLAN, None),
        Patch(policy, WARM_UP, sampling.warm_up),
    ]


ADAPTER = Adapter((f"{_MODULE}.DiffusionPolicy",), _patches)
