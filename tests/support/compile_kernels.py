"""Compile the kernels of `asd`'s rounds for a GPU that need not be here: a program, to be apart from the interpreter.

Prints a line for each kernel: its name, the type of numbers, warps, shared memory [bytes] and the size of its code.
"""

import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

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


class Compiled:
    """Stands in the place of a kernel: compiles it for the arguments that it is launched with."""

    seen: ClassVar[dict[int, Any]] = {}

    def __init__(self, name: str) -> None:
        self._kernel, self._name = getattr(kernels, name), name

    def __getitem__(self, grid: Any) -> Any:
        """Take a grid."""
        return self._compile

    def _compile(self, *given: Any, **named: Any) -> None:
        code = self._kernel.run(*given, grid=(1,), warmup=True, **named)
        if id(code) not in self.seen:
            self.seen[id(code)] = code
            kind = "float64" if "fp64" in str(code.src.signature) else "float32"
            print(self._name, kind, code.metadata.num_warps, code.metadata.shared, len(code.asm["cubin"]), flush=True)


class NoGpu:
    """What Triton asks of a GPU before it launches anything."""

    def get_current_target(self) -> GPUTarget:
        """Name the architecture to compile for."""
        return TARGET

    def get_current_device(self) -> int:
        """Number the only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Give none."""
        return 0


def rounds(event: tuple[int, int], dtype: torch.dtype, plain: bool) -> Iterator[LaunchedRound]:
    """Make every kind of round for plans of a shape; or one."""
    chain = GaussianChain.from_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}, 100)
    shape = (1, *event)
    names = ("reuse", "turn_in", "respond", "turn_back", "compare", "judge", "commit")
    compiled: Any = SimpleNamespace(**{name: Compiled(name) for name in names})
    x = torch.zeros(shape, dtype=dtype)
    noisy = torch.zeros((1, 100, *event), dtype=dtype)
    helds = (None, Inpainting(x > 0, x), Inpainting(x > 0, x, noisy, x))
    for draft, verify, held in itertools.product(("response", "picard", "frozen"), VERIFIERS, helds):
        if plain and (draft, verify, held) != ("response", "block", None):
            continue
        target = Target(lambda x, t, c: x, chain, shape, inpainting=held)
        path = Path.begin(target.inpainting, NoiseTape.draw(shape, 100, dtype=dtype), None)
        response = Response.none(x, 100) if draft == "response" else None
        for window in (1, 16):  # for which kernels are the same
            round_ = Round(target, DRAFTS[draft], VERIFIERS[verify], response, window)
            yield LaunchedRound(round_, path, compiled, torch.zeros((203, 1), dtype=torch.int64))


def main(events: list[str]) -> None:
    """Compile for plans of shapes HxA, as `16x4`; a shape with a `+` behind it has all kinds of rounds."""
    gpu: Any = NoGpu()
    driver.set_active(gpu)
    for event in events:
        horizon, width = event.rstrip("+").split("x")
        for dtype in (torch.float32, torch.float64):
            for each in rounds((int(horizon), int(width)), dtype, not event.endswith("+")):
                each.attempt()


if __name__ == "__main__":
    main(sys.argv[1:])
