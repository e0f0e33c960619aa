"""Which of a policy's tensors its file has: LeRobot itself loads what there is, and leaves the rest random."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from safetensors import safe_open
from torch import nn


def missing_tensors(policy: nn.Module, source: Any, revision: str | None) -> list[str]:
    """List the tensors of a policy that the file it was loaded from does not have.

    Args:
        policy: As loaded.
        source: A folder, or an id on the Hub whose file is in the cache.
        revision: On the Hub; None for its newest.

    Raises:
        SafetensorError: The file is damaged.
    """
    file = _file(str(source), revision)
    if file is None:  # of a loader that keeps its weights elsewhere
        return []
    with safe_open(file, framework="pt") as opened:
        there = set(opened.keys())
    own = policy.state_dict(keep_vars=True)
    # One tensor under two names is saved under one of them.
    loaded = {tensor.data_ptr() for name, tensor in own.items() if name in there}
    return [name for name, tensor in own.items() if name not in there and tensor.data_ptr() not in loaded]


def _file(source: str, revision: str | None) -> Path | None:
    if os.path.isdir(source):
        found = Path(source) / SAFETENSORS_SINGLE_FILE
        return found if found.is_file() else None
    cached = try_to_load_from_cache(source, SAFETENSORS_SINGLE_FILE, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
