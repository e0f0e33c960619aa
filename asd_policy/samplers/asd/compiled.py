"""Rounds of `asd` in compiled loops (`kernels`), for points in the host's memory.

The text of `engine.Round` is the definition, and what runs (`rounds.EagerRounds`) where a draft or a verifier is none
of the known ones, or the loops cannot be compiled here.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import block
from asd_policy.samplers.asd.draft import FrozenDraft
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.path import Counts, Path
from asd_policy.samplers.asd.rounds import CalledRounds
from asd_policy.samplers.compiled import (
    ROUNDS,
    STEPS,
    Numbers,
    load_kernels,
    loop_tables,
    loops_for,
    output_on_host,
)
from asd_policy.samplers.inpainting import Inpainting

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
    """`rounds.EagerRounds` whose arithmetic is compiled: between two network calls the batch is passed through once.

    What is not compiled is NumPy's, whatever the library of the tape, whose arrays only the network sees: see
    `arrays.elementwise`.
    """

    def __init__(self, round_: Round, tape: NoiseTape, last_plan: Array | None, kernels: ModuleType) -> None:
        """Put a batch of plans at its start, as `EagerRounds` does, with what `loops_of` gave; and draft."""
        super().__init__(round_, tape)
        target, self._kernels, self._like = round_.target, kernels, tape.initial
        inpainting = None if target.inpainting is None else _on_host(target.inpainting)
        own = NoiseTape(*(arrays.on_host(each) for each in (tape.initial, tape.normals, tape.uniforms)))
        self._path = path = Path.begin(inpainting, own, last_plan)
        self._drafted, self._committed = (
            tuple(getattr(path, name) for name in names) for names in (DRAFTED, COMMITTED)
        )
        x: Numbers = arrays.on_host(path.x)
        chain, response = target.chain, round_.response
        tables = loop_tables(chain, x.dtype)
        # The loops know integers alone; times of a flow are looked up beside them.
        self._times = None if chain.has_integer_timesteps else tables.timesteps
        timesteps = tables.timesteps if self._times is None else np.zeros(len(chain), np.int64)
        self._to_draft, self._to_judge = (*tables.steps, timesteps), (*tables.steps, tables.scale)
        self._prediction = None
        if inpainting is None and (steps := load_kernels(STEPS)) is not None:
            self._prediction, self._predict = tables.prediction, steps.predict_rows
        basis = gain = np.empty((0, 0), x.dtype)
        if response is not None:
            basis, gain = (np.ascontiguousarray(arrays.on_host(each)) for each in (response.basis, response.gain))
        given = np.empty((0, 0), np.bool_)
        if inpainting is not None:
            given = np.ascontiguousarray(inpainting.mask.reshape(x.shape))
        self._how_to_draft = isinstance(round_.draft, FrozenDraft), basis, gain
        tolerance = round_.verifier.tolerance
        self._how_to_judge = round_.verifier.judge is block, basis, given, -1.0 if tolerance is None else tolerance
        self._most = len(x) * min(self.window, len(chain))
        self._own = [np.empty((self._most, x.shape[1]), x.dtype) for _ in range(3)]  # guesses, turned points, x̂0
        self._quota = np.empty(len(x), np.int64)
        self._cond = target.cond
        if target.cond is not None and len(x) == 1:  # all rows of calls are the same
            self._cond = arrays.elementwise(partial(_repeated, count=self._most), target.cond)
        self._draft()

    @property
    def path(self) -> Path:
        """Where the plans stand, in arrays of the tape's library."""
        return Path(**{name: arrays.from_host(each, self._like) for name, each in vars(self._path).items()})

    def result(self) -> tuple[Array, Counts]:
        """Give points, in an array of the tape's library, and counts of now."""
        return arrays.from_host(self._path.x, self._like), self._path.counts()

    def next(self) -> Callable[[], None] | None:
        """Give a round of the rows that are not done."""
        return self._advance if self._live else None

    def _draft(self) -> None:
        """Draft the coming round, into memory of its own: a network may keep what it is called on."""
        guess, turned, _ = self._own
        self._points = np.empty_like(guess)
        self._calls = tuple(np.empty((3, self._most), np.int64))  # steps, timesteps, rows
        drafted, calls = (self._points, guess, turned), (*self._calls, self._quota)
        how = self._how_to_draft
        self._live = self._kernels.draft_rows(self.window, self._drafted, self._to_draft, how, drafted, calls)

    def _advance(self) -> None:
        """Evaluate, verify, commit; and draft the next round."""
        target, seen, live = self._target, self._points[: self._live], slice(self._live)
        points = arrays.from_host(seen, self._like)
        steps, timesteps, rows = self._calls
        guess, turned, x0_pred = self._own
        if self._prediction is None:
            places = (arrays.from_host(each[live], self._like) for each in (steps, rows))
            x0_pred = np.ascontiguousarray(arrays.on_host(target.predict(points, *places)))
        else:
            times = timesteps[live] if self._times is None else self._times[steps[live]]
            output = target.call(points, arrays.from_host(times, self._like), self._condition(rows[live]))
            self._predict(seen, output_on_host(output, points), steps, self._prediction, x0_pred)
        target.mark("verify")
        self._kernels.commit_rows(
            self._quota, self._committed, self._to_judge, self._how_to_judge, (seen, guess, turned), x0_pred
        )
        target.mark("draft")
        self._draft()
        target.mark("host")

    def _condition(self, rows: Numbers) -> Array | None:
        """Give the conditioning of points of these batch rows [N]."""
        if self._cond is None:
            return None
        return self._cond[: len(rows)] if len(self._quota) == 1 else self._cond[arrays.from_host(rows, self._like)]


def _repeated(row: Array, count: int) -> Array:
    return arrays.namespace(row).repeat(row, count, axis=0)


def _on_host(inpainting: Inpainting) -> Inpainting:
    """Look at what is given as arrays of NumPy's, as far as a path asks for it."""
    return Inpainting(arrays.on_host(inpainting.mask), arrays.on_host(inpainting.values))
