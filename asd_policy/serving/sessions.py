"""The robots that a server has a place for, each with a lease."""

import secrets
import time
from dataclasses import dataclass, field

from asd_policy.control import Robot

_ID_BYTES = 16  # as many as nobody guesses


@dataclass
class Session:
    """A robot's place on the server."""

    robot: Robot
    """Noise and last plan; changed by the thread that plans, and only while `busy`."""
    lease: float
    """How long it lasts without a plan [s]."""
    expires: float = field(init=False)
    """When the lease ends, on the clock `time.monotonic` [s]."""
    busy: bool = False
    """Whether a request of it waits or is planned."""

    def __post_init__(self) -> None:
        """Begin the lease."""
        self.renew()

    def renew(self) -> None:
        """Begin the lease anew."""
        self.expires = time.monotonic() + self.lease

    def holds(self, now: float) -> bool:
        """Return whether the lease has not ended at a time of that clock."""
        return self.busy or now <= self.expires


class Sessions:
    """Sessions by their name. A robot that goes away without a word frees its place when its lease ends."""

    def __init__(self, most: int, lease: float) -> None:
        """Begin without sessions.

        Args:
            most: Sessions at once.
            lease: How long one lasts without a plan [s].
        """
        self.most, self.lease = most, lease
        self._open: dict[bytes, Session] = {}

    def __len__(self) -> int:
        """Return how many there are now."""
        now = time.monotonic()
        return sum(session.holds(now) for session in list(self._open.values()))

    def open(self, robot: Robot) -> bytes | None:
        """Give a robot a place.

        Returns:
            The session's name; None where there is no place.
        """
        now = time.monotonic()
        self._open = {name: session for name, session in self._open.items() if session.holds(now)}
        if len(self._open) >= self.most:
            return None
        name = secrets.token_bytes(_ID_BYTES)
        self._open[name] = Session(robot, self.lease)
        return name

    def renew(self, name: bytes) -> Session | None:
        """Return a session, its lease begun anew; None for one that is not open."""
        session = self._open.get(name)
        if session is None or not session.holds(time.monotonic()):
            return None
        session.renew()
        return session

    def close(self, name: bytes) -> None:
        """Give a place back, if it is still held."""
        self._open.pop(name, None)
