"""Environments by their gymnasium id, and whether a policy fits one."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

import gymnasium

from asd_policy.errors import EnvError
from asd_policy.policy import Policy
from asd_policy.realtime.planner import Planner

Env = gymnasium.Env[Any, Any]
ENTRY_POINT_GROUP = "asd_policy.environments"


def make_env(env_id: str, render_mode: str | None = None) -> Env:
    """Make an environment by its gymnasium id.

    A namespace such as `asd/` is registered by the module that an installed distribution names for it under the
    entry-point group `asd_policy.environments`; `module:id` imports a module itself, as gymnasium does.

    Args:
        env_id: Such as "asd/Avoid-v0".
        render_mode: For `gymnasium.make`.

    Raises:
        EnvError: No such environment, or it cannot be made here.
    """
    namespace = env_id.split("/")[0]
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == namespace:
            point.load()
    # Not every environment takes a render mode, so none is passed where none is wanted.
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gymnasium.make(env_id, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, gymnasium.error.UnregisteredEnv):
            raise EnvError(f"cannot make environment {env_id!r}: {reason}") from None
        known = sorted(i for i in gymnasium.registry if i.startswith(f"{namespace}/"))
        if known:
            nearest = ", ".join(get_close_matches(env_id, known, n=3, cutoff=0))
            raise EnvError(
                f"no environment {env_id!r}; the nearest are {nearest}; there are {_families(known)}"
            ) from None
        names = {i.partition("/")[0] for i in gymnasium.registry if "/" in i}
        names |= {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
        namespaces = ", ".join(f"{name}/…" for name in sorted(names))
        raise EnvError(f"no environment {env_id!r}; there are {namespaces}, and gymnasium's own") from None


def control_rate(env: Env) -> float | None:
    """Return how many control steps an environment has in a second of its own time, or None where it does not say.

    It is told by `metadata["render_fps"]`, a frame for each step, or else by `dt` [s], as MuJoCo's environments have.
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


def _families(known: Sequence[str]) -> str:
    """Return ids in a few words: those that begin alike, as a suite's tasks do, by their beginning and number."""
    families: dict[str, list[str]] = {}
    for each in known:
        families.setdefault(each.rpartition("-v")[0].partition("-")[0], []).append(each)
    return ", ".join(
        members[0] if len(members) == 1 else f"{family}-… ({len(members)})" for family, members in families.items()
    )
