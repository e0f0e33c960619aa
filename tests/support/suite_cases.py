"""Environments as parameters of tests, those of suites that the tests' extras leave out skipped."""

from ctypes.util import find_library
from importlib.util import find_spec
from typing import Any

import pytest

ELSEWHERE = {"asd/Robosuite-": "robosuite", "asd/Aloha-": "gym_aloha"}


def case(env_id: str, *values: Any) -> Any:
    """Return an id, and what else a test takes with it, as a parameter; skipped where what it needs is missing."""
    module = next((module for prefix, module in ELSEWHERE.items() if env_id.startswith(prefix)), "asd_envs")
    missing = pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not here: make suites")
    blind = pytest.mark.skipif(
        env_id == "asd/AvoidPixels-v0" and find_library("EGL") is None, reason="frames need the system library libEGL"
    )
    return pytest.param(env_id, *values, marks=[missing, blind], id=env_id)
