"""The token by which a client proves to a server that it may call."""

from pathlib import Path

from asd_policy.errors import SpecError


def read_token(path: Path) -> str:
    """Read the token from a file, without the white space around it.

    Raises:
        OSError: The file cannot be read.
        SpecError: It holds no token.
    """
    token = path.read_bytes().strip().decode("latin-1")
    check_token(token, f"--token-file {path}")
    return token


def check_token(token: str, where: str) -> None:
    """Refuse a token that does not fit a header; the message does not show it.

    Raises:
        SpecError: It is not one word of printable ASCII characters.
    """
    if not token or any(not "!" <= character <= "~" for character in token):
        raise SpecError(f"{where} does not hold one word of printable ASCII characters")
