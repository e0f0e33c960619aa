"""Atomic writes: a reader never sees half a file, and an interruption loses nothing."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}
"""Errors of file systems that cannot fsync a folder, or link: CIFS, FUSE, drvfs and others."""


def cache_dir() -> Path:
    """Find the user's cache folder of this package: $ASD_POLICY_CACHE, else asd_policy in the system's usual one.

    Raises:
        FileNotFoundError: No environment variable and no home folder gives one.
    """
    own, usual = os.environ.get("ASD_POLICY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    try:
        return Path(usual or Path.home() / ".cache") / "asd_policy"
    except RuntimeError:  # a user without an entry, as containers have them
        raise FileNotFoundError("there is no home folder: set HOME or ASD_POLICY_CACHE") from None


def sync(file: int) -> None:
    """Flush a file or folder to the disk, where the file system can do that."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    Raises:
        OSError: It cannot be written; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):  # None: the system names no file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it takes the place of `path` when the block ends without an error.

    A folder cannot replace another in one system call, so an old one is moved aside first and deleted last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, ending: str) -> Path:
    """Make up a name beside `path` that nobody else has: containers that share a folder may all have process id 1."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.{ending}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities, which JSON lacks, are an error."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
