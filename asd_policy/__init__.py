"""Exact parallel sampling for robot Diffusion Policies by autospeculative decoding (ASD)."""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asd_policy.adapters import accelerate, restore, warm_up
    from asd_policy.backends import Backend, make_backend
    from asd_policy.chain import GaussianChain
    from asd_policy.checkpoints import load_fn, load_policy
    from asd_policy.continuity import Committed
    from asd_policy.errors import (
        AsdError,
        BackendError,
        ChainError,
        CheckpointError,
        DenoiserError,
        EnvError,
        LoopError,
        ObservationError,
        RunError,
        ServingError,
        SpecError,
    )
    from asd_policy.experience import Experience
    from asd_policy.function import AcceleratedFn, accelerate_fn
    from asd_policy.noise import NoiseTape
    from asd_policy.policy import Policy
    from asd_policy.realtime.loop import ControlLoop
    from asd_policy.realtime.options import LoopOptions
    from asd_policy.realtime.process import ProcessPlanner
    from asd_policy.realtime.telemetry import Telemetry
    from asd_policy.samplers import Sampler, make_sampler
    from asd_policy.samplers.base import Past
    from asd_policy.samplers.target import Held
    from asd_policy.types import Plan, SampleResult, SpeculationStats, WarmUp

# ONNX Runtime looks up its vendor's telemetry host when it is imported, and keeps a device id in the user's cache. Who
# wants that sets the variable to 0; to be read it has to be there before anything here imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("asd-policy")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AcceleratedFn",
    "AsdError",
    "Backend",
    "BackendError",
    "ChainError",
    "CheckpointError",
    "Committed",
    "ControlLoop",
    "DenoiserError",
    "EnvError",
    "Experience",
    "GaussianChain",
    "Held",
    "LoopError",
    "LoopOptions",
    "NoiseTape",
    "ObservationError",
    "Past",
    "Plan",
    "Policy",
    "ProcessPlanner",
    "RunError",
    "SampleResult",
    "Sampler",
    "ServingError",
    "SpecError",
    "SpeculationStats",
    "Telemetry",
    "WarmUp",
    "__version__",
    "accelerate",
    "accelerate_fn",
    "load_fn",
    "load_policy",
    "make_backend",
    "make_sampler",
    "restore",
    "warm_up",
]

_HOMES = {
    "adapters": ("accelerate", "restore", "warm_up"),
    "backends": ("Backend", "make_backend"),
    "chain": ("GaussianChain",),
    "checkpoints": ("load_fn", "load_policy"),
    "continuity": ("Committed",),
    "errors": (
        "AsdError",
        "BackendError",
        "ChainError",
        "CheckpointError",
        "DenoiserError",
        "EnvError",
        "LoopError",
        "ObservationError",
        "RunError",
        "ServingError",
        "SpecError",
    ),
    "experience": ("Experience",),
    "function": ("AcceleratedFn", "accelerate_fn"),
    "noise": ("NoiseTape",),
    "policy": ("Policy",),
    "realtime.loop": ("ControlLoop",),
    "realtime.options": ("LoopOptions",),
    "realtime.process": ("ProcessPlanner",),
    "realtime.telemetry": ("Telemetry",),
    "samplers": ("Sampler", "make_sampler"),
    "samplers.base": ("Past",),
    "samplers.target": ("Held",),
    "types": ("Plan", "SampleResult", "SpeculationStats", "WarmUp"),
}
"""Where each public name is defined. It is imported when it is asked for: importing torch takes seconds."""


if not TYPE_CHECKING:  # which would take any name for one that is defined

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                return globals().setdefault(name, getattr(import_module(f"{__name__}.{home}"), name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
