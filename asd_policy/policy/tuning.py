"""An `Experience` as a file in the user's cache: what `asd-policy tune` measured and learned for a checkpoint."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.files import atomic_file, cache_dir
from asd_policy._common.hardware import hardware, library
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.other_drafts import check_draft
from asd_policy.samplers.asd.trials import Trial

VERSION = "5"
"""Of the files that are written; others are not read."""
_NUMBERS = 2**8  # at either end of a tensor that do the same


def weights_file(weights: Mapping[str, Array], chain: GaussianChain, event: Sequence[int]) -> Path:
    """Find where the tuning of a network without a checkpoint is: in the user's cache, by its weights.

    Args:
        weights: Its tensors by name.
        chain: That it is sampled in.
        event: Shape of one of its plans.
    """
    digest = hashlib.sha256(f"{dict(chain.config)} {chain.timesteps.tolist()} {tuple(event)}".encode())
    digest.update(chain.sigma.tobytes())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        for edge in (tensor.reshape(-1)[:_NUMBERS], tensor.reshape(-1)[-_NUMBERS:]):
            digest.update(arrays.to_numpy(arrays.asarray(edge, arrays.device_of(edge), "float64")).tobytes())
    return cache_dir() / "tuning" / f"{digest.hexdigest()[:32]}.safetensors"


def save_tuning(path: Path, experience: Experience, device: Device, backend: str) -> None:
    """Write an experience, atomically.

    Args:
        path: File to write.
        experience: To be kept; of no plan only the times.
        device: What its latencies were measured on.
        backend: Spec of what ran the network.
    """
    trials = list(experience.trials.items())  # another thread may be planning, and try more
    # Another time there may be memory for a call that had none.
    latency = [(size, seconds) for size, seconds in experience.latency.items() if math.isfinite(seconds)]
    metadata = {
        "version": VERSION,
        "plans": str(experience.plans),
        "responses": str(experience.responses),
        "trials": json.dumps([[*key, trial.to_json()] for key, trial in trials]),
        "latency": json.dumps(latency),
        "hardware": hardware(device),
        "library": library(device),
        "backend": backend,
    }
    tensors = dict(experience.moments)
    for pair, sums in experience.judgements.items():
        tensors |= {_name(kind, pair): each for kind, each in zip(_JUDGEMENTS, sums, strict=True)}
    with atomic_file(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(arrays.to_numpy(sums)) for name, sums in tensors.items()}, temporary, metadata
        )


def load_tuning(
    path: Path, chain: GaussianChain, event: Sequence[int], device: Device
) -> tuple[Experience, str | None]:
    """Read an experience.

    Args:
        path: Written by `save_tuning`.
        chain: Of the policy.
        event: Shape of one of its plans (horizon, …).
        device: Where it plans.

    Returns:
        The experience, and the spec of the backend that its latencies are of. Those of other hardware or another
        library are left out, to be measured anew when needed, and so is the backend.

    Raises:
        CheckpointError: The file is damaged, or of another policy.
    """
    steps = len(chain)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != VERSION:
                raise ValueError(f"version {metadata.get('version')!r} is not {VERSION!r}")
            plans, responses = int(metadata["plans"]), int(metadata["responses"])
            if responses:
                plan = event[0], math.prod(event[1:])
                shapes = {"cross": (steps, *plan), "noise": (steps,), "change": (steps,), "free": plan}
            pairs = [_pair(name) for name in file.keys() if name.startswith(_JUDGEMENTS[0])]
            counts = {_name(kind, pair): (steps,) for pair in pairs for kind in _JUDGEMENTS}
            # Looked up before anything is read: a size in the file is not to be trusted with memory.
            for name, shape in (shapes | counts).items():
                found = tuple(file.get_slice(name).get_shape())
                if found != shape:
                    raise CheckpointError(f"{path} is of another policy: {name} has shape {found}, not {shape}")
            read = {name: arrays.asarray(file.get_tensor(name), device, "float32") for name in shapes | counts}
        latency = _seconds(json.loads(metadata["latency"]))
        trials = {(int(batch), draft, verify): _trial(written, steps)
                  for batch, draft, verify, written in json.loads(metadata["trials"])}  # fmt: skip
        if not 0 <= responses <= plans or not all(0 <= seconds < float("inf") for seconds in latency.values()):
            raise ValueError("its numbers are out of range")
        if not all(arrays.is_finite(sums) for sums in read.values()):
            raise ValueError("it holds NaN or infinity")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}; delete it or run asd-policy tune again") from None
    judgements = {pair: _both(read, pair) for pair in pairs}
    moments = {name: read[name] for name in shapes}
    if (metadata.get("hardware"), metadata.get("library")) != (hardware(device), library(device)):
        return Experience(plans, moments, responses, judgements), None
    return Experience(plans, moments, responses, judgements, latency, trials), metadata.get("backend")


_JUDGEMENTS = ("judged", "refused")


def _name(kind: str, pair: tuple[str, str]) -> str:
    return f"{kind} {pair[0]} {pair[1]}"


def _pair(name: str) -> tuple[str, str]:
    _, draft, verify = name.split()
    return draft, verify


def _both(tensors: dict[str, Array], pair: tuple[str, str]) -> tuple[Array, Array]:
    judged, refused = (tensors[_name(kind, pair)] for kind in _JUDGEMENTS)
    return judged, refused


def _trial(written: Sequence[Any], steps: int) -> Trial:
    """Read a trial of settings that a chain of so many steps can have."""
    trial = Trial.from_json(written)
    for window, draft, verify in trial.tried:
        if not (1 <= window <= steps and _has_draft(draft) and verify in VERIFIERS):
            raise ValueError(f"window={window},draft={draft},verify={verify} is no setting of asd")
    return trial


def _has_draft(name: str) -> bool:
    try:
        check_draft(name)
    except SpecError:
        return False
    return True


def _seconds(items: Iterable[tuple[int, float]]) -> dict[int, float]:
    return {int(size): float(seconds) for size, seconds in items}
