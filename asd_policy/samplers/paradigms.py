"""ParaDiGMS: Picard iteration over a sliding window, with a tolerance (Shih et al., arXiv 2305.16317, Algorithm 1).

    drift at every point of the window    y_i = m_i − x_i,   m_i = a_i x̂0(x_i) + b_i x_i
    new iterate, from the window's start  x'_{t+j} = x_t + Σ_{i=t}^{t+j−1} (y_i + σ_i ξ_i),      j = 1 … p
    error against the old iterate         e_j = ‖x'_{t+j} − x_{t+j}‖² / D,                       j = 1 … p−1
    slide forward to the first point with e_j > τ² σ_{t+j}², or past all p; new points begin at the last one's value

σ_{t+j} belongs to the step that leaves the point. It is 0 before the last step, which is therefore taken from a point
that a round has left as it was, or that is a window's start. x'_{t+1} follows from x_t alone, so a round gains a step.
Where a chain adds no noise at all, DDIM's and a flow's with η = 0, it is the noise that η = 1 would add, as published.
"""

import math
from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.samplers.base import Sampler, Samples, Target, check_count, number
from asd_policy.samplers.fallback import fall_back, reserve
from asd_policy.samplers.records import PlanCost
from asd_policy.samplers.warm_start import WarmStart


@dataclass(frozen=True)
class Paradigms(Sampler):
    """Parallel sampling without verification. Approximate: it stops before the iteration has converged.

    Each row of a batch has a window of its own, where the published code moves all rows at the pace of the slowest.
    """

    window: int = 16
    """Points p that one network call evaluates per row; 1 is the sequential sampler up to rounding."""
    tol: float = 0.1
    """Tolerance τ, in standard deviations of a step's noise; 0 is the sequential sampler up to rounding."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        check_count(f"window={self.window}", self.window)
        if not (math.isfinite(self.tol) and self.tol >= 0):
            raise SpecError(f"tol={number(self.tol)} is not a finite number from 0 up")

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"paradigms:window={self.window},tol={number(self.tol)}"

    @property
    def exact(self) -> bool:
        """False."""
        return False

    def check(self, chain: GaussianChain) -> None:
        """Refuse a window longer than the chain."""
        check_count(f"window={self.window}", self.window, chain)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Do rounds until every row is at the end of the chain."""
        chain, start = target.chain, tape.initial.reshape(len(tape.initial), -1)
        batch, size = start.shape
        state = _State(
            # As many points beyond the end as a window has slots, so that slots that are not live need no care.
            path=arrays.zeros((batch, len(chain) + 1 + self.window, size), start),
            cursor=arrays.zeros((batch,), start, int),
            end=arrays.zeros((batch,), start, int),
            rounds=arrays.zeros((batch,), start, int),
            nfe=arrays.zeros((batch,), start, int),
        )
        state.path[:, 0] = start
        rows = arrays.arange(batch, start)
        reserve(target, tape)
        while len(rows) and target.allows(("paradigms", self.window)):
            self._advance(state, rows, target, tape)
            rows = arrays.namespace(rows).nonzero(state.cursor < len(chain))[0]
        sample, cut = state.path[:, len(chain)].reshape(tape.initial.shape), set(rows.tolist())
        if len(rows):
            now = state.cursor[rows]
            point = state.path[rows, now]
            sample[rows], calls = fall_back(target, lambda: target.jump(point, now, rows), rows, warm_start)
            state.rounds[rows] += calls
            state.nfe[rows] += calls
        counts = enumerate(zip(state.rounds.tolist(), state.nfe.tolist(), strict=True))
        costs = [PlanCost(rounds=rounds, nfe=nfe, window=self.window, cut=row in cut) for row, (rounds, nfe) in counts]
        return Samples(sample, costs)

    def _advance(self, state: "_State", rows: Array, target: Target, tape: NoiseTape) -> None:
        """Do one round for `rows` [R], none of which is done: each gains a step at least."""
        chain = target.chain
        tables = chain.tables(arrays.device_of(state.path), state.path.dtype)
        cursor, end = state.cursor[rows], state.end[rows][:, None]
        count = (len(chain) - cursor).clip(max=self.window)  # [R] points of each row
        slots = arrays.arange(int(count.max()), rows)  # [n]
        live = slots < count[:, None]  # [R, n]
        place = cursor[:, None] + slots  # [R, n] in the path
        steps = place.clip(max=len(chain) - 1)
        row, xp = rows[:, None], arrays.namespace(state.path)

        # Iterate: the step from every point, summed up from the window's start.
        point = state.path[row, xp.minimum(place, end)]  # [R, n, D]
        x0_pred = target.predict(point, steps, rows, live)
        a, b, sigma = (table[steps][:, :, None] for table in (tables.a, tables.b, tables.sigma))  # [R, n, 1]
        following = transition(a, x0_pred, sigma, tape.normals[row, steps].reshape(point.shape), b, point)
        new = point[:, :1] + (following - point).cumsum(1)  # [R, n, D] of the points after `place`

        # Slide: over the points that the round has moved little, to the first that it has not.
        old = state.path[row, xp.minimum(place + 1, end)]
        error = ((new - old) ** 2).mean(2)  # [R, n]
        unit = chain.sigma if chain.adds_noise or chain.unit is None else chain.unit
        deviation = arrays.asarray(unit, arrays.device_of(new), new.dtype)[(place + 1).clip(max=len(chain) - 1)]
        limit = (self.tol * deviation) ** 2
        settled = (error <= limit) & (slots + 1 < count[:, None])
        state.path[row, place + 1] = new
        state.cursor[rows] = cursor + 1 + settled.cumprod(1).sum(1)
        state.end[rows] = cursor + count
        state.rounds[rows] += 1
        state.nfe[rows] += count


@dataclass
class _State:
    """Where a batch of plans stands."""

    path: Array
    """The iterates x_0 … x_K of each row, flattened, [B, K + 1 + window, D]; what is beyond K means nothing."""
    cursor: Array
    """Index of the window's first point, 0 … K, [B]."""
    end: Array
    """Index of the last point that was computed; those after it stand at its value [B]."""
    rounds: Array
    """Rounds so far [B]."""
    nfe: Array
    """Points evaluated so far [B]."""
