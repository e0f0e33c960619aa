"""Environments by their gymnasium id, and whether a policy fits one."""

import ast
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from asd_policy._common.extras import needed
from asd_policy.errors import EnvError, one_line
from asd_policy.evaluation.rollout.global_random import GlobalRandom
from asd_policy.policy.planner import Planner
from asd_policy.policy.policy import Policy

with needed("an environment", "eval"):
    import gymnasium
    from gymnasium.wrappers import TimeLimit

Env = gymnasium.Env[Any, Any]
ENTRY_POINT_GROUP = "asd_policy.environments"


MAX_STEPS = 1000
"""Control steps after which an episode is cut where neither the environment nor the user sets a limit."""


def make_env(env_id: str, render_mode: str | None = None, max_steps: int | None = None) -> Env:
    """Make an environment by its gymnasium id.

    A namespace such as `asd/` is registered by the module that an installed distribution names for it under the
    entry-point group `asd_policy.environments`; `module:id` imports a module itself, as gymnasium does, and looks in
    the current folder, too. Options of the constructor follow after commas, see `read_id`.

    Args:
        env_id: Such as "asd/Avoid-v0".
        render_mode: For `gymnasium.make`.
        max_steps: Steps after which an episode is cut; see `step_limit`.

    Raises:
        EnvError: No such environment, or it cannot be made here.
    """
    asked = env_id
    env_id, options = read_id(asked)
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # no screen: MuJoCo's default, for frames, would look for one
    namespace = env_id.split("/")[0]
    _look_here_for(env_id)
    # Not every environment takes a render mode, so none is passed where none is wanted.
    options |= {} if render_mode is None else {"render_mode": render_mode}
    try:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name == namespace:
                point.load()
        with GlobalRandom(0):  # all are alike, whatever was drawn in their processes before
            env = gymnasium.make(env_id, **options)
    except gymnasium.error.UnregisteredEnv:
        raise EnvError(f"no environment {env_id!r}; {_known(env_id, namespace)}") from None
    except (gymnasium.error.Error, ImportError) as error:
        raise EnvError(f"cannot make environment {asked!r}: {one_line(str(error))}") from None
    except Exception as error:  # a constructor may raise anything
        if render_mode and isinstance(error, TypeError) and "render_mode" in str(error):
            raise EnvError(f"{env_id} takes no render_mode, so it cannot be filmed: leave out --video") from None
        raise EnvError(f"cannot make environment {asked!r}: {type(error).__name__}: {one_line(str(error))}") from error
    limit = step_limit(env, max_steps)
    return env if limit is None else TimeLimit(env, limit)


def read_id(text: str) -> tuple[str, dict[str, Any]]:
    """Take an environment's id and the options of its constructor apart.

    Args:
        text: Such as "asd/PushT-v0,obs_type=pixels_agent_pos". Values are Python's literals, such as 96 or True; all
            others are texts as they stand.

    Raises:
        EnvError: What follows a comma is no name=value, or a name is there twice.
    """
    env_id, *parts = text.split(",")
    options: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or name in options:
            raise EnvError(f"environment {text!r}: {part!r} is not an option name=value of its own")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return env_id, options


def _look_here_for(env_id: str) -> None:
    """Let the module of `module:id` be imported from the current folder; a program has its own folder instead.

    It is the last place: nothing there hides what is installed. Processes that are started look there, too.
    """
    here = os.getcwd()
    if ":" in env_id and not {"", here} & set(sys.path):
        sys.path.append(here)


@contextmanager
def open_env(env_id: str, render_mode: str | None = None, max_steps: int | None = None) -> Iterator[Env]:
    """Yield an environment, and close it. An error while closing is a warning.

    Args:
        env_id: As for `make_env`.
        render_mode: As for `make_env`.
        max_steps: As for `make_env`.

    Raises:
        EnvError: As `make_env`.
    """
    env = make_env(env_id, render_mode, max_steps)
    try:
        yield env
    finally:
        try:
            env.close()
        except Exception as error:
            warnings.warn(f"{env_id} raised {type(error).__name__} when it was closed: {error}", stacklevel=3)


def step_limit(env: Env, max_steps: int | None = None) -> int | None:
    """Choose the number of steps at which an episode is cut, beside the environment's own limit; None for never.

    Args:
        env: From `make_env` or `gymnasium.make`.
        max_steps: The user's limit; None for `MAX_STEPS` where the environment declares none.
    """
    spec = env.unwrapped.spec  # which lacks the limit that the environment was registered with
    registered = None if spec is None else gymnasium.registry.get(spec.id)
    declared = registered is not None and registered.max_episode_steps is not None
    return max_steps if max_steps is not None or declared else MAX_STEPS


def _known(env_id: str, namespace: str) -> str:
    """Say which environments there are, those with a similar id first."""
    known = sorted(i for i in gymnasium.registry if i.startswith(f"{namespace}/"))
    if known:
        nearest = ", ".join(get_close_matches(env_id, known, n=3, cutoff=0))
        return f"the nearest are {nearest}; there are {_families(known)}"
    names = {i.partition("/")[0] for i in gymnasium.registry if "/" in i}
    names |= {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return f"there are {', '.join(f'{name}/…' for name in sorted(names))}, and gymnasium's own"


def control_rate(env: Env) -> float | None:
    """Look up an environment's own control frequency [Hz]; None where it declares none.

    `metadata["render_fps"]` declares it, a frame for each step, or else `dt` [s], which MuJoCo's environments have.
    """
    fps, dt = env.metadata.get("render_fps"), getattr(env.unwrapped, "dt", None)
    if fps:
        return float(fps)
    return 1 / dt if isinstance(dt, float) and dt > 0 else None


def check_fit(policy: Policy | Planner, env: Env) -> None:
    """Refuse an environment whose actions are not the policy's.

    Raises:
        EnvError: They are not.
    """
    shape = env.action_space.shape
    if not isinstance(env.action_space, gymnasium.spaces.Box) or shape != (policy.action_dim,):
        raise EnvError(
            f"the policy's actions have shape ({policy.action_dim},), the environment's action space is "
            f"{env.action_space}"
        )


@contextmanager
def open_fitting(policy: Policy, env_id: str | None) -> Iterator[Env | None]:
    """Yield an environment that a policy can plan in, if one is named, and close it.

    Raises:
        EnvError: As `make_env` and `check_fit`.
    """
    if env_id is None:
        yield None
        return
    with open_env(env_id) as env:
        check_fit(policy, env)
        yield env


def _families(known: Sequence[str]) -> str:
    """Shorten a list of ids: those that begin alike, such as a suite's tasks, become their beginning and number."""
    families: dict[str, list[str]] = {}
    for each in known:
        families.setdefault(each.rpartition("-v")[0].partition("-")[0], []).append(each)
    return ", ".join(
        members[0] if len(members) == 1 else f"{family}-… ({len(members)})" for family, members in families.items()
    )
