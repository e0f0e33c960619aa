"""Plans in fixed shapes and memory, recorded once and replayed: no Python, and no waiting, between kernels."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import BackendError
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.base import Target
from asd_policy.samplers.inpainting import Inpainting


@dataclass(frozen=True)
class Inputs:
    """What differs from plan to plan, in memory that recordings read."""

    tape: NoiseTape
    cond: Array | None
    inpainting: Inpainting | None
    last_plan: Array
    response: Response | None

    @classmethod
    def like(cls, target: Target, tape: NoiseTape, response: Response | None = None) -> "Inputs":
        """Copy a plan's inputs into memory of their own."""

        def copies(group: Any) -> list[Any]:
            values = [getattr(group, field.name) for field in fields(group)]
            return [None if value is None else arrays.copied(value) for value in values]

        return cls(
            NoiseTape(*copies(tape)),
            None if target.cond is None else arrays.copied(target.cond),
            None if target.inpainting is None else Inpainting(*copies(target.inpainting)),
            arrays.namespace(tape.initial).zeros_like(tape.initial),
            None if response is None else Response(*copies(response)),
        )

    def load(
        self, target: Target, tape: NoiseTape, response: Response | None = None, last_plan: Array | None = None
    ) -> None:
        """Take over the values of another plan; of no last plan, zeros."""
        pairs = ((tape, self.tape), (target.inpainting, self.inpainting), (response, self.response))
        for source, place in pairs:
            if source is not None:
                copy_into(source, place)
        if target.cond is not None and self.cond is not None:
            self.cond[...] = target.cond
        self.last_plan[...] = 0 if last_plan is None else last_plan


def shapes(target: Target, tape: NoiseTape) -> tuple[Hashable, ...]:
    """List what a recording depends on beside its sampler; with the chain itself, which the key keeps alive."""
    cond = None if target.cond is None else (tuple(target.cond.shape), str(target.cond.dtype))
    given = target.inpainting and tuple(part is None for part in vars(target.inpainting).values())
    autocast = None if target.autocast is None else str(getattr(target.autocast, "fast_dtype", None))
    return target.chain, tuple(tape.initial.shape), str(tape.initial.dtype), cond, given, autocast


class WalkRecording:
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
        self._own = own = target.recordable(self._inputs.cond, self._inputs.inpainting)
        self._sample = arrays.copied(tape.initial)
        self._counts = arrays.zeros((1,), tape.initial, int)

        def work() -> None:
            self._sample[...] = walk(own, self._inputs.tape)

        try:
            self._run = launcher.record(work)
        except OutOfDeviceMemory:
            raise no_room(len(tape.initial)) from None

    def __call__(self, target: Target, tape: NoiseTape) -> Array:
        """Replay it for another plan; return its samples [B, *event]."""
        with self._launcher.queue():
            self._inputs.load(target, tape)
            self._run()
            wait = self._launcher.fetch(self._sample, self._counts)
        return wait()[0]


def no_room(batch: int) -> BackendError:
    """Make the error of a batch that no window is small enough for."""
    return BackendError(f"the device has no memory for a batch of {batch}, one point per row: plan for fewer at once")


def copy_into(source: Any, target: Any) -> None:
    """Write the arrays of a dataclass into the memory of another's, where both have one."""
    for name, values in vars(source).items():
        if values is not None and (place := getattr(target, name)) is not None:
            place[...] = values
