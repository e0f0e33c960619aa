"""The network as PyTorch runs it, operation by operation."""

from dataclasses import dataclass
from typing import ClassVar

from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.onnx import OnnxModel
from asd_policy.networks.backends.torch_options import FLOAT32, TorchBackend
from asd_policy.networks.denoiser import Denoiser


@dataclass(frozen=True)
class TorchEager(TorchBackend):
    """PyTorch, operation by operation."""

    name: ClassVar[str] = "torch-eager"

    def prepare_tensors(self, network: Denoiser, job: Job) -> Denoiser:
        """Make the network compute its conditioning once per plan; a function that is no module stays as it is.

        Raises:
            BackendError: The network cannot be computed in the dtype on the job's device.
        """
        from torch import nn

        from asd_policy.networks.backends.torch_network import torch_denoiser

        if isinstance(network, OnnxModel):
            raise BackendError(network.elsewhere)
        if self.dtype == FLOAT32 and not isinstance(network, nn.Module):
            return network
        return torch_denoiser(network, job, self)

    def prepare_tensor_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Make a sensor's network run in the dtype.

        Raises:
            BackendError: It is no module of PyTorch's, not on the job's device, or cannot be computed in the dtype.
        """
        from asd_policy.networks.backends.torch_sensor import torch_sensor

        return torch_sensor(network, job, self)
