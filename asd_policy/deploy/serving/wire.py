"""The part of the protocol that client and server share: its name, methods, arrays and addresses."""

import ipaddress
import math
import re
from collections.abc import Sequence
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from asd_policy._common.border import finite
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.errors import ObservationError

PACKAGE = pb.DESCRIPTOR.package
"""The protocol and its version, such as asd_policy.v1."""
SERVICE = f"{PACKAGE}.{pb.DESCRIPTOR.services_by_name['Planner'].name}"
"""Name of the service, as health checks ask for it."""
AUTHORIZATION = "authorization"
"""Key of the metadata with the token, "Bearer TOKEN"."""
RETRY_AFTER = "grpc-retry-pushback-ms"
"""Key of the metadata with the time after which to try again [ms], gRPC's own."""
MAX_DETAILS = 300
"""Most characters of a message about an error: the header it travels in has little room."""

_FLOAT = np.dtype("<f4")


def method(name: str) -> str:
    """Make the path of a method of the service."""
    return f"/{SERVICE}/{name}"


def to_array(values: npt.ArrayLike) -> pb.Array:
    """Convert numbers to a message."""
    array = np.ascontiguousarray(values, _FLOAT)
    return pb.Array(shape=array.shape, data=array.tobytes())


def from_array(message: pb.Array, shape: Sequence[int], what: str) -> npt.NDArray[np.float32]:
    """Convert a message to numbers, in an array of its own.

    Args:
        message: From the other end.
        shape: The shape that it must have.
        what: Name of the array, for messages.

    Raises:
        ObservationError: It has another shape, not the bytes of its shape, or a number that is not finite.
    """
    if tuple(message.shape) != tuple(shape):
        raise ObservationError(f"{what} has shape {_shape(message.shape)}, not {_shape(shape)}")
    size = _FLOAT.itemsize * math.prod(shape)
    if len(message.data) != size:
        raise ObservationError(f"{what} has {len(message.data)} bytes, not the {size} of its shape {_shape(shape)}")
    return finite(np.frombuffer(message.data, _FLOAT).reshape(shape), what)


def host_of(address: str) -> str:
    """Read the host from an address of gRPC's, such as "host:port", "dns:///host:port" or "ipv6:%5B::1%5D:port"."""
    return re.sub(r"^(dns:/*|ipv[46]:)|:[0-9]+$", "", unquote(address)).strip("[]")


def is_loopback(host: str) -> bool:
    """Tell whether a host's or an interface's name or address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shape(shape: Sequence[int]) -> str:
    return str(tuple(shape[:8]))
