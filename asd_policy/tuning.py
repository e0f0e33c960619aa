"""An `Experience` as a file in the user's cache: what `asd-policy tune` measured and learned for a checkpoint."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain as flatten
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asd_policy import arrays
from asd_policy.arrays import Array, Device
from asd_policy.chain import GaussianChain
from asd_policy.errors import CheckpointError
from asd_policy.experience import Experience
from asd_policy.files import atomic_file, cache_dir
from asd_policy.hardware import hardware, library

if TYPE_CHECKING:
    from asd_policy.policy import Policy

_VERSION = "3"
_EDGE = 2**16  # bytes at either end of a file that tell it from others
_NUMBERS = 2**8  # at either end of a tensor that do the same


def tuning_file(checkpoint: Path) -> Path:
    """Return where the tuning of a checkpoint is: in the user's cache, by the contents of the files that it loads from.

    Raises:
        CheckpointError: It is of no known format, or such a file cannot be read.
    """
    from asd_policy.checkpoints import find_format  # which loads what is found here

    digest = hashlib.sha256()
    for name, path in find_format(checkpoint)[1].files(checkpoint).items():
        try:
            size = path.stat().st_size
            digest.update(os.fsencode(name) + f" {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_EDGE))
                file.seek(max(0, size - _EDGE))
                digest.update(file.read(_EDGE))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    return cache_dir() / "tuning" / f"{digest.hexdigest()[:32]}.safetensors"


class Tuning(NamedTuple):
    """What `asd-policy tune` has left for a checkpoint."""

    file: Path
    """Where it is."""
    experience: Experience
    """As of `load_tuning`."""
    backend: str | None
    """As of `load_tuning`."""


def find_tuning(checkpoint: Path, policy: "Policy") -> Tuning | None:
    """Return a checkpoint's tuning; one that another version wrote or that cannot be read is none, with a warning.

    Args:
        checkpoint: What the policy was loaded from.
        policy: That plans with it.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        file = tuning_file(checkpoint)
        if not file.exists():
            return None
        file.open("rb").close()
        with suppress(SafetensorError), safe_open(file, framework="np") as opened:
            version = (opened.metadata() or {}).get("version")
            if version != _VERSION:
                raise OSError(f"{file} is of version {version!r:.20}, not {_VERSION!r}; asd-policy tune replaces it")
    except OSError as error:
        warnings.warn(f"no tuning is used: {error}", stacklevel=1)  # in one place, so that it is said once
        return None
    return Tuning(file, *load_tuning(file, policy.chain, policy.event, policy.device))


def weights_file(weights: Mapping[str, Array], chain: GaussianChain, event: Sequence[int]) -> Path:
    """Return where the tuning of a network without a checkpoint is: in the user's cache, by its weights.

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
            digest.update(arrays.to_numpy(arrays.double(edge)).tobytes())
    return cache_dir() / "tuning" / f"{digest.hexdigest()[:32]}.safetensors"


def save_tuning(path: Path, experience: Experience, device: Device, backend: str) -> None:
    """Write an experience, atomically.

    Args:
        path: File to write.
        experience: To be kept; of no plan only the times.
        device: What its latencies were measured on.
        backend: Spec of what ran the network.
    """
    metadata = {
        "version": _VERSION,
        "plans": str(experience.plans),
        "responses": str(experience.responses),
        "overhead": json.dumps([[list(key), list(timed.items())] for key, timed in experience.overhead.items()]),
        "latency": json.dumps(list(experience.latency.items())),
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
            if metadata.get("version") != _VERSION:
                raise ValueError(f"version {metadata.get('version')!r} is not {_VERSION!r}")
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
        overhead = {(str(draft), str(verify), int(batch)): _seconds(timed)
                    for (draft, verify, batch), timed in json.loads(metadata["overhead"])}  # fmt: skip
        times = flatten(latency.values(), *(timed.values() for timed in overhead.values()))
        if not 0 <= responses <= plans or not all(0 <= seconds < float("inf") for seconds in times):
            raise ValueError("its numbers are out of range")
        if not all(bool(arrays.namespace(sums).isfinite(sums).all()) for sums in read.values()):
            raise ValueError("it holds NaN or infinity")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}; delete it or run asd-policy tune again") from None
    judgements = {pair: _both(read, pair) for pair in pairs}
    moments = {name: read[name] for name in shapes}
    if (metadata.get("hardware"), metadata.get("library")) != (hardware(device), library(device)):
        return Experience(plans, moments, responses, judgements), None
    return Experience(plans, moments, responses, judgements, latency, overhead), metadata.get("backend")


_JUDGEMENTS = ("judged", "refused")


def _name(kind: str, pair: tuple[str, str]) -> str:
    return f"{kind} {pair[0]} {pair[1]}"


def _pair(name: str) -> tuple[str, str]:
    _, draft, verify = name.split()
    return draft, verify


def _both(tensors: dict[str, Array], pair: tuple[str, str]) -> tuple[Array, Array]:
    judged, refused = (tensors[_name(kind, pair)] for kind in _JUDGEMENTS)
    return judged, refused


def _seconds(items: Iterable[tuple[int, float]]) -> dict[int, float]:
    return {int(size): float(seconds) for size, seconds in items}
