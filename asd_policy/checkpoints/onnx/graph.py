"""ONNX files as untrusted input: reads the metadata and refuses forbidden graphs, without ONNX Runtime."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.checkpoints.onnx.sizes import MOST_VALUES, Node, UnknownShapeError, Value, sizes
from asd_policy.checkpoints.untrusted.protobuf import fields, varints
from asd_policy.errors import CheckpointError

MAX_FILE = 2**31 - 1  # [bytes]; no protocol buffer is larger
_SECOND_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # tags of producer_name … opset_import
_MAX_IR_VERSION = 127
_STANDARD = (b"", b"ai.onnx")  # domains of operators
MAX_PARTS = 20_000
"""Most nodes, and most weights, of a graph: thirty times those of a U-Net. ONNX Runtime's time to load grows with more
than their number."""
POINTS = 64
"""Points of the call for which a graph's size is computed."""
MAX_NUMBERS = 2**29
"""Most numbers that a call may need at one time, beside weights."""
MAX_FOLDED = 2**30
"""Most operations on constants alone, which ONNX Runtime does while it loads."""
_INT64 = 7  # TensorProto.DataType
_OTHERS_CODE = "which could be anybody's code or load some"


@dataclass(frozen=True)
class OnnxContents:
    """What can be read from a file without running it."""

    metadata: dict[str, str]
    """The model's metadata_props."""
    digest: str
    """sha256 of the serialised graph, weights included."""


def is_onnx(path: Path) -> bool:
    """Tell whether a file begins as ONNX models do, with ir_version as its first field."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(3)
    except OSError:
        return False
    return len(start) == 3 and start[0] == 0x08 and 0 < start[1] <= _MAX_IR_VERSION and start[2] in _SECOND_FIELDS


def read_onnx(path: Path) -> OnnxContents:
    """Check that no node or weight of an ONNX file reaches out of it, and read its metadata.

    Refused are operators that `asd-policy export` does not write, functions, control flow, sparse tensors, weights in
    other files, and graphs that would take long to load or much memory to run.

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
    except (_Unwanted, UnknownShapeError) as error:
        raise CheckpointError(f"{path} is not loaded: it has {error}") from None
    except (ValueError, TypeError) as error:  # a name that is no UTF-8, a number where a message belongs
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a whole ONNX file: {error}") from None


class _Unwanted(Exception):
    """Something that a file must not have."""


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
    nodes: list[Node] = []
    inputs: dict[str, Value] = {}
    weights: dict[str, Value] = {}
    for number, value in fields(graph, 4 * MAX_PARTS):
        if number == 1:
            nodes.append(_read_node(_message(value)))
        elif number == 5:
            name, weight = _read_weight(_message(value))
            weights[name] = weight
        elif number == 11:
            name, read = _read_input(_message(value))
            inputs[name] = read
        elif number == 15:
            raise _Unwanted("sparse tensors")
        if max(len(nodes), len(weights), len(inputs)) > MAX_PARTS:
            raise _Unwanted(f"more than {MAX_PARTS} nodes or weights")
    taken = sizes(nodes, inputs | weights)
    if taken.peak > MAX_NUMBERS:
        raise _Unwanted(f"tensors of {taken.peak} numbers for {POINTS} points; {MAX_NUMBERS} are the most")
    if taken.folded > MAX_FOLDED:
        raise _Unwanted(f"{taken.folded} operations on constants, to be done at load; {MAX_FOLDED} are the most")


def _read_node(node: memoryview) -> Node:
    inputs, outputs, kind, options = [], [], "", {}
    for number, value in fields(node):
        if number == 7 and _message(value) not in _STANDARD:
            domain = bytes(_message(value)[:40])
            raise _Unwanted(f"an operator of the domain {domain.decode(errors='replace')!r}, {_OTHERS_CODE}")
        if number in (1, 2):
            (inputs, outputs)[number - 1].append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            options |= _read_attribute(_message(value))
    return Node(kind, inputs, outputs, options)


def _read_attribute(attribute: memoryview) -> dict[str, Any]:
    name, single, several = "", None, []
    for number, value in fields(attribute):
        if number in (5, 10):
            _read_weight(_message(value))
        elif number in (6, 11):
            raise _Unwanted("control flow")
        elif number in (22, 23):
            raise _Unwanted("sparse tensors")
        elif number == 1:
            name = _text(value)
        elif number == 3:
            single = _signed(value)
        elif number == 8:
            several += _integers(value)
    return {name: several or single} if several or single is not None else {}


def _read_weight(tensor: memoryview) -> tuple[str, Value]:
    name, shape, kind, stored = "", [], 0, _EMPTY
    for number, value in fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise _Unwanted("weights in another file")
        if number == 1:
            shape += _integers(value)
        elif number == 2:
            kind = value
        elif number == 7:
            stored = np.array(_integers(value), np.int64).tobytes()
        elif number == 8:
            name = _text(value)
        elif number == 9:
            stored = _message(value)
    if min(shape, default=0) < 0:
        raise ValueError(f"the weight {name:.40} has the shape {shape}")
    numbers = None
    if kind == _INT64 and len(stored) == 8 * math.prod(shape) and math.prod(shape) <= MOST_VALUES:
        numbers = np.frombuffer(stored, "<i8").reshape(shape)
    return name, Value(tuple(shape), numbers, constant=True)


def _read_input(information: memoryview) -> tuple[str, Value]:
    """Read an input's name and shape; dimensions without a size are the number of points."""
    name, shape = "", ()
    for number, value in fields(information):
        if number == 1:
            name = _text(value)
        elif number == 2:
            dimensions = [each for kind in _all(value, 1) for shape in _all(kind, 2) for each in _all(shape, 1)]
            shape = tuple(next((_signed(size) for size in _all(each, 1)), POINTS) for each in dimensions)
    if min(shape, default=0) < 0:
        raise ValueError(f"the input {name:.40} has the shape {list(shape)}")
    return name, Value(shape)


def _all(message: int | memoryview, wanted: int) -> Iterator[int | memoryview]:
    """Yield the values of a field of a message."""
    return (value for number, value in fields(_message(message)) if number == wanted)


def _integers(value: int | memoryview) -> list[int]:
    """Read the integers of a repeated field's entry, which holds one or, packed, several."""
    return [_signed(each) for each in ([value] if isinstance(value, int) else varints(value))]


def _signed(value: int | memoryview) -> int:
    """Convert a varint to an int64."""
    if not isinstance(value, int):
        raise TypeError("a message stands where a number belongs")
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")


_EMPTY = memoryview(b"")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError(f"the number {value} stands where a message belongs")
    return value
