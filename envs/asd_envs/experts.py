"""Demonstrators: scripts that solve a task without a learned policy, by gymnasium id."""

from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

from asd_envs.registration import OWN_TASKS

DEMONSTRATED = ", ".join(
    [*(f"asd/{name}-v0" for name in OWN_TASKS), "asd/GymPushT-<keypoints, pixels>-v0", "asd/MetaWorld-<task>-v0"]
)
"""The ids of environments that have an expert."""


class Expert(Protocol):
    """A scripted demonstrator of one environment."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; the expert draws all its random choices from `rng`."""
        ...

    def act(self, observation: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """Choose the action [action_dim] for an observation, inside the environment's action space."""
        ...


def make_expert(env: gymnasium.Env[Any, Any]) -> Expert:
    """Make the demonstrator of an environment of this package.

    Args:
        env: An environment made by `gymnasium.make`, wrapped or not.

    Raises:
        ValueError: The environment is not one of this package's.
    """
    from asd_envs.avoid import AvoidEnv, AvoidExpert
    from asd_envs.gym_pusht import GymPushTEnv
    from asd_envs.gym_pusht_expert import GymPushTExpert
    from asd_envs.intercept import InterceptEnv, InterceptExpert
    from asd_envs.metaworld import MetaWorldEnv, MetaWorldExpert
    from asd_envs.pusht import PushTEnv
    from asd_envs.pusht_expert import PushTExpert

    bare = env.unwrapped
    if isinstance(bare, AvoidEnv):
        return AvoidExpert(displaced=bare.displaced)
    if isinstance(bare, InterceptEnv):
        return InterceptExpert()
    if isinstance(bare, MetaWorldEnv):
        return MetaWorldExpert(bare.task)
    if isinstance(bare, PushTEnv):
        return PushTExpert()
    if isinstance(bare, GymPushTEnv):
        return GymPushTExpert(bare)
    raise ValueError(f"no expert for {bare!r}: there is one for {DEMONSTRATED}")
