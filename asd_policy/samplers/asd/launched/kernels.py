"""The kernels of a round of `asd` in Triton: the arithmetic of `engine.Round`, for all rows of a batch.

A round is `reuse`, or `turn_in`, `respond`, `turn_back`; the network; and `compare`, `judge`, `commit`. Tiles are
[vectors or rows, coordinates or slots], so that small plans share a program and large ones are split; only `respond`,
whose every slot needs sums over all coordinates of the one before it, has a program for each row.

Sizes: R rows, n slots, K steps, D numbers of `horizon` × `width`; what a `Path` keeps by step has K + 1 places. No
kernel is specialised by R or n. Sums over coordinates are in the samples' type, the verdict in float64.
"""
# Triton's language only looks like Python: indices, loops and arguments are not of the types that they seem.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from asd_policy.samplers.asd.draft import SLOPE_DECAY
from asd_policy.samplers.asd.launched.normal import (
    at_least,
    at_most,
    expm1,
    tile_crossing,
    tile_log_mass,
    tile_mirror,
    tile_refused_level,
    tile_renew,
)
from asd_policy.samplers.asd.residual import CLOSEST, FARTHEST

_DECAY = tl.constexpr(SLOPE_DECAY)
_CLOSEST = tl.constexpr(CLOSEST)
_FARTHEST = tl.constexpr(FARTHEST)


@triton.jit
def _whole(size):
    """Read a size that `form.coded` wrote."""
    return size >> 5


@triton.jit
def _four(sizes):
    """Read four of them."""
    return _whole(sizes[0]), _whole(sizes[1]), _whole(sizes[2]), _whole(sizes[3])


@triton.jit
def _quota(row, inside, cursor, rejected, n, steps, SINGLY: tl.constexpr):
    """Find the first step of rows and the points that the round has for them: 1 … n, 0 of rows that are done."""
    first = tl.load(cursor + row, mask=inside, other=steps).to(tl.int32)
    left = steps - first
    count = tl.minimum(left, n)
    if SINGLY:  # as `FrozenDraft.quota`
        count = tl.where(tl.load(rejected + row, mask=inside, other=0) != 0, tl.minimum(left, 1), count)
    return first, count


@triton.jit
def _divide(x, y):
    """Divide as IEEE has it: in float32 Triton's own division is rougher, and none at all by what is huge."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def reuse(path, tables, held_values, out, sizes, HOW: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Roll out rows whose guesses are earlier predictions; see `draft.roll_out`. Points that are none are zeros."""
    x, cursor, normals, seen, x0_pred, latest, rejected = path
    a, b, sigma, times = tables
    mask, values, noisy = held_values
    plain, shown, timesteps = out
    R, n, steps, D = _four(sizes)
    HOLDS: tl.constexpr = HOW[0]
    GIVEN: tl.constexpr = HOW[1]
    NOISED: tl.constexpr = HOW[2]
    guess = plain + R.to(tl.int64) * n * D
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    first, count = _quota(row, row < R, cursor, rejected, n, steps, HOLDS)
    inside = (row < R) & (place < D)
    at = row.to(tl.int64) * D + place
    now = tl.load(x + at, mask=inside, other=0)
    carry = tl.load(latest + at, mask=inside, other=0)
    if GIVEN:
        given = tl.load(mask + at, mask=inside, other=0) != 0
        held = tl.load(values + at, mask=inside, other=0)
    for slot in range(0, n):
        step = tl.minimum(first + slot, steps - 1)
        live = slot < count
        here = row.to(tl.int64) * (steps + 1) + step
        known = (row < R) & live
        a_k, b_k, sigma_k = tl.load(a + step), tl.load(b + step), tl.load(sigma + step)
        noise = tl.load(normals + here * D + place, mask=inside & live, other=0)
        if not HOLDS:
            use = (tl.load(seen + here, mask=known, other=0) != 0) & inside & live
            carry = tl.where(use, tl.load(x0_pred + here * D + place, mask=use, other=0), carry)
        e = (row.to(tl.int64) * n + slot) * D + place
        tl.store(plain + e, tl.where(live, now, 0), mask=inside)
        tl.store(guess + e, carry, mask=inside)
        if GIVEN:
            if NOISED:
                held = tl.load(noisy + (row.to(tl.int64) * steps + step) * D + place, mask=inside & live, other=0)
            tl.store(shown + e, tl.where(live, tl.where(given, held, now), 0), mask=inside)
        time = tl.load(times + step)
        tl.store(timesteps + row.to(tl.int64) * n + slot, time, mask=(row < R) & (0 * row == tl.program_id(1)))
        now = (a_k * carry + sigma_k * noise) + b_k * now


