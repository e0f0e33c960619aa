"""Write a policy as one ONNX file that needs nothing else, after a comparison with the policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asd_policy._common.files import atomic_file
from asd_policy.checkpoints.onnx.graph import read_onnx
from asd_policy.checkpoints.onnx.record import KEY, read_record, write_record
from asd_policy.errors import BackendError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.backends.onnx import Onnx, OnnxModel
from asd_policy.networks.backends.onnx_export import example, export_network
from asd_policy.policy.observation import refuse_cameras
from asd_policy.policy.policy import Policy

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
        BackendError: A package is missing, or the network cannot be exported, is too large for one file, or the file
            predicts something else; or the policy has cameras.
        CheckpointError: The file would not be loaded again.
    """
    refuse_cameras(policy.observation_shapes, "export", BackendError)
    network = policy.network
    job = policy.job
    if isinstance(network, OnnxModel):
        raise BackendError(f"the policy is an ONNX file already: {network.path}")
    model = export_network(network, job, lowered=True)
    assert isinstance(network, nn.Module)  # or it would not have been exported
    import onnx

    parameters = sum(each.numel() for each in network.parameters())
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        digest = read_onnx(temporary).digest
        record = write_record(policy, type(network).__name__, parameters, digest, source)
        note = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=KEY, value=record)])
        with temporary.open("ab") as file:
            file.write(note.SerializeToString())  # a message that follows another one is merged into it
        read_record(read_onnx(temporary).metadata[KEY])
        return _compare(temporary, policy, job)


def _compare(path: Path, policy: Policy, job: Job) -> float:
    """Compute the largest relative difference between a file's predictions and the policy's.

    Raises:
        BackendError: It is too large.
    """
    exported = Onnx(provider="cpu").prepare(
        OnnxModel(path), Job(job.chain, job.event, job.cond_dim, torch.device("cpu"))
    )
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    with torch.inference_mode():
        for count in CHECKED:
            inputs = example(job, count, generator)
            expected = policy.network(*inputs).float().cpu()
            found = exported(*(each.cpu() for each in inputs))
            difference = float((found - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:  # NaN, too
                raise BackendError(
                    f"the exported network differs from the policy's by {difference:.2g} of its largest prediction "
                    f"with {count} points in a call; {TOLERANCE:g} is the most that rounding explains; nothing was "
                    "written"
                )
            worst = max(worst, difference)
    return worst
