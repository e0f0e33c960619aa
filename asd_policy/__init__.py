"""Exact parallel sampling for robot Diffusion Policies by autospeculative decoding (ASD)."""

from importlib.metadata import PackageNotFoundError, version

from asd_policy.adapters import accelerate, restore
from asd_policy.backends import Backend, make_backend
from asd_policy.chain import GaussianChain
from asd_policy.checkpoints import load_fn, load_policy
from asd_policy.errors import (
    AsdError,
    BackendError,
    ChainError,
    CheckpointError,
    DenoiserError,
    EnvError,
    ObservationError,
    RunError,
    ServingError,
    SpecError,
)
from asd_policy.experience import Experience
from asd_policy.function import AcceleratedFn, accelerate_fn
from asd_policy.noise import NoiseTape
from asd_policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.base import Past
from asd_policy.samplers.target import Held
from asd_policy.types import Plan, SampleResult, SpeculationStats

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
    "DenoiserError",
    "EnvError",
    "Experience",
    "GaussianChain",
    "Held",
    "NoiseTape",
    "ObservationError",
    "Past",
    "Plan",
    "Policy",
    "RunError",
    "SampleResult",
    "Sampler",
    "ServingError",
    "SpecError",
    "SpeculationStats",
    "__version__",
    "accelerate",
    "accelerate_fn",
    "load_fn",
    "load_policy",
    "make_backend",
    "make_sampler",
    "restore",
]