@triton.jit
def _turned(source, base, ok, stride, weights, wanted, horizon):
    """Multiply the time axis of vectors by a matrix: a tile of `wanted` places in time by columns, of a vector each."""
    matrix, along, across = weights
    total = tl.zeros_like(wanted + base).to(source.dtype.element_ty)
    for time in range(0, horizon):
        weight = tl.load(matrix + time * along + wanted * across, mask=wanted < horizon, other=0)
        total += weight * tl.load(source + base + time * stride, mask=ok, other=0)
    return total


@triton.jit
def turn_in(path, sigma, matrix, turned, sizes, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Turn what a roll-out needs into the response's basis: σξ of n slots, x, x̂0 and the last σξ, [R, n + 3, D]."""
    x, cursor, normals, latest, innovation = path
    R, n, steps, horizon = _four(sizes)
    width = _whole(sizes[4])
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)[None, :]
    place = tl.program_id(1) * TALL + tl.arange(0, TALL)[:, None]
    D = horizon * width
    vector, action = column // width, column % width
    row, slot = vector // (n + 3), vector % (n + 3)
    exists = row < R
    first, count = _quota(row, exists, cursor, cursor, n, steps, False)
    noisy = exists & (slot < n) & (slot < count)
    step = tl.minimum(first + slot, steps - 1)
    whole = row.to(tl.int64) * D + action
    by_step = (row.to(tl.int64) * (steps + 1) + step) * D + action
    weights = (matrix, horizon, 1)
    total = _turned(normals, by_step, noisy, width, weights, place, horizon)
    total *= tl.load(sigma + step, mask=noisy, other=1)
    rest = exists & (count > 0)
    total += _turned(x, whole, rest & (slot == n), width, weights, place, horizon)
    total += _turned(latest, whole, rest & (slot == n + 1), width, weights, place, horizon)
    total += _turned(innovation, whole, rest & (slot == n + 2), width, weights, place, horizon)
    tl.store(turned + vector.to(tl.int64) * D + place * width + action, total, mask=exists & (place < horizon))


@triton.jit
def _add3(a, b, c, other_a, other_b, other_c):
    """Add three pairs of numbers."""
    return a + other_a, b + other_b, c + other_c


