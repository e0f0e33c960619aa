"""Drafts: guesses of x̂0 for the steps ahead of each row's cursor.

Any guess leaves the law exact as long as the draft for step k is a function of what was seen at points up to x_k, of
this plan or of earlier plans. What the network said at x_k depends on the noise of steps before k alone; what it said
further on does not. So a draft says for which steps it takes an earlier prediction of that very step, and the
roll-out carries the last prediction on to the others; nothing else can leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers.asd.response import Response

SLOPE_DECAY = 0.8
"""Weight of a step's own slope in that of the step after it."""
DISTANCE_POWER = 4
"""How sharply what was seen at a point ceases to count, as the step's point moves away by the step's noise."""


@dataclass
class Path:
    """Where a batch of B plans of D numbers stands in a chain of K steps, and what was seen on the way.

    What is kept by step has one place more, K, for results of points beyond the end: nobody reads it.
    """

    x: Array
    """The last exact point of each row [B, D]."""
    cursor: Array
    """The step that leaves it, 0 … K, [B]."""
    free: Array
    """How many of its numbers are sampled, not given, [B, 1]."""
    normals: Array
    """The noise of each step [B, K + 1, D]; zero for what is given, which follows no noise."""
    uniforms: Array
    """The uniforms of each step [B, K + 1]."""
    points: Array
    """The last point evaluated at each step [B, K + 1, D]; of steps before the cursor, the committed one. This and what
    was seen there are kept in the basis of the draft's response, if it has one."""
    clean: Array
    """x̂0 there [B, K + 1, D]."""
    seen: Array
    """Whether there was one [B, K + 1]."""
    shift: Array
    """From the point evaluated before it at that step to this one [B, K + 1, D]; zero where there was none."""
    change: Array
    """What x̂0 did on the way [B, K + 1, D]."""
    latest: Array
    """x̂0 at the last committed step [B, D]; before the first, the first guess."""
    innovation: Array
    """σξ of that step [B, D]; zero before the first."""
    rejected: Array
    """Whether the last round ended by a rejection [B]; true before the first."""
    refused: Array
    """Whether each step was taken after its draft was refused [B, K + 1]."""
    judged: Array
    """Whether each step had a draft to be judged [B, K + 1]."""
    rounds: Array
    """Rounds so far [B]."""
    nfe: Array
    """Points evaluated so far [B]."""


class Draft:
    """What the guesses are made of, and where a round looks. A draft keeps nothing itself: it reads the `Path`."""

    starts_from_last_plan: bool = False
    """Whether the first guess of a plan is the plan before it; else it is zero."""
    responds: bool = False
    """Whether guesses follow the noise, as the policy's `Experience` says they do."""

    def quota(self, path: Path, rows: Array, window: int) -> Array:
        """Return how many points, 1 … θ, the coming round evaluates for each of `rows` [R]."""
        return arrays.namespace(rows).full_like(rows, window)

    def known(self, path: Path, rows: Array, steps: Array) -> Array:
        """Return for which `steps` [R, S] of `rows` [R] an earlier prediction is the guess; booleans [R, S]."""
        return path.seen[rows[:, None], steps]


class FrozenDraft(Draft):
    """The paper's draft (ASD, arXiv 2505.03983): x̂0 at the window's start, held over the window.

    When a draft was rejected, the next round evaluates the new point alone, which fixes the x̂0 to hold; when the
    whole window stood, its last evaluation already did.
    """

    def quota(self, path: Path, rows: Array, window: int) -> Array:
        """Return 1 after a rejection and at the start, else θ."""
        return arrays.namespace(rows).where(path.rejected[rows], 1, window)

    def known(self, path: Path, rows: Array, steps: Array) -> Array:
        """Return false: the last committed prediction is held."""
        return arrays.zeros(steps.shape, steps, bool)


class PicardDraft(Draft):
    """Reuse of predictions: for a step seen before, its last x̂0; for others, that of the last step before it.

    No round is spent on a draft alone. Without a rejection this is the sliding-window Picard iteration of
    ParaDiGMS (arXiv 2305.16317), with exact verification in the place of its tolerance.
    """


class WarmDraft(PicardDraft):
    """Picard, starting from the last plan moved on by the actions executed since."""

    starts_from_last_plan = True


class ResponseDraft(WarmDraft):
    """Warm, corrected to first order for how far each point has moved, and carried on along the noise.

    x̂0(x + Δ) ≈ x̂0(x) + JΔ with the J_k that earlier plans had on average (`response.Response`), and along the way
    that the points have moved before with the slope that they met there: Broyden's update of J (1965), which this plan
    alone knows. A slope for step k comes from pairs of points of steps up to k, and so of nothing beyond. Where a point
    has moved by more than the noise of its step, the guess is the one carried on from the step before.
    """

    responds = True


DRAFTS: dict[str, Draft] = {
    "frozen": FrozenDraft(),
    "picard": PicardDraft(),
    "warm": WarmDraft(),
    "response": ResponseDraft(),
}
"""Every draft by its name in a sampler spec."""


def places(rows: Array, steps: Array, compact: bool) -> tuple[Any, Any]:
    """Index a window of what is kept by step: where it is one row's, by slices, which read without a copy.

    Args:
        rows: Which rows [R].
        steps: Consecutive steps of each [R, S].
        compact: Whether numbers may be looked at. On a GPU that would wait for it.
    """
    if not compact or len(rows) > 1:
        return rows[:, None], steps
    row, first = int(rows[0]), int(steps[0, 0])
    return slice(row, row + 1), slice(first, first + steps.shape[1])


