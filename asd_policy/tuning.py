"""A policy's experience as a file: what `asd-policy tune` leaves at a checkpoint and `load_policy` reads."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from asd_policy.chain import GaussianChain
from asd_policy.errors import CheckpointError
from asd_policy.experience import Experience
from asd_policy.files import atomic_file
from asd_policy.hardware import hardware

FILE = "asd_tuning.safetensors"
_VERSION = "1"


def tuning_file(checkpoint: Path) -> Path:
    """Return where a checkpoint's tuning is: in its folder, or beside it where it is a file."""
    return checkpoint / FILE if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.name}.{FILE}")


def save_tuning(path: Path, experience: Experience, device: torch.device) -> None:
    """Write an experience, atomically.

    Args:
        path: File to write.
        experience: With one plan or more.
        device: What its latencies were measured on.
    """
    metadata = {
        "version": _VERSION,
        "plans": str(experience.plans),
        "overhead": repr(experience.overhead),
        "latency": json.dumps(experience.latency),
        "hardware": hardware(device),
        "torch": torch.__version__,
    }
    tensors = {name: sums.contiguous().cpu() for name, sums in experience.moments.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_tuning(path: Path, chain: GaussianChain, dim: int, device: torch.device) -> Experience:
    """Read an experience. Latencies of other hardware or another torch are left out, and measured anew when needed.

    Args:
        path: Written by `save_tuning`.
        chain: Of the policy.
        dim: Numbers in one of its plans D.
        device: Where it plans.

    Raises:
        CheckpointError: The file is damaged, or of another policy.
    """
    steps = len(chain)
    shapes = {"cross": (steps, dim, dim), **dict.fromkeys(("noise", "change", "judged", "refused"), (steps,))}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Looked up before anything is read: a size in the file is not to be trusted with memory.
            for name, shape in shapes.items():
                found = tuple(file.get_slice(name).get_shape())
                if found != shape:
                    raise CheckpointError(f"{path} is of another policy: {name} has shape {found}, not {shape}")
            moments = {name: file.get_tensor(name).float().to(device) for name in shapes}
        if metadata.get("version") != _VERSION:
            raise ValueError(f"version {metadata.get('version')!r} is not {_VERSION!r}")
        plans, overhead = int(metadata["plans"]), float(metadata["overhead"])
        latency = {int(points): float(seconds) for points, seconds in json.loads(metadata["latency"]).items()}
        numbers = (overhead, *latency.values())
        if plans < 1 or not all(0 <= number < float("inf") for number in numbers):
            raise ValueError("its numbers are out of range")
        if not all(bool(sums.isfinite().all()) for sums in moments.values()):
            raise ValueError("it holds NaN or infinity")
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}; delete it or run asd-policy tune again") from None
    same = (metadata.get("hardware"), metadata.get("torch")) == (hardware(device), torch.__version__)
    return Experience(plans, moments, latency if same else {}, overhead=overhead)
