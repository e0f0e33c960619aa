"""Read protocol buffers field by field, to check an ONNX file without loading it or its weights.

The numbers of messages and fields are those of onnx.proto3 in github.com/onnx/onnx.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types, https://protobuf.dev/programming-guides/encoding."""
_FIXED = {FIXED64: 8, FIXED32: 4}
_MOST_VARINT = 10  # [bytes]
_MOST_TAG = 5  # [bytes]; a parser may drop a tag's bits beyond 32, and so read another field than this one


def fields(message: memoryview, most: int = 1000) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field: an integer for a varint, bytes for everything else.

    Args:
        message: Serialised. What is yielded of it is not copied.
        most: Fields that it may have; a file of empty ones would take for ever.

    Raises:
        ValueError: It ends within a field, has too many, or is no protocol buffer.
    """
    at = 0
    for _ in range(most):
        if at == len(message):
            return
        start = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if tag >= 2**32 or at - start > _MOST_TAG:
            raise ValueError(f"a field's tag has more than 32 bits at byte {start}")
        if number == 0:
            raise ValueError(f"a field has the number 0 at byte {at}")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"field {number} is of the unknown wire type {kind} at byte {at}")
        if size > len(message) - at:
            raise ValueError(f"field {number} has {size} bytes, of which {len(message) - at} are there")
        yield number, message[at : at + size]
        at += size
    if at < len(message):
        raise ValueError(f"a message has more than {most} fields")


def varints(packed: memoryview) -> list[int]:
    """Read the integers of a packed field.

    Raises:
        ValueError: The last does not end.
    """
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read the integer at a place; return also the place after it."""
    value = 0
    for index, byte in enumerate(message[at : at + _MOST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f"an integer does not end at byte {at}")
