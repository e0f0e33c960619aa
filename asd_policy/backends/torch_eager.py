"""The network as PyTorch runs it, operation by operation."""

from dataclasses import dataclass

from asd_policy.backends.base import Backend, Job
from asd_policy.denoiser import Denoiser


@dataclass(frozen=True)
class TorchEager(Backend):
    """PyTorch, operation by operation."""

    @property
    def spec(self) -> str:
        """The full spec of this backend."""
        return "torch-eager"

    @property
    def dtype(self) -> str:
        """That of the checkpoint's network."""
        return "float32"

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Return the network itself."""
        return network
