"""Rounds of `asd` in compiled loops (`kernels`): those of `rounds.EagerRounds`, for points in the host's memory.

The text of `engine.Round` is the definition, and what runs where a draft or a verifier is none of the known ones,
points are not the host's, or the loops cannot be compiled here.
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
DRAFTED = ("x", "cursor", "free", "normals", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation")
"""The arrays of a `Path` that `kernels.draft_rows` takes."""
COMMITTED = (
    *("x", "cursor", "normals", "uniforms", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    *("rejected", "refused", "judged", "rounds", "nfe"),
)
"""Those that `kernels.commit_rows` takes."""
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
    """Run the loops on a round of no rows, so that they are compiled."""
    no_rows, count, flags = np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros((1, 1), bool)
    for dtype in (np.float32, np.float64):
        one, flat, deep = np.zeros(1, dtype), np.zeros((1, 1), dtype), np.zeros((1, 1, 1), dtype)
        named: dict[str, Numbers] = dict.fromkeys((*DRAFTED, *COMMITTED), deep)
        named |= dict.fromkeys(("x", "free", "uniforms", "latest", "innovation"), flat)
        named |= dict.fromkeys(("seen", "refused", "judged"), flags) | {"rejected": flags[0]}
        named |= dict.fromkeys(("cursor", "rounds", "nfe"), count)
        drafted, basis = (deep, deep, deep), np.empty((0, 0), dtype)
        draft_path, commit_path = (tuple(named[name] for name in names) for names in (DRAFTED, COMMITTED))
        kernels.draft_rows(no_rows, no_rows, draft_path, (one,) * 3, (False, basis, basis), drafted)
        kernels.commit_rows(no_rows, no_rows, commit_path, (one,) * 4, (False, basis, _NOTHING_GIVEN), drafted, deep)


def has_forms(round_: Round, path: Path) -> bool:
    """Tell whether a round has other forms than its own: draft and verifier are of this package, as is the roll-out."""
    return (
        type(round_.draft) in _DRAFTS
        and round_.verifier.judge in (reflection, block)
        and engine.roll_out is draft.roll_out
        and str(path.x.dtype).rpartition(".")[2] in ("float32", "float64")
    )


def compiled_form(round_: Round, path: Path) -> "Round | CompiledRound":
    """Give a round its compiled form, if it has one for a path; else the round itself."""
    known = has_forms(round_, path) and is_host(arrays.device_of(path.x))
    kernels = load_kernels() if known else None
    return round_ if kernels is None else CompiledRound(round_, path, kernels)


class CompiledRound:
    """A `Round` of one path, whose arithmetic is compiled; the network is called as before."""

    def __init__(self, reference: Round, path: Path, kernels: ModuleType) -> None:
        """Look at a path's arrays as NumPy's, on the same memory."""
        self.target, self.window = reference.target, reference.window
        self._draft, self._kernels = reference.draft, kernels
        self._drafted, self._committed = (
            tuple(_host(getattr(path, name)) for name in names) for names in (DRAFTED, COMMITTED)
        )
        self._cursor, dtype = _host(path.cursor), _host(path.x).dtype
        chain, response, inpainting = self.target.chain, reference.response, self.target.inpainting
        a, b, sigma = (np.asarray(each, dtype) for each in (chain.a, chain.b, chain.sigma))
        with np.errstate(divide="ignore"):
            self._tables = a, b, sigma, a / sigma
        basis = gain = np.empty((0, 0), dtype)
        if response is not None:
            basis, gain = (np.ascontiguousarray(_host(each)) for each in (response.basis, response.gain))
        given = _NOTHING_GIVEN
        if inpainting is not None:
            given = np.ascontiguousarray(_host(inpainting.mask.reshape(len(path.x), -1)))
        self._how_to_draft = isinstance(self._draft, FrozenDraft), basis, gain
        self._how_to_judge = reference.verifier.judge is block, basis, given

    def __call__(self, path: Path, rows: Array, compact: bool) -> None:
        """Commit at least one step of every row that is not done; arguments as of `Round`, the path its own."""
        target, end, kernels = self.target, len(self.target.chain), self._kernels
        target.mark("draft")
        row = _host(rows)
        cursor = self._cursor[row]
        quota = np.minimum(_host(self._draft.quota(path, rows, self.window)), end - cursor)
        slots = np.arange(int(quota.max()) if compact else self.window)
        drafted = [arrays.zeros((len(row), len(slots), path.x.shape[1]), path.x) for _ in range(3)]
        there = tuple(_host(each) for each in drafted)
        kernels.draft_rows(row, quota, self._drafted, self._tables[:3], self._how_to_draft, there)
        device = arrays.device_of(path.x)
        steps = arrays.asarray((cursor[:, None] + slots).clip(max=end - 1), device)
        live = arrays.asarray(slots < quota[:, None], device)
        x0_pred = np.ascontiguousarray(_host(target.predict(drafted[0], steps, rows, live)))
        target.mark("verify")
        kernels.commit_rows(row, quota, self._committed, self._tables, self._how_to_judge, there, x0_pred)
        target.mark("host")


def _host(values: Array) -> Numbers:
    """Look at an array in the host's memory as NumPy's."""
    return values if isinstance(values, np.ndarray) else values.detach().numpy()
