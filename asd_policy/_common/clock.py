"""Clocks of the host and of a GPU, and a stopwatch for the stages of a plan."""

import abc
import functools
import gc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from asd_policy.errors import SpecError

if TYPE_CHECKING:
    import torch

STAGES: tuple[str, ...] = ("encode", "draft", "network", "verify", "commit", "host")
"""Where a plan's time goes: observation to conditioning; drafted chain; network calls; judging drafts against targets;
taking the steps that stand; and all the rest, such as noise, Python's loop, waiting for the device, and actions."""


@functools.cache
def collect_imports() -> None:
    """Collect garbage, once for a process.

    Importing a library such as diffusers leaves so many objects that the collector soon goes through all of them, which
    takes 0.2 s. It does so here, where nobody waits, and not in the middle of a plan.
    """
    gc.collect()


class Clock(abc.ABC):
    """Notes instants, and later measures the time between them."""

    @abc.abstractmethod
    def tick(self) -> Any:
        """Note this instant. Waits for nothing."""

    @abc.abstractmethod
    def seconds(self, ticks: Sequence[Any]) -> list[float]:
        """Measure the time from each tick to the next [s]; this waits for the last of them."""


class HostClock(Clock):
    """The monotonic clock, for what the CPU computes itself."""

    def tick(self) -> float:
        """Read the clock [s]."""
        return time.perf_counter()

    def seconds(self, ticks: Sequence[float]) -> list[float]:
        """Subtract each tick from the next [s]."""
        return [later - earlier for earlier, later in zip(ticks[:-1], ticks[1:], strict=True)]


class DeviceClock(Clock):
    """CUDA events: instants on the GPU's timeline, when all that was queued before them is done."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device

    def tick(self) -> "torch.cuda.Event":
        """Queue an event."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, ticks: Sequence["torch.cuda.Event"]) -> list[float]:
        """Wait for the last event; return the times between them."""
        ticks[-1].synchronize()
        return [1e-3 * earlier.elapsed_time(later) for earlier, later in zip(ticks[:-1], ticks[1:], strict=True)]


def clock_of(device: "torch.device") -> Clock:
    """Choose the clock of a device: events on a GPU, the monotonic clock on a CPU.

    Raises:
        SpecError: A device of another kind.
    """
    if device.type == "cuda":
        return DeviceClock(device)
    if device.type == "cpu":
        return HostClock()
    raise SpecError(f"device {str(device)!r} has no clock here; a benchmark runs on cpu or cuda")


class Stopwatch:
    """Adds up the time of each stage. It is in one stage at any time; `mark` begins the next.

    On a GPU the stages are marked on the GPU's timeline, so that nothing waits for a mark; time in which the GPU has
    nothing to do counts for the stage that it waits in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stages = ["host"]
        self._ticks = [clock.tick()]

    def mark(self, stage: str) -> str:
        """Begin one of `STAGES`; return the one that ends."""
        before = self._stages[-1]
        self._stages.append(stage)
        self._ticks.append(self._clock.tick())
        return before

    def stop(self) -> dict[str, float]:
        """Sum up the time spent in each of `STAGES` [s] from the start until now."""
        total = dict.fromkeys(STAGES, 0.0)
        between = self._clock.seconds([*self._ticks, self._clock.tick()])
        for stage, seconds in zip(self._stages, between, strict=True):
            total[stage] += seconds
        return total
