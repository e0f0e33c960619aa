"""The arithmetic of `asd`'s rounds in compiled loops, for memory of the host; imported where numba is installed.

The same arithmetic as the reference's in the same order, row by row: `draft_rows` is `draft.roll_out`, `commit_rows` is
the verifiers of `couplings` and what `engine.Round` does with their verdict; `advance_rows` is all that there is to do
between two network calls. Samples agree with the reference's to rounding. All arrays but flags and counts are of one
floating-point type, and contiguous.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from asd_policy.samplers.asd.draft import DISTANCE_POWER, SLOPE_DECAY
from asd_policy.samplers.asd.residual import CELLS, CLOSEST, FARTHEST, LOWEST, NEWTON_STEPS
from asd_policy.samplers.kernels import (
    Numbers,
    bound,
    compiled,
    held,
    held_1,
    held_2,
    held_3,
    held_4,
    predict_rows,
)

Kept = tuple[tuple[Numbers, ...], tuple[Numbers, ...], tuple[Numbers, ...], tuple[Numbers, ...]]
_HELD = 16  # arrays of them
_LOG_2PI = math.log(2 * math.pi)
_TINY = float(np.finfo(np.float64).tiny)
_SAFE = 1e-30  # squares from here to its inverse neither overflow nor lose digits, in float32, too
_BELOW_ONE = 1 - 0.5 * float(np.finfo(np.float64).eps)

DRAFTED = (
    *("x", "cursor", "free", "normals", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    "rejected",
)
"""The arrays of a `Path` that `draft_rows` takes."""
COMMITTED = (
    *("x", "cursor", "normals", "uniforms", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    *("rejected", "refused", "judged", "rounds", "nfe"),
)
"""Those that `commit_rows` takes."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _dot(left: Numbers, right: Numbers) -> Any:
    """Sum the products of two vectors, in an order that fills vector registers."""
    total = left.dtype.type(0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _turn(transposed: Numbers, values: Numbers, out: Numbers) -> None:
    """Multiply the time axis of vectors [n, D] by a matrix, given transposed [horizon, horizon], into `out` [n, D]."""
    horizon, width = len(transposed), values.shape[1] // len(transposed)
    # Time first: what is added up lies in long lines then, whatever the horizon and the number of actions.
    by_time = np.empty((horizon, len(values) * width), values.dtype)
    turned = np.zeros_like(by_time)
    _swap(values, width, by_time)
    whole = horizon - horizon % 4
    for place in range(horizon):
        line = turned[place]
        for time in range(0, whole, 4):
            m0, m1 = transposed[time, place], transposed[time + 1, place]
            m2, m3 = transposed[time + 2, place], transposed[time + 3, place]
            v0, v1, v2, v3 = by_time[time], by_time[time + 1], by_time[time + 2], by_time[time + 3]
            for each in range(len(line)):
                line[each] += (v0[each] * m0 + v1[each] * m1) + (v2[each] * m2 + v3[each] * m3)
        for time in range(whole, horizon):
            for each in range(len(line)):
                line[each] += by_time[time, each] * transposed[time, place]
    _swap(turned, width, out)


@compiled
def _swap(values: Numbers, width: int, into: Numbers) -> None:
    """Swap the axes of blocks of `width` numbers: [n, m · width] into [m, n · width]."""
    for row in range(len(values)):
        for block in range(len(into)):
            for place in range(width):
                into[block, row * width + place] = values[row, block * width + place]


@compiled
def advance_held(address: int, commit: bool, draft: bool, output: Numbers) -> int:
    """Do what `advance_rows` does, with what `hold_rows` holds."""
    table, dtype = held(address, _HELD), output.dtype
    memory = (
        held_4(table, 0, dtype), held_3(table, 1, np.bool_), held_2(table, 2, np.int64), held_3(table, 3, dtype),
        held_2(table, 4, dtype), held_2(table, 5, dtype), held_1(table, 6, np.bool_),
    )  # fmt: skip
    chain = held_2(table, 7, dtype), held_1(table, 8, np.int64)
    how = (
        held_1(table, 9, np.float64), held_2(table, 10, dtype), held_2(table, 11, dtype), held_2(table, 12, np.bool_)
    )  # fmt: skip
    work = held_3(table, 13, dtype), held_2(table, 14, np.int64), held_1(table, 15, np.int64)
    return advance_rows((memory, chain, how, work), commit, draft, output)


def hold_rows(kept: Kept) -> Callable[[bool, bool, Numbers], int]:
    """Bind `advance_rows` to what stays the same through a plan."""
    return bound(advance_held, kept[0] + kept[1] + kept[2] + kept[3])


@compiled
def advance_rows(kept: Kept, commit: bool, draft: bool, output: Numbers) -> int:
    """Take a batch of plans from one network call to the next.

    Args:
        kept: What stays the same through a plan: the memory of the path, the blocks of a `PathMemory`; of the chain
            `LoopTables.rows` and the timesteps [K]; how to draft and to judge: `how_of`, U and g of the response, and
            which coordinates are given, see `draft_rows` and `commit_rows`; and memory that goes from a draft to its
            verdict: the points, the guesses, the points in the response's basis and x̂0 [4, B·θ, D]; the points' steps,
            rows and timesteps [3, B·θ]; and their number in each row [B].
        commit: Whether to commit what the network was called on.
        draft: Whether to draft what it is to be called on next.
        output: What it returned [N, D], or, of a chain without tables for it, x̂0. Not looked at where nothing is
            committed.

    Returns:
        The number of the next points N in all; 0 where every row is done, or nothing was to be drafted.
    """
    memory, chain, how, work = kept
    to_draft, to_commit = _views(memory)
    tables, timesteps = chain
    numbers, basis, gain, given = how
    own, places, quota = work
    drafted = own[0], own[1], own[2]
    if commit:
        predicted = output
        if len(tables) > 4:
            predicted = own[3]
            predict_rows(own[0, : len(output)], output, places[0], tables, predicted)
        steps = (tables[0], tables[1], tables[2], tables[3])
        commit_rows(quota, to_commit, steps, (numbers[2] > 0, basis, given, numbers[3]), drafted, predicted)
    if not draft:
        return 0
    to_step = (tables[0], tables[1], tables[2], timesteps)
    calls = (places[0], places[2], places[1], quota)
    return draft_rows(int(numbers[0]), to_draft, to_step, (numbers[1] > 0, basis, gain), drafted, calls)


def how_of(window: int, holds: bool, block: bool, tolerance: float) -> Numbers:
    """Write down how to draft and to judge [4], as `advance_rows` takes it.

    Args:
        window: Points θ of a row, at most.
        holds: Whether the last committed prediction is held, as `frozen` does.
        block: Whether prefixes are judged, as `couplings.block` does.
        tolerance: As for `commit_rows`.
    """
    return np.array([window, holds, block, tolerance], np.float64)


@compiled
def _views(memory: tuple[Numbers, ...]) -> tuple[tuple[Numbers, ...], tuple[Numbers, ...]]:
    """Look at the blocks of a `PathMemory` as the arrays that are `DRAFTED` and `COMMITTED`."""
    by_step, flags, counts, by_row, uniforms, free, rejected = memory
    normals, points, x0_pred, shift, change = by_step[0], by_step[1], by_step[2], by_step[3], by_step[4]
    seen, refused, judged = flags[0], flags[1], flags[2]
    cursor, rounds, nfe = counts[0], counts[1], counts[2]
    x, latest, innovation = by_row[0], by_row[1], by_row[2]
    kept = (points, x0_pred, seen, shift, change, latest, innovation, rejected)
    return (x, cursor, free, normals, *kept), (x, cursor, normals, uniforms, *kept, refused, judged, rounds, nfe)


@compiled
def draft_rows(
    window: int,
    path: tuple[Numbers, ...],
    tables: tuple[Numbers, ...],
    how: tuple[bool, Numbers, Numbers],
    drafted: tuple[Numbers, Numbers, Numbers],
    calls: tuple[Numbers, ...],
) -> int:
    """Draft the chain of each row that is not done from its exact point, along its noise; see `draft.roll_out`.

    Args:
        window: Points θ of a row, at most.
        path: Arrays of the `Path`, see `DRAFTED`.
        tables: a, b, σ and timesteps of the chain, each [K].
        how: Whether the last committed prediction is held, as `frozen` does; U of the response [horizon, horizon], of
            no size for none; and its g [K, D].
        drafted: Takes points, guesses and the points in the response's basis of all rows, one row's after the other's,
            each [B·θ, D].
        calls: Takes steps, timesteps and rows of these points, each [B·θ], and their number in each row [B].

    Returns:
        The number of points N in all; 0 where every row is done.
    """
    x, cursor, rejected = path[0], path[1], path[11]
    point, guess, turned = drafted
    steps, timestep, rows, quota = calls
    transposed = np.ascontiguousarray(how[1].T)
    at = 0
    for row in range(len(x)):
        first = cursor[row]
        # `frozen` spends a round on the x̂0 that it will hold.
        count = min(1 if how[0] and rejected[row] else window, len(tables[0]) - first)
        quota[row] = count
        if count == 0:
            continue
        end = at + count
        for slot in range(count):
            steps[at + slot], timestep[at + slot], rows[at + slot] = first + slot, tables[3][first + slot], row
        out = (point[at:end], guess[at:end], turned[at:end])
        if len(transposed):
            _respond(row, first, path, tables[:3], (how[1], transposed, how[2]), out)
        else:
            _reuse(row, first, path, tables[:3], how[0], out)
        at = end
    return at


@compiled
def _reuse(
    row: int,
    first: int,
    path: tuple[Numbers, ...],
    tables: tuple[Numbers, ...],
    holds: bool,
    out: tuple[Numbers, Numbers, Numbers],
) -> None:
    """Roll out a row whose guesses are earlier predictions."""
    x, normals, x0_pred, seen, latest = path[0], path[3], path[5], path[6], path[9]
    a, b, sigma = tables
    point, guess, turned = out
    now, carry = x[row].copy(), latest[row].copy()
    for slot in range(len(point)):
        step = first + slot
        if seen[row, step] and not holds:
            carry[:] = x0_pred[row, step]
        point[slot], guess[slot], turned[slot] = now, carry, now
        for place in range(len(now)):
            noise = sigma[step] * normals[row, step, place]
            now[place] = a[step] * carry[place] + noise + b[step] * now[place]


@compiled
def _respond(
    row: int,
    first: int,
    path: tuple[Numbers, ...],
    tables: tuple[Numbers, ...],
    response: tuple[Numbers, Numbers, Numbers],
    out: tuple[Numbers, Numbers, Numbers],
) -> None:
    """Roll out a row whose guesses follow its points, see `draft.Follow`; all of it in the response's basis."""
    x, _, free, normals, points, x0_pred, seen, shift, change, latest, innovation, _ = path
    a, b, sigma = tables
    basis, transposed, gain = response
    point, guess, turned = out
    count, size = point.shape
    # All that is to be turned at once: the noise, and below it where the row stands.
    straight, bent = np.empty((count + 3, size), x.dtype), np.empty((count + 3, size), x.dtype)
    straight[:count] = normals[row, first : first + count]
    straight[count], straight[count + 1], straight[count + 2] = x[row], latest[row], innovation[row]
    _turn(basis, straight, bent)
    noise, now, carry, push = bent[:count], bent[count], bent[count + 1], bent[count + 2]
    guessed, moved, unit = np.empty((count, size), x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    slope_shift, slope_change = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    one, tiny = x.dtype.type(1), np.finfo(x.dtype).tiny
    for slot in range(count):
        step = first + slot
        _decay_into(slope_shift, shift[row, step])
        _decay_into(slope_change, change[row, step])
        _subtract(now, points[row, step], moved)
        length, distance = max(_dot(slope_shift, slope_shift), tiny), _dot(moved, moved)
        _divide(slope_shift, length, unit)
        again = min(max(_dot(unit, moved), -one), one)
        distance /= max(free[row, 0] * sigma[step] * sigma[step], tiny)
        share = one / (one + distance**DISTANCE_POWER) if seen[row, step] else x.dtype.type(0)
        turned[slot] = now
        seen_here = (moved, x0_pred[row, step], slope_shift, slope_change)
        _carry_on(carry, push, gain[step], seen_here, again, share)
        _step_on(now, carry, push, noise[slot], (a[step], b[step], sigma[step]))
        guessed[slot] = carry
    _turn(transposed, turned, point)
    _turn(transposed, guessed, guess)
    point[0] = x[row]  # turned twice, it would not be the exact point to the bit


# Loops over few vectors each: LLVM fills vector registers only where it can tell in time that none overlaps another.


@compiled
def _decay_into(slope: Numbers, value: Numbers) -> None:
    decay = slope.dtype.type(SLOPE_DECAY)
    for place in range(len(slope)):
        slope[place] = value[place] + decay * slope[place]


@compiled
def _subtract(left: Numbers, right: Numbers, out: Numbers) -> None:
    for place in range(len(out)):
        out[place] = left[place] - right[place]


@compiled
def _divide(vector: Numbers, by: Any, out: Numbers) -> None:
    for place in range(len(out)):  # one by one, as a product of two vectors might overflow
        out[place] = vector[place] / by


@compiled
def _carry_on(
    carry: Numbers,
    push: Numbers,
    gain: Numbers,
    seen: tuple[Numbers, Numbers, Numbers, Numbers],
    again: Any,
    share: Any,
) -> None:
    """Carry the guess along the noise, towards what was predicted at this step before."""
    moved, x0_pred, slope_shift, slope_change = seen
    for place in range(len(carry)):
        slope = gain[place]
        carried = carry[place] + slope * push[place]
        own = slope * moved[place] + x0_pred[place]
        own += again * (slope_change[place] - slope * slope_shift[place])
        carry[place] = (own - carried) * share + carried


@compiled
def _step_on(now: Numbers, carry: Numbers, push: Numbers, noise: Numbers, tables: tuple[Any, Any, Any]) -> None:
    """Take the chain's step of the guess."""
    a, b, sigma = tables
    for place in range(len(now)):
        push[place] = sigma * noise[place]
    for place in range(len(now)):
        now[place] = a * carry[place] + push[place] + b * now[place]


@compiled
def commit_rows(
    quota: Numbers,
    path: tuple[Numbers, ...],
    tables: tuple[Numbers, ...],
    how: tuple[bool, Numbers, Numbers, float],
    drafted: tuple[Numbers, Numbers, Numbers],
    predicted: Numbers,
) -> None:
    """Judge each row's drafts, commit what stands and one step more, and keep what was seen.

    Args:
        quota: Points of each row [B].
        path: Arrays of the `Path`, see `COMMITTED`.
        tables: a, b, σ and a/σ of the chain, each [K].
        how: Whether prefixes are judged, as `couplings.block` does, else steps, as `couplings.reflection`; U of the
            response as for `draft_rows`; which coordinates are given [B, D], of no size for none; and the largest gap
            that is accepted, as `tolerance.within` does, below 0 for a coupling.
        drafted: What `draft_rows` has written.
        predicted: The network's predictions x̂0 at the points [N, D].
    """
    x, cursor, normals, uniforms, _, _, _, _, _, latest, innovation = path[:11]
    rejected, refused, judged, rounds, nfe = path[11:]
    a, b, sigma, scale = tables
    block, basis, given, tolerance = how
    at = 0
    for row in range(len(x)):
        count = quota[row]
        if count == 0:
            continue
        point, guess, turned, x0_pred = (
            drafted[0][at : at + count], drafted[1][at : at + count], drafted[2][at : at + count],
            predicted[at : at + count],
        )  # fmt: skip
        at += count
        first = cursor[row]
        gap = guess - x0_pred
        if len(given):
            for place in range(x.shape[1]):
                if given[row, place]:
                    gap[:, place] = 0  # given coordinates are no part of the law
        end = first + count
        if tolerance >= 0:
            last = _within(gap, tolerance)
        elif block:
            last = _block(gap, scale[first:end], normals[row, first:end], uniforms[row, first:end])
        else:
            last = _reflection(gap, scale[first:end], normals[row, first:end], uniforms[row, first:end])
        stands, step = last + 1 == count, first + last
        noise = normals[row, step] if block or stands else _mirrored(gap[last], normals[row, step])
        for place in range(x.shape[1]):
            push = sigma[step] * noise[place]
            x[row, place] = a[step] * x0_pred[last, place] + push + b[step] * point[last, place]
            latest[row, place], innovation[row, place] = x0_pred[last, place], push
        cursor[row] = step + 1
        rounds[row] += 1
        nfe[row] += count
        rejected[row] = not stands
        refused[row, step] |= not stands
        judged[row, first : step + (not stands)] = True
        _keep(row, first, path, basis, turned, x0_pred)


@compiled
def _keep(row: int, first: int, path: tuple[Numbers, ...], basis: Numbers, turned: Numbers, predicted: Numbers) -> None:
    """Keep a round's points and predictions for the drafts of the rounds to come, in the response's basis."""
    points, x0_pred, seen, shift, change = path[4:9]
    kept = predicted
    if len(basis):
        kept = np.empty_like(predicted)
        _turn(basis, predicted, kept)
        for slot in range(len(turned)):
            here = first + slot
            if seen[row, here]:
                _subtract(turned[slot], points[row, here], shift[row, here])
                _subtract(kept[slot], x0_pred[row, here], change[row, here])
            else:
                shift[row, here], change[row, here] = 0, 0
    for slot in range(len(turned)):
        points[row, first + slot], x0_pred[row, first + slot], seen[row, first + slot] = turned[slot], kept[slot], True


@compiled
def _reflection(gap: Numbers, scale: Numbers, noise: Numbers, uniform: Numbers) -> int:
    """Find the slot of the last step that a round commits."""
    count, size = gap.shape
    for slot in range(count - 1):
        margin, same = gap.dtype.type(0), True
        for place in range(size):
            shifted = gap[slot, place] * scale[slot]
            margin += shifted * (noise[slot, place] + gap.dtype.type(0.5) * shifted)
            same = same and gap[slot, place] == 0
        if not (np.log(uniform[slot]) < -margin or same):
            return slot
    return count - 1


@compiled
def _within(gap: Numbers, tolerance: float) -> int:
    """Find the slot of the last step that a round commits, where gaps are accepted up to a tolerance."""
    count, size = gap.shape
    for slot in range(count - 1):
        for place in range(size):
            if not abs(gap[slot, place]) <= tolerance:
                return slot
    return count - 1


@compiled
def _polar(vector: Numbers, direction: Numbers) -> Any:
    """Split a vector into its direction, written to `direction`, and its length; to the reference's bits."""
    largest = vector.dtype.type(0)
    for value in vector:
        largest = max(largest, abs(value))
    if not largest > 0:
        direction[:] = vector  # zeros, or what is no number
        return largest
    squares = vector.dtype.type(0)
    for place in range(len(vector)):
        direction[place] = vector[place] / largest
        squares += direction[place] * direction[place]
    length = np.sqrt(squares)
    for place in range(len(vector)):
        direction[place] /= length
    return largest * length


@compiled
def _fast_polar(vector: Numbers, direction: Numbers) -> Any:
    """Do the same to rounding, in a tenth of the time where squares neither overflow nor lose digits."""
    square = _dot(vector, vector)
    if not _SAFE < square < 1 / _SAFE:
        return _polar(vector, direction)
    length = np.sqrt(square)
    _divide(vector, length, direction)
    return length


@compiled
def _mirrored(gap: Numbers, noise: Numbers) -> Numbers:
    """Mirror a step's noise in the hyperplane orthogonal to the gap."""
    direction = np.empty(len(gap), gap.dtype)
    _polar(gap, direction)
    along = gap.dtype.type(0)
    for place in range(len(gap)):
        along += direction[place] * noise[place]
    return noise - gap.dtype.type(2) * along * direction


@compiled
def _block(gap: Numbers, scale: Numbers, noise: Numbers, uniform: Numbers) -> int:
    """Find the slot of the last step that a round commits; renew noise and uniforms from it on, in place."""
    count, size = gap.shape
    direction = np.empty((count, size), gap.dtype)
    along, delta = np.empty(count), np.empty(count)
    log_weight, log_refused, threshold = np.empty(count), np.empty(count), np.empty(count)
    walk, highest, last = 0.0, 0.0, 0
    for slot in range(count):
        length = _fast_polar(gap[slot], direction[slot])
        shift = min(np.float64(scale[slot] * length if length > 0 else length), FARTHEST)
        along[slot] = _dot(direction[slot], noise[slot])
        highest = max(highest, walk)
        log_weight[slot] = walk - highest
        delta[slot] = max(shift, CLOSEST)
        left_over = np.exp(_log_mass(_crossing(delta[slot], log_weight[slot]), delta[slot], log_weight[slot]))
        out = left_over - np.expm1(log_weight[slot])
        log_refused[slot] = np.log(out)
        threshold[slot] = left_over / out if slot + 1 < count else np.exp(log_weight[slot])
        if uniform[slot] <= threshold[slot]:
            last = slot
        walk += -shift * (along[slot] + 0.5 * shift)
    if last + 1 == count:
        return last
    for slot in range(last, count - 1):
        level = _refused_level(along[slot], delta[slot], log_weight[slot], log_refused[slot])
        if slot == last:
            moved = _mirror(level, along[slot], delta[slot], log_weight[slot])
        else:
            moved = -_ndtri(min(np.exp(level), _BELOW_ONE))
        move = gap.dtype.type(moved - along[slot])
        for place in range(size):
            noise[slot, place] += move * direction[slot, place]
    for slot in range(last + 1, count):
        uniform[slot] = (uniform[slot] - threshold[slot]) / (1 - threshold[slot])
    return last


@compiled
def _crossing(delta: float, log_weight: float) -> float:
    """As `residual.crossing`, and so are the others."""
    return max(0.5 * delta + log_weight / delta, LOWEST)


@compiled
def _log1mexp(x: float) -> float:
    """Compute ln(1 − exp(−x)) for x ≥ 0."""
    return np.log(-np.expm1(-x))


@compiled
def _log_mass(y: float, delta: float, log_weight: float) -> float:
    """Compute ln(p·Φ(y) − Φ(y − δ))."""
    log_target = log_weight + _log_ndtr(y)
    return log_target + _log1mexp(max(log_target - _log_ndtr(y - delta), _TINY))


@compiled
def _refused_level(along: float, delta: float, log_weight: float, log_refused: float) -> float:
    """Compute ln of the CDF of a refused draft's −along, at this −along."""
    inside = min(-along, _crossing(delta, -log_weight))
    return min(log_weight + _log_mass(inside, delta, -log_weight) - log_refused, 0.0)


@compiled
def _mirror(log_level: float, along: float, delta: float, log_weight: float) -> float:
    """As `residual.mirror`; the cell of the root is found by bisection, where the reference looks at all of them."""
    b = _crossing(delta, log_weight)
    goal = log_level + _log_mass(b, delta, log_weight)
    low = min(b, 0.0) - np.sqrt(-2 * log_level)
    cell = (min(b, -along) - low) / CELLS
    below, above = 0, CELLS
    while above - below > 1:
        middle = (below + above) // 2
        if _log_mass(low + cell * middle, delta, log_weight) < goal:
            below = middle
        else:
            above = middle
    start = low + cell * below
    y = start
    for _ in range(NEWTON_STEPS):
        mass = _log_mass(y, delta, log_weight)
        short = max(delta * (b - y), CLOSEST)
        density = log_weight - 0.5 * y * y - 0.5 * _LOG_2PI + _log1mexp(short)
        y = min(max(y + (goal - mass) * np.exp(mass - density), start), start + cell)
    return y


@compiled
def _log_ndtr(x: float) -> float:
    """Compute ln Φ(x); below −12 by the continued fraction of Mills' ratio (Abramowitz and Stegun 26.2.14)."""
    if x > 0:
        return np.log1p(-0.5 * math.erfc(x / math.sqrt(2.0)))
    if x > -12:
        return np.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    fraction = 0.0
    for term in range(24, 0, -1):
        fraction = term / (-x + fraction)
    return -0.5 * x * x - 0.5 * _LOG_2PI - np.log(-x + fraction)


@compiled
def _ndtri(p: float) -> float:
    """Compute Φ⁻¹(p): a first guess (Abramowitz and Stegun 26.2.23), and Halley's method on ln Φ of the nearer tail."""
    if p <= 0:
        return -np.inf
    if p >= 1:
        return np.inf
    tail = min(p, 1 - p)
    t = np.sqrt(-2 * np.log(tail))
    x = -(t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))))
    goal = np.log(tail)
    for _ in range(2):  # from an error below 5e-4, cubed by each
        value = _log_ndtr(x)
        slope = np.exp(-0.5 * x * x - 0.5 * _LOG_2PI - value)  # of ln Φ
        miss = value - goal
        x -= miss / (slope * (1 + 0.5 * miss * (x + slope) / slope))
    return x if p < 0.5 else -x


def compile_rounds() -> None:
    """Have all of it compiled, or read from numba's cache on the disk: a round of plans that are done."""
    flags, nothing, whole = np.zeros((3, 1, 2), np.bool_), np.empty((0, 0), np.bool_), np.ones(1, np.int64)
    counts, places, quota = np.ones((3, 1), np.int64), np.zeros((3, 1), np.int64), np.zeros(1, np.int64)
    for dtype in (np.float32, np.float64):
        flat, deep, basis = np.zeros((1, 1), dtype), np.zeros((3, 1, 1), dtype), np.empty((0, 0), dtype)
        memory = (np.zeros((5, 1, 2, 1), dtype), flags, counts, deep, np.ones((1, 2), dtype), flat, flags[0, 0, :1])
        how = how_of(1, False, False, -1.0), basis, basis, nothing
        kept = memory, (np.zeros((7, 1), dtype), whole), how, (np.zeros((4, 1, 1), dtype), places, quota)
        hold_rows(kept)(True, True, flat)
