"""Recordings on a CPU that do the recorded work again, Python and all.

Where it matters what a graph keeps, tests/samplers/asd/test_recorded.py has others.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from asd_policy.networks.recording import Launcher, OutOfDeviceMemory


class Replays(Launcher):
    """Does the work again, as a replay does, and notes what happens."""

    def __init__(self, room: int = 1) -> None:
        """Begin without recordings; with `room` below 0 there is no memory for any."""
        super().__init__()
        self.room = room
        self.log: list[str] = []

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Note it, and keep the work."""
        if self.room < 0:
            raise OutOfDeviceMemory
        self.log.append("record")

        def replay() -> None:
            self.log.append("replay")
            work()

        return replay

    def queue(self) -> Any:
        """Nothing to enter: a CPU has one queue."""
        return nullcontext()

    def settle(self) -> None:
        """Note it."""
        self.log.append("settle")

    def fetch(self, sample: Tensor, counts: Tensor) -> Any:
        """Copy at once."""
        copies = sample.clone(), counts.clone()
        return lambda: copies
