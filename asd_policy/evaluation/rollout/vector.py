"""The environments of a group of episodes, side by side: one in this process, or each in a process of its own."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.utils import iterate

from asd_policy._common.border import clipped
from asd_policy.errors import EnvError, one_line
from asd_policy.evaluation.rollout.environments import Env
from asd_policy.evaluation.rollout.global_random import GlobalRandom

_END = "asd_policy_end"
# What a process of `asd-policy` needs seconds to import.
_PRELOADED = ["asd_policy.evaluation.rollout.vector", "asd_policy.evaluation.exactness.law"]
_ENDING = 0.5  # seconds for a process whose pipe is broken to be gone
_SHORT_FOLDER = "/tmp"
_LONGEST_FOLDER = 60  # bytes that leave room for a socket's name in it, of 107 in all


@dataclass(frozen=True)
class End:
    """How an episode ended."""

    success: bool | None
    """The environment's `info["success"]`; None where it does not say."""
    mode: str | None = None
    """Its `info["homotopy_class"]`, if it has one."""
    error: str | None = None
    """Why the episode failed before its end."""
    unsaid: str = ""
    """Why `success` is None, where it is."""

    @classmethod
    def failure(cls, error: str) -> "End":
        """Make the end of an episode that failed."""
        return cls(False, error=error)


@dataclass(frozen=True)
class Moment:
    """What a row shows after a reset or a step."""

    observation: Any
    reward: float | None
    """Of the step; None after a reset, and where there was no step because the environment raised."""
    end: End | None
    """None while the episode goes on."""


class EnvsLost(EnvError):
    """Processes of environments are gone, with their episodes; the next reset starts new ones."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        super().__init__("; ".join(rows.values()))
        self.rows = rows


class Envs(Protocol):
    """Rows of environments that are reset and stepped together."""

    @property
    def count(self) -> int:
        """Number of rows."""
        ...

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        """Begin an episode in the first rows, as many as there are seeds; the others stand still.

        Raises:
            EnvError: No environment can be made.
            EnvsLost: Processes ended.
        """
        ...

    def step(self, actions: Mapping[int, Any]) -> dict[int, Moment]:
        """Step the rows that are given actions [action_dim]; those left out stand still to the next reset.

        Raises:
            EnvsLost: Processes ended.
        """
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class EpisodeEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment in which an error ends the episode and nothing else.

    After its end an episode stands still: steps change nothing. A vector environment needs that for its other rows. The
    `info` has one key, at the end of an episode; what else an environment puts there, in whatever shapes, need not fit
    the other rows. The episode's seed fixes what it draws from global generators.
    """

    def __init__(self, make: Callable[[], Env]) -> None:
        """Make the environment, and after an error make another one.

        Raises:
            EnvError: It cannot be made.
        """
        super().__init__(make())
        self._make = make
        self._broken = False
        self._seen: Any = None
        self._random = GlobalRandom(0)
        self.over = True
        """Whether steps change nothing."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self.over = False
        if seed is not None:
            self._random.seed(seed)
        try:
            if self._broken:
                with contextlib.suppress(Exception):
                    self.env.close()
                self.env, self._broken = self._make(), False
            with self._random:
                self._seen, _ = self.env.reset(seed=seed, options=options or None)
        except Exception as error:  # environments raise errors of their own
            self._seen = self.env.observation_space.sample()  # any will do: nobody looks at it
            return self._seen, self._fail(f"the environment raised {_words(error)}")
        return self._seen, {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take an action [action_dim], clipped to the action space."""
        if self.over:
            return self._seen, 0.0, True, False, {}
        try:
            with self._random:
                stepped = self.env.step(clipped(action, self.env.action_space))
            self._seen, reward, terminated, truncated, info = stepped
        except Exception as error:
            return self._seen, 0.0, True, False, self._fail(f"the environment raised {_words(error)}")
        try:
            reward = float(_number(reward, "the reward"))
            ended, cut = bool(_number(terminated, "terminated")), bool(_number(truncated, "truncated"))
        except ValueError as error:
            return self._seen, 0.0, True, False, self._fail(str(error))
        self.over = ended or cut
        return self._seen, reward, ended, cut, {_END: _end(info)} if self.over else {}

    def close(self) -> None:
        """Close the environment. An error of it is a warning, and costs no episode."""
        try:
            super().close()
        except Exception as error:
            warnings.warn(f"the environment raised {_words(error)} when it was closed", stacklevel=2)

    def _fail(self, reason: str) -> dict[str, Any]:
        self.over = self._broken = True
        return {_END: End.failure(reason)}