@triton.jit
def respond(path, tables, gain, turned, out, sizes, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Roll out rows whose guesses follow their points, in the response's basis; see `draft.Follow`.

    Writes points [R, n, D] and, behind them, guesses. What a slot reads is loaded while the one before it is summed up.
    """
    cursor, free, seen, points, x0_pred, shift, change = path
    a, b, sigma, times = tables
    drafted, timesteps = out
    R, n, steps, D = _four(sizes)
    TINY: tl.constexpr = 2.2250738585072014e-308 if points.dtype.element_ty == tl.float64 else 1.1754943508222875e-38
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, WIDE)[None, :]
    first, count = _quota(row, row < R, cursor, cursor, n, steps, False)
    exists, inside = row < R, (row < R) & (place < D)
    start = (row.to(tl.int64) * (n + 3) + n) * D + place
    alive = inside & (count > 0)
    now = tl.load(turned + start, mask=alive, other=0)
    carry = tl.load(turned + start + D, mask=alive, other=0)
    push = tl.load(turned + start + 2 * D, mask=alive, other=0)
    numbers = tl.load(free + row, mask=exists, other=1)
    place_of = row.to(tl.int64) * (steps + 1)
    at = (place_of + tl.minimum(first, steps - 1)) * D + place
    anchor, own = tl.load(points + at, mask=alive, other=0), tl.load(x0_pred + at, mask=alive, other=0)
    slope_shift = tl.load(shift + at, mask=alive, other=0)
    slope_change = tl.load(change + at, mask=alive, other=0)
    slope = tl.load(gain + tl.minimum(first, steps - 1) * D + place, mask=alive, other=0)
    length = tl.sum(slope_shift * slope_shift, 1)[:, None]
    for slot in range(0, n):
        step = tl.minimum(first + slot, steps - 1)
        live = inside & (slot < count)
        noise = tl.load(turned + (row.to(tl.int64) * (n + 3) + slot) * D + place, mask=live, other=0)
        use = tl.load(seen + place_of + step, mask=exists & (slot < count), other=0) != 0
        a_k, b_k, sigma_k = tl.load(a + step), tl.load(b + step), tl.load(sigma + step)
        # The next slot's.
        after = tl.minimum(step + 1, steps - 1)
        ahead = inside & (slot + 1 < count)
        at = (place_of + after) * D + place
        next_anchor, next_own = tl.load(points + at, mask=ahead, other=0), tl.load(x0_pred + at, mask=ahead, other=0)
        next_shift = tl.load(shift + at, mask=ahead, other=0) + _DECAY * slope_shift
        next_change = tl.load(change + at, mask=ahead, other=0) + _DECAY * slope_change
        next_slope = tl.load(gain + after * D + place, mask=ahead, other=0)

        moved = now - anchor
        way = _divide(slope_shift, at_least(length, TINY) + tl.zeros_like(slope_shift))
        again, distance, next_length = tl.reduce((way * moved, moved * moved, next_shift * next_shift), 1, _add3)
        again = at_least(at_most(again[:, None], 1.0), -1.0)
        far = _divide(distance[:, None], at_least(numbers * sigma_k * sigma_k, TINY))
        square = far * far
        share = _divide(tl.where(use, 1.0, tl.zeros_like(far)), 1.0 + square * square)
        carried = carry + slope * push
        guess = (slope * moved + own) + again * (slope_change - slope * slope_shift)
        carry = (guess - carried) * share + carried
        e = (row.to(tl.int64) * n + slot) * D + place
        tl.store(drafted + e, tl.where(live, now, 0), mask=inside)
        tl.store(drafted + R.to(tl.int64) * n * D + e, tl.where(live, carry, 0), mask=inside)
        tl.store(timesteps + row.to(tl.int64) * n + slot, tl.load(times + step), mask=exists)
        now = (a_k * carry + noise) + b_k * now
        push, anchor, own, slope = noise, next_anchor, next_own, next_slope
        slope_shift, slope_change, length = next_shift, next_change, next_length[:, None]


@triton.jit
def turn_back(path, turning, held_values, out, sizes, HOW: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Turn drafted points and guesses [2, R, n, D] back, and show the points as the inpainting has them."""
    x, cursor = path
    matrix, drafted = turning
    mask, values, noisy = held_values
    plain, shown = out
    R, n, steps, horizon = _four(sizes)
    width = _whole(sizes[4])
    GIVEN: tl.constexpr = HOW[1]
    NOISED: tl.constexpr = HOW[2]
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)[None, :]
    place = tl.program_id(1) * TALL + tl.arange(0, TALL)[:, None]
    D = horizon * width
    vector, action = column // width, column % width
    row, slot = (vector % (R * n)) // n, vector % n
    exists, is_point = vector < 2 * R * n, vector < R * n
    total = _turned(drafted, vector.to(tl.int64) * D + action, exists, width, (matrix, 1, horizon), place, horizon)
    inside = exists & (place < horizon)
    at = place * width + action
    whole = row.to(tl.int64) * D + at
    first, count = _quota(row, exists, cursor, cursor, n, steps, False)
    # Turned twice, the first point would not be the exact one to the bit.
    exact = is_point & (slot == 0) & (count > 0)
    total = tl.where(exact, tl.load(x + whole, mask=inside & exact, other=0), total)
    e = vector.to(tl.int64) * D + at
    tl.store(plain + e, total, mask=inside)
    if GIVEN:
        shows = inside & is_point & (slot < count)
        given = tl.load(mask + whole, mask=shows, other=0) != 0
        if NOISED:
            step = tl.minimum(first + slot, steps - 1)
            held = tl.load(noisy + (row.to(tl.int64) * steps + step) * D + at, mask=shows & given, other=0)
        else:
            held = tl.load(values + whole, mask=shows & given, other=0)
        tl.store(shown + e, tl.where(given, held, total), mask=inside & is_point)


