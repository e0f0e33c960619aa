"""What the adapters of other people's suites share: the optional import, observation spaces, one interface."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[np.float64]


def require(module: str, extra: str) -> Any:
    """Import a module of a suite, an optional extra without type information.

    Args:
        module: Its name.
        extra: The extra of this package that installs it.

    Raises:
        ImportError: It, or what it needs, is not installed; the message says what installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}): pip install 'asd-policy[{extra}]'") from error


def make_inner(module: str, extra: str, env_id: str, **options: Any) -> Any:
    """Make a suite's own environment, without gymnasium's wrappers.

    Args:
        module: The suite's, which registers its ids.
        extra: The extra of this package that installs it.
        env_id: The suite's id.
        **options: For the environment.

    Raises:
        ImportError: The extra is not installed.
    """
    gymnasium.register_envs(require(module, extra))
    return gymnasium.make(env_id, **options).unwrapped


def unbounded(size: int) -> spaces.Box:
    """Make the space of all vectors [size] of float64."""
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)


def state_space(agent: int, environment: int) -> spaces.Dict:
    """Make the space of observations: so many numbers of the robot, so many of what is around it."""
    return spaces.Dict({"agent_pos": unbounded(agent), "environment_state": unbounded(environment)})


class SuiteEnv(gymnasium.Env[Any, npt.NDArray[np.floating[Any]]], ABC):
    """A suite's environment behind the interface of this package; abstract.

    What `reset` and `step` of the suite return is handed on, but for the observation, put into this package's form by
    `_observe`, and for `info["success"]`, by `_succeeded`. An adapter changes neither dynamics nor reward.
    """

    metadata = {"render_modes": ["human", "rgb_array"]}

    def __init__(self, inner: Any, observation_space: spaces.Space[Any]) -> None:
        """Wrap an environment.

        Args:
            inner: The suite's, without gymnasium's wrappers.
            observation_space: Of what `_observe` returns.
        """
        self.inner = inner
        self.render_mode = inner.render_mode
        self.metadata = {**self.metadata, "render_fps": inner.metadata["render_fps"]}
        self.observation_space = observation_space
        self.action_space = inner.action_space

    @abstractmethod
    def _observe(self, raw: Any) -> Any:
        """Make the observation, in arrays of its own."""

    @abstractmethod
    def _succeeded(self, raw: Any, info: dict[str, Any]) -> bool:
        """Tell whether the task is solved now, given the suite's observation and info."""

    def _report(self, info: dict[str, Any]) -> dict[str, Any]:
        """Choose what of the suite's info is handed on."""
        return info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed fixes all that is random in it. `options` are the suite's own."""
        super().reset(seed=seed)
        raw, info = self.inner.reset(seed=seed, options=options)
        return self._observe(raw), {**self._report(info), "success": self._succeeded(raw, info)}

    def step(self, action: npt.NDArray[np.floating[Any]]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply one action for one control step."""
        raw, reward, terminated, truncated, info = self.inner.step(np.asarray(action, self.action_space.dtype))
        report = {**self._report(info), "success": self._succeeded(raw, info)}
        return self._observe(raw), float(reward), bool(terminated), bool(truncated), report

    def render(self) -> Any:
        """Draw the window in human mode, else return an image [height, width, 3] uint8."""
        return self.inner.render()

    def close(self) -> None:
        """Close the suite's environment."""
        self.inner.close()


def check_task(task: str, tasks: Collection[str], suite: str) -> None:
    """Refuse a task that a suite lacks.

    Raises:
        ValueError: There is no such task; the message lists those there are.
    """
    if task not in tasks:
        raise ValueError(f"no {suite} task {task!r}; there are {', '.join(tasks)}")