def _end(info: Any) -> End:
    entries = info if isinstance(info, Mapping) else {}
    if entries.get("success") is None:
        keys = sorted(map(str, entries))
        return End(None, unsaid=f"the environment reports no info['success'] at the end of an episode, only {keys}")
    try:
        success = bool(_number(entries["success"], "info['success']"))
    except ValueError as error:
        return End(None, unsaid=str(error))
    mode = entries.get("homotopy_class")
    return End(success, None if mode is None else str(mode))


def _number(value: Any, name: str) -> Real:
    """Read the one number, or truth value, that an environment gives, in an array of any shape.

    Raises:
        ValueError: There is none, or more than one.
    """
    shape: tuple[int, ...] | None = None
    try:
        array = value if hasattr(value, "item") else np.asarray(value)
        shape = tuple(array.shape)
        number = array.item()
    except (RuntimeError, ValueError):  # of torch, and of NumPy
        number = None
    if isinstance(number, Real):
        return number
    what = f"has shape {shape}" if shape else f"is {value!r:.100}"
    raise ValueError(f"{name} {what}, where one number is needed")


class InProcess:
    """One row, in this process."""

    def __init__(self, make: Callable[[], Env]) -> None:
        """Make the environment.

        Raises:
            EnvError: It cannot be made.
        """
        self._env = EpisodeEnv(make)

    @property
    def count(self) -> int:
        """1."""
        return 1

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        """Begin an episode."""
        (seed,) = seeds
        observation, info = self._env.reset(seed=seed)
        return [Moment(observation, None, info.get(_END))]

    def step(self, actions: Mapping[int, Any]) -> dict[int, Moment]:
        """Take the action of row 0."""
        observation, reward, _, _, info = self._env.step(actions[0])
        return {0: _moment(observation, float(reward), info.get(_END))}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


