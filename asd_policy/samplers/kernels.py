"""Steps of a chain in compiled loops, for memory of the host; imported where numba is installed.

The arithmetic of `chain.gaussian` in the same order, so that equal inputs give equal bits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, literal_unroll, njit, types  # pyright: ignore[reportPrivateImportUsage]  it documents them
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
        arrays: Contiguous, of `MOST_AXES` axes at most. They and the table have to be kept while the address is used.
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


def bound(loop: Callable[..., Any], arrays: tuple[Numbers, ...]) -> Callable[..., Any]:
    """Bind a loop's first argument to the address of arrays, and keep these as long as it is kept."""
    assert all(each.flags.c_contiguous and each.flags.aligned for each in arrays)  # or others would be read
    table = np.empty((len(arrays), 1 + MOST_AXES), np.int64)
    made = partial(loop, hold(arrays, table))
    vars(made)["held"] = arrays, table
    return made


def _cast(_: Any, address: Any) -> Any:
    """Turn a number into a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_cast)


@compiled
def held(address: int, count: int) -> Numbers:
    """Look at the table of `count` arrays again."""
    return carray(_pointer(address), (count, 1 + MOST_AXES), np.int64)


@compiled
def held_1(table: Numbers, index: int, dtype: Any) -> Numbers:
    """Look at the array that stands in a row of the table, which has one axis, again."""
    return carray(_pointer(table[index, 0]), (table[index, 1],), dtype)


@compiled
def held_2(table: Numbers, index: int, dtype: Any) -> Numbers:
    """Look at an array of two axes again."""
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2]), dtype)


@compiled
def held_3(table: Numbers, index: int, dtype: Any) -> Numbers:
    """Look at an array of three axes again."""
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2], at[3]), dtype)


@compiled
def held_4(table: Numbers, index: int, dtype: Any) -> Numbers:
    """Look at an array of four axes again."""
    at = table[index]
    return carray(_pointer(at[0]), (at[1], at[2], at[3], at[4]), dtype)


@compiled
def predict_rows(points: Numbers, output: Numbers, steps: Numbers, tables: Numbers, into: Numbers) -> None:
    """Turn network outputs into predictions x̂0, as `GaussianChain.predict` of a chain that clips at most.

    Args:
        points: What the network was called on [N, D].
        output: What it returned [N, D].
        steps: The points' steps [N].
        tables: `LoopTables.rows` of a chain that does not threshold: from the fifth on input scale, output scale, the
            limit of clipping, and the excess, if the chain has one.
        into: Takes x̂0 [N, D].
    """
    input_scale, output_scale, most = tables[4], tables[5], tables[6, 0]
    excess = tables[7] if len(tables) > 7 else tables[0, :0]
    for index in range(len(points)):
        step = steps[index]
        for place in range(points.shape[1]):
            raw = points[index, place] * input_scale[step] + output[index, place] * output_scale[step]
            clipped = most if raw > most else -most if raw < -most else raw
            into[index, place] = clipped + excess[step] * (clipped - raw) if len(excess) else clipped


@compiled
def step_rows(address: int, step: int, output: Numbers) -> None:
    """Take one step of a chain, as `chain.gaussian.transition`.

    Args:
        address: Of what `hold_steps` holds.
        step: Index k of the step.
        output: What the network returned at the points [B, D].
    """
    table, dtype = held(address, 4), output.dtype
    x, normals, x0_pred = held_2(table, 0, dtype), held_3(table, 1, dtype), held_2(table, 2, dtype)
    tables = held_2(table, 3, dtype)
    predict_rows(x, output, np.full(len(x), step), tables, x0_pred)
    a, b, sigma = tables[0, step], tables[1, step], tables[2, step]
    for row in range(len(x)):
        for place in range(x.shape[1]):
            push = a * x0_pred[row, place] + sigma * normals[row, step, place]
            x[row, place] = push + b * x[row, place]


def hold_steps(x: Numbers, normals: Numbers, tables: Numbers) -> Callable[[int, Numbers], None]:
    """Bind `step_rows` to what stays the same through a walk.

    Args:
        x: Points [B, D], which the steps change in place.
        normals: The tape's noise [B, K, D].
        tables: `LoopTables.rows` of a chain that does not threshold.
    """
    return bound(step_rows, (x, normals, np.empty_like(x), tables))


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
        flat, affine = np.zeros((1, 1), dtype), np.ones((3, 1), dtype)
        hold_steps(flat, np.zeros((1, 1, 1), dtype), np.zeros((7, 1), dtype))(0, flat)
        normalize_rows(flat, affine, flat.copy())
        unnormalize_rows(flat, affine, flat.copy())
        finite_rows(flat)
