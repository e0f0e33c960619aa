"""The network as ONNX Runtime runs it, on one of its execution providers."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asd_policy.backends.base import Backend, Job
from asd_policy.backends.onnx_network import OnnxCudaNetwork, OnnxNetwork
from asd_policy.denoiser import Denoiser
from asd_policy.errors import BackendError, SpecError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's execution providers by their name in a spec."""
INPUTS = ("x", "timestep", "cond")
OUTPUT = "prediction"
TENSORRT_BATCH = (1, 32, 512)
"""Fewest, usual and most points of a call that TensorRT builds its engine for."""
MAX_GRAPHS = 16
"""CUDA graphs that a session keeps, one for each number of points; calls with yet other numbers run without."""


@dataclass(frozen=True)
class OnnxModel:
    """A network that is an ONNX file: what `asd-policy export` writes, checked by its loader."""

    path: Path
    """The file."""

    def __call__(self, x: Any, timestep: Any, cond: Any, /) -> Any:
        """Refuse: a file is no PyTorch network.

        Raises:
            BackendError: Always.
        """
        raise BackendError(f"{self.path} is an ONNX file: run it with the backend onnx, such as onnx:provider=cpu")


@dataclass(frozen=True)
class Onnx(Backend):
    """ONNX Runtime. A PyTorch network is exported first, in memory."""

    provider: str = "cpu"
    """Where it computes: cpu, cuda or tensorrt."""
    threads: int | None = None
    """Threads of a call on the CPU; None for as many as torch has, without torch for OMP_NUM_THREADS, else one for each CPU
    that the process may use."""

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
        """Open a session on the network's file, or on what it is exported to.

        Raises:
            BackendError: onnxruntime is missing, the provider is not there, points are on a device that it does not
                reach, or the network cannot be exported or does not fit the job.
        """
        device = _Device.of(job.device)
        if device.kind not in ("cpu", "cuda") or (device.kind == "cuda" and self.provider == "cpu"):
            valid = "provider=cuda or provider=tensorrt" if device.kind == "cuda" else "a policy on cpu or cuda"
            raise BackendError(
                f"{self.spec} does not reach points on {job.device} without copying each of them; use {valid}"
            )
        self._check_provider()
        if isinstance(network, OnnxModel):
            return self._open(str(network.path), str(network.path), job, device)
        from asd_policy.exporting.network import export_network

        # On a GPU its libraries have better convolutions than products of gathered taps.
        model = export_network(network, job, lowered=self.provider == "cpu")
        return self._open(model.SerializeToString(), f"the exported {type(network).__name__}", job, device)

    def _check_provider(self) -> None:
        available = import_onnxruntime().get_available_providers()
        if PROVIDERS[self.provider] not in available:
            there = [name for name, provider in PROVIDERS.items() if provider in available]
            raise BackendError(
                f"this onnxruntime has no provider {self.provider}; it has {', '.join(there)}. GPUs need the package "
                "onnxruntime-gpu in the place of onnxruntime: pip install asd-policy[onnx-gpu]"
            )

    def _open(self, model: str | bytes, name: str, job: Job, device: "_Device") -> OnnxNetwork:
        stream = None
        if device.kind == "cuda":
            import torch

            stream = torch.cuda.Stream(job.device)
        options = provider_options(self.provider, device.index, job, 0 if stream is None else stream.cuda_stream)
        session = open_session(model, name, options, self.threads if self.threads else default_threads())
        check_signature(session, name, job)
        if stream is None:
            return OnnxNetwork(session, (device.kind, device.index))
        tensorrt = self.provider == "tensorrt"
        return OnnxCudaNetwork(
            session,
            (device.kind, device.index),
            stream,
            most_points=TENSORRT_BATCH[-1] if tensorrt else None,
            most_graphs=0 if tensorrt else MAX_GRAPHS,
        )


@dataclass(frozen=True)
class _Device:
    """A torch device, read without torch."""

    kind: str
    index: int

    @classmethod
    def of(cls, device: Any) -> "_Device":
        kind, _, index = str(device).partition(":")
        return cls(kind, int(index or 0))


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the backend onnx needs onnxruntime ({error}): pip install asd-policy[onnx], or asd-policy[onnx-gpu] "
            "for cuda and tensorrt"
        ) from None
    return onnxruntime


