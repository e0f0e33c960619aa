"""The journal of an evaluation: episodes.jsonl, to which each episode is added, and is on the disk, as it finishes.

Its first line says what the run is; every other line is an `Episode`. Lines are only added, so that a crash at any
moment leaves whole lines and at most one torn line at the end. It is not read, and is cut off before the next line is
added.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asd_policy._common.files import NOT_SUPPORTED, atomic_file, sync
from asd_policy._common.shapes import check_shape
from asd_policy.errors import RunError
from asd_policy.evaluation.rollout.episodes import Episode

NAME = "episodes.jsonl"
RESULTS = "results.json"
_VERSION = 1
_NOT_COMPARED = ("policy", "ran")
"""Not compared: a checkpoint's name, as its sha256 is; and what samplers chose, which a run that goes on takes over."""


@dataclass(frozen=True)
class Found:
    """What a folder already holds."""

    path: Path
    """Of the journal."""
    run: Mapping[str, Any]
    """What identifies the run."""
    episodes: tuple[Episode, ...]
    """In the order in which they finished."""
    size: int
    """Bytes of the whole lines."""

    @property
    def ran(self) -> dict[str, str]:
        """The specs of the run's samplers, and what each ran as.

        Raises:
            RunError: The journal does not say.
        """
        if "ran" not in self.run:
            raise RunError(f"{self.path} does not say what its samplers ran as: name another --out, or --overwrite it")
        try:
            check_shape(self.run["ran"], dict[str, str], "ran")
        except ValueError as error:
            raise RunError(f"{self.path} is damaged: {error}; --overwrite it, or name another --out") from None
        return self.run["ran"]

    def check_same(self, run: Mapping[str, Any]) -> None:
        """Refuse to go on with another run.

        Raises:
            RunError: Something that identifies the run has changed.
        """
        keys = [key for key in {**self.run, **run} if key not in _NOT_COMPARED]
        pairs = [(key, self.run.get(key), run.get(key)) for key in keys]
        others = [_difference(key, there, here) for key, there, here in pairs if there != here]
        if others:
            raise RunError(
                f"{self.path.parent} holds another run, which --resume cannot go on with: {'; '.join(others)}; "
                "name another --out, or --overwrite it"
            )

    def check_plans(self, steps: int) -> None:
        """Refuse plans that name steps beyond a chain's end.

        Args:
            steps: Length K of the policy's chain.

        Raises:
            RunError: One does.
        """
        for episode in self.episodes:
            if any(max((*(p.refused or ()), *(p.unjudged or ())), default=0) >= steps for p in episode.plans):
                raise RunError(
                    f"{self.path} is damaged: {episode.spec} episode {episode.index} has a step that is not one of "
                    f"{steps}; --overwrite it, or name another --out"
                )


