"""The robots that a server has a place for, each with a lease."""

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from asd_policy.deploy.serving.wire import host_of, is_loopback
from asd_policy.policy.episode_state import EpisodeState

_ID_BYTES = 16  # so many that nobody can guess a name


class NoPlace(Exception):
    """All places are taken, or all that a peer may have."""


@dataclass(frozen=True)
class Shares:
    """How many of a number of places one peer may have, so that it leaves some to others."""

    most: int
    """All of them."""
    per_peer: int | None = None
    """Places of one connection, and of one other host (this host's calls may come through a tunnel); None for a quarter
    of all for a connection, and half for a host."""

    def check(self, peer: str, taken: Sequence[str], what: str) -> None:
        """Refuse another place where there is none.

        Args:
            peer: The caller, as gRPC names the other end of a connection: "ipv4:10.0.0.7:51234".
            taken: The peer of each place that is taken.
            what: Name of the places, for messages.

        Raises:
            NoPlace: There is none for this peer.
        """
        if len(taken) >= self.most:
            raise NoPlace(f"all {self.most} {what} are taken")
        host, hosts = host_of(peer), [host_of(each) for each in taken]
        of_connection = self.per_peer or math.ceil(self.most / 4)
        of_host = self.most if is_loopback(host) else self.per_peer or math.ceil(self.most / 2)
        if taken.count(peer) >= of_connection:
            raise NoPlace(f"this connection has {of_connection} {what}, the most that one may have")
        if hosts.count(host) >= of_host:
            raise NoPlace(f"this host has {of_host} {what}, the most that one may have")


@dataclass
class Session:
    """A robot's place on the server."""

    robot: EpisodeState
    """Noise and last plan; changed by the thread that plans, and only while `busy`."""
    lease: float
    """How long it lasts without a plan [s]."""
    peer: str = ""
    """The peer that opened it."""
    expires: float = field(init=False)
    """When the lease ends, on the clock `time.monotonic` [s]."""
    busy: bool = False
    """Whether a request of it waits or is being planned."""

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin the lease anew."""
        self.expires = time.monotonic() + self.lease

    def holds(self, now: float) -> bool:
        """Tell whether the lease still runs at a time of that clock."""
        return self.busy or now <= self.expires


class Sessions:
    """Sessions by their name. A robot that leaves without notice frees its place when its lease ends."""

    def __init__(self, shares: Shares, lease: float) -> None:
        """Begin without sessions.

        Args:
            shares: Of the sessions at once.
            lease: How long one lasts without a plan [s].
        """
        self._shares, self.lease = shares, lease
        self._open: dict[bytes, Session] = {}

    def __len__(self) -> int:
        now = time.monotonic()
        return sum(session.holds(now) for session in list(self._open.values()))

    def open(self, robot: EpisodeState, peer: str = "") -> bytes:
        """Give a robot a place; return the session's name.

        Args:
            robot: Whose noise and plans the session keeps.
            peer: Who asks.

        Raises:
            NoPlace: There is none for this peer.
        """
        now = time.monotonic()
        self._open = {name: session for name, session in self._open.items() if session.holds(now)}
        self._shares.check(peer, [session.peer for session in self._open.values()], "places")
        name = secrets.token_bytes(_ID_BYTES)
        self._open[name] = Session(robot, self.lease, peer)
        return name

    def renew(self, name: bytes) -> Session | None:
        """Renew a session's lease and return the session; None for one that is not open."""
        session = self._open.get(name)
        if session is None or not session.holds(time.monotonic()):
            return None
        session.renew()
        return session

    def close(self, name: bytes) -> None:
        """Give a place back, if it is still held."""
        self._open.pop(name, None)
