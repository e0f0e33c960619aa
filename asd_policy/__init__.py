"""Exact parallel sampling for robot Diffusion Policies by autospeculative decoding (ASD)."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asd_policy._common.version import PACKAGE_VERSION as __version__

if TYPE_CHECKING:
    from asd_policy.chain.gaussian import GaussianChain
    from asd_policy.chain.noise_tape import NoiseTape
    from asd_policy.checkpoints import load_fn, load_policy
    from asd_policy.deploy.realtime.loop import ControlLoop
    from asd_policy.deploy.realtime.options import LoopOptions
    from asd_policy.deploy.realtime.process import ProcessPlanner
    from asd_policy.deploy.realtime.telemetry import Telemetry
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
    from asd_policy.networks.backends import Backend, make_backend
    from asd_policy.policy.adapters import accelerate, restore, warm_up
    from asd_policy.policy.continuity import Committed
    from asd_policy.policy.function import AcceleratedFn, accelerate_fn
    from asd_policy.policy.policy import Policy
    from asd_policy.samplers import Sampler, make_sampler
    from asd_policy.samplers.asd.experience import Experience
    from asd_policy.samplers.base import Past
    from asd_policy.samplers.target import Held
    from asd_policy.samplers.types import Plan, SampleResult, SpeculationStats, WarmUp

# ONNX Runtime looks up its vendor's telemetry host when it is imported, and keeps a device id in the user's cache. Who
# wants that sets the variable to 0; to be read it has to be there before anything here imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
    "policy.adapters": ("accelerate", "restore", "warm_up"),
    "networks.backends": ("Backend", "make_backend"),
    "chain.gaussian": ("GaussianChain",),
    "checkpoints": ("load_fn", "load_policy"),
    "policy.continuity": ("Committed",),
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
    "samplers.asd.experience": ("Experience",),
    "policy.function": ("AcceleratedFn", "accelerate_fn"),
    "chain.noise_tape": ("NoiseTape",),
    "policy.policy": ("Policy",),
    "deploy.realtime.loop": ("ControlLoop",),
    "deploy.realtime.options": ("LoopOptions",),
    "deploy.realtime.process": ("ProcessPlanner",),
    "deploy.realtime.telemetry": ("Telemetry",),
    "samplers": ("Sampler", "make_sampler"),
    "samplers.base": ("Past",),
    "samplers.target": ("Held",),
    "samplers.types": ("Plan", "SampleResult", "SpeculationStats", "WarmUp"),
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
