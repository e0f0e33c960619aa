"""Write a policy as one ONNX file that needs nothing else, after a comparison with the policy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asd_policy._common.arrays import Device
from asd_policy._common.files import atomic_file
from asd_policy.chain.flow import is_flow
from asd_policy.checkpoints.onnx.graph import FORM, SENSOR, Span, read_onnx
from asd_policy.checkpoints.onnx.policy import model_in_file
from asd_policy.checkpoints.onnx.record import KEY, read_record, write_record
from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Job, SensorJob
from asd_policy.networks.backends.onnx import Onnx, OnnxModel, OnnxSensor
from asd_policy.networks.backends.onnx_export import (
    MAX_BYTES,
    example,
    export_for_cpu,
    export_sensor,
    sensor_example,
)
from asd_policy.networks.backends.onnx_exported import ExportedModel
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder

if TYPE_CHECKING:
    import onnx

CHECKED = (1, 2, 7, 64)
"""Numbers of points at which a file is compared with the network."""
TOLERANCE = 1e-4
"""Largest difference, in units of the largest prediction: far above the rounding of float32, about 1e-6, and far below
the error of a wrong operator."""


def export_policy(policy: Policy, path: Path, source: Mapping[str, Any]) -> float:
    """Write a policy as one ONNX file, atomically, after a comparison with the policy's network.

    Args:
        policy: Loaded from a checkpoint of PyTorch weights.
        path: File to write.
        source: Where the policy came from, as JSON: its name, format and the sha256 of its files.

    Returns:
        The largest difference of predictions, in units of the largest one.

    Raises:
        BackendError: The policy is a flow's, a package is missing, or a network cannot be exported, or all are too
            large for one file, or the file predicts or encodes something else; or a library's own encoder encodes the
            observations.
        CheckpointError: The file would not be loaded again.
    """
    network, encoder = policy.network, policy.encoder
    if is_flow(policy.chain.config):
        raise BackendError("an exported file holds the chain of a diffusion's scheduler, and this policy is a flow's")
    if isinstance(network, OnnxModel):
        raise BackendError(f"the policy is an ONNX file already: {network.path}")
    if not isinstance(encoder, SensorEncoder):
        raise BackendError(f"the policy's encoder is a {type(encoder).__name__} of its library, which is not exported")
    _check_size(network, *(sensor.network for sensor in encoder.sensors.values()))
    forms = export_for_cpu(network, policy.job)
    model = next(forms).whole()
    assert isinstance(network, nn.Module)  # or it would not have been exported
    import onnx

    models = _add_sensors(model, encoder, policy.device)
    # It has more weights, and is not made where there is no room for as many.
    many = next(forms, None) if 2 * model.ByteSize() <= MAX_BYTES else None
    if many is not None and model.ByteSize() + many.size <= MAX_BYTES:
        _add_part(model, FORM, many)
    del many, forms
    parameters = sum(each.numel() for each in network.parameters())
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        del model  # it may have a gigabyte
        digest = read_onnx(temporary).digest
        record = write_record(policy, type(network).__name__, parameters, digest, source, models)
        note = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=KEY, value=record)])
        with temporary.open("ab") as file:
            file.write(note.SerializeToString())  # a message that follows another one is merged into it
        contents = read_onnx(temporary)
        read_record(contents.metadata[KEY])
        sensed = _compare_sensors(temporary, encoder, {name: contents.parts[key] for name, key in models.items()})
        return max(_compare(model_in_file(temporary, contents.parts), policy, policy.job), sensed)


def _check_size(*networks: object) -> None:
    """Refuse networks that are too large for one file; a shared one counts once.

    Raises:
        BackendError: They are.
    """
    modules = [each for each in networks if isinstance(each, nn.Module)]
    tensors = {id(tensor): tensor for each in modules for tensor in (*each.parameters(), *each.buffers())}.values()
    size = sum(tensor.nbytes for tensor in tensors)
    if size > MAX_BYTES:
        names = " and ".join(dict.fromkeys(type(each).__name__ for each in modules))
        raise BackendError(
            f"the {names} has {size} bytes of weights; one ONNX file has {MAX_BYTES} at most, and "
            "weights in files beside it are not written"
        )


def _add_sensors(model: "onnx.ModelProto", encoder: SensorEncoder, device: Device) -> dict[str, str]:
    """Add the models of sensors' networks, each once; return for each sensor the name of the weight that holds its."""
    models: dict[str, str] = {}
    known: dict[tuple[int, SensorJob], str] = {}
    for name, sensor in encoder.sensors.items():
        key = id(sensor.network), sensor.job(device)
        if key not in known:
            known[key] = f"{SENSOR}{len(known)}"
            _add_part(model, known[key], export_sensor(sensor.network, sensor.job(device)))
        models[name] = known[key]
    return models


def _add_part(model: "onnx.ModelProto", name: str, part: ExportedModel) -> None:
    """Put a model into another one, as a weight that no operator reads."""
    from onnx import TensorProto

    content = part.whole().SerializeToString()
    weight = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[len(content)], raw_data=content)
    model.graph.initializer.append(weight)


def _compare_sensors(path: Path, encoder: SensorEncoder, spans: Mapping[str, Span]) -> float:
    """Compute the largest relative difference between a file's features and the policy's.

    Raises:
        BackendError: It is too large.
    """
    worst, cpu = 0.0, torch.device("cpu")
    for name, sensor in encoder.sensors.items():
        job = sensor.job(cpu)
        exported = Onnx(provider="cpu").prepare_sensor(OnnxSensor(path, *spans[name]), job)
        for count in (each for each in CHECKED if each <= max(job.most, CHECKED[1])):
            seen = sensor_example(job, count)
            with torch.inference_mode():
                expected = sensor.network(seen.to(_device_of(sensor.network))).float().cpu()
                worst = max(worst, _difference(exported(seen), expected, f"encodes {name!r}", count))
    return worst


def _device_of(network: object) -> torch.device:
    assert isinstance(network, nn.Module)  # or it would not have been exported
    return next((each.device for each in network.parameters()), torch.device("cpu"))


def _compare(model: OnnxModel, policy: Policy, job: Job) -> float:
    """Compute the largest relative difference between a file's predictions and the policy's.

    Raises:
        BackendError: It is too large.
    """
    exported = Onnx(provider="cpu").prepare(model, replace(job, device=torch.device("cpu")))
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    with torch.inference_mode():
        for count in CHECKED:
            inputs = example(job, count, generator)
            expected = policy.network(*inputs).float().cpu()
            found = exported(*(each.cpu() for each in inputs))
            worst = max(worst, _difference(found, expected, "predicts", count))
    return worst


def _difference(found: torch.Tensor, expected: torch.Tensor, does: str, count: int) -> float:
    """Compute the difference of two networks' outputs, in units of the largest number.

    Raises:
        BackendError: It is too large.
    """
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max()) / (largest or 1.0)
    if not difference <= TOLERANCE:  # NaN, too
        raise BackendError(
            f"the exported network differs from the policy's by {difference:.2g} of its largest number where it {does}"
            f", with {count} points in a call; {TOLERANCE:g} is the most that rounding explains; nothing was written"
        )
    return difference
