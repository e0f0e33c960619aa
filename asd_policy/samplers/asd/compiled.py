"""Rounds of `asd` in compiled loops (`kernels`): those of `rounds.EagerRounds`, for points in the host's memory.

The text of `engine.Round` is the definition, and what runs where a draft or a verifier is none of the known ones, points
are not float32 on the host, or the loops cannot be compiled here.
"""

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array, Device
from asd_policy.samplers.asd import draft, engine
from asd_policy.samplers.asd.couplings import block, reflection
from asd_policy.samplers.asd.draft import FrozenDraft, PicardDraft, ResponseDraft, WarmDraft
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.path import Path

Numbers = npt.NDArray[Any]
_DRAFTS = (FrozenDraft, PicardDraft, WarmDraft, ResponseDraft)
_DRAFTED = ("x", "cursor", "free", "normals", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation")
_COMMITTED = (
    *("x", "cursor", "normals", "uniforms", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    *("rejected", "refused", "judged", "rounds", "nfe"),
)
_NOTHING_GIVEN = np.empty((0, 0), bool)


def is_host(device: Device) -> bool:
    """Tell whether a device's memory is the host's."""
    return device == NUMPY or str(device).partition(":")[0] == "cpu"


@cache
def load_kernels() -> ModuleType | None:
    """Import the loops and have them compiled, or read from numba's cache on the disk; None, and a warning, if not."""
    try:
        kernels = importlib.import_module("asd_policy.samplers.asd.kernels")
        _try(kernels)
    except Exception as error:  # numba's errors are many: a cache that cannot be written, a NumPy that is too new
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"asd's rounds run uncompiled, which is slower: {type(error).__name__}: {reason}; numba compiles them",
            stacklevel=2,
        )
        return None
    return kernels


def _try(kernels: ModuleType) -> None:
    """Run the loops once, on a round of nothing, so that they are compiled."""
    rows, quota, count = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64)
    flat, deep = np.zeros((1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    flags, given = np.zeros((1, 1), bool), _NOTHING_GIVEN
    tables, none = (np.zeros(1, np.float32),) * 4, np.empty((0, 0), np.float32)
    kernels.draft_rows(
        rows, quota, (flat, count, flat, deep, deep, deep, flags, deep, deep, flat, flat), tables[:3], False, none, none,
        deep, deep, deep,
    )  # fmt: skip
    kernels.commit_rows(
        rows, quota,
        (flat, count, deep, flat, deep, deep, flags, deep, deep, flat, flat, flags[0], flags, flags, count, count),
        tables, False, none, given, deep, deep, deep, deep,
    )  # fmt: skip


def compiled_form(round_: Round, path: Path) -> "Round | CompiledRound":
    """Give a round its compiled form, if it has one for a path; else the round itself."""
    known = (
        type(round_.draft) in _DRAFTS
        and round_.verifier.judge in (reflection, block)
        and engine.roll_out is draft.roll_out
        and is_host(arrays.device_of(path.x))
        and str(path.x.dtype).rpartition(".")[2] in ("float32", "float64")
    )
    kernels = load_kernels() if known else None
    return round_ if kernels is None else CompiledRound(round_, path, kernels)


class CompiledRound:
    """A `Round` of one path, whose arithmetic is compiled; the network is called as before."""

    def __init__(self, reference: Round, path: Path, kernels: ModuleType) -> None:
        """Look at a path's arrays as NumPy's, on the same memory."""
        self.target, self.window = reference.target, reference.window
        self._draft, self._block, self._kernels = reference.draft, reference.verifier.judge is block, kernels
        self._drafted = tuple(_host(getattr(path, name)) for name in _DRAFTED)
        self._committed = tuple(_host(getattr(path, name)) for name in _COMMITTED)
        self._cursor = _host(path.cursor)
        chain, response = self.target.chain, reference.response
        dtype = _host(path.x).dtype
        a, b, sigma = (np.asarray(each, dtype) for each in (chain.a, chain.b, chain.sigma))
        with np.errstate(divide="ignore"):
            self._tables = a, b, sigma, a / sigma
        none = np.empty((0, 0), dtype)
        self._basis = none if response is None else np.ascontiguousarray(_host(response.basis))
        self._gain = none if response is None else np.ascontiguousarray(_host(response.gain))
        inpainting = self.target.inpainting
        self._given = (
            _NOTHING_GIVEN if inpainting is None else np.ascontiguousarray(_host(inpainting.mask.reshape(len(path.x), -1)))
        )

    def __call__(self, path: Path, rows: Array, compact: bool) -> None:
        """Commit at least one step of every row that is not done; arguments as of `Round`, the path its own."""
        target, end = self.target, len(self.target.chain)
        target.mark("draft")
        row = _host(rows)
        cursor = self._cursor[row]
        quota = np.minimum(_host(self._draft.quota(path, rows, self.window)), end - cursor)
        slots = np.arange(int(quota.max()) if compact else self.window)
        drafted = [arrays.zeros((len(row), len(slots), path.x.shape[1]), path.x) for _ in range(3)]
        point, guess, turned = (_host(each) for each in drafted)
        holds = isinstance(self._draft, FrozenDraft)
        self._kernels.draft_rows(
            row, quota, self._drafted, self._tables[:3], holds, self._basis, self._gain, point, guess, turned
        )
        device = arrays.device_of(path.x)
        steps = arrays.asarray((cursor[:, None] + slots).clip(max=end - 1), device)
        live = arrays.asarray(slots < quota[:, None], device)
        x0_pred = np.ascontiguousarray(_host(target.predict(drafted[0], steps, rows, live)))
        target.mark("verify")
        self._kernels.commit_rows(
            row, quota, self._committed, self._tables, self._block, self._basis, self._given, point, guess, turned, x0_pred
        )
        target.mark("host")


def _host(values: Array) -> Numbers:
    """Look at an array in the host's memory as NumPy's."""
    return values if isinstance(values, np.ndarray) else values.detach().numpy()
