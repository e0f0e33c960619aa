"""A network through PyTorch's compiler, which never runs it uncompiled in silence."""

import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from asd_policy.backends.base import Job
from asd_policy.backends.few_points import FEW
from asd_policy.backends.torch_network import TorchDenoiser, prepare, try_out
from asd_policy.backends.torch_options import TorchBackend
from asd_policy.denoiser import Denoiser
from asd_policy.errors import BackendError

SIZES = (1, 2, FEW + 1, 64)
"""Points of the calls that are compiled when a network is prepared. PyTorch compiles a batch of one for itself and the
others for any size, but where the network goes another way by their number, or the compiler, as from 16 on."""
MOST = 2 * len(SIZES)
"""Times that a network may be compiled: for `SIZES`, and as often again for what else may change, such as autocast."""


class Compiled:
    """A module as the compiler runs it."""

    def __init__(self, module: nn.Module, spec: str) -> None:
        """Wrap a module; nothing is compiled before it is called."""
        self._spec = spec
        self.times = 0
        """How often it was compiled."""

        def run(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            # PyTorch has several settings by which it runs what it cannot, or may not, compile as plain Python.
            if not torch.compiler.is_compiling():
                raise BackendError(
                    f"{spec}: torch.compile is turned off or hides its errors, by TORCHDYNAMO_DISABLE, "
                    "torch.compiler.set_stance or torch._dynamo.config.suppress_errors; torch-eager does not compile"
                )
            return module(x, timestep, cond)

        # PyTorch keeps, and counts, what it compiled by the code object, which networks would otherwise share.
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
        self._run = torch.compile(own, backend=self._compile, fullgraph=True)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Call the module on N points.

        Raises:
            BackendError: It cannot be compiled for them.
        """
        # The same strides and the same kind of tensor in each call, because compiled code is for one of them.
        inputs = [
            each if each is None else each.clone(memory_format=torch.contiguous_format) for each in (x, timestep, cond)
        ]
        if len(x) > 1:
            for each in inputs:
                if each is not None:
                    torch._dynamo.maybe_mark_dynamic(each, 0)
        try:
            return self._run(*inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, BackendError):
                raise cause from None
            raise BackendError(f"{self._spec} cannot compile this network: {_reason(cause)}") from error

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a graph, as torch.compile's own backend does."""
        from torch._inductor.compile_fx import compile_fx

        if self.times == MOST:
            raise BackendError(
                f"{self._spec} compiled the network {MOST} times, and it would have to be done again for points "
                f"{tuple(inputs[0].shape)}: something changes from call to call, such as autocast"
            )
        self.times += 1
        compiled = compile_fx(graph, list(inputs))
        assert callable(compiled)
        return compiled


def compile_network(network: Denoiser, job: Job, backend: TorchBackend) -> TorchDenoiser:
    """Return a network, compiled for any number of points.

    Raises:
        BackendError: It is not a module of PyTorch's, or cannot be compiled here.
    """
    denoiser = prepare(network, job, backend)
    denoiser.run = Compiled(denoiser.core, backend.spec)
    for points in SIZES:
        try_out(denoiser, job, points)
    return denoiser


def _reason(error: BaseException) -> str:
    """Return in a line why the compiler failed."""
    said = str(error).strip() or type(error).__name__
    if re.search(r"\bC(\+\+)? compiler\b", said):
        return "it needs a C++ compiler and finds none that works; install g++ or clang, or name one in CXX"
    return said.splitlines()[0]
