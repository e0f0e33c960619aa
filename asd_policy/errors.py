"""The errors this package raises on purpose. Each message names the bad value and the valid ones."""

LONGEST = 2000
"""Most characters of an error in one line."""


def printable(text: str) -> str:
    """Return text with what a terminal would act on, or not show, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return text as one printable line of at most `LONGEST` characters; what is left out is in the middle."""
    line, half = printable(" ".join(text.split())), LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[: half - 2]} … {line[1 - half :]}"


class AsdError(Exception):
    """Base of every error that a user can cause and mend; its text is one line, which the command line prints."""

    def __str__(self) -> str:
        """Say what is wrong in one line, whatever a file or a library put into it."""
        return one_line(super().__str__())


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
