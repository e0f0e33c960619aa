"""Compile the kernels of `asd`'s rounds for a GPU that need not be here; to be run as a program, apart from the interpreter.

Prints a line for each kernel: its name, the type of numbers, warps, shared memory [bytes] and the size of its code.
"""

import inspect
import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.launched import kernels
from asd_policy.samplers.asd.launched.form import LaunchedRound
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.base import Target
from asd_policy.samplers.inpainting import Inpainting

TARGET = GPUTarget("cuda", 90, 32)
NAMES = {
    **{torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"},
    **{torch.int64: "i64", torch.uint8: "u8", torch.bool: "i1"},
}


class Compiled:
    """Stands in the place of a kernel: compiles it for the arguments that it is launched with."""

    def __init__(self, name: str, seen: set[str]) -> None:
        self._kernel, self._name, self._seen = getattr(kernels, name), name, seen

    def __getitem__(self, grid: Any) -> Any:
        """Take a grid."""
        return self._compile

    def _compile(self, *given: Any, **named: Any) -> None:
        parameters = inspect.signature(self._kernel.fn).parameters
        constants, signature = {}, {}
        options = {name: named.pop(name) for name in list(named) if name not in parameters}
        for place, (name, value) in enumerate(zip(parameters, (*given, *named.values()), strict=True)):
            constant = parameters[name].annotation is not inspect.Parameter.empty
            signature[name] = "constexpr" if constant else _type_of(value)
            if constant:
                constants[(place,)] = value
        key = str((self._name, signature, constants, options))
        if key in self._seen:
            return
        self._seen.add(key)
        code = triton.compile(ASTSource(self._kernel, signature, constants, {}), target=TARGET, options=options)
        size = len(code.asm["cubin"])
        kind = str(signature).count("*fp64") and "float64" or "float32"
        print(self._name, kind, code.metadata.num_warps, code.metadata.shared, size, flush=True)


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_type_of(each) for each in value)
    return f"*{NAMES[value.dtype]}" if isinstance(value, Tensor) else "i32"


def rounds(event: tuple[int, int], dtype: torch.dtype, plain: bool) -> Iterator[LaunchedRound]:
    """Make every kind of round for plans of a shape; or one."""
    chain = GaussianChain.from_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}, 100)
    shape, seen = (1, *event), set[str]()
    names = ("reuse", "turn_in", "respond", "turn_back", "compare", "judge", "commit")
    compiled: Any = SimpleNamespace(**{name: Compiled(name, seen) for name in names})
    x = torch.zeros(shape, dtype=dtype)
    noisy = torch.zeros((1, 100, *event), dtype=dtype)
    helds = (None, Inpainting(x > 0, x), Inpainting(x > 0, x, noisy, x))
    for draft, verify, held in itertools.product(("response", "picard", "frozen"), VERIFIERS, helds):
        if plain and (draft, verify, held) != ("response", "block", None):
            continue
        target = Target(lambda x, t, c: x, chain, shape, inpainting=held)
        path = Path.begin(target, NoiseTape.draw(shape, 100, dtype=dtype), None)
        response = Response.none(x, 100) if draft == "response" else None
        round_ = Round(target, DRAFTS[draft], VERIFIERS[verify], response, 8)
        yield LaunchedRound(round_, path, compiled, torch.zeros((203, 1), dtype=torch.int64))


def main(events: list[str]) -> None:
    """Compile for plans of shapes HxA, as `16x4`; a shape with a `+` behind it has all kinds of rounds."""
    for event in events:
        horizon, width = event.rstrip("+").split("x")
        for dtype in (torch.float32, torch.float64):
            for each in rounds((int(horizon), int(width)), dtype, not event.endswith("+")):
                each.attempt()


if __name__ == "__main__":
    main(sys.argv[1:])
