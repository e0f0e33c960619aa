"""A network through PyTorch's compiler, which never runs it uncompiled in silence."""

import re
from types import FunctionType

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.torch_network import TorchDenoiser, torch_denoiser, try_out
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.backends.torch_sensor import TorchSensor, torch_sensor
from asd_policy.networks.denoiser import Denoiser

SIZES = (1, 2, 64)
"""Points of the calls that are compiled when a network is prepared. PyTorch compiles a batch of one separately and all
others once, except where the network or the compiler branches on their number, as the compiler does from 16 on."""

SENSOR_SIZES = (1, 2)
"""Rows of the calls that are compiled when a sensor's network is prepared: the second stands for all others."""


class Compiled:
    """A module as the compiler runs it."""

    def __init__(self, module: nn.Module, spec: str) -> None:
        """Wrap a module; nothing is compiled before it is called."""
        self._spec = spec

        def run(*inputs: Tensor | None) -> Tensor:
            # False in plain Python, to which PyTorch falls back where it may not compile.
            if not torch.compiler.is_compiling():
                raise BackendError(
                    f"{spec}: torch.compile is turned off here, by TORCHDYNAMO_DISABLE or torch.compiler.set_stance; "
                    "torch-eager does not compile"
                )
            return module(*inputs)

        # PyTorch stores and counts compiled code by the code object, so each network needs one of its own.
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
        # In one graph: otherwise PyTorch would run parts uncompiled that do not fit in it, or that it has compiled too
        # often.
        self._run = torch.compile(own, fullgraph=True)

    def __call__(self, *given: Tensor | None) -> Tensor:
        """Call the module on N rows; the first tensor is never None.

        Raises:
            BackendError: It cannot be compiled for them.
        """
        # The same strides and the same kind of tensor in each call, because compiled code is for one of them.
        inputs = [each if each is None else each.clone(memory_format=torch.contiguous_format) for each in given]
        for each in inputs:
            if each is not None and len(each) > 1:
                torch._dynamo.maybe_mark_dynamic(each, 0)
        try:
            return self._run(*inputs)
        except FailOnRecompileLimitHit:
            raise BackendError(
                f"{self._spec} has compiled the network {torch._dynamo.config.recompile_limit} times, and would have "
                f"to do it again for points {_shape(given[0])}: something changes from call to call, such as autocast"
            ) from None
        except TorchDynamoException as error:
            reason = _reason(getattr(error, "inner_exception", error))
            raise BackendError(f"{self._spec} cannot compile this network: {reason}") from error


def compile_network(network: Denoiser, job: Job, backend: TorchBackend) -> TorchDenoiser:
    """Compile a network for any number of points.

    Raises:
        BackendError: It is not a module of PyTorch's, or cannot be compiled here.
    """
    denoiser = torch_denoiser(network, job, backend, few=None)
    denoiser.run = Compiled(denoiser.core, backend.spec)
    for points in SIZES:
        try_out(denoiser, job, points)
    return denoiser


def compile_sensor(network: Encode, job: SensorJob, backend: TorchBackend) -> TorchSensor:
    """Compile a sensor's network for any number of rows.

    Raises:
        BackendError: It is not a module of PyTorch's, or cannot be compiled here.
    """
    sensor = torch_sensor(network, job, backend)
    sensor.run = Compiled(sensor.core, backend.spec)
    for rows in SENSOR_SIZES:
        sensor(torch.zeros((rows, *job.shape), dtype=torch.float32, device=job.device))
    return sensor


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _reason(error: BaseException) -> str:
    """Explain in one line why the compiler failed."""
    said = str(error).strip() or type(error).__name__
    if re.search(r"\bC(\+\+)? compiler\b", said):
        return "it needs a C++ compiler and finds none that works; install g++ or clang, or name one in CXX"
    return said.splitlines()[0]