@triton.jit
def _predicted(shown, output, step, tables, LIMIT: tl.constexpr, EXCEEDS: tl.constexpr):
    """Turn the network's output into predictions, as `GaussianChain.predict`."""
    output_scale, input_scale, excess, _ = tables
    raw = shown * tl.load(input_scale + step) + output * tl.load(output_scale + step)
    if LIMIT is None:
        return raw
    else:
        clipped = at_least(at_most(raw, LIMIT), -LIMIT)
        if EXCEEDS:
            return clipped + tl.load(excess + step) * (clipped - raw)
        else:
            return clipped


@triton.jit
def compare(path, network, tables, held_values, out, sizes, HOW: tl.constexpr, TILE: tl.constexpr):
    """Predict x̂0 from the network's output, and sum up how far guesses are from it, a part of the coordinates each.

    Writes x̂0 [R, n, D] and parts [5, parts, R·n]: of the gaps d − x̂0 the largest size, the sum of squares and the
    product with the noise, both in units of it; the margin of `couplings.accepts`; and whether any is not zero.
    """
    cursor, rejected, normals = path
    shown, output, plain = network
    mask, values, guidance = held_values
    x0_pred, parts = out
    R, n, steps, D = _four(sizes)
    width, by_point, by_time, by_action = _four(sizes[4:8])
    SINGLY: tl.constexpr = HOW[0]
    GIVEN: tl.constexpr = HOW[1]
    GUIDED: tl.constexpr = HOW[2]
    scale = tables[3]
    TALL: tl.constexpr = TILE[0]
    WIDE: tl.constexpr = TILE[1]
    vector = tl.program_id(0) * TALL + tl.arange(0, TALL)[:, None]
    place = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    row, slot = vector // n, vector % n
    first, count = _quota(row, row < R, cursor, rejected, n, steps, SINGLY)
    step = tl.minimum(first + slot, steps - 1)
    live = (row < R) & (slot < count)
    inside = live & (place < D)
    at = vector.to(tl.int64) * D + place
    source = vector.to(tl.int64) * by_point + (place // width) * by_time + (place % width) * by_action
    raw = tl.load(output + source, mask=inside, other=0).to(x0_pred.dtype.element_ty)
    if not HOW[3]:
        raw = _predicted(tl.load(shown + at, mask=inside, other=0), raw, step, tables, HOW[4], HOW[5])
    gap = tl.load(plain + R.to(tl.int64) * n * D + at, mask=inside, other=0)
    if GIVEN:
        whole = row.to(tl.int64) * D + place
        given = tl.load(mask + whole, mask=inside, other=0) != 0
        held = tl.load(values + whole, mask=inside, other=0)
        if GUIDED:
            raw += tl.load(guidance + whole, mask=inside, other=0) * (held - raw)
        raw = tl.where(given, held, raw)
        gap = tl.where(given, 0, gap - raw)
    else:
        gap -= raw
    gap = tl.where(inside, gap, 0)
    tl.store(x0_pred + at, raw, mask=(row < R) & (place < D))
    noise = tl.load(normals + (row.to(tl.int64) * (steps + 1) + step) * D + place, mask=inside, other=0)
    largest = tl.max(tl.abs(gap), 1)[:, None]
    scaled = _divide(gap, tl.where(largest > 0, largest, 1.0) + tl.zeros_like(gap))
    shift = gap * tl.load(scale + step)
    margin = tl.where(inside, shift * (noise + 0.5 * shift), 0)
    differs = tl.max(tl.where(gap == 0, 0, 1), 1)
    number = row < R
    part = tl.program_id(1).to(tl.int64) * R * n + vector
    every = tl.num_programs(1).to(tl.int64) * R * n
    tl.store(parts + part, largest, mask=number)
    tl.store(parts + every + part, tl.sum(scaled * scaled, 1)[:, None], mask=number)
    tl.store(parts + 2 * every + part, tl.sum(scaled * noise, 1)[:, None], mask=number)
    tl.store(parts + 3 * every + part, tl.sum(margin, 1)[:, None], mask=number)
    tl.store(parts + 4 * every + part, differs[:, None].to(largest.dtype), mask=number)


@triton.jit
def _ratio(vector, step, ok, gaps, sizes):
    """Put the parts of gaps together.

    Returns:
        ‖v‖, at most `FARTHEST`, and the noise along e, in float64; the largest size of the gap, and its length in units
        of that, which direct it.
    """
    parts, scale = gaps
    piece, every, pieces = sizes
    largest = tl.zeros_like(vector).to(parts.dtype.element_ty)
    for part in range(0, pieces):
        largest = tl.maximum(largest, tl.load(parts + part * piece + vector, mask=ok, other=0))
    unit = tl.where(largest > 0, largest, 1.0)
    squares, product = tl.zeros_like(largest), tl.zeros_like(largest)
    for part in range(0, pieces):
        share = _divide(tl.load(parts + part * piece + vector, mask=ok, other=0), unit)
        squares += share * share * tl.load(parts + every + part * piece + vector, mask=ok, other=0)
        product += share * tl.load(parts + 2 * every + part * piece + vector, mask=ok, other=0)
    root = tl.sqrt(squares.to(tl.float64))
    along = tl.where(root > 0, product.to(tl.float64) / tl.where(root > 0, root, 1.0), 0.0)
    size = (largest.to(tl.float64) * root).to(largest.dtype)
    shift = tl.where(size > 0, tl.load(scale + step, mask=ok, other=0) * size, size)
    return at_most(shift.to(tl.float64), _FARTHEST), along, largest, root


@triton.jit
def _higher(a, b):
    """Find the higher of two numbers."""
    return tl.maximum(a, b)


@triton.jit
def _pick(values, chosen):
    """Take the chosen one of each row's values, [R, 1]."""
    return tl.sum(tl.where(chosen, values, 0.0), 1)[:, None]


@triton.jit
def _prefixes(uniform, steps_of, gaps, sizes, SLOTS: tl.constexpr):
    """Judge prefixes, as `couplings.block`: the slot that each row comes to, how its noise moves, uniforms from now."""
    vector, step, slot, count = steps_of
    shift, along = _ratio(vector, step, slot < count, gaps, sizes)[:2]
    # min(1, ·) at every step is a walk reflected at zero, which is the free walk less its running maximum.
    early = (slot > 0) & (slot < count)
    before = tl.where(early, 1, 0)
    earlier, along_earlier = _ratio(vector - before, step - before, early, gaps, sizes)[:2]
    walk = tl.cumsum(tl.where(early, -earlier * (along_earlier + 0.5 * earlier), 0.0), 1)
    log_weight = tl.where(slot < count, walk - tl.associative_scan(walk, 1, _higher), 0.0)
    delta = at_least(shift, _CLOSEST)
    log_left_over = tile_log_mass(tile_crossing(delta, log_weight), delta, log_weight)
    left_over = tl.exp(log_left_over)  # S
    out = left_over - expm1(log_weight)  # S + 1 − p
    drafted = slot + 1 < count
    threshold = tl.where(drafted, left_over / out, tl.exp(log_weight))  # h
    last = tl.max(tl.where((slot < count) & (uniform <= threshold), slot, 0), 1)[:, None]
    # The noise of the refused drafts moves along e: at `last` to the residual law, after it to the standard normal.
    level = tile_refused_level(along, delta, log_weight, tl.log(out))
    here = slot == last
    mirrored = tile_mirror(
        _pick(level, here), _pick(along, here), _pick(delta, here), _pick(log_weight, here), _pick(log_left_over, here)
    )
    move = tl.where(drafted & (slot >= last), tl.where(here, mirrored, tile_renew(level)) - along, 0.0)
    return last, move, (uniform - threshold) / (1.0 - threshold)


@triton.jit
def _each(uniform, steps_of, gaps, sizes, SLOTS: tl.constexpr):
    """Judge each step of rows by itself, as `couplings.reflection`; returns as `_prefixes`."""
    vector, step, slot, count = steps_of
    parts, piece, every = gaps[0], sizes[0], sizes[1]
    margin = tl.zeros_like(uniform).to(parts.dtype.element_ty)
    differs = tl.zeros_like(margin)
    for part in range(0, sizes[2]):
        margin += tl.load(parts + 3 * every + part * piece + vector, mask=slot < count, other=0)
        differs += tl.load(parts + 4 * every + part * piece + vector, mask=slot < count, other=0)
    stands = ((tl.log(uniform) < -margin.to(tl.float64)) | (differs == 0)) & (slot + 1 < count)
    last = tl.min(tl.where(stands, SLOTS, slot + tl.zeros_like(vector).to(tl.int32)), 1)[:, None]
    along = _ratio(vector, step, slot < count, gaps, sizes)[1]
    return last, tl.where((slot == last) & (slot + 1 < count), -2.0 * along, 0.0), uniform


@triton.jit
def judge(path, gaps, verdict, counts, sizes, HOW: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """Judge the drafts of rows, and move the rows on.

    Writes for `commit`, in `verdict`: where rows began, how many points they had, the slot that they come to, [3, R];
    for each point [R·n] whether it was seen before, the two numbers that direct its gap, and how far its noise moves
    along that. And `counts` for the host, see `rounds.RoundRecording`.
    """
    cursor, uniforms, seen, rejected, refused, judged, rounds, nfe = path
    spans, again, units, roots, moves = verdict
    R, n, steps, pieces = _four(sizes)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    slot = tl.arange(0, SLOTS)[None, :]
    exists = row < R
    first, count = _quota(row, exists, cursor, rejected, n, steps, HOW[0])
    count = tl.where(exists, count, 0)
    live, going = slot < count, count > 0
    step = tl.minimum(first + slot, steps - 1)
    vector, here = row.to(tl.int64) * n + slot, row.to(tl.int64) * (steps + 1) + step
    size = (R.to(tl.int64) * n, R.to(tl.int64) * n * pieces, pieces)
    uniform = tl.load(uniforms + here, mask=live, other=1)
    before = tl.load(seen + here, mask=live, other=0)  # long before it is overwritten
    if HOW[1]:
        last, move, above = _prefixes(uniform.to(tl.float64), (vector, step, slot, count), gaps, size, SLOTS)
        renewed = live & (slot > last) & (last + 1 < count)
        tl.store(uniforms + here, above.to(uniform.dtype), mask=renewed)
    else:
        last, move, _ = _each(uniform.to(tl.float64), (vector, step, slot, count), gaps, size, SLOTS)
    _, _, largest, root = _ratio(vector, step, live, gaps, size)
    tl.store(moves + vector, move.to(largest.dtype), mask=live)
    tl.store(units + vector, largest, mask=live)
    tl.store(roots + vector, root.to(largest.dtype), mask=live)
    tl.store(again + vector, before, mask=live)
    denied = going & (last + 1 < count)
    at_refusal, drafted = live & (slot == last) & denied, live & ((slot < last) | ((slot == last) & denied))
    flag = tl.full([ROWS, SLOTS], 1, tl.uint8)
    tl.store(seen + here, flag, mask=live)
    tl.store(judged + here, flag, mask=drafted)
    tl.store(refused + here, flag, mask=at_refusal)
    for_host = tl.full([ROWS, SLOTS], 1, tl.int64)
    tl.store(counts + (3 + step).to(tl.int64) * R + row, for_host, mask=at_refusal)
    tl.store(counts + (3 + steps + step).to(tl.int64) * R + row, for_host, mask=drafted)
    _move_on(row, (first, count, last), (cursor, rejected, rounds, nfe), (spans, counts), R, n)


@triton.jit
def _move_on(row, span, path, out, R, n):
    """Write where rows are after a round, and what it cost."""
    first, count, last = span
    cursor, rejected, rounds, nfe = path
    spans, counts = out
    exists, going = row < R, count > 0
    come = first + tl.where(going, last + 1, 0)
    made = tl.load(rounds + row, mask=exists, other=0) + going.to(tl.int64)
    spent = tl.load(nfe + row, mask=exists, other=0) + n
    tl.store(spans + row, first, mask=exists)
    tl.store(spans + R + row, count, mask=exists)
    tl.store(spans + 2 * R + row, last, mask=exists)
    tl.store(cursor + row, come.to(tl.int64), mask=going)
    tl.store(rejected + row, (last + 1 < count).to(tl.uint8), mask=going)
    tl.store(rounds + row, made, mask=exists)
    tl.store(nfe + row, spent, mask=exists)
    tl.store(counts + row, come.to(tl.int64), mask=exists)
    tl.store(counts + R + row, made, mask=exists)
    tl.store(counts + 2 * R.to(tl.int64) + row, spent, mask=exists)


@triton.jit
def commit(path, tables, drafts, verdict, sizes, HOW: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Take the step that rows come to, and keep what was seen and the noise where renewed; see `engine.Round`."""
    x, normals, points, kept, shift, change, latest, innovation = path
    a, b, sigma, mask, matrix = tables
    plain, drafted, x0_pred = drafts
    spans, again, units, roots, moves = verdict
    R, n, steps, horizon = _four(sizes)
    width = _whole(sizes[4])
    RESPONDS: tl.constexpr = HOW[0]
    RENEWS: tl.constexpr = HOW[1]
    GIVEN: tl.constexpr = HOW[2]
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)[None, :]
    time = tl.program_id(1) * TALL + tl.arange(0, TALL)[:, None]
    D = horizon * width
    vector, action = column // width, column % width
    row, slot = vector // n, vector % n
    exists = row < R
    first = tl.load(spans + row, mask=exists, other=0)
    count = tl.load(spans + R + row, mask=exists, other=0)
    last = tl.load(spans + 2 * R + row, mask=exists, other=0)
    live = exists & (slot < count)
    step = tl.minimum(first + slot, steps - 1)
    inside = live & (time < horizon)
    at = time * width + action
    e = vector.to(tl.int64) * D + at
    here = (row.to(tl.int64) * (steps + 1) + step) * D + at

    predicted = tl.load(x0_pred + e, mask=inside, other=0)
    ends = inside & (slot == last)
    renews = inside & (slot >= last)
    noise = tl.load(normals + here, mask=renews, other=0)
    gap = tl.load(plain + R.to(tl.int64) * n * D + e, mask=renews, other=0) - predicted
    if GIVEN:
        gap = tl.where(tl.load(mask + row.to(tl.int64) * D + at, mask=renews, other=0) != 0, 0, gap)
    unit, root = tl.load(units + vector, mask=live, other=0), tl.load(roots + vector, mask=live, other=0)
    direction = _divide(gap, tl.where(unit > 0, unit, 1.0) + tl.zeros_like(gap))
    direction = _divide(direction, tl.where(root > 0, root, 1.0) + tl.zeros_like(gap))
    move = tl.load(moves + vector, mask=live, other=0)
    noise = tl.where(move == 0, noise, noise + move * direction)
    if RENEWS:
        tl.store(normals + here, noise, mask=renews)
    push = tl.load(sigma + step) * noise
    moved = (tl.load(a + step) * predicted + push) + tl.load(b + step) * tl.load(plain + e, mask=ends, other=0)
    whole = row.to(tl.int64) * D + at
    tl.store(x + whole, moved, mask=ends)
    tl.store(latest + whole, predicted, mask=ends)
    tl.store(innovation + whole, push, mask=ends)

    point = tl.load(drafted + e, mask=inside, other=0)
    keep = predicted
    if RESPONDS:
        base = vector.to(tl.int64) * D + action
        keep = _turned(x0_pred, base, live, width, (matrix, horizon, 1), time, horizon)
        met = inside & (tl.load(again + vector, mask=live, other=0) != 0)
        before = tl.load(points + here, mask=met, other=0)
        said = tl.load(kept + here, mask=met, other=0)
        tl.store(shift + here, tl.where(met, point - before, 0), mask=inside)
        tl.store(change + here, tl.where(met, keep - said, 0), mask=inside)
    tl.store(points + here, point, mask=inside)
    tl.store(kept + here, keep, mask=inside)
