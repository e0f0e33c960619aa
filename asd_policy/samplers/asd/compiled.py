"""Rounds of `asd` in compiled loops (`kernels`), for points in the host's memory.

The text of `engine.Round` is the definition, and what runs (`rounds.EagerRounds`) where a draft or a verifier is none
of the known ones, or the loops cannot be compiled here.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.couplings import block
from asd_policy.samplers.asd.draft import FrozenDraft
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.path import Counts, Path, PathMemory
from asd_policy.samplers.asd.rounds import CalledRounds
from asd_policy.samplers.compiled import ROUNDS, Numbers, loop_tables, loops_for, output_on_host
from asd_policy.samplers.inpainting import Inpainting

_AT_ONCE, _FEW = 8, 2**18
"""Rounds that memory is made for at once, unless that is more than so many numbers."""


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
        memory = PathMemory.begin(inpainting, own, last_plan)
        self._path, self._memory = memory.path(), tuple(vars(memory).values())
        x: Numbers = arrays.on_host(memory.by_row[0])
        self._rows, size = x.shape
        tables = loop_tables(target.chain, x.dtype)
        # A chain that thresholds, or of which something is given, is predicted by the reference's text.
        self._predicts = inpainting is None and tables.prediction is not None
        # The loops know integers alone; times of a flow are looked up beside them.
        self._times = None if target.chain.has_integer_timesteps else tables.timesteps
        timesteps = tables.timesteps if self._times is None else np.zeros(len(target.chain), np.int64)
        self._chain = tables.rounds if self._predicts else tables.rounds[:4], timesteps
        self._how = _how(round_, x, inpainting)
        self._most = len(x) * min(self.window, len(target.chain))
        self._work = (
            np.empty((3, self._most, size), x.dtype), np.empty((2, self._most), np.int64), np.empty(len(x), np.int64)
        )  # fmt: skip
        self._called = target.like_its_points(tape.initial) if self._predicts else tape.initial
        self._cond = None if target.cond is None else arrays.as_like(target.cond, self._called)
        if self._cond is not None and len(x) == 1:  # all rows of calls are the same
            self._cond = arrays.repeated(self._cond, self._most)
        self._spare: list[tuple[Numbers, Numbers]] = []
        nowhere = self._work[0][0]
        self._pass((False, True), (nowhere, nowhere))

    @property
    def path(self) -> Path:
        """Where the plans stand, in arrays of the tape's library."""
        return Path(**{name: arrays.from_host(each, self._like) for name, each in vars(self._path).items()})

    def result(self) -> tuple[Array, Counts]:
        """Give points and counts of now, in arrays of NumPy's."""
        return self._path.x, self._path.counts()

    def next(self) -> Callable[[], None] | None:
        """Give a round of the rows that are not done."""
        return self._advance if self._live else None

    def _pass(self, parts: tuple[bool, bool], called: tuple[Numbers, Numbers]) -> None:
        """Go through the batch, and draft, if that is a part, into memory of its own: a network may keep its inputs."""
        if parts[1]:
            if not self._spare:
                self._spare = self._more_memory()
            self._drafted = self._spare.pop()
        self._live = self._kernels.advance_rows(
            self.window, parts, self._memory, self._chain, self._how, self._work, called, self._drafted
        )

    def _more_memory(self) -> list[tuple[Numbers, Numbers]]:
        """Make memory for the points and the timesteps of a few rounds at once, as it costs as much as for one."""
        rounds = max(1, min(_AT_ONCE, _FEW // self._work[0][0].size))
        points = np.empty((rounds, *self._work[0][0].shape), self._work[0].dtype)
        return list(zip(points, np.empty((rounds, self._most), np.int64), strict=True))

    def _advance(self) -> None:
        """Evaluate, verify, commit; and draft the next round."""
        target, live = self._target, self._live
        seen = self._drafted[0][:live]
        points = arrays.from_host(seen.reshape(live, *target.shape[1:]), self._called)
        if self._predicts:
            network = target.call(points, arrays.from_host(self._timesteps(live), self._called), self._condition(live))
        else:
            steps, rows = (arrays.from_host(each, self._called) for each in self._work[1][:, :live])
            network = target.predict(points, steps, rows)
        called = seen, output_on_host(network, points, seen.shape)
        if target.stopwatch is None:
            self._pass((True, True), called)
            return
        target.mark("verify")
        self._pass((True, False), called)
        target.mark("draft")
        self._pass((False, True), called)
        target.mark("host")

    def _timesteps(self, live: int) -> Numbers:
        """Give the timesteps of the points of this round [N]."""
        return self._drafted[1][:live] if self._times is None else self._times[self._work[1][0, :live]]

    def _condition(self, live: int) -> Array | None:
        """Give the conditioning of the points of this round [N, …]."""
        if self._cond is None:
            return None
        if self._rows == 1:
            return self._cond[:live]
        return self._cond[arrays.from_host(self._work[1][1, :live], self._called)]


def _how(round_: Round, x: Numbers, inpainting: Inpainting | None) -> tuple[Any, ...]:
    """Tell the loops how to draft and to judge points x [B, D], see `kernels.advance_rows`."""
    basis = gain = np.empty((0, 0), x.dtype)
    if round_.response is not None:
        parts = round_.response.basis, round_.response.gain
        basis, gain = (np.ascontiguousarray(arrays.on_host(each)) for each in parts)
    given = np.empty((0, 0), np.bool_)
    if inpainting is not None:
        given = np.ascontiguousarray(inpainting.mask.reshape(x.shape))
    verifier, holds = round_.verifier, isinstance(round_.draft, FrozenDraft)
    tolerance = -1.0 if verifier.tolerance is None else verifier.tolerance
    return holds, verifier.judge is block, tolerance, basis, gain, given


def _on_host(inpainting: Inpainting) -> Inpainting:
    """Look at what is given as arrays of NumPy's, as far as a path asks for it."""
    return Inpainting(arrays.on_host(inpainting.mask), arrays.on_host(inpainting.values))
