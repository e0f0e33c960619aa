"""How a control loop reaches its robot: two callables, or those of an environment."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from asd_policy._common.arrays import read_seed
from asd_policy._common.border import clipped
from asd_policy.deploy.realtime.worker import CallThread
from asd_policy.errors import LoopError

if TYPE_CHECKING:
    import gymnasium

ReadObservation = Callable[[], Any]
"""Returns what the robot sees now: a mapping with the policy's features, or one array; it may block."""
WriteAction = Callable[[npt.NDArray[np.float32]], Any]
"""Takes an action [action_dim], and returns at once. Its return value is ignored."""


class EpisodeEnded(Exception):
    """Raised by `write_action`: the action was the episode's last; the next observation is another one's."""


class Link:
    """Reads in a thread of its own, so that a source that blocks cannot keep the loop from writing."""

    def __init__(self, read_observation: ReadObservation, write_action: WriteAction) -> None:
        self.reader = CallThread("asd_policy reading", read_observation)
        """The thread."""
        self.write = write_action
        self._void = False

    def forget(self) -> None:
        """Discard the observation that is being read now: it belongs to the past."""
        self._void = self.reader.busy

    def read(self, patience: float) -> Any:
        """Read an observation; None if there is none in time, and the next call then waits for the same one.

        Args:
            patience: How long to wait [s].

        Raises:
            LoopError: `read_observation` raised, or returned None.
        """
        if self._void:
            if self.reader.outcome(patience) is None:
                return None
            self._void = False
        if not self.reader.busy:
            self.reader.begin()
        outcome = self.reader.outcome(patience)
        if outcome is None:
            return None
        if outcome.error is not None:
            error = outcome.error
            raise LoopError(f"read_observation raised {type(error).__name__}: {error}") from error
        if outcome.value is None:
            raise LoopError("read_observation returned None")
        return outcome.value


class EnvLink:
    """The two callables of an environment that is stepped in real time."""

    def __init__(self, env: "gymnasium.Env[Any, Any]", seed: SupportsIndex | None = None) -> None:
        """Begin an episode.

        Args:
            env: The environment; whoever made it closes it.
            seed: Of the first episode; the others follow from it.

        Raises:
            SpecError: The seed is not one.
        """
        self._env = env
        self._observation, _ = env.reset(seed=None if seed is None else read_seed(seed))

    def read_observation(self) -> Any:
        """Give the observation that the last reset or step brought."""
        return self._observation

    def write_action(self, action: npt.NDArray[np.float32]) -> None:
        """Step with an action of the action space; begin the next episode where one ends.

        Raises:
            EpisodeEnded: One did.
        """
        self._observation, _, terminated, truncated, _ = self._env.step(clipped(action, self._env.action_space))
        if terminated or truncated:
            self._observation, _ = self._env.reset()
            raise EpisodeEnded
