"""The errors this package raises on purpose. Each message names the bad value and the valid ones, in one line."""

import re

MAX_MESSAGE = 1000
"""Most characters of an error's message, whatever was wrong: it goes to logs, over wires and on terminals."""


def printable(text: str) -> str:
    """Write out what a terminal would act on, or not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def colourless(text: str) -> str:
    """Leave out what colours a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """Put a text on one printable line of bounded length; what is too long loses its middle."""
    line = printable(" ".join(text.split()))
    if len(line) <= most:
        return line
    tail = (most - 1) // 3  # where messages say what would have been right
    return f"{line[: most - 1 - tail]}…{line[-tail:]}"


class AsdError(Exception):
    """Base of every error that a user can cause and mend: one line, at the API as on the command line."""

    def __init__(self, message: str = "") -> None:
        """Say what is wrong.

        Args:
            message: What, and what would be right; `one_line` of it is kept, for it may quote what others have sent.
        """
        super().__init__(one_line(message))


class SpecError(AsdError, ValueError):
    """A sampler spec, or an option in it, that does not exist or does not fit the policy."""


class ChainError(AsdError, ValueError):
    """A noise scheduler that does not define a Gaussian chain with network-independent variance."""


class CheckpointError(AsdError, ValueError):
    """A checkpoint that is missing, malformed, or does not fit its own configuration."""


class ObservationError(AsdError, ValueError):
    """An observation whose keys, shape or values do not fit the policy."""


class DenoiserError(AsdError, ValueError):
    """A network output that is not finite or has the wrong shape."""


class EnvError(AsdError, ValueError):
    """An environment that does not exist, cannot be made here, or does not fit the policy."""


class BackendError(AsdError):
    """A backend cannot run here, or not this network."""


class MissingPackageError(AsdError, ImportError):
    """A package that is not installed; the message names the extra that installs it."""


class RunError(AsdError, ValueError):
    """A folder of results that is another run's, or whose journal is damaged or cannot be written."""


class LoopError(AsdError):
    """A control loop that cannot run as it was asked to, or was ended by a fault."""


class ServingError(AsdError):
    """A policy server that cannot be reached, has refused a request, or cannot be started."""

    def __init__(self, message: str, code: str = "", retry_after: float | None = None) -> None:
        """Say what happened.

        Args:
            message: One line.
            code: Name of gRPC's status, such as RESOURCE_EXHAUSTED; empty where it was not one that ended a call.
            retry_after: When the server says to try again [s]; None where it does not say.
        """
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
