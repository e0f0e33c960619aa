"""LeRobot's `MultiTaskDiTPolicy`, live: `DiffusionObjective.conditional_sample` is the one place where it samples.

Of lerobot 0.6.1 (`lerobot/policies/multi_task_dit/modeling_multi_task_dit.py`). Observation queues, the encoders of
frames and text and the processors are outside it, and stay as they are.
"""

from typing import TYPE_CHECKING, Any

from asd_policy._common.arrays import Array
from asd_policy.errors import ChainError, DenoiserError
from asd_policy.policy.adapters.base import Acceleration, Adapter, Patch, check_own, qualified
from asd_policy.policy.adapters.lerobot_sampling import LeRobotSampling, sampling_patches

if TYPE_CHECKING:
    from torch import nn

TOKENS, ATTENTION_MASK = "observation.language.tokens", "observation.language.attention_mask"
"""The task, as LeRobot's tokenizer makes it of a text: numbers of tokens, and which of them are to be read."""
_MODULE = "lerobot.policies.multi_task_dit.modeling_multi_task_dit"
_OBJECTIVE, _FLOW = f"{_MODULE}.DiffusionObjective", f"{_MODULE}.FlowMatchingObjective"


class _Sampling(LeRobotSampling):
    """The objective has the loop, and is given the network; the policy's `_generate_actions` encodes and samples."""

    known = (f"{_MODULE}.MultiTaskDiTPolicy",)

    @staticmethod
    def loop_of(policy: Any) -> Any:
        """Find the objective."""
        return policy.objective

    @staticmethod
    def denoiser_of(policy: Any) -> Any:
        """Find the DiT."""
        return policy.noise_predictor

    @staticmethod
    def planning_of(policy: Any) -> tuple[Any, str]:
        """Find what encodes and samples."""
        return policy, "_generate_actions"

    def conditional_sample(self, model: "nn.Module", batch_size: int, conditioning_vec: Array) -> Array:
        """Sample plans [batch_size, horizon, action_dim] given observations [batch_size, cond_dim]; see `sample`.

        Raises:
            DenoiserError: The network is in training mode, in which it drops out.
        """
        if self.policy.config.dropout > 0 and any(each.training for each in model.modules()):
            raise DenoiserError(
                f"the policy's {type(model).__name__} is in training mode, and drops out: call .eval() before it plans"
            )
        objective = self.policy.objective
        shape = (batch_size, objective.horizon, objective.action_dim)
        return self.sample(model, shape, "conditioning_vec", conditioning_vec)

    def observe_nothing(self, robots: int) -> dict[str, Array]:
        """Make a batch as for every policy, with a task of which each token is 0."""
        batch = super().observe_nothing(robots)
        tokens = batch["observation.state"].new_zeros((robots, self.policy.config.tokenizer_max_length)).long()
        return {**batch, TOKENS: tokens, ATTENTION_MASK: tokens == 0}


def _check(policy: Any) -> None:
    """Refuse a policy that does not sample a chain, or in a way of its own."""
    objective = policy.objective
    if any(qualified(cls) == _FLOW for cls in type(objective).__mro__):
        raise ChainError(
            f"this {type(policy).__name__} has the objective flow_matching, whose plans solve an equation without "
            "noise: there is nothing to draft and verify; the objective diffusion is what can be accelerated"
        )
    check_own(objective, (_OBJECTIVE,), ("conditional_sample",))
    check_own(policy, ADAPTER.classes, ("_generate_actions",))


def _patches(policy: Any, wanted: Acceleration) -> list[Patch]:
    _check(policy)
    return sampling_patches(policy, wanted, _Sampling, policy.noise_predictor)


ADAPTER = Adapter(_Sampling.known, _patches)
