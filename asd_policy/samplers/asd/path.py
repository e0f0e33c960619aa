"""Where a batch of plans stands in its chain, what was seen on the way, and what that cost."""

from dataclasses import dataclass
from itertools import compress
from operator import not_

from asd_policy._common import arrays
from asd_policy._common.arrays import NUMPY, Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import PlanCost


@dataclass(frozen=True)
class Counts:
    """How far a batch of plans has come and what it cost, on the host."""

    cursor: Array
    """Steps of each row that are committed [B]; K, but for those that a deadline has stopped."""
    rounds: Array
    """Of each row [B]."""
    nfe: Array
    """Points evaluated for each row [B]."""
    refused: Array
    """Which steps' draft was refused [B, K]."""
    judged: Array
    """Which steps had a draft to be judged [B, K]."""

    def costs(self, window: int, jumped: dict[int, int]) -> list[PlanCost]:
        """List what each row cost.

        Args:
            window: Points of a round θ.
            jumped: The rows that a deadline's fallback has finished, and how many network calls that took.
        """
        rounds, nfe, steps = self.rounds.tolist(), self.nfe.tolist(), range(self.refused.shape[1])
        refused = [tuple(compress(steps, row)) for row in self.refused.tolist()]
        unjudged = [tuple(compress(steps, map(not_, row))) for row in self.judged.tolist()]
        return [
            PlanCost(
                rounds=rounds[row] + jumped.get(row, 0),
                nfe=nfe[row] + jumped.get(row, 0),
                window=window,
                refused=refused[row],
                unjudged=unjudged[row],
                cut=row in jumped,
            )
            for row in range(len(rounds))
        ]


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
    x0_pred: Array
    """The prediction x̂0 there [B, K + 1, D]."""
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

    @classmethod
    def begin(cls, inpainting: Inpainting | None, tape: NoiseTape, last_plan: Array | None) -> "Path":
        """Put a batch of plans at the start of the chain, in memory of its own; see `PathMemory.begin`."""
        return PathMemory.begin(inpainting, tape, last_plan).path()

    def apart(self) -> "Path":
        """Copy each array to memory of its own, which begins at an address that suits a GPU, whatever the sizes."""
        return Path(**{name: arrays.copied(each) for name, each in vars(self).items()})

    @property
    def compact(self) -> bool:
        """Whether rounds leave out what is done: on a CPU. A GPU computes it, in shapes that never change."""
        return arrays.device_of(self.x) == NUMPY or self.x.device.type == "cpu"

    def counts(self) -> Counts:
        """Take the counts of now."""
        steps = self.uniforms.shape[1] - 1
        return Counts(self.cursor, self.rounds, self.nfe, self.refused[:, :steps], self.judged[:, :steps])


@dataclass(frozen=True)
class PathMemory:
    """The few blocks of memory that the arrays of a `Path` are views of.

    Each array by itself would cost a plan an allocation of its own, and a compiled loop, which takes blocks, one more
    argument.
    """

    by_step: Array
    """`normals`, `points`, `x0_pred`, `shift` and `change`, [5, B, K + 1, D]."""
    flags: Array
    """`seen`, `refused` and `judged`, [3, B, K + 1]."""
    counts: Array
    """`cursor`, `rounds` and `nfe`, [3, B]."""
    by_row: Array
    """`x`, `latest` and `innovation`, [3, B, D]."""
    uniforms: Array
    """As `Path.uniforms`, and so are the others."""
    free: Array
    rejected: Array

    @classmethod
    def begin(cls, inpainting: Inpainting | None, tape: NoiseTape, last_plan: Array | None) -> "PathMemory":
        """Put a batch of plans at the start of the chain, in new memory.

        Args:
            inpainting: What is given of them, in arrays of the tape's library.
            tape: Their noise.
            last_plan: The first guess of x̂0 [B, *event]; None for zeros.
        """
        x, (batch, steps) = tape.initial.reshape(len(tape.initial), -1), tape.uniforms.shape
        memory = cls(
            by_step=arrays.zeros((5, batch, steps + 1, x.shape[1]), x),
            flags=arrays.zeros((3, batch, steps + 1), x, bool),
            counts=arrays.zeros((3, batch), x, int),
            by_row=arrays.zeros((3, *x.shape), x),
            uniforms=arrays.zeros((batch, steps + 1), x),
            free=arrays.zeros((batch, 1), x),
            rejected=arrays.zeros((batch,), x, bool),
        )
        memory._put(inpainting, tape, last_plan)
        return memory

    def begin_again(self, inpainting: Inpainting | None, tape: NoiseTape, last_plan: Array | None) -> None:
        """Put another batch of plans of the same shape at the start, as `begin`."""
        for each in (self.by_step, self.flags, self.counts, self.by_row):
            each[:] = 0
        self._put(inpainting, tape, last_plan)

    def _put(self, inpainting: Inpainting | None, tape: NoiseTape, last_plan: Array | None) -> None:
        """Put a batch of plans at the start, in memory of zeros."""
        x, steps = self.by_row[0], tape.uniforms.shape[1]
        x[:] = tape.initial.reshape(x.shape)
        self.by_step[0, :, :steps] = tape.normals.reshape(len(x), steps, -1)
        self.uniforms[:, :steps], self.uniforms[:, steps:] = tape.uniforms, tape.uniforms[:, :1]
        self.free[:], self.rejected[:] = x.shape[1], True
        if last_plan is not None:  # a copy: it is the caller's
            self.by_row[1] = arrays.asarray(last_plan, arrays.device_of(x), x.dtype).reshape(x.shape)
        if inpainting is not None:
            given = inpainting.mask.reshape(x.shape)
            self.free[:] -= given.sum(1)[:, None]
            self.by_step[0] *= ~given[:, None]
            self.by_row[1] = inpainting.fill(self.by_row[1])

    def path(self) -> Path:
        """Give the views."""
        normals, points, x0_pred, shift, change = self.by_step
        seen, refused, judged = self.flags
        cursor, rounds, nfe = self.counts
        x, latest, innovation = self.by_row
        return Path(
            x=x,
            cursor=cursor,
            free=self.free,
            normals=normals,
            uniforms=self.uniforms,
            points=points,
            x0_pred=x0_pred,
            seen=seen,
            shift=shift,
            change=change,
            latest=latest,
            innovation=innovation,
            rejected=self.rejected,
            refused=refused,
            judged=judged,
            rounds=rounds,
            nfe=nfe,
        )
