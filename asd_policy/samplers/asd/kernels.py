"""The arithmetic of `asd`'s rounds in compiled loops, for memory of the host; imported where numba is installed.

The same arithmetic as the reference's in the same order, row by row: `draft_rows` is `draft.roll_out`, `commit_rows` is
the verifiers of `couplings` and what `engine.Round` does with their verdict; `advance_rows` is all that there is to do
between two network calls. Samples agree with the reference's to rounding. All arrays but flags and counts are of one
floating-point type, and contiguous.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from asd_policy.samplers.asd.draft import DISTANCE_POWER, SLOPE_DECAY
from asd_policy.samplers.asd.residual import CELLS, CLOSEST, FARTHEST, LOWEST, NEWTON_STEPS
from asd_policy.samplers.kernels import Numbers, compiled, predict_rows

_LOG_2PI = math.log(2 * math.pi)
_TINY = float(np.finfo(np.float64).tiny)
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


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _turn(transposed: Numbers, values: Numbers, out: Numbers) -> None:
    """Multiply the time axis of vectors [n, D] by a matrix, given transposed [horizon, horizon], into `out` [n, D]."""
    # Whichever of the two has the longer row to go along.
    if values.shape[1] > len(transposed) ** 2:
        _turn_wide(transposed, values, out)
    else:
        _turn_narrow(transposed, values, out)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _turn_wide(transposed: Numbers, values: Numbers, out: Numbers) -> None:
    """Do the same along a step's actions: the sums are those of `_turn_narrow`, in the same order."""
    count, horizon = len(values), len(transposed)
    width = values.shape[1] // horizon
    for slot in range(count):
        for place in range(horizon):
            line = out[slot, place * width : (place + 1) * width]
            line[:] = 0
            for time in range(0, horizon - 3, 4):
                m0, m1 = transposed[time, place], transposed[time + 1, place]
                m2, m3 = transposed[time + 2, place], transposed[time + 3, place]
                four = values[slot, time * width : (time + 4) * width]
                for action in range(width):
                    line[action] += (four[action] * m0 + four[width + action] * m1) + (
                        four[2 * width + action] * m2 + four[3 * width + action] * m3
                    )
            for time in range(horizon - horizon % 4, horizon):
                for action in range(width):
                    line[action] += values[slot, time * width + action] * transposed[time, place]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _turn_narrow(transposed: Numbers, values: Numbers, out: Numbers) -> None:
    """Do it along the rows of the matrix."""
    count, horizon = len(values), len(transposed)
    width = values.shape[1] // horizon
    line = np.empty(horizon, values.dtype)
    for slot in range(count):
        for action in range(width):
            line[:] = 0
            # Four at a time, along a row of the matrix: a vector register is filled whatever the number of actions.
            for time in range(0, horizon - 3, 4):
                v0, v1 = values[slot, time * width + action], values[slot, (time + 1) * width + action]
                v2, v3 = values[slot, (time + 2) * width + action], values[slot, (time + 3) * width + action]
                for place in range(horizon):
                    line[place] += (v0 * transposed[time, place] + v1 * transposed[time + 1, place]) + (
                        v2 * transposed[time + 2, place] + v3 * transposed[time + 3, place]
                    )
            for time in range(horizon - horizon % 4, horizon):
                value = values[slot, time * width + action]
                for place in range(horizon):
                    line[place] += value * transposed[time, place]
            for place in range(horizon):
                out[slot, place * width + action] = line[place]


