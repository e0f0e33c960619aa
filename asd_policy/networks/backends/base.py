"""What runs a network: the same function of points, timesteps and conditioning on another engine."""

import abc
from dataclasses import dataclass

from asd_policy._common.arrays import Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.denoiser import Denoiser

DTYPES = ("float32", "bfloat16", "float16")
"""What a network may compute in."""


@dataclass(frozen=True)
class Job:
    """What a network is going to be called for."""

    chain: GaussianChain
    """Whose timesteps it is told; a sampler with fewer steps may ask for others of the noise schedule."""
    event: tuple[int, ...]
    """Shape of a point."""
    cond_dim: int
    """Numbers of conditioning of a row."""
    device: Device
    """Where points and conditioning are."""


class Backend(abc.ABC):
    """A way to run a network. Instances are frozen dataclasses that hold options only, and can be shared."""

    @property
    @abc.abstractmethod
    def spec(self) -> str:
        """The spec of this backend, options included: `make_backend(b.spec)` equals `b`."""

    @property
    @abc.abstractmethod
    def dtype(self) -> str:
        """What the network computes in, one of `DTYPES`. Samples and chain are float32 whatever it is."""

    @abc.abstractmethod
    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Make the network run on this backend; the network itself stays as it is.

        Raises:
            BackendError: It cannot run here, or not this network; never is another backend taken in its place.
        """
