"""The backend of replicas: a network on several devices, each with a part of a call's points."""

from dataclasses import dataclass
from typing import ClassVar

from asd_policy.errors import SpecError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.denoiser import Denoiser


@dataclass(frozen=True)
class TorchReplicas(TorchBackend):
    """PyTorch, operation by operation, on several devices: for networks whose batch fills one."""

    name: ClassVar[str] = "torch-replicas"

    devices: str | None = None
    """Torch devices joined by +, such as cuda:0+cuda:1, the first being the policy's; None for every GPU."""

    def __post_init__(self) -> None:
        """Check the options that need no machine.

        Raises:
            SpecError: One of them is out of range.
        """
        super().__post_init__()
        if self.devices is not None and not all(self.devices.split("+")):
            raise SpecError(f"devices={self.devices} is not a list of devices such as cuda:0+cuda:1")

    def prepare_tensors(self, network: Denoiser, job: Job) -> Denoiser:
        """Copy the network to every device.

        Raises:
            BackendError: A device is not there, the first is not the job's, or the network cannot be computed on one.
        """
        from asd_policy.networks.backends.torch_parallel import Replicas

        return Replicas(network, job, self, self._named)

    def prepare_tensor_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Copy a sensor's network to every device, each for a part of the rows.

        Raises:
            BackendError: A device is not there, the first is not the job's, or the network cannot be computed on one.
        """
        from asd_policy.networks.backends.torch_parallel import SensorReplicas

        return SensorReplicas(network, job, self, self._named)

    @property
    def _named(self) -> list[str] | None:
        return None if self.devices is None else self.devices.split("+")