def roll_out(
    path: Path,
    rows: Array,
    steps: Array,
    known: Array,
    chain: GaussianChain,
    response: Response | None,
    compact: bool = False,
) -> tuple[Array, Array, Array]:
    """Draft the chain from each row's exact point, along its noise.

    Args:
        path: Of the batch.
        rows: Which rows [R].
        steps: Consecutive steps from each row's cursor [R, S].
        known: For which of them the guess is an earlier prediction [R, S].
        chain: The target's.
        response: How predictions follow the points; None for not at all.
        compact: As for `places`.

    Returns:
        Points x̃, the first one exact, guesses of x̂0 at them, and the points in the response's basis, each [R, S, D].
    """
    xp, tables = arrays.namespace(path.x), chain.tables(arrays.device_of(path.x), path.x.dtype)
    at = places(rows, steps, compact)
    a, b, sigma = (table[steps][:, :, None] for table in (tables.a, tables.b, tables.sigma))  # each [R, S, 1]
    turn = (lambda values: values) if response is None else response.turn
    x, guess = turn(path.x[rows]), turn(path.latest[rows])
    noises = sigma * turn(path.normals[at])
    clean = path.clean[at]
    follow = None if response is None else follow_window(path, rows, steps, at, clean, noises, sigma, response)
    usable = known[:, :, None] if follow is None else xp.astype(known, x.dtype)[:, :, None]
    points, guesses = [], []
    # Views of all slots at once: one by one they would cost as much as the arithmetic.
    by_slot = (xp.unstack(values, axis=1) for values in (a, b, noises, clean, usable))
    for slot, (a_k, b_k, noise, own, use) in enumerate(zip(*by_slot, strict=True)):
        guess = xp.where(use, own, guess) if follow is None else follow(slot, own, x, guess, use)
        points.append(x)
        guesses.append(guess)
        after = a_k * guess  # in the order of operations of `chain.transition`, and in place: a plan may be large
        after += noise
        after += b_k * x
        x = after
    turned, guessed = xp.stack(points, axis=1), xp.stack(guesses, axis=1)
    if response is None:
        return turned, guessed, turned
    point = response.turn_back(turned)
    point[:, 0] = path.x[rows]  # turned twice, it would not be the exact point to the bit
    return point, response.turn_back(guessed), turned


@dataclass(frozen=True)
class Follow:
    """How guesses follow the points of S slots, in the response's basis, where every coordinate goes by itself."""

    gain: Sequence[Array]
    """J of each step, S times [R, D]."""
    drift: Sequence[Array]
    """What the noise of the step before does to a guess that is carried on, S times [R, D]."""
    anchor: Sequence[Array]
    """Where each step was evaluated last, S times [R, D]."""
    precision: Sequence[Array]
    """One over the mean square length of each step's noise, S times [R, 1]."""
    missed: Sequence[Array]
    """What J missed of x̂0 on the way that the point has moved before, S times [R, D]."""
    way: Sequence[Array]
    """This way, divided by its squared length, S times [R, D]."""

    def __call__(self, slot: int, clean: Array, x: Array, before: Array, usable: Array) -> Array:
        """Guess x̂0 [R, D] at x [R, D].

        Args:
            slot: Of the window.
            clean: What was seen at the anchor [R, D].
            x: The point.
            before: The guess for the step before [R, D].
            usable: 1 where something was seen, else 0, [R, 1].
        """
        carried = before + self.drift[slot]
        moved = x - self.anchor[slot]
        # In units of that way; further than it has been, a slope says little.
        again = (self.way[slot] * moved).sum(-1)[..., None].clip(-1, 1)
        own = self.gain[slot] * moved
        own += clean
        own += again * self.missed[slot]
        moved *= moved
        distance = moved.sum(-1)[..., None] * self.precision[slot]
        own -= carried
        own *= usable / (1 + distance**DISTANCE_POWER)
        own += carried
        return own


def follow_window(
    path: Path,
    rows: Array,
    steps: Array,
    at: tuple[Any, Any],
    clean: Array,
    noises: Array,
    sigma: Array,
    response: Response,
) -> Follow:
    """Return how guesses follow the points of a window; arguments as in `roll_out`, all in the response's basis."""
    xp = arrays.namespace(clean)
    anchor, shift, change = (values[at] for values in (path.points, path.shift, path.change))
    gain = response.gain[steps]
    innovation = response.turn(path.innovation[rows])[:, None]
    # Neighbours met nearly the same slope on nearly the same way; with the steps before, never those behind, it is less
    # rough than from one pair of predictions.
    slots = arrays.arange(steps.shape[1], steps)
    lag = slots[:, None] - slots
    weights = xp.where(lag >= 0, SLOPE_DECAY ** xp.astype(lag.clip(min=0), clean.dtype), 0)
    shift, change = weights @ shift, weights @ change
    tiny = float(xp.finfo(clean.dtype).smallest_normal)
    drift = gain * xp.concatenate([innovation, noises[:, :-1]], axis=1)
    precision = 1 / (path.free[rows][:, None] * sigma * sigma).clip(min=tiny)
    way = shift / (shift * shift).sum(-1)[..., None].clip(min=tiny)
    by_slot = (gain, drift, anchor, precision, change - gain * shift, way)
    return Follow(*(xp.unstack(values, axis=1) for values in by_slot))
