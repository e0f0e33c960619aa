"""Cameras' frames on the wire: a byte for each colour, each frame once, on demand compressed without loss.

Robots' cameras give bytes, which travel as they are; floats in 0 … 1 travel as bytes where these are the same numbers,
and as floats otherwise.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.errors import ObservationError
from asd_policy.policy.observation import as_bytes, as_floats, check_range

_LEVEL = 1  # of zlib: higher ones take several times as long for some percent less
_FLOAT = np.dtype("<f4")
_SHOWN = 5  # indices of a message that are quoted

Bytes = npt.NDArray[np.uint8]
Frame = npt.NDArray[Any]


def pack(steps: Sequence[Frame], compress: bool) -> pb.Frames:
    """Convert a camera's last frames to a message.

    Args:
        steps: The frame of each observation, oldest first, as `read_observation` gives them for NumPy; where several
            observations show one frame, the same array.
        compress: Whether to compress bytes.
    """
    places: dict[int, int] = {}
    index = [places.setdefault(id(frame), len(places)) for frame in steps]
    distinct = list({id(frame): frame for frame in steps}.values())
    as_bytes = [_as_bytes(frame) for frame in distinct]
    if any(each is None for each in as_bytes):
        floats: Any = np.stack([as_floats(frame) for frame in distinct])
        return pb.Frames(index=index, data=np.ascontiguousarray(floats, _FLOAT).tobytes(), floats=True)
    frames = np.stack([each for each in as_bytes if each is not None])
    if not compress:
        return pb.Frames(index=index, data=frames.tobytes())
    frames[:, :, 1:] -= frames[:, :, :-1].copy()
    return pb.Frames(index=index, data=zlib.compress(frames.tobytes(), _LEVEL), compressed=True)


def unpack(message: pb.Frames, shape: tuple[int, ...], n_obs_steps: int, what: str) -> list[Frame]:
    """Convert a message to the frame of each observation, oldest first; those of one index are the same array.

    Args:
        message: From the other end.
        shape: Of a frame, (3, height, width).
        n_obs_steps: Observations that the policy looks at.
        what: Name of the frames, for messages.

    Raises:
        ObservationError: The message has another number of frames or of bytes, no zlib stream, compressed floats, or
            floats beyond 0 … 1.
    """
    index = list(message.index)
    count = max(index, default=-1) + 1
    if len(index) != n_obs_steps or count != len(set(index)):
        said = ", ".join(map(str, index[:_SHOWN])) + (", …" if len(index) > _SHOWN else "")
        raise ObservationError(f"{what} has the indices {said or 'none'}, not one of 0, 1, … for each of {n_obs_steps}")
    if message.floats and message.compressed:
        raise ObservationError(f"{what} has compressed floats; only bytes are compressed")
    colours, height, width = shape
    size = count * math.prod(shape) * (_FLOAT.itemsize if message.floats else 1)
    data = _inflate(message.data, size, what) if message.compressed else message.data
    if len(data) != size:
        raise ObservationError(f"{what} has {len(data)} bytes, not the {size} of {count} frames {shape}")
    frames: Frame
    if message.floats:
        frames = np.frombuffer(data, _FLOAT).reshape(count, *shape).astype(np.float32)
        check_range(frames, f"{what} is")
    else:
        frames = np.frombuffer(data, np.uint8).reshape(count, height, width, colours)
        frames = np.cumsum(frames, axis=2, dtype=np.uint8) if message.compressed else frames.copy()
    distinct = list(frames)
    return [distinct[place] for place in index]


def _as_bytes(frame: Frame) -> Bytes | None:
    """Convert a frame to bytes [height, width, 3]; None where that would change its numbers."""
    rounded = as_bytes(frame)
    return rounded if rounded is frame or np.array_equal(as_floats(rounded), frame) else None


def _inflate(data: bytes, size: int, what: str) -> bytes:
    """Decompress bytes, hardly more than there should be.

    Raises:
        ObservationError: They are no whole zlib stream, or more than one.
    """
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise ObservationError(f"{what} is no zlib stream: {error}") from None
    if not stream.eof and len(inflated) <= size:
        raise ObservationError(f"{what} is a zlib stream without its end")
    if stream.unused_data:
        raise ObservationError(f"{what} has {len(stream.unused_data)} bytes after its zlib stream")
    return inflated
