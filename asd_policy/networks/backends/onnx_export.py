"""A PyTorch network as an ONNX model, any number of points in a call."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from asd_policy._common import arrays
from asd_policy._common.extras import install
from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Encode, Job, SensorJob
from asd_policy.networks.backends.onnx_exported import ExportedModel
from asd_policy.networks.backends.onnx_lowering import MANY, lower
from asd_policy.networks.backends.onnx_session import INPUTS, OUTPUT, SENSOR_INPUTS, SENSOR_OUTPUT, reason
from asd_policy.networks.denoiser import Denoiser

MAX_BYTES = 2**31 - 2**20
"""Of the weights in a file: a protocol buffer has 2 GiB at most, and the graph and the record need a little."""


def export_network(network: Denoiser, job: Job) -> ExportedModel:
    """Export a network as it is.

    Args:
        network: A module of float32 weights.
        job: What it will be called for.

    Returns:
        A model with the inputs x [N, *event] (float32), timestep [N] (int64) and cond [N, cond_dim] (float32), and the
        output prediction [N, *event].

    Raises:
        BackendError: A package is missing, or the network is no module or cannot be exported; or its timesteps are no
            integers.
    """
    return _stripped(_export_network(network, job))


def export_for_cpu(network: Denoiser, job: Job) -> Iterator[ExportedModel]:
    """Export a network in the forms that ONNX Runtime computes fastest on a CPU, one after the other.

    Convolutions become matrix products (`onnx_lowering.py`), unless a file would be too large by that alone.

    Args:
        network: As for `export_network`.
        job: As for `export_network`.

    Yields:
        A model for calls of any number of points, and where there is a faster one for `MANY` points or more that is not
        larger than a file can be, that.

    Raises:
        BackendError: As `export_network`.
    """
    exported = _export_network(network, job)
    if exported.size > MAX_BYTES:
        yield _stripped(lower(exported, 0))
        return
    lowered = (lower(exported, points) for points in (1, 0))
    form = next((each for each in lowered if each.size <= MAX_BYTES), exported)
    kinds = [node.op_type for node in form.model.graph.node]
    yield _stripped(form)
    del form
    many = lower(exported, MANY)
    if many.size <= MAX_BYTES and [node.op_type for node in many.model.graph.node] != kinds:
        yield _stripped(many)


def _export_network(network: Denoiser, job: Job) -> ExportedModel:
    """Export a network, with the shapes of its values."""
    if not job.chain.has_integer_timesteps:
        raise BackendError(
            "an ONNX file's timesteps are integers, and this flow's network gets times in 0 … 1: use torch-eager or "
            "torch-compile"
        )
    return _export(network, example(job, 3, torch.Generator().manual_seed(0)), list(INPUTS), OUTPUT)


def export_sensor(network: Encode, job: SensorJob) -> ExportedModel:
    """Export a sensor's network.

    Args:
        network: A module of float32 weights.
        job: What it will be called for.

    Returns:
        A model with the input seen [N, *shape] (float32) and the output features [N, size].

    Raises:
        BackendError: As `export_network`.
    """
    return _stripped(_export(network, (sensor_example(job, 3),), list(SENSOR_INPUTS), SENSOR_OUTPUT))


def _export(network: object, inputs: tuple[Tensor, ...], names: list[str], output: str) -> ExportedModel:
    """Export a module; the first dimension of all inputs is the same, of any size."""
    if not isinstance(network, nn.Module):
        raise BackendError(f"a {type(network).__name__} is no PyTorch module, and cannot be exported to ONNX")
    dtypes = {each.dtype for each in network.parameters()} - {torch.float32}
    if dtypes:
        raise BackendError(
            f"the {type(network).__name__} has weights of {', '.join(map(str, dtypes))}, not torch.float32"
        )
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise BackendError(f"the export to ONNX needs {' and '.join(missing)}: {install('onnx')}")
    rows = {0: torch.export.Dim("points")}
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                dynamic_shapes=(rows,) * len(inputs),
                input_names=names,
                output_names=[output],
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of several libraries
        raise BackendError(f"the {type(network).__name__} cannot be exported to ONNX: {reason(error)}") from None
    assert program is not None
    constants = program.model.graph.initializers
    weights = {name: each.const_value.numpy() for name, each in constants.items() if each.const_value is not None}
    constants.clear()  # so they are not copied
    return ExportedModel(program.model_proto, weights)


def sensor_example(job: SensorJob, count: int) -> Tensor:
    """Draw what a sensor may have seen, normalised, [count, *shape], at random but the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return (2 * arrays.uniforms((count, *job.shape), generator, generator.device) - 1).to(job.device)


def example(job: Job, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points, timesteps and conditioning like those of a call, at random.

    Args:
        job: What it is called for.
        count: Number of points N.
        generator: On the CPU.
    """
    host = generator.device
    steps = torch.randint(len(job.chain), (count,), generator=generator, device=host)
    x = arrays.normals((count, *job.event), generator, host)
    cond = 2 * arrays.uniforms((count, job.cond_dim), generator, host) - 1
    timestep = torch.from_numpy(job.chain.timesteps)[steps]
    return x.to(job.device), timestep.to(job.device), cond.to(job.device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings of its own deprecations and of packages that it could use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _stripped(exported: ExportedModel) -> ExportedModel:
    """Leave out what the exporter notes for debugging: names, stack traces, paths of this machine."""
    stripped = exported.copied()
    model, graph = stripped.model, stripped.model.graph
    del model.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    for each in (*graph.node, *graph.input, *graph.output):
        each.doc_string = ""
        del each.metadata_props[:]
    return stripped
