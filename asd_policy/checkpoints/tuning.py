"""The tuning of a checkpoint: a file in the user's cache, by the contents of the files that it loads from."""

import hashlib
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from asd_policy._common.files import cache_dir
from asd_policy.checkpoints.formats import find_format
from asd_policy.errors import CheckpointError
from asd_policy.policy.policy import Policy
from asd_policy.policy.tuning import VERSION, load_tuning
from asd_policy.samplers.asd.experience import Experience

_EDGE = 2**16  # bytes at either end of a file that identify it


def tuning_file(checkpoint: Path) -> Path:
    """Find the file of a checkpoint's tuning: in the user's cache, by the contents of the files that `load` reads.

    Raises:
        CheckpointError: It is of no known format, or such a file cannot be read.
    """
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
    """The tuning that `asd-policy tune` has stored for a checkpoint."""

    file: Path
    """Its file."""
    experience: Experience
    """As of `load_tuning`."""
    backend: str | None
    """As of `load_tuning`."""


def find_tuning(checkpoint: Path, policy: Policy) -> Tuning | None:
    """Find a checkpoint's tuning; one that another version wrote or that cannot be read is ignored, with a warning.

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
            if version != VERSION:
                raise OSError(f"{file} is of version {version!r:.20}, not {VERSION!r}; asd-policy tune replaces it")
    except OSError as error:
        warnings.warn(f"no tuning is used: {error}", stacklevel=1)  # here alone, so that Python shows it once
        return None
    return Tuning(file, *load_tuning(file, policy.chain, policy.event, policy.device))
