"""The rounds of a batch of plans, one after the other: called from Python, or recorded once and replayed."""

import abc
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.launched.form import LaunchedRound, launched_form
from asd_policy.samplers.asd.path import Counts, Path
from asd_policy.samplers.fallback import reserve
from asd_policy.samplers.recorded import Inputs, copy_into, no_room


class Rounds(Protocol):
    """A batch of plans under way."""

    window: int
    """Points θ that a round evaluates per row."""
    recorded: bool
    """Whether they are replays, which nobody can look into."""

    @property
    def path(self) -> Path:
        """Where the plans stand."""
        ...

    def queue(self) -> AbstractContextManager[None]:
        """Enter the context that rounds run in."""
        ...

    def next(self) -> Callable[[], None] | None:
        """Give the next round to run; None when every row is at the end of the chain."""
        ...

    def result(self) -> tuple[Array, Counts]:
        """Give the rows' last exact points, flattened [B, D], which are samples at the end, and the counts.

        Points in the host's memory may be an array of NumPy's, whatever the tape's library.
        """
        ...

    def jump(self, rows: Array) -> Array:
        """Predict x̂0 [R, D] at the points that rows [R] have come to, by one network call."""
        ...

    def learning(self) -> AbstractContextManager[None]:
        """Enter the context that the path is learned from in."""
        ...

    def leave(self) -> None:
        """Let other plans have the memory: nobody looks at the path any more."""
        ...


class CalledRounds(abc.ABC):
    """Rounds that Python calls one by one; what all of them share."""

    recorded = False

    def __init__(self, round_: Round, tape: NoiseTape) -> None:
        """See to it that there is time for a batch of plans.

        Args:
            round_: With the target, the draft, the verifier and the window.
            tape: The plans' noise.

        Raises:
            SpecError: The target's deadline is shorter than one network call.
        """
        self.window = round_.window
        self._target = round_.target
        reserve(round_.target, tape)

    @property
    @abc.abstractmethod
    def path(self) -> Path:
        """Where the plans stand, in arrays of the tape's library."""

    def queue(self) -> AbstractContextManager[None]:
        """Enter nothing."""
        return nullcontext()

    def result(self) -> tuple[Array, Counts]:
        """Give points and counts of now."""
        return self.path.x, self.path.counts()

    def jump(self, rows: Array) -> Array:
        """Predict x̂0 for these rows alone."""
        path = self.path  # which is put together anew each time
        return self._target.jump(path.x[rows], path.cursor[rows], rows)

    def learning(self) -> AbstractContextManager[None]:
        """Enter nothing."""
        return nullcontext()

    def leave(self) -> None:
        """Do nothing: it is kept for nobody."""
        return


class EagerRounds(CalledRounds):
    """Rounds as `engine.Round` has them. On a CPU they leave out what is done."""

    def __init__(self, round_: Round, tape: NoiseTape, last_plan: Array | None) -> None:
        """Put a batch of plans at its start.

        Args:
            round_: As for `CalledRounds`, and so is the tape.
            tape: The plans' noise.
            last_plan: As for `Path.begin`.
        """
        super().__init__(round_, tape)
        self._round, self._path = round_, Path.begin(round_.target.inpainting, tape, last_plan)
        self._rows = arrays.arange(len(self._path.x), self._path.x)

    @property
    def path(self) -> Path:
        """Where the plans stand."""
        return self._path

    def next(self) -> Callable[[], None] | None:
        """Give a round of the rows that are not done."""
        path = self._path
        going = path.cursor < len(self._target.chain)
        if not bool(going.any()):
            return None
        rows = arrays.namespace(going).nonzero(going)[0] if path.compact else self._rows
        return partial(self._round, path, rows, path.compact)


