"""Samplers in fixed shapes and memory, recorded once and replayed: no Python, and no waiting, between kernels."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import BackendError
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers.asd.couplings import Verifier
from asd_policy.samplers.asd.draft import Draft, Path
from asd_policy.samplers.asd.engine import Round, begin
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.deadline import Deadline
from asd_policy.samplers.target import Held, Target


@dataclass(frozen=True)
class Inputs:
    """What differs from plan to plan, in memory that recordings read."""

    tape: NoiseTape
    cond: Array | None
    held: Held | None
    last_plan: Array
    response: Response | None

    @classmethod
    def like(cls, target: Target, tape: NoiseTape, response: Response | None = None) -> "Inputs":
        """Return copies of a plan's inputs, in memory of their own."""

        def copies(group: Any) -> list[Any]:
            values = [getattr(group, field.name) for field in fields(group)]
            return [None if value is None else arrays.copied(value) for value in values]

        return cls(
            NoiseTape(*copies(tape)),
            None if target.cond is None else arrays.copied(target.cond),
            None if target.held is None else Held(*copies(target.held)),
            arrays.namespace(tape.initial).zeros_like(tape.initial),
            None if response is None else Response(*copies(response)),
        )

    def load(
        self, target: Target, tape: NoiseTape, response: Response | None = None, last_plan: Array | None = None
    ) -> None:
        """Take over the values of another plan; of no last plan, zeros."""
        pairs = ((tape, self.tape), (target.held, self.held), (response, self.response))
        for source, place in pairs:
            if source is not None:
                _copy(*([getattr(each, field.name) for field in fields(source)] for each in (source, place)))
        if target.cond is not None and self.cond is not None:
            self.cond[...] = target.cond
        self.last_plan[...] = 0 if last_plan is None else last_plan


def shapes(target: Target, tape: NoiseTape) -> tuple[Hashable, ...]:
    """Return what of a plan a recording depends on, beyond its sampler; the chain itself, which the key keeps alive."""
    cond = None if target.cond is None else (tuple(target.cond.shape), str(target.cond.dtype))
    given = target.held and tuple(getattr(target.held, field.name) is None for field in fields(target.held))
    return target.chain, tuple(tape.initial.shape), str(tape.initial.dtype), cond, given


class StaticWalk:
    """A sampler without branches, its whole chain as one recording."""

    def __init__(self, launcher: Launcher, target: Target, tape: NoiseTape, walk: Callable[[Target, NoiseTape], Array]):
        """Record it.

        Args:
            launcher: Of the target's network.
            target: The first plan's; later ones have its shapes.
            tape: The first plan's.
            walk: The sampler: returns samples [B, *event].

        Raises:
            BackendError: There is no room on the device.
        """
        self._launcher = launcher
        self._inputs = Inputs.like(target, tape)
        # Kept with the recording, which knows no more than the addresses of what it reads.
        self._own = own = target.recordable(self._inputs.cond, self._inputs.held)
        self._sample = arrays.copied(tape.initial)
        self._counts = arrays.zeros((1,), tape.initial, int)

        def work() -> None:
            self._sample[...] = walk(own, self._inputs.tape)

        try:
            self._run = launcher.record(work)
        except OutOfDeviceMemory:
            raise _no_room(len(tape.initial)) from None

    def __call__(self, target: Target, tape: NoiseTape) -> Array:
        """Return the samples of a plan."""
        with self._launcher.queue():
            self._inputs.load(target, tape)
            self._run()
            wait = self._launcher.fetch(self._sample, self._counts)
        return wait()[0]


@dataclass(frozen=True)
class Counts:
    """How far a batch of plans has come and what it cost, on the host."""

    cursor: Array
    """Steps of each row that are done [B]; K, but for those that a deadline has stopped."""
    rounds: Array
    """Of each row [B]."""
    nfe: Array
    """Network evaluations of each row [B]."""
    refused: Array
    """Which steps' draft was refused [B, K]."""
    judged: Array
    """Which steps had a draft to be judged [B, K]."""


