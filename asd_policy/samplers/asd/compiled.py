"""Rounds of `asd` in compiled loops (`kernels`), for points in the host's memory.

The text of `engine.Round` is the definition, and what runs (`rounds.EagerRounds`) where a draft or a verifier is none
of the known ones, or the loops cannot be compiled here.
"""

from collections.abc import Callable
from types import ModuleType

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.path import Counts, Path
from asd_policy.samplers.asd.rounds import CalledRounds
from asd_policy.samplers.asd.workspace import Workspace
from asd_policy.samplers.compiled import ROUNDS, Numbers, loops_for, output_on_host


def loops_of(round_: Round, tape: NoiseTape) -> ModuleType | None:
    """Load the loops for a round of plans along a tape; None where they have none for it."""
    return loops_for(ROUNDS, tape.initial) if round_.is_known else None


class CompiledRounds(CalledRounds):
    """`rounds.EagerRounds` whose arithmetic is compiled: between two network calls the batch is passed through once.

    What is not compiled is NumPy's, whatever the library of the tape, whose arrays only the network sees.
    """

    def __init__(self, round_: Round, tape: NoiseTape, last_plan: Array | None, kernels: ModuleType) -> None:
        """Put a batch of plans at its start, as `EagerRounds` does, with what `loops_of` gave; and draft."""
        super().__init__(round_, tape)
        target, self._like = round_.target, tape.initial
        own = NoiseTape(*(arrays.on_host(each) for each in (tape.initial, tape.normals, tape.uniforms)))
        self._space = Workspace.take(round_, own, last_plan, kernels)
        self._called = target.like_its_points(tape.initial) if self._space.predicts else tape.initial
        self._cond = None if target.cond is None else arrays.as_like(target.cond, self._called)
        if self._cond is not None and target.shape[0] == 1:  # all rows of calls are the same
            self._cond = arrays.repeated(self._cond, self._space.most)
        self._copies = target.may_keep_inputs
        self._output: Numbers = self._space.work[0]  # nothing is committed yet
        self._pass(False, True)

    @property
    def path(self) -> Path:
        """Where the plans stand, in arrays of the tape's library."""
        return Path(**{name: arrays.from_host(each, self._like) for name, each in vars(self._space.path).items()})

    def result(self) -> tuple[Array, Counts]:
        """Give points and counts of now, in arrays of NumPy's."""
        return arrays.copied(self._space.path.x), self._space.path.counts()

    def leave(self) -> None:
        """Let other plans have the memory."""
        self._space.leave()

    def next(self) -> Callable[[], None] | None:
        """Give a round of the rows that are not done."""
        return self._advance if self._live else None

    def _pass(self, commit: bool, draft: bool) -> None:
        """Go through the batch: commit what the network was called on, and draft its next call."""
        self._live = self._space.advance(commit, draft, self._output)

    def _advance(self) -> None:
        """Evaluate, verify, commit; and draft the next round."""
        target, space, live = self._target, self._space, self._live
        seen = space.work[0, :live]
        points = self._given(seen).reshape(live, *target.shape[1:])
        if space.predicts:
            network = target.call(points, self._given(self._timesteps(live)), self._condition(live))
        else:
            steps, rows = (self._given(each[:live]) for each in space.places[:2])
            network = target.predict(points, steps, rows)
        self._output = output_on_host(network, points, seen.shape)
        if target.stopwatch is None:
            self._pass(True, True)
            return
        target.mark("verify")
        self._pass(True, False)
        target.mark("draft")
        self._pass(False, True)
        target.mark("host")

    def _given(self, values: Numbers) -> Array:
        """Make of the loops' memory what a network may be given: a copy, where it may keep that."""
        return arrays.from_host(values.copy() if self._copies else values, self._called)

    def _timesteps(self, live: int) -> Numbers:
        """Give the timesteps of the points of this round [N]."""
        space = self._space
        return space.places[2, :live] if space.times is None else space.times[space.places[0, :live]]

    def _condition(self, live: int) -> Array | None:
        """Give the conditioning of the points of this round [N, …]."""
        if self._cond is None:
            return None
        if self._target.shape[0] == 1:
            return self._cond[:live]
        return self._cond[arrays.from_host(self._space.places[1, :live], self._called)]
