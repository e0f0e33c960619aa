"""The arithmetic of `asd`'s rounds in compiled loops, for memory of the host; imported where numba is installed.

Each function is one of the reference's with the same arithmetic in the same order, row by row: `draft_rows` is
`draft.roll_out`, `commit_rows` is the verifiers of `couplings` and what `engine.Round` does with their verdict. Samples
agree with the reference's to rounding; tests/samplers/asd/test_compiled.py holds them to it. Numbers are those of
`Path`, which both read and write in place.
"""

import math

import numpy as np
from numba import njit

from asd_policy.samplers.asd.draft import DISTANCE_POWER, SLOPE_DECAY
from asd_policy.samplers.asd.residual import CLOSEST, FARTHEST

_LOWEST = -40.0
_CELLS = 64
_NEWTON_STEPS = 3
_LOG_2PI = math.log(2 * math.pi)
_TINY_64 = float(np.finfo(np.float64).tiny)
_EPS_64 = float(np.finfo(np.float64).eps)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _turn(transposed, values, out):
    """Multiply the time axis of vectors [n, horizon, A] by a matrix, given transposed [horizon, horizon], into `out`."""
    count, horizon, width = values.shape
    line = np.empty(horizon, values.dtype)
    for slot in range(count):
        for action in range(width):
            line[:] = 0
            # Four at a time, along a row of the matrix: a vector register is filled whatever the number of actions.
            for first in range(0, horizon - 3, 4):
                v0, v1 = values[slot, first, action], values[slot, first + 1, action]
                v2, v3 = values[slot, first + 2, action], values[slot, first + 3, action]
                for time in range(horizon):
                    line[time] += (v0 * transposed[first, time] + v1 * transposed[first + 1, time]) + (
                        v2 * transposed[first + 2, time] + v3 * transposed[first + 3, time]
                    )
            for rest in range(horizon - horizon % 4, horizon):
                value = values[slot, rest, action]
                for time in range(horizon):
                    line[time] += value * transposed[rest, time]
            for time in range(horizon):
                out[slot, time, action] = line[time]


@njit(cache=True, nogil=True, error_model="numpy")
def draft_rows(rows, quota, path, tables, holds, basis, gain, point, guess, turned):
    """Draft the chain of each row from its exact point, along its noise; see `draft.roll_out`.

    Args:
        rows: Of the batch [R].
        quota: Points of each [R].
        path: Arrays of the `Path`: x, cursor, free, normals, points, x0_pred, seen, shift, change, latest, innovation.
        tables: a, b and σ of the chain, each [K].
        holds: Whether the last committed prediction is held, as `frozen` does.
        basis: U of the response [horizon, horizon]; [0, 0] for none.
        gain: g of the response [K, D].
        point: Takes the points [R, n, D].
        guess: Takes the guesses [R, n, D].
        turned: Takes the points in the response's basis [R, n, D].
    """
    x, cursor, free, normals, points, x0_pred, seen, shift, change, latest, innovation = path
    a, b, sigma = tables
    size, horizon = x.shape[1], basis.shape[0]
    responds = horizon > 0
    width = size // max(1, horizon)
    transposed = np.ascontiguousarray(basis.T)
    decay, tiny = x.dtype.type(SLOPE_DECAY), np.finfo(x.dtype).tiny
    now, carry = np.empty(size, x.dtype), np.empty(size, x.dtype)
    slope_shift, slope_change = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    most = 0
    for count in quota:
        most = max(most, count)
    noise, push = np.empty((most, size), x.dtype), np.empty(size, x.dtype)
    guessed = np.empty((most, size), x.dtype)
    for index in range(len(rows)):
        row, count = rows[index], quota[index]
        if count == 0:
            continue
        first = cursor[row]
        if responds:
            _turn(basis, x[row : row + 1].reshape(1, horizon, width), now.reshape(1, horizon, width))
            _turn(basis, latest[row : row + 1].reshape(1, horizon, width), carry.reshape(1, horizon, width))
            _turn(basis, innovation[row : row + 1].reshape(1, horizon, width), push.reshape(1, horizon, width))
            _turn(
                basis,
                normals[row, first : first + count].reshape(count, horizon, width),
                noise[:count].reshape(count, horizon, width),
            )
            slope_shift[:] = 0
            slope_change[:] = 0
        else:
            now[:] = x[row]
            carry[:] = latest[row]
            noise[:count] = normals[row, first : first + count]
        for slot in range(count):
            step = first + slot
            a_k, b_k, sigma_k = a[step], b[step], sigma[step]
            if responds:
                length, along, distance = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
                for place in range(size):
                    slope_shift[place] = shift[row, step, place] + decay * slope_shift[place]
                    slope_change[place] = change[row, step, place] + decay * slope_change[place]
                    moved = now[place] - points[row, step, place]
                    length += slope_shift[place] * slope_shift[place]
                    along += slope_shift[place] * moved
                    distance += moved * moved
                again = min(max(along / max(length, tiny), x.dtype.type(-1)), x.dtype.type(1))
                distance /= max(free[row, 0] * sigma_k * sigma_k, tiny)
                share = x.dtype.type(0)
                if seen[row, step]:
                    share = x.dtype.type(1) / (x.dtype.type(1) + distance**DISTANCE_POWER)
                for place in range(size):
                    slope = gain[step, place]
                    carried = carry[place] + slope * push[place]
                    moved = now[place] - points[row, step, place]
                    own = slope * moved + x0_pred[row, step, place]
                    own += again * (slope_change[place] - slope * slope_shift[place])
                    carry[place] = (own - carried) * share + carried
            elif seen[row, step] and not holds:
                carry[:] = x0_pred[row, step]
            for place in range(size):
                push[place] = sigma_k * noise[slot, place]
                turned[index, slot, place] = now[place]
                guessed[slot, place] = carry[place]
                now[place] = a_k * carry[place] + push[place] + b_k * now[place]
        if responds:
            _turn(
                transposed,
                turned[index, :count].reshape(count, horizon, width),
                point[index, :count].reshape(count, horizon, width),
            )
            _turn(
                transposed,
                guessed[:count].reshape(count, horizon, width),
                guess[index, :count].reshape(count, horizon, width),
            )
            point[index, 0] = x[row]
        else:
            point[index, :count] = turned[index, :count]
            guess[index, :count] = guessed[:count]


