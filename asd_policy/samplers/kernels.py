"""Steps of a chain in compiled loops, for memory of the host; imported where numba is installed.

The arithmetic of `chain.gaussian` in the same order, so that equal inputs give equal bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, literal_unroll, njit, types
from numba.extending import intrinsic

Numbers = npt.NDArray[Any]
compiled = njit(cache=True, nogil=True, error_model="numpy")
MOST_AXES = 4


@compiled
def hold(arrays: tuple[Numbers, ...], table: Numbers) -> int:
    """Write down where arrays are, for `held`: of what stays the same through a plan each call gets one number.

    After a network call the processor's caches have none of what Python knows of an array, and to take fifteen of them
    from it takes longer than the arithmetic.

    Args:
        arrays: Contiguous, of `MOST_AXES` axes at most. Who calls keeps them, and the table, for as long as the address
            is in use.
        table: Takes their addresses and shapes [n, 1 + MOST_AXES], in int64.

    Returns:
        The address of the table.
    """
    index = 0
    for array in literal_unroll(arrays):
        table[index, 0] = array.ctypes.data
        for axis in range(array.ndim):
            table[index, 1 + axis] = array.shape[axis]
        index += 1
    return table.ctypes.data


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    """Turn a number into a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@compiled
def held(address: int, count: int) -> Numbers:
    """Look at the table of `count` arrays again."""
    return carray(_pointer(address), (count, 1 + MOST_AXES), np.int64)


@compiled
def held_1(table: Numbers, index: int, dtype: Any) -> Numbers:
    """Look at an array of one axis again, and the others at one of as many axes as their names say."""
    return carray(_pointer(table[index, 0]), (table[index, 1],), dtype)


@compiled
def held_2(table: Numbers, index: int, dtype: Any) -> Numbers:
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2]), dtype)


@compiled
def held_3(table: Numbers, index: int, dtype: Any) -> Numbers:
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2], at[3]), dtype)


@compiled
def held_4(table: Numbers, index: int, dtype: Any) -> Numbers:
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2], at[3], at[4]), dtype)


@compiled
def predict_rows(points: Numbers, output: Numbers, steps: Numbers, tables: tuple[Numbers, ...], into: Numbers) -> None:
    """Turn network outputs into predictions x̂0, as `GaussianChain.predict` of a chain that clips at most.

    Args:
        points: What the network was called on [N, D].
        output: What it returned [N, D].
        steps: The points' steps [N].
        tables: Input scale and output scale of the chain, each [K]; the limit of clipping [1 or K]; and the excess of
            the chain [K], of no size for none.
        into: Takes x̂0 [N, D].
    """
    input_scale, output_scale, limit, excess = tables
    most = limit[0]
    for index in range(len(points)):
        step = steps[index]
        for place in range(points.shape[1]):
            raw = points[index, place] * input_scale[step] + output[index, place] * output_scale[step]
            clipped = most if raw > most else -most if raw < -most else raw
            into[index, place] = clipped + excess[step] * (clipped - raw) if len(excess) else clipped


@compiled
def step_rows(
    x: Numbers,
    output: Numbers,
    normals: Numbers,
    step: int,
    tables: tuple[Numbers, ...],
    into: tuple[Numbers, Numbers],
) -> None:
    """Take one step of a chain, as `chain.gaussian.transition`.

    Args:
        x: Points [B, D].
        output: What the network returned there [B, D].
        normals: The tape's noise [B, K, D].
        step: Index k of the step.
        tables: a, b and σ of the chain, each [K]; and those of `predict_rows`.
        into: Takes x̂0 and the points after the step, each [B, D].
    """
    a, b, sigma = tables[:3]
    x0_pred, following = into
    predict_rows(x, output, np.full(len(x), step), tables[3:], x0_pred)
    for row in range(len(x)):
        for place in range(x.shape[1]):
            push = a[step] * x0_pred[row, place] + sigma[step] * normals[row, step, place]
            following[row, place] = push + b[step] * x[row, place]


@compiled
def normalize_rows(x: Numbers, affine: Numbers, into: Numbers) -> None:
    """Map vectors x [N, n] to (x − origin) · gain + shift, rows of `affine` [3, n], into `into`."""
    for row in range(len(x)):
        for place in range(x.shape[1]):
            into[row, place] = (x[row, place] - affine[0, place]) * affine[1, place] + affine[2, place]


@compiled
def unnormalize_rows(x: Numbers, affine: Numbers, into: Numbers) -> None:
    """Map them back: (x − shift) / gain + origin."""
    for row in range(len(x)):
        for place in range(x.shape[1]):
            into[row, place] = (x[row, place] - affine[2, place]) / affine[1, place] + affine[0, place]


@compiled
def finite_rows(x: Numbers) -> bool:
    """Tell whether no number of x [N, D] is NaN or infinite."""
    for row in range(len(x)):
        for place in range(x.shape[1]):
            if not np.isfinite(x[row, place]):
                return False
    return True


def compile_steps() -> None:
    """Have all of it compiled, or read from numba's cache on the disk."""
    for dtype in (np.float32, np.float64):
        one, flat, affine = np.zeros(1, dtype), np.zeros((1, 1), dtype), np.ones((3, 1), dtype)
        step_rows(flat, flat, np.zeros((1, 1, 1), dtype), 0, (one,) * 7, (flat.copy(), flat.copy()))
        normalize_rows(flat, affine, flat.copy())
        unnormalize_rows(flat, affine, flat.copy())
        finite_rows(flat)
