"""CUDA graphs: whole rounds of `asd`, and the whole chain of `ddpm`, launched as one piece."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asd_policy.networks.backends.torch_network import TorchDenoiser
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory

_WARM_UP = 3  # runs before a capture, as torch.cuda.graphs asks for: libraries make their workspaces in the first


class CudaGraphs(Launcher):
    """Records on a stream of its own.

    All recordings share one pool of memory for intermediate values: they run one after the other, and whatever outlives
    a run was there before the capture.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._caller = torch.cuda.default_stream(device)

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture work as a graph; see `Launcher.record`."""
        graph = torch.cuda.CUDAGraph()
        try:
            with self.queue():
                for _ in range(_WARM_UP):
                    work()
                with _no_waiting():
                    work()
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                work()
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfDeviceMemory from error
        return graph.replay

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Launch on the recordings' own stream, after what the caller has launched so far."""
        current = torch.cuda.current_stream(self.device)
        if current != self._stream:  # or this is within the context already
            self._caller = current
            self._stream.wait_stream(current)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def settle(self) -> None:
        """Let the caller's stream wait for the recordings' own; the host goes on. See `Launcher.settle`."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def fetch(self, sample: Tensor, counts: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Copy both on the current stream, the counts to pinned memory; see `Launcher.fetch`."""
        kept = sample.clone()
        on_host = torch.empty(counts.shape, dtype=counts.dtype, device="cpu", pin_memory=True)
        on_host.copy_(counts, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> tuple[Tensor, Tensor]:
            done.synchronize()
            kept.record_stream(self._caller)  # the stream on which it may be freed
            return kept, on_host

        return wait


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise a RuntimeError where the host would wait for the device.

    A capture that fails for that leaves PyTorch's allocator in the middle of it; so it is found out before.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class GraphedDenoiser:
    """A network whose calls can be captured."""

    def __init__(self, denoiser: TorchDenoiser, device: torch.device) -> None:
        self._denoiser = denoiser
        self._device = device
        self.launcher = CudaGraphs(device)
        """Of this network's graphs, which hold the addresses of its weights."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedDenoiser":
        return GraphedDenoiser(copy.deepcopy(self._denoiser, memo), self._device)

    def encode(self, cond: Tensor) -> Tensor:
        """Encode conditioning; see `TorchDenoiser.encode`, which also sees whether the weights were moved."""
        return self._denoiser.encode(cond)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict; see `TorchDenoiser`."""
        return self._denoiser(x, timestep, cond)