class InProcesses:
    """Rows in processes of their own, in gymnasium's `AsyncVectorEnv`.

    A server without threads starts them. They are never forked from this process, which may have a GPU's context and
    threads that hold locks. So what makes an environment must be picklable, and its module importable.
    """

    def __init__(self, make: Callable[[], Env], count: int) -> None:
        """Start the processes.

        Args:
            make: Makes one environment; picklable.
            count: Rows, 1 or more.

        Raises:
            EnvError: They cannot be started, or their environments not be made.
        """
        self._make = make
        self._count = count
        self._start()

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._count

    def _start(self) -> None:
        context = "spawn"
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = "forkserver"
            multiprocessing.get_context(context).set_forkserver_preload(_PRELOADED)  # once for all, in the server
            _start_server()
        make = _InWorker(self._make)
        try:
            self._vector = AsyncVectorEnv([make] * self._count, context=context, autoreset_mode=AutoresetMode.DISABLED)
        except EnvError:
            raise
        except Exception as error:  # what a process died of, or what the system refused
            raise EnvError(f"{self._count} environments cannot be started in processes: {_words(error)}") from error
        self._action_shape = self._vector.single_action_space.shape or ()
        self._standing: set[int] = set()

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        """Begin an episode in the first rows."""
        if self._vector.closed:
            self._start()
        self._standing = set()
        padded = [*seeds, *[None] * (self._count - len(seeds))]
        mask = np.arange(self._count) < len(seeds)
        observations, infos = self._ask(lambda: self._vector.reset(seed=padded, options={"reset_mask": mask}))
        return self._moments(observations, [None] * self._count, infos)[: len(seeds)]

    def step(self, actions: Mapping[int, Any]) -> dict[int, Moment]:
        """Step the rows that are given actions."""
        batch = np.zeros((self._count, *self._action_shape), np.float32)
        for row, action in actions.items():
            batch[row] = action
        standing = set(range(self._count)) - set(actions)
        if standing != self._standing:
            self._ask(lambda: self._vector.set_attr("over", [row in standing for row in range(self._count)]))
            self._standing = standing
        observations, rewards, _, _, infos = self._ask(lambda: self._vector.step(batch))
        moments = self._moments(observations, rewards.tolist(), infos)
        return {row: moments[row] for row in actions}

    def _moments(self, observations: Any, rewards: Sequence[float | None], infos: Mapping[str, Any]) -> list[Moment]:
        ends = infos.get(_END, [None] * self._count)
        seen = iterate(self._vector.observation_space, observations)
        return [_moment(*row) for row in zip(seen, rewards, ends, strict=True)]

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call the processes, and return their answers."""
        try:
            with warnings.catch_warnings():  # gymnasium shows a traceback where a process raised; the error is enough
                warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
                return call()
        except Exception as error:  # a process that is gone shows as a broken pipe, one that raised as its error
            lost = self._lost(error)
            self._kill()
            raise EnvsLost(lost) if lost else EnvError(f"the environments cannot go on: {_words(error)}") from error

    def _lost(self, error: Exception) -> dict[int, str]:
        """Find the rows whose processes are gone, and how these ended."""
        multiprocessing.connection.wait([process.sentinel for process in self._vector.processes], _ENDING)
        lost = {}
        for row, (process, pipe) in enumerate(zip(self._vector.processes, self._vector.parent_pipes, strict=True)):
            if pipe is None:
                lost[row] = f"the environment raised {_words(error)}"
            elif not process.is_alive():
                lost[row] = f"the environment's process ended with exit code {process.exitcode}"
        return lost

    def _kill(self) -> None:
        """End the processes without asking them."""
        for process in self._vector.processes:
            process.kill()
            process.join()
        for pipe in self._vector.parent_pipes:
            if pipe is not None:
                pipe.close()
        self._vector.closed = True

    def close(self) -> None:
        """End the processes."""
        if not self._vector.closed:
            self._kill()


def _start_server() -> None:
    """Start the server that forks processes, if it does not run yet, so that Ctrl-C reaches neither it nor them.

    A terminal sends Ctrl-C to all processes. It is meant for the one that asks; the others would end in a traceback.
    """
    from multiprocessing import forkserver, resource_tracker  # not on every system

    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        usual, tempfile.tempdir = tempfile.tempdir, _SHORT_FOLDER
        try:
            multiprocessing.util.get_temp_dir()  # made once, for all sockets of this process
        finally:
            tempfile.tempdir = usual
    resource_tracker.ensure_running()  # if the server started it, it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which is inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _moment(observation: Any, reward: float | None, end: End | None) -> Moment:
    failed = end is not None and end.error is not None
    return Moment(observation, None if failed else reward, end)


class _InWorker:
    """Makes an environment in a process of its own, or beside it, where `AsyncVectorEnv` looks at its spaces."""

    def __init__(self, make: Callable[[], Env]) -> None:
        self._make = make

    def __call__(self) -> EpisodeEnv:
        if multiprocessing.parent_process() is not None:  # Ctrl-C is for the process that asks
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return EpisodeEnv(self._make)


def _words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}".rstrip(": "))


def make_envs(make: Callable[[], Env], count: int) -> Envs:
    """Make rows of environments: one in this process, more in a process each.

    Args:
        make: Makes one environment; picklable.
        count: Rows, 1 or more.

    Raises:
        EnvError: They cannot be made.
    """
    return InProcess(make) if count == 1 else InProcesses(make, count)
