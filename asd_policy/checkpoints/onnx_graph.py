"""Files in the ONNX format as untrusted input: the metadata, and what a graph may not have, without ONNX Runtime."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from asd_policy.checkpoints.protobuf import fields
from asd_policy.errors import CheckpointError

MAX_FILE = 2**31 - 1  # [bytes]; no protocol buffer is larger
_SECOND_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # tags of producer_name … opset_import
_MAX_IR_VERSION = 127
_STANDARD = (b"", b"ai.onnx")  # domains of operators
_OTHERS_CODE = "which could be anybody's code or load some"


@dataclass(frozen=True)
class OnnxContents:
    """What a file says without being run."""

    metadata: dict[str, str]
    """The model's metadata_props."""
    digest: str
    """sha256 of the serialised graph, weights included."""


def is_onnx(path: Path) -> bool:
    """Return whether a file begins as ONNX models do, with ir_version as its first field."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(3)
    except OSError:
        return False
    return len(start) == 3 and start[0] == 0x08 and 0 < start[1] <= _MAX_IR_VERSION and start[2] in _SECOND_FIELDS


def read_onnx(path: Path) -> OnnxContents:
    """Look at every node and weight of an ONNX file for what could reach out of it, and read its metadata.

    Operators other than the standard's, functions, control flow, sparse tensors and weights in other files have no
    place in an exported policy.

    Raises:
        CheckpointError: The file cannot be read, is not whole, or has one of these.
    """
    if not path.is_file():  # a pipe would wait
        raise CheckpointError(f"{path} is not a regular file")
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise CheckpointError(f"{path} has {size} bytes; an ONNX file has {MAX_FILE} at most")
        return _read_model(memoryview(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except _Unwanted as error:
        raise CheckpointError(f"{path} is not loaded: it has {error}") from None
    except (ValueError, TypeError) as error:  # a name that is no UTF-8, a number where a message belongs
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a whole ONNX file: {error}") from None


class _Unwanted(Exception):
    """What a file has and should not."""


# Below, numbers are those of the fields in the messages of onnx.proto3, and a message of the wrong kind is a TypeError.


def _read_model(model: memoryview) -> OnnxContents:
    metadata: dict[str, str] = {}
    graphs: list[memoryview] = []
    for number, value in fields(model):
        if number == 7:
            graphs.append(_message(value))
        elif number == 14:
            entry = dict(fields(_message(value)))
            metadata[str(_message(entry.get(1, _EMPTY)), "utf-8")] = str(_message(entry.get(2, _EMPTY)), "utf-8")
        elif number in (20, 25):
            raise _Unwanted({20: "training information", 25: "functions"}[number])
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs, not 1")
    _check_graph(graphs[0])
    return OnnxContents(metadata, hashlib.sha256(graphs[0]).hexdigest())


def _check_graph(graph: memoryview) -> None:
    for number, value in fields(graph):
        if number == 1:
            _check_node(_message(value))
        elif number == 5:
            _check_tensor(_message(value))
        elif number == 15:
            raise _Unwanted("sparse tensors")


def _check_node(node: memoryview) -> None:
    for number, value in fields(node):
        if number == 7 and _message(value) not in _STANDARD:
            domain = bytes(_message(value)[:40])
            raise _Unwanted(f"an operator of the domain {domain.decode(errors='replace')!r}, {_OTHERS_CODE}")
        if number == 5:
            _check_attribute(_message(value))


def _check_attribute(attribute: memoryview) -> None:
    for number, value in fields(attribute):
        if number in (5, 10):
            _check_tensor(_message(value))
        elif number in (6, 11):
            raise _Unwanted("control flow")
        elif number in (22, 23):
            raise _Unwanted("sparse tensors")


def _check_tensor(tensor: memoryview) -> None:
    for number, value in fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise _Unwanted("weights in another file")


_EMPTY = memoryview(b"")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError(f"the number {value} stands where a message belongs")
    return value
