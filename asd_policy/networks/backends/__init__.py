"""Backends by name."""

from asd_policy._common.specs import parse_spec
from asd_policy.networks.backends.base import Backend, Job
from asd_policy.networks.backends.onnx import Onnx
from asd_policy.networks.backends.torch_compile import TorchCompile
from asd_policy.networks.backends.torch_cuda_graph import TorchCudaGraph
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.backends.torch_replicas import TorchReplicas

__all__ = ["BACKENDS", "Backend", "Job", "make_backend"]

BACKENDS: dict[str, type[Backend]] = {
    "torch-eager": TorchEager,
    "torch-compile": TorchCompile,
    "torch-cuda-graph": TorchCudaGraph,
    "torch-replicas": TorchReplicas,
    "onnx": Onnx,
}
"""Every backend by its name in a spec. A backend imports its library when it prepares a network."""


def make_backend(spec: str) -> Backend:
    """Make a backend from its spec.

    Args:
        spec: Such as `torch-eager` or `torch-eager:dtype=bfloat16`.

    Raises:
        SpecError: An unknown name or option, or a value that is not of the option's type or out of range.
    """
    return parse_spec("backend", spec, BACKENDS)
