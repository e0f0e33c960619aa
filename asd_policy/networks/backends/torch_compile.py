"""The network compiled by `torch.compile`."""

from dataclasses import dataclass
from typing import ClassVar

from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.denoiser import Denoiser


@dataclass(frozen=True)
class TorchCompile(TorchBackend):
    """PyTorch's compiler: fewer and larger kernels. Preparing a network takes half a minute and more."""

    name: ClassVar[str] = "torch-compile"

    def prepare_tensors(self, network: Denoiser, job: Job) -> Denoiser:
        """Compile the network.

        Raises:
            BackendError: The compiler cannot run here, or not on this network.
        """
        from asd_policy.networks.backends.torch_compiled import compile_network

        return compile_network(network, job, self)

    def prepare_tensor_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Compile a sensor's network.

        Raises:
            BackendError: The compiler cannot run here, or not on this network.
        """
        from asd_policy.networks.backends.torch_compiled import compile_sensor

        return compile_sensor(network, job, self)
