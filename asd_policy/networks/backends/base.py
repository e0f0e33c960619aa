"""Backends: engines that compute a network, the same function of points, timesteps and conditioning."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from asd_policy._common.arrays import Array, Device
from asd_policy.chain.tokens import Chain
from asd_policy.errors import BackendError
from asd_policy.networks.denoiser import Denoiser

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes that a network may compute in."""


@dataclass(frozen=True)
class Job:
    """The calls that a network is prepared for."""

    chain: Chain
    """The chain whose timesteps it gets; a sampler with fewer steps may ask for others of the noise schedule."""
    event: tuple[int, ...]
    """Shape of a point."""
    cond_dim: int
    """Numbers of conditioning of a row."""
    device: Device
    """Device of points and conditioning."""


Encode = Callable[[Array], Array]
"""Turns what a sensor saw, normalised, [N, *shape] into features [N, size], each row by itself."""


@runtime_checkable
class Watching(Protocol):
    """What runs a network, and sees whether its weights are those of before."""

    def check(self) -> None:
        """Refuse weights that were moved or changed since it was prepared.

        Raises:
            BackendError: They were.
        """
        ...


@dataclass(frozen=True)
class SensorJob:
    """The calls that a sensor's network is prepared for: any number of rows, `most` at most."""

    shape: tuple[int, ...]
    """Of what it sees: (3, height, width), (points, channels) or (n,)."""
    size: int
    """Numbers that one observation of it becomes."""
    most: int
    """Rows of the largest call."""
    device: Device
    """Where they are."""


class Backend(abc.ABC):
    """A way to run a network. Instances are frozen dataclasses that hold options only, and can be shared."""

    @property
    @abc.abstractmethod
    def spec(self) -> str:
        """The spec of this backend, options included: `make_backend(b.spec)` equals `b`."""

    @property
    @abc.abstractmethod
    def dtype(self) -> str:
        """The dtype that the network computes in, one of `DTYPES`. Samples and chain are always float32."""

    @abc.abstractmethod
    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Make the network run on this backend; the network itself stays as it is.

        Raises:
            BackendError: It cannot run here, or not this network. No other backend is taken in its place.
        """

    def prepare_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Make a sensor's network run on this backend; the network itself stays as it is.

        Raises:
            BackendError: As `prepare`; or the backend runs denoisers alone.
        """
        raise BackendError(f"{self.spec} runs no networks of cameras and other sensors")
