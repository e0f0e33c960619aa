"""How work of fixed shapes is recorded once and run many times: the seam behind which CUDA graphs are."""

import abc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from asd_policy._common.arrays import NUMPY, Array, Device

MOST_RECORDINGS = 8
"""Kept at once; each has its own memory on the device. The one used longest ago goes first."""

T = TypeVar("T")


class Launcher(abc.ABC):
    """Records work and runs it again. Belongs to one network on one device."""

    device: Device = NUMPY
    """Where it records."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """Make something once for a key: the shapes and options that recordings are good for."""
        if key not in self._kept:
            while len(self._kept) >= MOST_RECORDINGS:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    @abc.abstractmethod
    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record work: make a function that does the same on the same memory.

        Args:
            work: Of fixed shapes; reads and writes tensors that stay where they are, and waits for nothing. It is
                done a few times while it is recorded, and need not be kept after that: what it reads and was there
                before has to be, by the caller.

        Raises:
            OutOfDeviceMemory: There is no room for it.
        """

    @abc.abstractmethod
    def queue(self) -> AbstractContextManager[Any]:
        """Enter the context in which recorded work is launched: in order, and apart from what the caller launches."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Let what the caller launches next come after all that was launched in the queue."""

    @abc.abstractmethod
    def fetch(self, sample: Array, counts: Array) -> Callable[[], tuple[Array, Array]]:
        """Copy both as they will be once all that was launched so far is done.

        Returns:
            A function that waits for that, and for nothing launched later, and returns the copies: of the sample where
            it is, of the counts on the host.
        """


class OutOfDeviceMemory(Exception):
    """There is no room on the device for a recording."""


def launcher_of(denoiser: object) -> Launcher | None:
    """Find what records a denoiser's calls, its `launcher`; None where they are made one by one."""
    launcher = getattr(denoiser, "launcher", None)
    return launcher if isinstance(launcher, Launcher) else None
