"""Rounds of `asd` in compiled loops (`kernels`), for points in the host's memory.

The text of `engine.Round` is the definition, and what runs (`rounds.EagerRounds`) where a draft or a verifier is none
of the known ones, or the loops cannot be compiled here.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import block
from asd_policy.samplers.asd.draft import FrozenDraft
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.rounds import CalledRounds
from asd_policy.samplers.compiled import (
    ROUNDS,
    STEPS,
    load_kernels,
    loops_for,
    on_host,
    output_on_host,
    prediction_tables,
)

DRAFTED = (
    *("x", "cursor", "free", "normals", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    "rejected",
)
"""The arrays of a `Path` that `kernels.draft_rows` takes."""
COMMITTED = (
    *("x", "cursor", "normals", "uniforms", "points", "x0_pred", "seen", "shift", "change", "latest", "innovation"),
    *("rejected", "refused", "judged", "rounds", "nfe"),
)
"""Those that `kernels.commit_rows` takes."""


def loops_of(round_: Round, tape: NoiseTape) -> ModuleType | None:
    """Load the loops for a round of plans along a tape; None where they have none for it."""
    return loops_for(ROUNDS, tape.initial) if round_.is_known else None


class CompiledRounds(CalledRounds):
    """`rounds.EagerRounds` whose arithmetic is compiled: between two network calls the batch is passed through once."""

    def __init__(self, round_: Round, tape: NoiseTape, last_plan: Array | None, kernels: ModuleType) -> None:
        """Put a batch of plans at its start, as `CalledRounds` does, with what `loops_of` gave; and draft."""
        super().__init__(round_, tape, last_plan)
        self._kernels, path = kernels, self.path
        self._drafted, self._committed = (
            tuple(on_host(getattr(path, name)) for name in names) for names in (DRAFTED, COMMITTED)
        )
        x, chain, response = on_host(path.x), round_.target.chain, round_.response
        tables = chain.tables(NUMPY, x.dtype)
        with np.errstate(divide="ignore"):
            self._tables = tables.a, tables.b, tables.sigma, tables.a / tables.sigma
        self._timesteps, self._prediction = tables.timesteps, None
        if round_.target.inpainting is None and (steps := load_kernels(STEPS)) is not None:
            self._prediction, self._predict = prediction_tables(chain, x.dtype), steps.predict_rows
        basis = gain = np.empty((0, 0), x.dtype)
        if response is not None:
            basis, gain = (np.ascontiguousarray(on_host(each)) for each in (response.basis, response.gain))
        given = np.empty((0, 0), np.bool_)
        if round_.target.inpainting is not None:
            given = np.ascontiguousarray(on_host(round_.target.inpainting.mask.reshape(x.shape)))
        self._how_to_draft = isinstance(round_.draft, FrozenDraft), basis, gain
        self._how_to_judge = round_.verifier.judge is block, basis, given
        self._most = len(x) * min(self.window, len(chain))
        self._own = [np.empty((self._most, x.shape[1]), x.dtype) for _ in range(3)]  # guesses, turned points, x̂0
        self._quota = np.empty(len(x), np.int64)
        self._draft()

    def next(self) -> Callable[[], None] | None:
        """Give a round of the rows that are not done."""
        return self._advance if self._live else None

    def _draft(self) -> None:
        """Draft the coming round, into memory of its own: a network may keep what it is called on."""
        guess, turned, _ = self._own
        x, cursor = self.path.x, self.path.cursor
        self._points = arrays.empty((self._most, x.shape[1]), x)
        self._calls = [arrays.empty((self._most,), cursor) for _ in range(3)]  # steps, timesteps, rows
        drafted = (on_host(self._points), guess, turned)
        calls = (*(on_host(each) for each in self._calls), self._quota)
        tables = (*self._tables[:3], self._timesteps)
        self._live = self._kernels.draft_rows(self.window, self._drafted, tables, self._how_to_draft, drafted, calls)

    def _advance(self) -> None:
        """Evaluate, verify, commit; and draft the next round."""
        target, points = self._target, self._points[: self._live]
        steps, timesteps, rows = (each[: self._live] for each in self._calls)
        guess, turned, x0_pred = self._own
        seen = on_host(points)
        if self._prediction is None:
            x0_pred = np.ascontiguousarray(on_host(target.predict(points, steps, rows)))
        else:
            output = target.call(points, timesteps, None if target.cond is None else target.cond[rows])
            self._predict(seen, output_on_host(output, points), on_host(steps), self._prediction, x0_pred)
        target.mark("verify")
        self._kernels.commit_rows(
            self._quota, self._committed, self._tables, self._how_to_judge, (seen, guess, turned), x0_pred
        )
        target.mark("draft")
        self._draft()
        target.mark("host")