class RoundRecording:
    """The start of a plan and its round, each as one recording, in memory of their own."""

    def __init__(self, launcher: Launcher, first: Round, tape: NoiseTape) -> None:
        """Record them, for a smaller window where there is no room for this one, and say so.

        Args:
            launcher: Of the target's network.
            first: The first plan's round; later ones have its shapes, draft and verifier.
            tape: The first plan's.

        Raises:
            BackendError: There is no room for one point per row.
        """
        self.launcher = launcher
        self.window = first.window
        """Points that a round evaluates per row."""
        with launcher.queue():  # which its memory belongs to, and is done with it before it is used again
            self.inputs = inputs = Inputs.like(first.target, tape, first.response)
            self._own = own = first.target.recordable(inputs.cond, inputs.inpainting)
            self._steps = len(own.chain)
            self.path = Path.begin(inputs.inpainting, inputs.tape, inputs.last_plan).apart()
            """Of the plan that ran last."""
            # One block of memory, so that one copy brings all of it to the host: `Counts`, flags as numbers.
            self._counts = arrays.zeros((3 + 2 * self._steps, len(tape.initial)), tape.initial, int)
            self._rows = arrays.arange(len(tape.initial), tape.initial)
        self._jump: Callable[[], None] | None = None  # recorded with the first deadline
        while True:
            round_ = Round(own, first.draft, first.verifier, inputs.response, self.window)
            try:
                with launcher.queue():
                    # Kept with the recording, which knows no more than the addresses of what it reads.
                    self._round = launched_form(round_, self.path, self._counts)
                self.start = launcher.record(self._start)
                self.advance = launcher.record(self._advance)
                return
            except OutOfDeviceMemory:
                if self.window == 1:
                    raise no_room(len(tape.initial)) from None
                warnings.warn(
                    f"window={self.window} at batch {len(tape.initial)} needs more memory than the device has: "
                    f"planning with window={self.window // 2}",
                    stacklevel=2,
                )
                self.window //= 2

    def _start(self) -> None:
        copy_into(Path.begin(self.inputs.inpainting, self.inputs.tape, self.inputs.last_plan), self.path)
        if isinstance(self._round, LaunchedRound):
            self._round.begin()
        self._count()

    def _advance(self) -> None:
        if isinstance(self._round, LaunchedRound):
            self._round()  # which counts
        else:
            self._round(self.path, self._rows, compact=False)
            self._count()

    def _count(self) -> None:
        counts, steps = self.path.counts(), self._steps
        for place, counted in enumerate((counts.cursor, counts.rounds, counts.nfe)):
            self._counts[place] = counted
        self._counts[3 : 3 + steps] = counts.refused.T
        self._counts[3 + steps :] = counts.judged.T

    def fetch(self) -> Callable[[], tuple[Array, Counts]]:
        """Copy points and counts as they will be once what was launched so far is done; see `Launcher.fetch`."""
        wait = self.launcher.fetch(self.path.x, self._counts)

        def read() -> tuple[Array, Counts]:
            sample, counts = wait()
            refused, judged = (part.T != 0 for part in counts[3:].reshape(2, self._steps, -1))
            return sample, Counts(counts[0], counts[1], counts[2], refused, judged)

        return read

    @property
    def jumps(self) -> bool:
        """Whether a jump is recorded, too."""
        return self._jump is not None

    def jump(self) -> Array:
        """Predict x̂0 at the points that all rows have come to, flattened [B, D]; waits for it."""
        with self.launcher.queue():
            if self._jump is None:
                self._x0_pred = arrays.copied(self.path.x)
                self._jump = self.launcher.record(self._predict)
            self._jump()
            return self.launcher.fetch(self._x0_pred, self._counts)()[0]

    def _predict(self) -> None:
        self._x0_pred[...] = self._own.jump(self.path.x, self.path.cursor.clip(max=self._steps - 1), self._rows)


class ReplayedRounds:
    """Rounds as replays of a recording.

    The host reads whether all rows are done one round late, while the next one runs: rows that are done stay as they
    are, so a round too many changes nothing, and nobody waits for it but the next plan. Before a deadline it waits for
    each round, to know what time it is.
    """

    recorded = True

    def __init__(self, recording: RoundRecording, round_: Round, tape: NoiseTape, last_plan: Array | None) -> None:
        """Begin a plan; to be called in the recording's queue.

        Raises:
            SpecError: The target's deadline is shorter than one network call.
        """
        self.window, self.path = recording.window, recording.path
        self._recording, self._target = recording, round_.target
        self._launched = 0
        self._fetched: deque[Callable[[], tuple[Array, Counts]]] = deque()
        self._read: tuple[Array, Counts] | None = None
        with recording.launcher.queue():
            recording.inputs.load(round_.target, tape, round_.response, last_plan)
            recording.start()
            if round_.target.deadline is not None:
                if not recording.jumps:  # the time of a jump may be known, and this one not be recorded yet
                    self._timed_jump()
                round_.target.deadline.reserve(self._timed_jump)

    def _timed_jump(self) -> None:
        self._target.meter.count(1, len(self.path.x))
        self._recording.jump()

    def queue(self) -> AbstractContextManager[None]:
        """Enter the recordings' queue."""
        return self._recording.launcher.queue()

    def next(self) -> Callable[[], None] | None:
        """Give a replay, if the rows were not all done when they were last looked at."""
        late = 1 if self._target.deadline is None else 0
        if len(self._fetched) > late:
            self._read = self._fetched.popleft()()
            if int(self._read[1].cursor.min()) == len(self._target.chain):
                return None
        return self._advance

    def _advance(self) -> None:
        self._recording.advance()
        self._launched += 1
        if self._target.deadline is not None or self._launched * self.window >= len(self._target.chain):
            self._fetched.append(self._recording.fetch())  # earlier no plan can be done

    def result(self) -> tuple[Array, Counts]:
        """Give points and counts as they were last looked at."""
        return self._read or self._recording.fetch()()

    def jump(self, rows: Array) -> Array:
        """Predict x̂0 for the whole batch, and give these rows."""
        return self._recording.jump()[rows]

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Enter the queue; what is learned is read, copied and saved outside of it."""
        with self._recording.launcher.queue():
            yield
        self._recording.launcher.settle()

    def leave(self) -> None:
        """Do nothing: the recording's next plan has it anyway."""
        return
