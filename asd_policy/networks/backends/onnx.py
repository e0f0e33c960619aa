"""The network as ONNX Runtime runs it, on one of its execution providers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asd_policy._common.arrays import NUMPY, Device
from asd_policy.errors import BackendError, SpecError
from asd_policy.networks.backends.base import Backend, Encode, Job, SensorJob
from asd_policy.networks.backends.onnx_exported import ExportedModel
from asd_policy.networks.backends.onnx_network import OnnxCudaNetwork, OnnxFilmNetwork, OnnxNetwork
from asd_policy.networks.backends.onnx_session import (
    PROVIDERS,
    check_provider,
    check_signature,
    default_threads,
    open_session,
    provider_options,
    tensorrt_batch,
)
from asd_policy.networks.denoiser import Denoiser

MAX_GRAPHS = 16
"""CUDA graphs that a session keeps, one for each number of points; calls with yet other numbers run without."""


@dataclass(frozen=True)
class OnnxPart:
    """A model of its own within an ONNX file, checked by the file's loader."""

    path: Path
    """The file."""
    first: int
    """Where in it the model begins [bytes]."""
    size: int
    """Its length [bytes]."""

    def read(self) -> bytes:
        """Read the model."""
        with self.path.open("rb") as file:
            file.seek(self.first)
            return file.read(self.size)


@dataclass(frozen=True)
class OnnxModel:
    """A network that is an ONNX file: what `asd-policy export` writes, checked by its loader."""

    path: Path
    """The file."""
    many: OnnxPart | None = None
    """The network in the form for calls of many points on a CPU, if the file has it."""

    def forms(self, provider: str) -> Iterator[str | bytes]:
        """Give the models to open with a provider, as `Onnx` takes them; one after the other, as they may be large."""
        yield str(self.path)
        if self.many is not None and provider == "cpu":
            yield self.many.read()

    def __call__(self, x: Any, timestep: Any, cond: Any, /) -> Any:
        """Refuse: a file is no PyTorch network.

        Raises:
            BackendError: Always.
        """
        raise BackendError(self.elsewhere)

    @property
    def elsewhere(self) -> str:
        """What to say where something else than the backend onnx is to run it."""
        return f"{self.path} is an ONNX file: run it with the backend onnx, such as onnx:provider=cpu"


@dataclass(frozen=True)
class OnnxSensor(OnnxPart):
    """A sensor's network that lies within an ONNX file."""

    def __str__(self) -> str:
        return f"the sensor's model in {self.path}"

    def to(self, device: Device) -> "OnnxSensor":
        """Give itself: a file is on no device."""
        return self

    def __call__(self, seen: Any, /) -> Any:
        """Refuse: a file is no PyTorch network.

        Raises:
            BackendError: Always.
        """
        raise BackendError(f"{self} runs with the backend onnx alone, such as onnx:provider=cpu")


@dataclass(frozen=True)
class Onnx(Backend):
    """ONNX Runtime. A PyTorch network is exported first, in memory."""

    provider: str = "cpu"
    """The execution provider: cpu, cuda or tensorrt."""
    threads: int | None = None
    """Threads of a call on the CPU; None for as many as torch has, without torch for OMP_NUM_THREADS, else one for each
    CPU that the process may use."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            SpecError: There is no such provider, or the threads are not 1 or more.
        """
        if self.provider not in PROVIDERS:
            raise SpecError(f"provider={self.provider} is not one of {', '.join(PROVIDERS)}")
        if self.threads is not None and self.threads < 1:
            raise SpecError(f"threads={self.threads} is not 1 or more")

    @property
    def spec(self) -> str:
        """The full spec of this backend."""
        return f"onnx:provider={self.provider},threads={'auto' if self.threads is None else self.threads}"

    @property
    def dtype(self) -> str:
        """That of exported networks."""
        return "float32"

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Open a session on the network's file, or on an export of the network.

        Raises:
            BackendError: onnxruntime is missing, the provider is not there, points are on a device that it cannot
                reach, or the network cannot be exported or does not fit the job.
        """
        self._check_reach(job.device)
        if isinstance(network, OnnxModel):
            return self._open(network.forms(self.provider), str(network.path), job)
        from asd_policy.networks.backends.onnx_export import export_network

        name = f"the exported {type(network).__name__}"
        if self.provider == "cpu":
            return self._open_on_cpu(network, name, job)
        # On a GPU its libraries have better convolutions than products of gathered taps.
        return self._open([export_network(network, job)], name, job)

    def _open_on_cpu(self, network: Denoiser, name: str, job: Job) -> OnnxNetwork:
        """Open sessions on an export of a PyTorch network in the forms that are fastest on a CPU."""
        import torch

        from asd_policy.networks.backends.film import film_of
        from asd_policy.networks.backends.onnx_export import export_for_cpu

        film = film_of(network, job, torch.float32)
        if film is not None:
            network, job = film, replace(job, cond_dim=film.encoded_dim)
        opened = self._open(export_for_cpu(network, job), name, job)
        if film is None:
            return opened
        film.table = None  # the sessions have it
        return OnnxFilmNetwork(opened.sessions, ("cpu", 0), film)

    def prepare_sensor(self, network: Encode, job: SensorJob) -> Encode:
        """Open a session on a sensor's model in a file, or on an export of its network.

        Raises:
            BackendError: As `prepare`.
        """
        self._check_reach(job.device)
        if isinstance(network, OnnxSensor):
            return self._open([network.read()], str(network), job)
        from asd_policy.networks.backends.onnx_export import export_sensor

        return self._open([export_sensor(network, job)], f"the exported {type(network).__name__}", job)

    def _check_reach(self, device: Device) -> None:
        """Refuse a device that the provider cannot reach, and a provider that is not there."""
        kind = "cpu" if device == NUMPY else str(device).partition(":")[0]
        if kind not in ("cpu", "cuda") or (kind == "cuda" and self.provider == "cpu"):
            valid = "provider=cuda or provider=tensorrt" if kind == "cuda" else "a policy on cpu or cuda"
            raise BackendError(
                f"{self.spec} does not reach points on {device} without copying each of them; use {valid}"
            )
        check_provider(self.provider)

    def _open(self, forms: Iterable[str | bytes | ExportedModel], name: str, job: Job | SensorJob) -> OnnxNetwork:
        """Open a session on each form of a model: one, or on a CPU another one for many points, too.

        They are taken one after the other, and none is kept: they may have gigabytes.
        """
        on_gpu = str(job.device).startswith("cuda")
        stream, index = None, 0
        if on_gpu:
            import torch

            stream = torch.cuda.Stream(job.device)
            index = stream.device.index
        options = provider_options(self.provider, index, job, 0 if stream is None else stream.cuda_stream)
        threads = self.threads or default_threads()
        sessions = list(map(lambda form: open_session(form, name, options, threads), forms))
        for session in sessions:
            check_signature(session, name, job)
        if stream is None:
            return OnnxNetwork(sessions, ("cpu", 0))
        tensorrt = self.provider == "tensorrt"
        return OnnxCudaNetwork(
            sessions[0],
            ("cuda", index),
            stream,
            most_points=tensorrt_batch(job)["max"] if tensorrt else None,
            most_graphs=0 if tensorrt else MAX_GRAPHS,
        )