@compiled
def advance_rows(
    window: int,
    parts: tuple[bool, bool],
    memory: tuple[Numbers, ...],
    chain: tuple[Numbers, Numbers],
    how: tuple[bool, bool, float, Numbers, Numbers, Numbers],
    work: tuple[Numbers, Numbers, Numbers],
    called: tuple[Numbers, Numbers],
    drafted: tuple[Numbers, Numbers],
) -> int:
    """Take a batch of plans from one network call to the next.

    Its arguments are few, and blocks: after a network call the processor's caches have none of what Python knows of an
    array, and to look at fifty takes longer than the arithmetic.

    Args:
        window: Points θ of a row, at most.
        parts: Whether to commit what the network was called on, and whether to draft.
        memory: Of the path, the blocks of a `PathMemory`.
        chain: `LoopTables.rounds` and the timesteps [K].
        how: Whether the last committed prediction is held, as `frozen` does; whether prefixes are judged; the
            tolerance; U and g of the response; and which coordinates are given: see `draft_rows` and `commit_rows`.
        work: Memory that goes from a draft to its verdict: guesses, points in the response's basis and x̂0
            [3, B·θ, D]; steps and rows of the points [2, B·θ]; and their number in each row [B].
        called: What the network was called on and what it returned, each [N, D], or, of a chain without tables for
            it, x̂0. Not looked at where nothing is committed.
        drafted: Takes the next points [B·θ, D] and their timesteps [B·θ].

    Returns:
        The number of the next points N in all; 0 where every row is done, or nothing was to be drafted.
    """
    to_draft, to_commit = _views(memory)
    tables, timesteps = chain
    holds, block, tolerance, basis, gain, given = how
    own, places, quota = work
    guess, turned = own[0], own[1]
    if parts[0]:
        point, output = called
        predicted = output
        if len(tables) > 4:
            predicted = own[2]
            excess = tables[7] if len(tables) > 7 else tables[0, :0]
            predict_rows(point, output, places[0], (tables[4], tables[5], tables[6], excess), predicted)
        steps = (tables[0], tables[1], tables[2], tables[3])
        commit_rows(quota, to_commit, steps, (block, basis, given, tolerance), (point, guess, turned), predicted)
    if not parts[1]:
        return 0
    to_step = (tables[0], tables[1], tables[2], timesteps)
    calls = (places[0], drafted[1], places[1], quota)
    return draft_rows(window, to_draft, to_step, (holds, basis, gain), (drafted[0], guess, turned), calls)


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
    start, noise = np.empty((3, size), x.dtype), np.empty((count, size), x.dtype)
    _turn(basis, x[row : row + 1], start[:1])
    _turn(basis, latest[row : row + 1], start[1:2])
    _turn(basis, innovation[row : row + 1], start[2:])
    _turn(basis, normals[row, first : first + count], noise)
    now, carry, push = start[0], start[1], start[2]
    guessed = np.empty((count, size), x.dtype)
    slope_shift, slope_change = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    decay, one, tiny = x.dtype.type(SLOPE_DECAY), x.dtype.type(1), np.finfo(x.dtype).tiny
    for slot in range(count):
        step = first + slot
        length, along, distance = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for place in range(size):
            slope_shift[place] = shift[row, step, place] + decay * slope_shift[place]
            slope_change[place] = change[row, step, place] + decay * slope_change[place]
            moved = now[place] - points[row, step, place]
            length += slope_shift[place] * slope_shift[place]
            distance += moved * moved
        length = max(length, tiny)
        for place in range(size):  # divided one by one, as a product might overflow
            along += slope_shift[place] / length * (now[place] - points[row, step, place])
        again = min(max(along, -one), one)
        distance /= max(free[row, 0] * sigma[step] * sigma[step], tiny)
        share = one / (one + distance**DISTANCE_POWER) if seen[row, step] else x.dtype.type(0)
        turned[slot] = now
        for place in range(size):
            slope = gain[step, place]
            carried = carry[place] + slope * push[place]
            own = slope * (now[place] - points[row, step, place]) + x0_pred[row, step, place]
            own += again * (slope_change[place] - slope * slope_shift[place])
            carry[place] = (own - carried) * share + carried
            push[place] = sigma[step] * noise[slot, place]
            now[place] = a[step] * carry[place] + push[place] + b[step] * now[place]
        guessed[slot] = carry
    _turn(transposed, turned, point)
    _turn(transposed, guessed, guess)
    point[0] = x[row]  # turned twice, it would not be the exact point to the bit


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
            for place in range(turned.shape[1]):
                again = seen[row, here]
                shift[row, here, place] = turned[slot, place] - points[row, here, place] if again else 0
                change[row, here, place] = kept[slot, place] - x0_pred[row, here, place] if again else 0
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
    """Split a vector into its direction, written to `direction`, and its length."""
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
        length = _polar(gap[slot], direction[slot])
        shift = min(np.float64(scale[slot] * length if length > 0 else length), FARTHEST)
        projected = gap.dtype.type(0)
        for place in range(size):
            projected += direction[slot, place] * noise[slot, place]
        along[slot] = projected
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
    for _ in range(4):
        value = _log_ndtr(x)
        slope = np.exp(-0.5 * x * x - 0.5 * _LOG_2PI - value)  # of ln Φ
        miss = value - goal
        x -= miss / (slope * (1 + 0.5 * miss * (x + slope) / slope))
    return x if p < 0.5 else -x


def compile_rounds() -> None:
    """Have all of it compiled, or read from numba's cache on the disk: a round of plans that are done."""
    flags, nothing, whole = np.zeros((3, 1, 2), np.bool_), np.empty((0, 0), np.bool_), np.ones(1, np.int64)
    counts, places, quota = np.ones((3, 1), np.int64), np.zeros((2, 1), np.int64), np.zeros(1, np.int64)
    for dtype in (np.float32, np.float64):
        flat, deep, basis = np.zeros((1, 1), dtype), np.zeros((3, 1, 1), dtype), np.empty((0, 0), dtype)
        memory = (np.zeros((5, 1, 2, 1), dtype), flags, counts, deep, np.ones((1, 2), dtype), flat, flags[0, 0, :1])
        how, work = (False, False, -1.0, basis, basis, nothing), (deep, places, quota)
        advance_rows(1, (True, True), memory, (np.zeros((7, 1), dtype), whole), how, work, (flat, flat), (flat, whole))
