"""Read the files of an untrusted checkpoint: regular files inside its folder, JSON and safetensors only."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from asd_policy._common.arrays import Array
from asd_policy.errors import CheckpointError

MAX_JSON = 16 * 2**20  # [bytes]; the largest real one, a model index, has a few hundred kilobytes


def file_in(folder: Path, name: str) -> Path:
    """Find a checkpoint's file, and check where its path leads.

    Args:
        folder: The checkpoint.
        name: Path of the file relative to it; may come from the checkpoint itself.

    Raises:
        CheckpointError: It is missing, not a regular file (a device would never end), or a link leads out of the
            folder; in a snapshot of the Hub's cache links may lead to the repository's blobs, which is its layout.
    """
    path = folder / name
    try:
        real = path.resolve()
        roots = [folder.resolve()]
        exists, regular = real.exists(), real.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a link to itself, a name with a zero byte
        raise CheckpointError(f"{folder} has no file {name[:80]!r}: {error}") from None
    if roots[0].parent.name == "snapshots" and roots[0].parent.parent.name.startswith("models--"):
        roots.append(roots[0].parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{path} leads out of the checkpoint, to {real}")
    if not exists:
        raise CheckpointError(f"{path}: No such file")
    if not regular:
        raise CheckpointError(f"{path} is not a regular file")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a checkpoint, an object.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    return _read_json(folder, name, _once)


def _read_json(folder: Path, name: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
    path = file_in(folder, name)
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise CheckpointError(f"{path} has {size} bytes; a configuration has {MAX_JSON} at most")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not JSON: it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def decode_json(text: str) -> Any:
    """Decode a JSON text.

    Raises:
        ValueError: It is none, or has a key twice in an object.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of pairs; refuse a key that is there twice, because libraries differ in which value they take."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return value


def find_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of what may be a checkpoint; an empty object where none can be read.

    To find a format, a damaged file is no error here: `read_json` raises it later.
    """
    try:
        return _read_json(folder, name, dict)
    except CheckpointError:
        return {}


def read_tensors(folder: Path, name: str) -> dict[str, Array]:
    """Read the tensors of a safetensors file of a checkpoint, on the CPU.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    with _open_safetensors(folder, name) as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def read_shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file of a checkpoint, but not their values.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    with _open_safetensors(folder, name) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


@contextmanager
def _open_safetensors(folder: Path, name: str) -> Iterator[safe_open]:
    path = file_in(folder, name)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def count_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the numbers in tensors of these shapes."""
    return sum(prod(shape) for shape in shapes.values())
