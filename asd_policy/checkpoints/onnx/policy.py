"""ONNX files that `asd-policy export` wrote: each is a policy, with the record of `record.py` in its metadata.

Neither PyTorch nor the package onnx is needed to read one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asd_policy._common.arrays import Device
from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.onnx.graph import FORM, Span, is_onnx, read_onnx
from asd_policy.checkpoints.onnx.record import KEY, Map, PolicyRecord, read_record
from asd_policy.errors import CheckpointError
from asd_policy.networks.backends.onnx import Onnx, OnnxModel, OnnxPart, OnnxSensor
from asd_policy.policy.law import CHECKPOINT, TRAINED, Law
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import Sensor, SensorEncoder
from asd_policy.samplers import Sampler


def describe_onnx(path: Path) -> Description:
    """Describe an exported policy.

    Raises:
        CheckpointError: The file is not whole, or was not written by `asd-policy export`.
    """
    record, _ = _read(path)
    return Description(
        network=record.network,
        parameters=record.parameters,
        observation={
            name: list(record.sensors[name].shape) if name in record.sensors else [len(each["origin"])]
            for name, each in record.observation.items()
        },
        action={"action": [len(record.action["origin"])]},
        horizons={name: getattr(record.horizons, name) for name in ("n_obs_steps", "horizon", "n_action_steps")},
        scheduler=record.chain.config,
        num_inference_steps=len(record.chain),
        normalization={name: "affine" for name in (*record.observation, "action")},
        notes=(
            f"exported by asd_policy {record.package} from {record.source.get('policy', 'a policy without a name')}; "
            "the backend onnx runs it",
            *_trained_note(record),
        ),
    )


def load_onnx(path: Path, sampler: Sampler, device: Device) -> Policy:
    """Load an exported policy. Its network runs on the backend onnx, with the provider of the device.

    Args:
        path: The file.
        sampler: How to plan.
        device: Where to plan.

    Raises:
        CheckpointError: The file is not whole, not written by `asd-policy export`, or its record is damaged.
        ChainError: The record's scheduler cannot be sampled here.
        BackendError: onnxruntime or the provider is missing, or the graph does not fit the record.
        SpecError: The sampler's options do not fit the chain.
    """
    record, spans = _read(path)
    return Policy(
        denoiser=model_in_file(path, spans),
        chain=record.chain,
        sampler=sampler,
        horizons=record.horizons,
        observation=_encoder(path, record, spans),
        action=_affine(record.action),
        device=device,
        backend=Onnx("cuda" if str(device).startswith("cuda") else "cpu"),
    ).with_law(Law(record.chain, None, CHECKPOINT if record.own_plan is None else TRAINED))


def model_in_file(path: Path, spans: Mapping[str, Span]) -> OnnxModel:
    """Give the denoiser of a file in all forms that it has among the models within it."""
    return OnnxModel(path, OnnxPart(path, *spans[FORM]) if FORM in spans else None)


def _trained_note(record: PolicyRecord) -> tuple[str, ...]:
    """Write a note where the file's chain is not that of the checkpoint's own scheduler."""
    if record.own_plan is None:
        return ()
    return (
        f"it has the DDPM chain that its network was trained for (--chain {TRAINED}); the checkpoint's own scheduler "
        f"was DDIM without noise, its plan {record.own_plan:.40}",
    )


def _encoder(path: Path, record: PolicyRecord, spans: Mapping[str, Span]) -> SensorEncoder:
    features: dict[str, Affine | Sensor] = {name: _affine(each) for name, each in record.observation.items()}
    networks = {model: OnnxSensor(path, *span) for model, span in spans.items()}  # of several sensors it may be one
    for name, sensor in record.sensors.items():
        network = networks.get(sensor.model)
        if network is None:
            raise CheckpointError(f"{path} has no model {sensor.model!r:.60} of the sensor {name!r:.60}")
        features[name] = Sensor(sensor.shape, _affine(record.observation[name]), network, sensor.size, sensor.steps)
    return SensorEncoder(features, record.inpaints, record.by_feature, record.random_crop)


def _read(path: Path) -> tuple[PolicyRecord, Mapping[str, Span]]:
    contents = read_onnx(path)
    if KEY not in contents.metadata:
        there = ", ".join(sorted(contents.metadata)) or "none"
        raise CheckpointError(
            f"{path} was not exported by asd-policy: it lacks the metadata record {KEY!r} (it has {there:.200}), "
            "without which its noise schedule, normalisation and horizons are unknown; `asd-policy export --policy "
            "CHECKPOINT --format onnx --out FILE` writes a file that has it"
        )
    try:
        record = read_record(contents.metadata[KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if record.graph != contents.digest:
        raise CheckpointError(
            f"{path} was changed after its export: the sha256 of its graph and weights is {contents.digest}, not "
            f"{record.graph:.64}"
        )
    return record, contents.parts


def _affine(parts: Map) -> Affine:
    values: dict[str, Any] = dict(parts)  # arrays, until the policy takes them to its device
    return Affine(**values)


FORMAT = Format(is_onnx, load_onnx, describe_onnx)