class StaticRounds:
    """`asd` with its round as one recording, and the start of a plan as another."""

    def __init__(
        self,
        launcher: Launcher,
        target: Target,
        tape: NoiseTape,
        draft: Draft,
        verifier: Verifier,
        response: Response | None,
        window: int,
    ) -> None:
        """Record them, for a smaller window where there is no room for this one, and say so.

        Args:
            launcher: Of the target's network.
            target: The first plan's; later ones have its shapes.
            tape: The first plan's.
            draft: Of all plans.
            verifier: Of all plans.
            response: The first plan's.
            window: Points θ per row.

        Raises:
            BackendError: There is no room for one point per row.
        """
        self._launcher = launcher
        self._steps = len(target.chain)
        self._inputs = inputs = Inputs.like(target, tape, response)
        self._own = own = target.recordable(inputs.cond, inputs.held)
        self.path = begin(own, inputs.tape, inputs.last_plan)
        """Of the plan that ran last."""
        # One block of memory, so that one copy brings all of it to the host: `Counts`, flags as numbers.
        self._counts = arrays.zeros((3 + 2 * self._steps, len(tape.initial)), tape.initial, int)
        self._rows = rows = arrays.arange(len(tape.initial), tape.initial)

        def tell() -> None:
            path, steps = self.path, self._steps
            for place, counted in enumerate((path.cursor, path.rounds, path.nfe)):
                self._counts[place] = counted
            self._counts[3 : 3 + steps] = path.refused[:, :steps].T
            self._counts[3 + steps :] = path.judged[:, :steps].T

        def start() -> None:
            _copy(_tensors(begin(own, inputs.tape, inputs.last_plan)), _tensors(self.path))
            tell()

        def advance() -> None:
            Round(own, draft, verifier, inputs.response, self.window)(self.path, rows, compact=False)
            tell()

        self._jump: Callable[[], None] | None = None  # recorded with the first deadline
        self.window = window
        """Points that a round evaluates per row."""
        while True:
            try:
                self._start, self._advance = launcher.record(start), launcher.record(advance)
                return
            except OutOfDeviceMemory:
                if self.window == 1:
                    raise _no_room(len(tape.initial)) from None
                warnings.warn(
                    f"window={self.window} at batch {len(tape.initial)} needs more memory than the device has: "
                    f"planning with window={self.window // 2}",
                    stacklevel=2,
                )
                self.window //= 2

    def __call__(
        self, target: Target, tape: NoiseTape, last_plan: Array | None, response: Response | None
    ) -> tuple[Array, "Counts"]:
        """Return the samples of a plan, flattened [B, D], and its counts.

        The host reads whether all rows are done one round late, while the next one runs: rows that are done stay as
        they are, so a round too many changes nothing, and nobody waits for it but the next plan. Before a deadline it
        waits for each round, to know what time it is. Rows that this stops are where they have come to.

        Raises:
            SpecError: The target's deadline is shorter than one network call.
        """
        with self._launcher.queue():
            self._inputs.load(target, tape, response, last_plan)
            self._start()
            if target.deadline is not None:
                return self._until(target, target.deadline)
            launched, before = 0, None
            while True:
                self._advance()
                launched += 1
                now = self._launcher.fetch(self.path.x, self._counts)
                if before is not None:
                    sample, counts = before()
                    if int(counts[0].min()) == self._steps:
                        return sample, self._read(counts)
                if launched * self.window >= self._steps:  # earlier no plan can be done
                    before = now

    def _until(self, target: Target, deadline: Deadline) -> tuple[Array, Counts]:
        """Do rounds until all rows are done or the time is up."""

        def timed() -> None:
            target.count(1, len(self.path.x))
            self.jump()

        deadline.reserve(timed)
        sample, counts = self._launcher.fetch(self.path.x, self._counts)()
        while int(counts[0].min()) < self._steps and deadline.allows(("round", self.window)):
            self._advance()
            sample, counts = self._launcher.fetch(self.path.x, self._counts)()
        return sample, self._read(counts)

    def _read(self, counts: Array) -> Counts:
        refused, judged = (part.T != 0 for part in counts[3:].reshape(2, self._steps, -1))
        return Counts(counts[0], counts[1], counts[2], refused, judged)

    def jump(self) -> Array:
        """Return the predictions x̂0 at the points that all rows have come to, flattened [B, D]; waits for them."""
        with self._launcher.queue():
            if self._jump is None:
                self._clean = arrays.copied(self.path.x)
                self._jump = self._launcher.record(self._predict)
            self._jump()
            return self._launcher.fetch(self._clean, self._counts)()[0]

    def _predict(self) -> None:
        self._clean[...] = self._own.predict(self.path.x, self.path.cursor.clip(max=self._steps - 1), self._rows)


def _no_room(batch: int) -> BackendError:
    return BackendError(f"the device has no memory for a batch of {batch}, one point per row: plan for fewer at once")


def _tensors(path: Path) -> list[Array]:
    return [getattr(path, field.name) for field in fields(path)]


def _copy(source: Sequence[Array | None], target: Sequence[Array | None]) -> None:
    """Write values into the memory of others, where there are any."""
    for values, place in zip(source, target, strict=True):
        if values is not None and place is not None:
            place[...] = values
