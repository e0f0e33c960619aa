"""The classes of this package's own tasks, each imported when gymnasium makes one: what they need is an extra."""

from importlib import import_module
from typing import Any

from asd_envs.adapter import require

CLASSES = {"AvoidEnv": "asd_envs.avoid", "InterceptEnv": "asd_envs.intercept", "PushTEnv": "asd_envs.pusht"}
"""The module of each."""
PACKAGES = ("mujoco", "imageio", "shapely")
"""What the extra `envs` installs for them."""


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in PACKAGES:
        require(package, "envs")
    return getattr(import_module(CLASSES[name]), name)
