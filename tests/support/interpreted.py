"""Triton's kernels on a CPU, by its interpreter, and recordings there that run the recorded work again.

Triton has to be imported as an interpreter, before PyTorch's compiler imports it: tests/conftest.py does.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special
from torch import Tensor

from asd_policy.networks.denoiser import Denoiser
from asd_policy.networks.recording import Launcher
from asd_policy.samplers.asd.launched import form

with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
    pytest.importorskip("triton", minversion="3.6", reason="no Triton that has tuples of arguments")
    importlib.import_module("triton.experimental.gluon")  # the first launch would, and it asks for what Triton does
    import triton.language as tl
    from triton.runtime import interpreter

    from asd_policy.samplers.asd.launched import kernels, normal


def _combined(self: Any, given: tuple[tl.tensor, ...]) -> Iterator[tuple[tl.tensor, ...]]:
    """Combine what lies along an axis, all lines at once: Triton's interpreter goes from number to number."""
    data = [each.handle.data for each in given]
    total: tuple[tl.tensor, ...] | None = None
    for place in range(data[0].shape[self.axis]):
        one = tuple(
            self.to_tensor(np.take(each, place, self.axis), like.dtype) for each, like in zip(data, given, strict=True)
        )
        combined = one if total is None else self.combine_fn.fn(*total, *one)
        total = combined if isinstance(combined, tuple) else (combined,)
        yield total


def _scan(self: Any, given: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    steps = list(_combined(self, given))
    stacked = [np.stack([step[each].handle.data for step in steps], self.axis) for each in range(len(given))]
    return [self.to_tensor(values, like.dtype) for values, like in zip(stacked, given, strict=True)]


def _reduce(self: Any, given: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    *_, total = _combined(self, given)
    return list(total)


def _call(self: Any, *given: Any, **named: Any) -> Any:
    """Call a function of a kernel that runs: Triton's interpreter would patch its own language anew for every call."""
    if self.fn is normal.tile_log_ndtr.fn and not _own_functions:
        (x,) = given
        return tl.tensor(interpreter.TensorHandle(special.log_ndtr(x.handle.data), x.handle.dtype), x.type)
    return self.rewrite()(*given, **named)


_patch_tensor = interpreter._patch_lang_tensor


def _with_numbers(tensor: Any, scope: Any) -> None:
    """Let tensors of one number count loops: Triton 3.6 asks NumPy for a conversion that NumPy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


_own_functions: list[bool] = []


@contextmanager
def launched(rows: int = 1, own_functions: bool = False) -> Iterator[None]:
    """Have recorded rounds run in the kernels here.

    Args:
        rows: In each program, at least: an operation takes as long for many as for one.
        own_functions: Whether ln Φ is the kernels' own, or SciPy's, in a tenth of the time.
    """
    _own_functions[:] = [True] * own_functions
    with (
        mock.patch.object(interpreter, "_patch_lang_tensor", _with_numbers),
        mock.patch.object(form, "is_launched", lambda device: True),
        mock.patch.object(form, "_failed", []),
        mock.patch.object(form.LaunchedRound, "tiles", form.Tiles(rows)),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", _call),
        mock.patch.object(interpreter.ScanOps, "generic_scan", _scan),
        mock.patch.object(interpreter.ReduceOps, "generic_reduce", _reduce),
        np.errstate(all="ignore"),
    ):
        language = interpreter._patch_lang(tl.standard.max.fn)
        try:
            yield
        finally:
            language.restore()


def evaluate(function: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate a function of the kernels, elementwise."""
    with launched(own_functions=True):
        language = interpreter._patch_lang(function.fn)
        x = tl.tensor(interpreter.TensorHandle(values, tl.float64), tl.block_type(tl.float64, list(values.shape)))
        found = function(x).handle.data
        language.restore()
    return found


class Again(Launcher):
    """Records nothing: does the work again."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Do it, as recordings do."""
        for _ in range(2):
            work()

        def replay() -> None:
            work()

        return replay

    def queue(self) -> Any:
        """Return nothing to enter: a CPU has one queue."""
        return nullcontext()

    def settle(self) -> None:
        """Do nothing: all is done."""

    def fetch(self, sample: Tensor, counts: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Copy at once."""
        copies = sample.clone(), counts.clone()
        return lambda: copies


class Recorded:
    """A network whose calls are recorded."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network
        self.launcher = Again()

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict."""
        return self.network(x, timestep, cond)


__all__ = ["Again", "Recorded", "evaluate", "kernels", "launched", "normal"]