@njit(cache=True, nogil=True, error_model="numpy")
def commit_rows(rows, quota, path, tables, block, basis, given, point, guess, turned, predicted):
    """Judge each row's drafts, commit what stands and one step more, and keep what was seen.

    Args:
        rows: Of the batch [R].
        quota: Points of each [R].
        path: Arrays of the `Path`: x, cursor, normals, uniforms, points, x0_pred, seen, shift, change, latest,
            innovation, rejected, refused, judged, rounds, nfe.
        tables: a, b, σ and a/σ of the chain, each [K].
        block: Whether prefixes are judged, as `couplings.block` does; else steps, as `couplings.reflection`.
        basis: As for `draft_rows`.
        given: Which coordinates are given [B, D]; [0, 0] for none.
        point: The points [R, n, D].
        guess: The guesses there [R, n, D].
        turned: The points in the response's basis [R, n, D].
        predicted: The network's predictions there [R, n, D].
    """
    (x, cursor, normals, uniforms, points, x0_pred, seen, shift, change, latest, innovation) = path[:11]
    rejected, refused, judged, rounds, nfe = path[11:]
    a, b, sigma, scale = tables
    size, horizon, slots = x.shape[1], basis.shape[0], point.shape[1]
    width = size // max(1, horizon)
    gap, kept = np.empty((slots, size), x.dtype), np.empty((slots, size), x.dtype)
    for index in range(len(rows)):
        row, count = rows[index], quota[index]
        if count == 0:
            continue
        first = cursor[row]
        for slot in range(count):
            for place in range(size):
                gap[slot, place] = guess[index, slot, place] - predicted[index, slot, place]
                if given.shape[0] and given[row, place]:
                    gap[slot, place] = 0
        if block:
            last = _block(gap[:count], scale[first : first + count], normals[row, first : first + count],
                          uniforms[row, first : first + count])
        else:
            last = _reflection(gap[:count], scale[first : first + count], normals[row, first : first + count],
                               uniforms[row, first : first + count])
        stands = last + 1 == count
        step = first + last
        noise = normals[row, step]
        if not block and not stands:
            noise = _mirrored(gap[last], noise)
        for place in range(size):
            x[row, place] = (
                a[step] * predicted[index, last, place] + sigma[step] * noise[place] + b[step] * point[index, last, place]
            )
            latest[row, place] = predicted[index, last, place]
            innovation[row, place] = sigma[step] * noise[place]
        cursor[row] = step + 1
        rounds[row] += 1
        nfe[row] += count
        rejected[row] = not stands
        refused[row, step] |= not stands
        judged[row, first:step] = True
        if not stands:
            judged[row, step] = True
        if horizon:
            _turn(
                basis,
                predicted[index, :count].reshape(count, horizon, width),
                kept[:count].reshape(count, horizon, width),
            )
        else:
            kept[:count] = predicted[index, :count]
        for slot in range(count):
            here = first + slot
            if horizon:
                before = seen[row, here]
                for place in range(size):
                    shift[row, here, place] = turned[index, slot, place] - points[row, here, place] if before else 0
                    change[row, here, place] = kept[slot, place] - x0_pred[row, here, place] if before else 0
            points[row, here] = turned[index, slot]
            x0_pred[row, here] = kept[slot]
            seen[row, here] = True


