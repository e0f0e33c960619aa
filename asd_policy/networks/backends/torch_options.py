"""Options that the backends of PyTorch share. They import torch when they prepare a network."""

import abc
from dataclasses import dataclass, fields
from typing import ClassVar

from asd_policy._common.arrays import NUMPY, Device
from asd_policy.errors import BackendError, SpecError
from asd_policy.networks.backends.base import DTYPES, Backend, Encode, Job, SensorJob
from asd_policy.networks.denoiser import Denoiser

FLOAT32 = DTYPES[0]


@dataclass(frozen=True)
class TorchBackend(Backend):
    """A backend of PyTorch."""

    name: ClassVar[str]
    """The name in specs."""

    dtype: str = FLOAT32  # pyright: ignore[reportIncompatibleMethodOverride]  # frozen: as read-only as a property
    """The dtype that a copy of the network computes in, one of `DTYPES`; the loaded network stays. float32 is full
    float32, never TensorFloat-32, whatever PyTorch's settings."""

    def __post_init__(self) -> None:
        """Check the options that need no machine.

        Raises:
            SpecError: One of them is out of range.
        """
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype} is none of {', '.join(DTYPES)}")

    @property
    def spec(self) -> str:
        """The spec of this backend with the options that are not its defaults."""
        options = ((field, getattr(self, field.name)) for field in fields(self))
        given = [f"{field.name}={value}" for field, value in options if value != field.default]
        return ":".join([self.name, ",".join(given)] if given else [self.name])

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Make the network run on this backend; see `Backend.prepare`."""
        self._check_device(job.device)
        return self.prepare_tensors(network, job)

    def prepare_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Make a sensor's network run on this backend; see `Backend.prepare_sensor`."""
        self._check_device(job.device)
        return self.prepare_tensor_sensor(network, job)

    @abc.abstractmethod
    def prepare_tensors(self, network: Denoiser, job: Job) -> Denoiser:
        """Make the network run on a device of PyTorch's."""

    @abc.abstractmethod
    def prepare_tensor_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Make a sensor's network run on a device of PyTorch's."""

    def _check_device(self, device: Device) -> None:
        if device == NUMPY:
            raise BackendError(f"{self.spec} runs on PyTorch's tensors, the policy plans on NumPy's arrays; use onnx")
