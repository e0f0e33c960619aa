"""Compiled loops (`kernels`, `asd.kernels`) for points in the host's memory: loading them, and what they look at.

The samplers' text on arrays is the definition, and what runs where the loops cannot be compiled.
"""

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.chain.gaussian import GaussianChain

Numbers = npt.NDArray[Any]
STEPS, ROUNDS = "asd_policy.samplers.kernels:compile_steps", "asd_policy.samplers.asd.kernels:compile_rounds"
"""The modules of loops, of the sequential sampler and of `asd`, and what has them compiled."""


@cache
def load_kernels(loops: str) -> ModuleType | None:
    """Import `STEPS` or `ROUNDS` and have them compiled, or read from the disk; None, and a warning, if that fails."""
    module, _, compile_all = loops.partition(":")
    try:
        kernels = importlib.import_module(module)
        getattr(kernels, compile_all)()
    except Exception as error:  # numba's errors are many: a cache that cannot be written, a NumPy that is too new
        if load_kernels.cache_info().currsize == 0:  # once is enough
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"plans run uncompiled, which is slower: {type(error).__name__}: {reason}; numba compiles them",
                stacklevel=2,
            )
        return None
    return kernels


def loops_for(loops: str, x: Array) -> ModuleType | None:
    """Load loops if they can run on arrays like x."""
    return load_kernels(loops) if arrays.has_known_precision(x) and arrays.is_host(arrays.device_of(x)) else None


def all_finite(x: Array) -> bool:
    """Tell whether no number of an array [B, …] is NaN or infinite, in a compiled loop where there is one."""
    loops, seen = loops_for(STEPS, x), arrays.in_numpy(x)
    if loops is None or not (isinstance(seen, np.ndarray) and seen.flags.carray):
        return arrays.is_finite(x)
    return bool(loops.finite_rows(seen.reshape(len(seen), -1)))


def output_on_host(output: Array, x: Array, shape: tuple[int, ...]) -> Numbers:
    """Look at what a network returned for points x [N, …] as numbers of their type, in a shape [N, D]."""
    if output.dtype != x.dtype:
        output = arrays.namespace(output).astype(output, x.dtype)
    return np.ascontiguousarray(arrays.on_host(output)).reshape(shape)


class LoopTables(NamedTuple):
    """A chain's coefficients as the loops take them, each [K]."""

    timesteps: Numbers
    """What the network gets."""
    rows: Numbers
    """In one block: a, b, σ and a/σ, which is what a gap between two predictions is in units of the step's noise,
    infinite where there is none; and, where `predicts`, those of `kernels.predict_rows`."""
    predicts: bool
    """Whether the loops make predictions of the network's outputs: not for a chain that thresholds."""


STEP_ROWS = 4
"""Rows of `LoopTables.rows` that are of steps alone."""


def loop_tables(chain: GaussianChain, dtype: Any) -> LoopTables:
    """Give a chain's tables in NumPy's dtype, made once for each."""

    def make() -> LoopTables:
        tables: Any = chain.tables(NUMPY, dtype)
        with np.errstate(divide="ignore"):
            scale = tables.a / tables.sigma
        predicts = chain.threshold is None
        rows = [tables.a, tables.b, tables.sigma, scale, *(_prediction_rows(chain, tables) if predicts else ())]
        return LoopTables(tables.timesteps, np.stack(rows), predicts)

    return chain.keep(("loops", dtype), make)


def _prediction_rows(chain: GaussianChain, tables: Any) -> list[Numbers]:
    """List input and output scale, the limit of clipping, and the excess of the chain, if it has one, each [K]."""
    clips = chain.clip_range is not None
    limit = np.full_like(tables.a, chain.clip_range if clips else np.inf)
    excess = [tables.excess] if clips and tables.excess is not None else []
    return [tables.input_scale, tables.output_scale, limit, *excess]