def default_threads() -> int:
    """Return how many threads a call gets: torch's number, or OMP_NUM_THREADS, or that of the usable CPUs."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provider_options(provider: str, index: int, job: Job, stream: int) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session, with their options: the one asked for, and those it hands nodes on to.

    Args:
        provider: Its name in a spec.
        index: Of the GPU.
        job: What the network is called for.
        stream: Address of the CUDA stream to compute in, where points are on the GPU; 0 where they are on the CPU.
    """
    cpu = (PROVIDERS["cpu"], {})
    if provider == "cpu":
        return [cpu]
    common = {"device_id": str(index)} | ({"user_compute_stream": str(stream)} if stream else {})
    cuda = (PROVIDERS["cuda"], {**common, "use_tf32": "0"})
    if provider == "cuda":
        # Graphs replay fixed addresses, so they are for points on the GPU, where OnnxCudaNetwork keeps such.
        cuda[1]["enable_cuda_graph"] = "1" if stream else "0"
        return [cuda, cpu]
    folder = str(engine_cache())
    shapes = {
        name: ",".join(f"{key}:{'x'.join(map(str, (batch, *dims)))}" for key, dims in input_shapes(job).items())
        for name, batch in zip(("min", "opt", "max"), TENSORRT_BATCH, strict=True)
    }
    tensorrt = {
        **common,
        "trt_cuda_graph_enable": "0",  # its graphs are not told apart by numbers of points
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        **{f"trt_profile_{name}_shapes": text for name, text in shapes.items()},
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda, cpu]


def input_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input of a network for a job, without the batch."""
    return dict(zip(INPUTS, (job.event, (), (job.cond_dim,)), strict=True))


def engine_cache() -> Path:
    """Return where TensorRT's engines are kept, which take minutes to build: in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "asd_policy" / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def session_options(threads: int) -> "SessionOptions":
    """Return the options of a session: one call at a time, and a call's nodes one after the other."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; the log would say it a second time
    return options


def open_session(
    model: str | bytes, name: str, providers: list[tuple[str, dict[str, str]]], threads: int
) -> "InferenceSession":
    """Open a session.

    Args:
        model: A path, or the file's content.
        name: What it is, for messages.
        providers: As `provider_options` returns them.
        threads: Of a call on the CPU.

    Raises:
        BackendError: ONNX Runtime cannot run the model, or took another provider than the one asked for.
    """
    onnxruntime = import_onnxruntime()
    try:
        session = onnxruntime.InferenceSession(model, session_options(threads), providers=providers)
    except Exception as error:  # its exceptions have no common class but this
        raise BackendError(f"ONNX Runtime cannot run {name}: {one_line(error)}") from None
    # Where a provider's libraries or device are missing, ONNX Runtime goes on with the next one and says nothing.
    wanted, got = providers[0][0], session.get_providers()
    if not got or got[0] != wanted:
        raise BackendError(
            f"ONNX Runtime cannot start the provider {wanted} here and took {', '.join(got)}: is there such a device, "
            "and its driver, CUDA and (for TensorRT) TensorRT libraries of the versions that this onnxruntime is for?"
        )
    return session


def one_line(error: Exception) -> str:
    """Return the first lines of an error's message as one, not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_signature(session: "InferenceSession", name: str, job: Job) -> None:
    """Refuse a model whose inputs and output are not those of a network for the job.

    Raises:
        BackendError: They are not.
    """
    shapes = input_shapes(job)
    types = dict(zip(INPUTS, ("tensor(float)", "tensor(int64)", "tensor(float)"), strict=True))
    wanted = {key: (types[key], dims) for key, dims in shapes.items()}
    _compare(name, "inputs", session.get_inputs(), wanted)
    _compare(name, "outputs", session.get_outputs(), {OUTPUT: ("tensor(float)", job.event)})


def _compare(name: str, kind: str, found: list[Any], wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compare names, types and shapes; the batch has to be any."""
    there = {each.name: (each.type, tuple(each.shape[1:])) for each in found}
    if there != wanted or not all(each.shape and isinstance(each.shape[0], str) for each in found):
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in found)
        told_wanted = ", ".join(f"{key} {kind} {['N', *dims]}" for key, (kind, dims) in wanted.items())
        raise BackendError(f"{name} has the {kind} {told:.200}; the policy needs {told_wanted}")
