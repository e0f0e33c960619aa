"""Sessions of ONNX Runtime: execution providers, options, and the check that a model fits."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asd_policy._common.extras import install
from asd_policy.errors import BackendError, one_line
from asd_policy.networks.backends.base import Job, SensorJob
from asd_policy.networks.backends.onnx_exported import ExportedModel

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's execution providers by their name in a spec."""
INPUTS = {"x": "tensor(float)", "timestep": "tensor(int64)", "cond": "tensor(float)"}
"""The network's inputs by name, with their types."""
OUTPUT = "prediction"
SENSOR_INPUTS = {"seen": "tensor(float)"}
"""The input of a sensor's network."""
SENSOR_OUTPUT = "features"
TENSORRT_BATCH = {"min": 1, "opt": 32, "max": 512}
"""Fewest, usual and most points of a call that TensorRT builds its engine for."""


def import_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the backend onnx needs onnxruntime ({error}): {install('onnx' if find_spec('torch') else 'edge')}, or "
            "asd-policy[onnx-gpu] for cuda and tensorrt"
        ) from None
    return onnxruntime


def check_provider(provider: str) -> None:
    """Refuse a provider that the installed onnxruntime was not built with.

    Raises:
        BackendError: It was not, or there is no onnxruntime.
    """
    available = import_onnxruntime().get_available_providers()
    if PROVIDERS[provider] not in available:
        there = [name for name, full in PROVIDERS.items() if full in available]
        raise BackendError(
            f"this onnxruntime has no provider {provider}; it has {', '.join(there)}. GPUs need the package "
            f"onnxruntime-gpu in the place of onnxruntime: {install('onnx-gpu')}"
        )


def default_threads() -> int:
    """Choose the threads of a call: torch's number, or OMP_NUM_THREADS, or that of the usable CPUs."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provider_options(provider: str, index: int, job: Job | SensorJob, stream: int) -> list[tuple[str, dict[str, str]]]:
    """List a session's providers with their options: the one asked for, and those that take its leftover nodes.

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
        # Graphs replay fixed addresses, so they need points on the GPU, where OnnxCudaNetwork keeps fixed memory.
        cuda[1]["enable_cuda_graph"] = "1" if stream else "0"
        return [cuda, cpu]
    folder = str(engine_cache())
    shapes = {
        name: ",".join(f"{key}:{'x'.join(map(str, (batch, *dims)))}" for key, dims in input_shapes(job).items())
        for name, batch in tensorrt_batch(job).items()
    }
    tensorrt = {
        **common,
        "trt_cuda_graph_enable": "0",  # it keeps one graph for all numbers of points
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        **{f"trt_profile_{name}_shapes": text for name, text in shapes.items()},
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda, cpu]


def tensorrt_batch(job: Job | SensorJob) -> dict[str, int]:
    """List fewest, usual and most rows of a call that TensorRT builds its engine for."""
    return TENSORRT_BATCH if isinstance(job, Job) else {"min": 1, "opt": 1, "max": job.most}


def input_shapes(job: Job | SensorJob) -> dict[str, tuple[int, ...]]:
    """List the shape of each input of a network for a job, without the batch."""
    if isinstance(job, SensorJob):
        return dict.fromkeys(SENSOR_INPUTS, job.shape)
    return {"x": job.event, "timestep": (), "cond": (job.cond_dim,)}


def engine_cache() -> Path:
    """Find the folder in the user's cache for TensorRT's engines, which take minutes to build."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "asd_policy" / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def session_options(threads: int) -> Any:
    """Make the options of a session: one call at a time, and a call's nodes one after the other."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not by a file's name
    options.log_severity_level = 4  # errors are raised; the log would repeat them
    return options


def open_session(
    model: str | bytes | ExportedModel, name: str, providers: list[tuple[str, dict[str, str]]], threads: int
) -> "InferenceSession":
    """Open a session.

    Args:
        model: A path, the file's content, or an export, of which ONNX Runtime makes a copy.
        name: What it is, for messages.
        providers: As `provider_options` returns them.
        threads: Of a call on the CPU.

    Raises:
        BackendError: ONNX Runtime cannot run the model, or took another provider than the one asked for; or it is of a
            version that opens files alone.
    """
    onnxruntime, options = import_onnxruntime(), session_options(threads)
    lent = None
    if isinstance(model, ExportedModel):
        model, lent = _lend_weights(model, options)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # its exceptions have no common class but this
        raise BackendError(f"ONNX Runtime cannot run {name}: {reason(error)}") from None
    del lent
    # It would keep the file's content beside the weights for as long as it lives, for a change of providers.
    session._model_bytes = None
    # Where a provider's libraries or device are missing, ONNX Runtime goes on with the next one without an error.
    wanted, got = providers[0][0], session.get_providers()
    if not got or got[0] != wanted:
        raise BackendError(
            f"ONNX Runtime cannot start the provider {wanted} here and took {', '.join(got)}: is there such a device, "
            "and its driver, CUDA and (for TensorRT) TensorRT libraries of the versions that this onnxruntime is for?"
        )
    return session


def _lend_weights(exported: ExportedModel, options: Any) -> tuple[bytes, object]:
    """Give a session's options the weights of an export.

    Returns:
        The model's content, and what has to be kept until a session is open: the options have the weights' addresses.
    """
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise BackendError(
            f"to run a PyTorch network takes onnxruntime 1.24 or newer, and this is {import_onnxruntime().__version__}"
        )
    content, files = exported.referring()
    options.add_external_initializers_from_files_in_memory(
        list(files), list(files.values()), [len(each) for each in files.values()]
    )
    return content, files


def reason(error: Exception) -> str:
    """Shorten an error's message to one line."""
    return one_line(str(error), 300) or type(error).__name__


def check_signature(session: "InferenceSession", name: str, job: Job | SensorJob) -> None:
    """Refuse a model whose inputs and output are not those of a network for the job.

    Raises:
        BackendError: They are not.
    """
    types = INPUTS | SENSOR_INPUTS
    output, shape = (OUTPUT, job.event) if isinstance(job, Job) else (SENSOR_OUTPUT, (job.size,))
    _compare(name, "inputs", session.get_inputs(), {key: (types[key], dims) for key, dims in input_shapes(job).items()})
    _compare(name, "outputs", session.get_outputs(), {output: ("tensor(float)", shape)})


def _compare(name: str, kind: str, found: Sequence[Any], wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compare names, types and shapes; the batch has to be any."""
    there = {each.name: (each.type, tuple(each.shape[1:])) for each in found}
    if there != wanted or not all(each.shape and isinstance(each.shape[0], str) for each in found):
        shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in found)
        needed = ", ".join(f"{key} {type_} {['N', *dims]}" for key, (type_, dims) in wanted.items())
        raise BackendError(f"{name} has the {kind} {shown:.200}; the policy needs {needed}")
