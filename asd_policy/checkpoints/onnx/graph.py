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
from asd_policy.policy.sensors import most_rows

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
_MOST_TEXT = 40  # [bytes] of an attribute; the names of modes are shorter
_OTHERS_CODE = "which could be anybody's code or load some"


PART = "asd_policy."
"""Begins the names of weights that no operator reads: each holds a model, as it would lie in a file of its own. So one
file holds several graphs, and ONNX Runtime opens it as the denoiser."""
FORM = f"{PART}many"
"""The denoiser in the form for calls of many points; see `onnx_export.export_for_cpu`."""
SENSOR = f"{PART}sensor."
"""Begins the names of those of sensors' networks."""
Span = tuple[int, int]
"""Where something begins, and how long it is [bytes]."""


@dataclass(frozen=True)
class OnnxContents:
    """What can be read from a file without running it."""

    metadata: dict[str, str]
    """The model's metadata_props."""
    digest: str
    """sha256 of the serialised graph, weights and the models in them included."""
    parts: dict[str, Span]
    """Where in the file the models within it are, by the names of the weights that hold them."""


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
        model = memoryview(path.read_bytes())
        contents, parts = _read_model(model)
        begin = _address(model)
        return OnnxContents(*contents, {name: (_address(part) - begin, len(part)) for name, part in parts.items()})
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


_Parts = dict[str, memoryview]


def _address(part: memoryview) -> int:
    """Find where some bytes are in memory."""
    return np.frombuffer(part, np.uint8).ctypes.data


# Below, numbers are those of the fields in the messages of onnx.proto3, and a message of the wrong kind is a TypeError.


def _read_model(model: memoryview, part: str | None = None) -> tuple[tuple[dict[str, str], str], _Parts]:
    """Check a model, which may be a part of another one: its metadata and digest, and the models in it."""
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
    parts = _check_graph(graphs[0], part is not None and part.startswith(SENSOR))
    for name, model_within in parts.items():
        if part is not None:
            raise _Unwanted(f"{name:.40} within {part:.40}")
        _read_model(model_within, name)
    return (metadata, hashlib.sha256(graphs[0]).hexdigest()), parts


def _check_graph(graph: memoryview, of_sensor: bool) -> _Parts:
    nodes: list[Node] = []
    inputs: dict[str, list[int | None]] = {}
    weights: dict[str, Value] = {}
    parts: _Parts = {}
    for number, value in fields(graph, 4 * MAX_PARTS):
        if number == 1:
            nodes.append(_read_node(_message(value)))
        elif number == 5:
            name, weight, stored = _read_weight(_message(value))
            weights[name] = weight
            if name.startswith(PART):
                parts[name] = stored
        elif number == 11:
            name, shape = _read_input(_message(value))
            inputs[name] = shape
        elif number == 15:
            raise _Unwanted("sparse tensors")
        if max(len(nodes), len(weights), len(inputs)) > MAX_PARTS:
            raise _Unwanted(f"more than {MAX_PARTS} nodes or weights")
    shapes = list(inputs.values())
    points = min(POINTS, most_rows(tuple(each or 1 for each in shapes[0][1:]))) if of_sensor and shapes else POINTS
    known = {name: Value(tuple(points if each is None else each for each in shape)) for name, shape in inputs.items()}
    taken = sizes(nodes, known | weights)
    if taken.peak > MAX_NUMBERS:
        raise _Unwanted(f"tensors of {taken.peak} numbers for {points} points; {MAX_NUMBERS} are the most")
    if taken.folded > MAX_FOLDED:
        raise _Unwanted(f"{taken.folded} operations on constants, to be done at load; {MAX_FOLDED} are the most")
    return parts


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
        elif number == 4:
            single = bytes(_message(value)[:_MOST_TEXT])
        elif number == 8:
            several += _integers(value)
    return {name: several or single} if several or single is not None else {}


def _read_weight(tensor: memoryview) -> tuple[str, Value, memoryview]:
    """Read a weight's name, what is known of it, and its bytes where they are stored as such."""
    name, shape, kind, stored, packed = "", [], 0, _EMPTY, b""
    for number, value in fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise _Unwanted("weights in another file")
        if number == 1:
            shape += _integers(value)
        elif number == 2:
            kind = value
        elif number == 7:
            packed = np.array(_integers(value), np.int64).tobytes()
        elif number == 8:
            name = _text(value)
        elif number == 9:
            stored = _message(value)
    if min(shape, default=0) < 0:
        raise ValueError(f"the weight {name:.40} has the shape {shape}")
    numbers, raw = None, stored or packed
    if kind == _INT64 and len(raw) == 8 * math.prod(shape) and math.prod(shape) <= MOST_VALUES:
        numbers = np.frombuffer(raw, "<i8").reshape(shape)
    return name, Value(tuple(shape), numbers, constant=True), stored


def _read_input(information: memoryview) -> tuple[str, list[int | None]]:
    """Read an input's name and shape; dimensions without a size, which are the number of points, are None."""
    name, shape = "", []
    for number, value in fields(information):
        if number == 1:
            name = _text(value)
        elif number == 2:
            dimensions = [each for kind in _all(value, 1) for shape in _all(kind, 2) for each in _all(shape, 1)]
            shape = [next((_signed(size) for size in _all(each, 1)), None) for each in dimensions]
    if min((each for each in shape if each is not None), default=0) < 0:
        raise ValueError(f"the input {name:.40} has the shape {shape}")
    return name, shape


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