def find_run(folder: Path) -> Found | None:
    """Find the run whose journal a folder holds; None where there is none.

    Raises:
        RunError: The journal is damaged, of another version, or cannot be read.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse_journal(path, content)
    except RunError as error:
        raise RunError(f"{error}; --overwrite it, or name another --out") from None


def parse_journal(path: Path, content: bytes) -> Found:
    """Parse the whole lines of a journal.

    Args:
        path: Of the file.
        content: Of the file.

    Raises:
        RunError: It is damaged, or of another version.
    """
    size = _whole(content)
    run: dict[str, Any] = {}
    episodes: list[Episode] = []
    try:
        first, *lines = content[:size].splitlines()
        header = json.loads(first)
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']} is not {_VERSION}")
        check_shape(header["run"], dict[str, Any], "run")
        run.update(header["run"])
        for line in lines:
            episodes.append(Episode.from_json(json.loads(line)))
        if len({(episode.spec, episode.index) for episode in episodes}) < len(episodes):
            raise ValueError("an episode is there twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error} after {len(episodes)} episodes"
        raise RunError(f"{path} is damaged: {reason}") from None
    return Found(path, run, tuple(episodes), size)


class Journal:
    """The file, to which one process at a time can add.

    A process locks the file before it gives it its name, so that of two that begin at once one is refused.
    """

    def __init__(self, path: Path, file: int, size: int, episodes: int) -> None:
        """Take the file, see `start` and `resume`.

        Args:
            path: Of the journal.
            file: Descriptor of it, locked.
            size: Bytes of its whole lines.
            episodes: Number of its episodes.
        """
        self._path, self._file, self._size, self._episodes = path, file, size, episodes

    @classmethod
    def start(cls, folder: Path, run: Mapping[str, Any], replace: bool = True) -> "Journal":
        """Start the journal of a new run.

        Args:
            folder: Made if need be.
            run: What identifies the run, as JSON has it.
            replace: Replace a journal that is there, and its results; otherwise be refused.

        Raises:
            RunError: It cannot be written, another process is adding to the one that is there, or has just begun one.
        """
        path = folder / NAME
        line = _line({"version": _VERSION, "run": run})
        try:
            with _held(path, replace) as old, atomic_file(path) as temporary:
                file = _create(temporary, line, None if old else path)
            (folder / RESULTS).unlink(missing_ok=True)  # of the run that was there
            _sync_folder(folder)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
        return cls(path, file, len(line), 0)

    @classmethod
    def resume(cls, found: Found) -> "Journal":
        """Go on with a journal; cut off what follows its whole lines.

        Raises:
            RunError: It cannot be written, another process is adding to it, or has since it was found.
        """
        path = found.path
        try:
            file = _open(path)
            if _whole(path.read_bytes()) != found.size:
                os.close(file)
                raise _taken(path)
            os.ftruncate(file, found.size)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
        return cls(path, file, found.size, len(found.episodes))

    def add(self, episode: Episode) -> None:
        """Add a finished episode; it is on the disk when this returns.

        Raises:
            RunError: It cannot be written, for example because the disk is full. The journal is left as it was.
        """
        line = _line(episode.to_json())
        try:
            _write(self._file, line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise RunError(
                f"{self._path} cannot be written: {error.strerror}; it keeps the {self._episodes} episodes before, and "
                "--resume goes on with them"
            ) from None
        self._size += len(line)
        self._episodes += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _line(value: Any) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _difference(key: str, there: Any, here: Any) -> str:
    values = [json.dumps(value, ensure_ascii=False) for value in (there, here)]
    return f"{key} differs" if max(map(len, values)) > 60 else f"{key} is {values[0]} there, {values[1]} here"


def _whole(content: bytes) -> int:
    """Count the bytes of a journal's whole lines."""
    return content.rfind(b"\n") + 1


def _write(file: int, line: bytes) -> None:
    """Write a line; it is on the disk when this returns."""
    while line:
        line = line[os.write(file, line) :]
    sync(file)


def _create(temporary: Path, line: bytes, path: Path | None) -> int:
    """Write a journal's first line into a new file, locked before anybody can find it; return its descriptor.

    Args:
        temporary: File to make.
        line: The line.
        path: Name to give it, which nothing may have yet; None for no other name.

    Raises:
        RunError: Something has the name.
    """
    file = os.open(temporary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _lock(file, temporary)
        _write(file, line)
        if path is not None:
            os.link(temporary, path)
    except FileExistsError:
        os.close(file)
        raise _taken(path or temporary) from None
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:  # without links the file is renamed, which two can do
            os.close(file)
            raise
    return file


@contextmanager
def _held(path: Path, replace: bool) -> Iterator[bool]:
    """Hold the lock of the journal to be replaced; yield whether there is one."""
    if not (replace and path.exists()):
        yield False
        return
    file = _open(path)
    try:
        yield True
    finally:
        os.close(file)


def _open(path: Path) -> int:
    """Open a journal to add to it, locked.

    Raises:
        RunError: Another process is adding to it, or has just replaced it.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        _lock(file, path)
        if not os.path.samestat(os.fstat(file), path.stat()):
            raise _taken(path)
    except BaseException:
        os.close(file)
        raise
    return file


def _lock(file: int, path: Path) -> None:
    """Keep other processes from adding to a file, where the system can.

    Raises:
        RunError: One is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path) from None
    except OSError:
        pass  # a file system without locks


def _taken(path: Path) -> RunError:
    return RunError(f"{path} is being written by another process")


def _sync_folder(folder: Path) -> None:
    """Write to the disk that a file was renamed into a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)
