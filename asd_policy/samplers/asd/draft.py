"""Drafts: guesses of x̂0 for the steps ahead of each row's cursor.

Any guess leaves the law exact as long as the draft for step k is a function of what was seen at points up to x_k, of
this plan or of earlier plans. What the network said at x_k depends on the noise of steps before k alone; what it said
further on does not. So a draft says for which steps it takes an earlier prediction of that very step, and the
roll-out carries the last prediction on to the others; nothing else can leak.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response

SLOPE_DECAY = 0.8
"""Weight of a step's own slope in that of the step after it."""
DISTANCE_POWER = 4
"""How sharply what was seen at a point ceases to count, as the step's point moves away by the step's noise."""


class Draft:
    """What the guesses are made of, and where a round looks. A draft keeps nothing itself: it reads the `Path`."""

    name: str = ""
    """What specs and results call it where it is given as an object; empty for its class's name."""
    starts_from_last_plan: bool = False
    """Whether the first guess of a plan is the plan before it; else it is zero."""
    responds: bool = False
    """Whether guesses follow the noise, as the policy's `Experience` says they do."""
    refusals: Mapping[str, float] = MappingProxyType({})
    """For each coupling that `asd` may choose this draft with: the share of judged steps that it refuses on a trained
    policy, a guess until there are plans. Empty for a draft that is only used when it is asked for."""

    def quota(self, path: Path, rows: Array, window: int) -> Array:
        """Count the points, 1 … θ, that the coming round evaluates for each of `rows` [R]."""
        return arrays.namespace(rows).full_like(rows, window)

    def known(self, path: Path, rows: Array, steps: Array) -> Array:
        """Mark for which `steps` [R, S] of `rows` [R] an earlier prediction is the guess; booleans [R, S]."""
        return path.seen[rows[:, None], steps]


class FrozenDraft(Draft):
    """The paper's draft (ASD, arXiv 2505.03983): x̂0 at the window's start, held over the window.

    When a draft was rejected, the next round evaluates the new point alone, which fixes the x̂0 to hold; when the
    whole window stood, its last evaluation already did.
    """

    def quota(self, path: Path, rows: Array, window: int) -> Array:
        """Evaluate one point after a rejection and at the start, else θ."""
        return arrays.namespace(rows).where(path.rejected[rows], 1, window)

    def known(self, path: Path, rows: Array, steps: Array) -> Array:
        """Take none: the last committed prediction is held."""
        return arrays.zeros(steps.shape, steps, bool)


class PicardDraft(Draft):
    """Reuse of predictions: for a step seen before, its last x̂0; for others, that of the last step before it.

    No round is spent on a draft alone. Without a rejection this is the sliding-window Picard iteration of
    ParaDiGMS (arXiv 2305.16317), with exact verification in the place of its tolerance.
    """


class WarmDraft(PicardDraft):
    """Picard, starting from the last plan moved on by the actions executed since."""

    starts_from_last_plan = True
    refusals = MappingProxyType({"block": 0.052, "reflection": 0.065})


class ResponseDraft(WarmDraft):
    """Warm, corrected to first order for how far each point has moved, and carried on along the noise.

    x̂0(x + Δ) ≈ x̂0(x) + JΔ with the J_k that earlier plans had on average (`response.Response`), and along the way
    that the points have moved before with the slope that they met there: Broyden's update of J (1965), which this plan
    alone knows. A slope for step k comes from pairs of points of steps up to k, and so of nothing beyond. Where a point
    has moved by more than the noise of its step, the guess is the one carried on from the step before.
    """

    responds = True
    refusals = MappingProxyType({"block": 0.040, "reflection": 0.050})


DRAFTS: dict[str, Draft] = {
    "frozen": FrozenDraft(),
    "picard": PicardDraft(),
    "warm": WarmDraft(),
    "response": ResponseDraft(),
}
"""Every draft by its name in a sampler spec."""


