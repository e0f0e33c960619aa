"""CUDA graphs: the network and the sampler's arithmetic, without Python between the kernels."""

from dataclasses import dataclass
from typing import ClassVar

from asd_policy._common.arrays import Device
from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.denoiser import Denoiser


@dataclass(frozen=True)
class TorchCudaGraph(TorchBackend):
    """PyTorch's kernels, captured once for each batch and window and replayed. Needs a CUDA GPU."""

    name: ClassVar[str] = "torch-cuda-graph"

    def prepare_tensors(self, network: Denoiser, job: Job) -> Denoiser:
        """Give the network a launcher; samplers capture at the first plan of each shape.

        Raises:
            BackendError: The policy plans on no CUDA GPU, or the network cannot be computed there in the dtype.
        """
        self._check_gpu(job.device)
        from asd_policy.networks.backends.cuda_graphs import GraphedDenoiser
        from asd_policy.networks.backends.torch_network import torch_denoiser

        return GraphedDenoiser(torch_denoiser(network, job, self), job.device)

    def prepare_tensor_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Give a sensor's network a launcher; each number of rows is captured when it is first met.

        Raises:
            BackendError: The policy plans on no CUDA GPU, or the network cannot be computed there in the dtype.
        """
        self._check_gpu(job.device)
        from asd_policy.networks.backends.cuda_graphs import CudaGraphs
        from asd_policy.networks.backends.torch_sensor import RecordedSensor, torch_sensor

        return RecordedSensor(torch_sensor(network, job, self), CudaGraphs(job.device))

    def _check_gpu(self, device: Device) -> None:
        if str(device).partition(":")[0] != "cuda":
            raise BackendError(
                f"{self.spec} needs a CUDA GPU, and the policy plans on {device}; torch-eager, torch-compile and "
                "onnx run there"
            )