@njit(cache=True, nogil=True, error_model="numpy")
def _reflection(gap, scale, noise, uniform):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _polar(vector, direction):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _mirrored(gap, noise):
    """Mirror a step's noise in the hyperplane orthogonal to the gap."""
    direction = np.empty(len(gap), gap.dtype)
    _polar(gap, direction)
    along = gap.dtype.type(0)
    for place in range(len(gap)):
        along += direction[place] * noise[place]
    return noise - gap.dtype.type(2) * along * direction


@njit(cache=True, nogil=True, error_model="numpy")
def _block(gap, scale, noise, uniform):
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
            moved = -_ndtri(min(np.exp(level), 1 - 0.5 * _EPS_64))
        move = gap.dtype.type(moved - along[slot])
        for place in range(size):
            noise[slot, place] += move * direction[slot, place]
    for slot in range(last + 1, count):
        uniform[slot] = (uniform[slot] - threshold[slot]) / (1 - threshold[slot])
    return last


@njit(cache=True, nogil=True, error_model="numpy")
def _crossing(delta, log_weight):
    return max(0.5 * delta + log_weight / delta, _LOWEST)


@njit(cache=True, nogil=True, error_model="numpy")
def _log1mexp(x):
    return np.log(-np.expm1(-x))


@njit(cache=True, nogil=True, error_model="numpy")
def _log_mass(y, delta, log_weight):
    log_target = log_weight + _log_ndtr(y)
    return log_target + _log1mexp(max(log_target - _log_ndtr(y - delta), _TINY_64))


@njit(cache=True, nogil=True, error_model="numpy")
def _refused_level(along, delta, log_weight, log_refused):
    inside = min(-along, _crossing(delta, -log_weight))
    return min(log_weight + _log_mass(inside, delta, -log_weight) - log_refused, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _mirror(log_level, along, delta, log_weight):
    """As `residual.mirror`; the cell of the root is found by bisection, where the reference looks at all of them."""
    b = _crossing(delta, log_weight)
    goal = log_level + _log_mass(b, delta, log_weight)
    low = min(b, 0.0) - np.sqrt(-2 * log_level)
    cell = (min(b, -along) - low) / _CELLS
    below, above = 0, _CELLS
    while above - below > 1:
        middle = (below + above) // 2
        if _log_mass(low + cell * middle, delta, log_weight) < goal:
            below = middle
        else:
            above = middle
    start = low + cell * below
    y = start
    for _ in range(_NEWTON_STEPS):
        mass = _log_mass(y, delta, log_weight)
        short = max(delta * (b - y), CLOSEST)
        density = log_weight - 0.5 * y * y - 0.5 * _LOG_2PI + _log1mexp(short)
        y = min(max(y + (goal - mass) * np.exp(mass - density), start), start + cell)
    return y


@njit(cache=True, nogil=True, error_model="numpy")
def _log_ndtr(x):
    """Compute ln Φ(x); below −12 by the continued fraction of Mills' ratio (Abramowitz and Stegun 26.2.14)."""
    if x > 0:
        return np.log1p(-0.5 * math.erfc(x / math.sqrt(2.0)))
    if x > -12:
        return np.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    fraction = 0.0
    for term in range(24, 0, -1):
        fraction = term / (-x + fraction)
    return -0.5 * x * x - 0.5 * _LOG_2PI - np.log(-x + fraction)


@njit(cache=True, nogil=True, error_model="numpy")
def _ndtri(p):
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