@dataclass(frozen=True)
class Window:
    """The steps of one round: for R rows of the batch n steps each, from the row's cursor on."""

    rows: Array
    """Which rows of the batch [R]."""
    steps: Array
    """Consecutive steps of each [R, n]."""
    compact: bool
    """Whether numbers may be looked at, to leave out what no row has use for. On a GPU that would wait for it."""

    @cached_property
    def places(self) -> tuple[Any, Any]:
        """Where the window is in what a `Path` keeps by step: for one row slices, which read without a copy."""
        if not self.compact or len(self.rows) > 1:
            return self.rows[:, None], self.steps
        row, first = int(self.rows[0]), int(self.steps[0, 0])
        return slice(row, row + 1), slice(first, first + self.steps.shape[1])


def roll_out(
    path: Path, window: Window, known: Array, chain: GaussianChain, response: Response | None
) -> tuple[Array, Array, Array]:
    """Draft the chain from each row's exact point, along its noise.

    Args:
        path: Of the batch.
        window: The round's steps.
        known: For which of them the guess is an earlier prediction [R, n].
        chain: The target's.
        response: How predictions follow the points; None for not at all.

    Returns:
        Points x̃, the first one exact, guesses of x̂0 at them, and the points in the response's basis, each [R, n, D].
    """
    xp, tables = arrays.namespace(path.x), chain.tables(arrays.device_of(path.x), path.x.dtype)
    rows, at = window.rows, window.places
    a, b, sigma = (table[window.steps][:, :, None] for table in (tables.a, tables.b, tables.sigma))  # each [R, n, 1]
    turn = (lambda values: values) if response is None else response.turn
    x, guess = turn(path.x[rows]), turn(path.latest[rows])
    noises = sigma * turn(path.normals[at])
    x0_pred = path.x0_pred[at]
    follow = None if response is None else follow_window(path, window, x0_pred, noises, sigma, response)
    usable = known[:, :, None] if follow is None else xp.astype(known, x.dtype)[:, :, None]
    points, guesses = [], []
    # Views of all slots at once: one by one they would cost as much as the arithmetic.
    by_slot = (xp.unstack(values, axis=1) for values in (a, b, noises, x0_pred, usable))
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

    def __call__(self, slot: int, x0_pred: Array, x: Array, before: Array, usable: Array) -> Array:
        """Guess x̂0 [R, D] at x [R, D].

        Args:
            slot: Of the window.
            x0_pred: What was predicted at the anchor [R, D].
            x: The point.
            before: The guess for the step before [R, D].
            usable: 1 where something was seen, else 0, [R, 1].
        """
        carried = before + self.drift[slot]
        moved = x - self.anchor[slot]
        # In units of that way; further than it has been, a slope says little.
        again = (self.way[slot] * moved).sum(-1)[..., None].clip(-1, 1)
        own = self.gain[slot] * moved
        own += x0_pred
        own += again * self.missed[slot]
        moved *= moved
        distance = moved.sum(-1)[..., None] * self.precision[slot]
        own -= carried
        own *= usable / (1 + distance**DISTANCE_POWER)
        own += carried
        return own


def follow_window(
    path: Path, window: Window, x0_pred: Array, noises: Array, sigma: Array, response: Response
) -> Follow:
    """Prepare how guesses follow the points of a window; arguments as in `roll_out`, all in the response's basis."""
    xp, at, steps = arrays.namespace(x0_pred), window.places, window.steps
    anchor, shift, change = (values[at] for values in (path.points, path.shift, path.change))
    gain = response.gain[steps]
    innovation = response.turn(path.innovation[window.rows])[:, None]
    # Neighbours met nearly the same slope on nearly the same way; with the steps before, never those behind, it is less
    # rough than from one pair of predictions.
    slots = arrays.arange(steps.shape[1], steps)
    lag = slots[:, None] - slots
    weights = xp.where(lag >= 0, SLOPE_DECAY ** xp.astype(lag.clip(min=0), x0_pred.dtype), 0)
    shift, change = weights @ shift, weights @ change
    tiny = float(xp.finfo(x0_pred.dtype).smallest_normal)
    drift = gain * xp.concatenate([innovation, noises[:, :-1]], axis=1)
    precision = 1 / (path.free[window.rows][:, None] * sigma * sigma).clip(min=tiny)
    way = shift / (shift * shift).sum(-1)[..., None].clip(min=tiny)
    by_slot = (gain, drift, anchor, precision, change - gain * shift, way)
    return Follow(*(xp.unstack(values, axis=1) for values in by_slot))
