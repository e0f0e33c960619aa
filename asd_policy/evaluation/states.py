"""Situations to plan in: the network's conditioning, and the plan before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy._common import arrays
from asd_policy.policy.policy import Policy

CALIBRATION_PLANS = 32
"""Plans that a sampler which learns may learn from before it is measured."""


@dataclass(frozen=True)
class States:
    """Situations to plan in."""

    cond: Tensor
    """Conditioning: the normalised observations, [N, …]."""
    last_plan: Tensor
    """The plan before, moved on to the present; zeros at an episode's start, [N, *event]."""
    episode: npt.NDArray[np.int64]
    """The episode that each comes from [N]; those of one episode are not independent."""

    def __len__(self) -> int:
        return len(self.cond)

    def rows(self, rows: slice | npt.NDArray[np.int64]) -> "States":
        """Select some of them."""
        return States(self.cond[rows], self.last_plan[rows], self.episode[rows])

    def first(self, count: int) -> "States":
        """Select the first `count` of them."""
        return self.rows(slice(count))

    @classmethod
    def none(cls, count: int, event: Sequence[int]) -> "States":
        """Make `count` states of a denoiser without conditioning, with no plan before."""
        zeros = torch.zeros(count, *event, dtype=torch.float32, device="cpu")
        return cls(zeros.new_zeros(count, 1), zeros, np.arange(count))


def random_conditioning(policy: Policy, count: int, seed: int) -> Tensor:
    """Draw conditioning [count, C] for observations at rest, uniform in [-1, 1] once normalised."""
    dims = sum(policy.observation_dims.values())
    cpu = torch.device("cpu")
    once = arrays.uniforms((count, 1, dims), arrays.make_generator(cpu, seed), cpu)
    return (2 * once - 1).expand(-1, policy.horizons.n_obs_steps, -1).flatten(1).to(policy.device)


def random_states(policy: Policy, count: int, seed: int) -> States:
    """Draw `count` states at random, each the start of an episode of its own."""
    cond = random_conditioning(policy, count, seed)
    return States(cond, cond.new_zeros((count, *policy.event)), np.arange(count))


def histories(policy: Policy, cond: Tensor) -> dict[str, Tensor]:
    """Recover the observations that a policy turns into conditioning [N, C], up to rounding.

    Returns:
        Each feature [N, n_obs_steps, feature_dim], in the environment's units.
    """
    dims = policy.observation_dims
    parts = cond.unflatten(1, (policy.horizons.n_obs_steps, -1)).split(list(dims.values()), dim=-1)
    return {name: policy.normalization[name].unnormalize(part) for name, part in zip(dims, parts, strict=True)}
