"""A Ray for this process alone: no other user of the machine can enter it, and it contacts no other machine.

Ray is made for clusters. By default it listens on all addresses, opens its folder to all users, keeps its token in a
file that all can read, and asks the metadata services of cloud providers where it runs. If its process is killed, the
next start ends what it left running, and removes its files.
"""

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_PLACE = Path("/tmp")  # the user's own may be a long path, and a socket's name has room for 107 bytes
_PREFIX = "asd-ray-"
_LOCK = "lock"  # held by the folder's process as long as it lives
_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def local_folder() -> Iterator[Path]:
    """Yield a folder for a local Ray that no other user can enter, and remove it at the end.

    Folders of killed processes are removed, and what still runs of their Ray is ended, with a warning.
    """
    _end_leftovers()
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PLACE))  # of mode 0700
    try:
        with (outer / "new").open("wb") as lock:
            _is_free(lock.fileno())
            os.rename(outer / "new", outer / _LOCK)  # locked before anybody can find it
            inner = outer / "r"  # which Ray opens to all
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@contextlib.contextmanager
def own_token(ray: ModuleType, folder: Path) -> Iterator[None]:
    """Give a local Ray a token of its own for as long as it runs; a token that the user has set stays.

    Args:
        ray: The package.
        folder: One that no other user can enter.
    """
    if any(name in os.environ for name in _VARIABLES):
        yield
        return
    file = folder / "token"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    _read_anew(ray)
    try:
        yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        _read_anew(ray)


@contextlib.contextmanager
def without_dashboard(ray: ModuleType) -> Iterator[None]:
    """Start Ray without its dashboard: even the small one that it starts otherwise asks for its cloud."""
    node = ray._private.node.Node
    start = node.start_api_server
    node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        node.start_api_server = start


@contextlib.contextmanager
def on_loopback(ray: ModuleType) -> Iterator[None]:
    """Start Ray so that it listens on loopback alone, whoever imported it first.

    That is what it does where it makes no clusters, as by default on Windows and macOS. Its processes read a variable,
    and this one has read it when it imported Ray.
    """
    constants = ray._private.ray_constants
    before = os.environ.get(constants.ENABLE_RAY_CLUSTERS_ENV_VAR), constants.ENABLE_RAY_CLUSTER
    os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[1]
        os.environ.pop(constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        if before[0] is not None:
            os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = before[0]


def _read_anew(ray: ModuleType) -> None:
    """Have Ray's core read the variables again: it keeps what it read first."""
    core = ray._raylet
    if hasattr(core, "AuthenticationTokenLoader"):  # an older Ray has no tokens
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()


def _end_leftovers() -> None:
    """End what still runs of Rays whose process was killed, and remove their folders."""
    ended = 0
    for outer in _PLACE.glob(f"{_PREFIX}*"):
        try:
            if outer.stat().st_uid != os.getuid():
                continue
            with (outer / _LOCK).open("rb") as lock:
                if not _is_free(lock.fileno()):
                    continue
                for process in _users(outer):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                        ended += 1
                shutil.rmtree(outer, ignore_errors=True)
        except OSError:  # not made by this version, or another process is at it
            continue
    if ended:
        warnings.warn(f"ended {ended} processes of Ray that a killed command had left behind", stacklevel=2)


def _is_free(lock: int) -> bool:
    """Take a lock, and tell whether it was free."""
    import fcntl  # Ray's machines have it

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _users(folder: Path) -> list[int]:
    """List the processes that have a file of a folder open, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if any(os.readlink(link).startswith(f"{folder}/") for link in (process / "fd").iterdir()):
                found.append(int(process.name))
    return [number for number in found if number != os.getpid()]
