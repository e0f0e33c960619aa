"""The journal of an evaluation: episodes.jsonl, to which each episode is added, and is on the disk, as it finishes.

Its first line says what the run is; every other one is an `Episode`. Lines are only ever added, so a crash at any
moment leaves whole lines and at most one torn one at the end, which is not read, and cut off before the next is added.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asd_policy.episodes import Episode
from asd_policy.errors import RunError
from asd_policy.files import atomic_file

NAME = "episodes.jsonl"
RESULTS = "results.json"
_VERSION = 1
_NOT_COMPARED = ("policy", "ran")
"""The name of a checkpoint, for which its contents' sha256 stands; and what samplers chose, in which a run goes on."""


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
        return self.run["ran"]

    def check_same(self, run: Mapping[str, Any]) -> None:
        """Refuse to go on with another run.

        Raises:
            RunError: Something that identifies a run is not the same.
        """
        keys = [key for key in {**self.run, **run} if key not in _NOT_COMPARED]
        pairs = [(key, self.run.get(key), run.get(key)) for key in keys]
        others = [_difference(key, there, here) for key, there, here in pairs if there != here]
        if others:
            raise RunError(
                f"{self.path.parent} holds another run, which --resume cannot go on with: {'; '.join(others)}; "
                "name another --out, or --overwrite it"
            )


def find_run(folder: Path) -> Found | None:
    """Return the run whose journal a folder holds, or None where there is none.

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
        return parse(path, content)
    except RunError as error:
        raise RunError(f"{error}; --overwrite it, or name another --out") from None


def parse(path: Path, content: bytes) -> Found:
    """Return what a journal's whole lines say.

    Args:
        path: Of the file.
        content: Of the file.

    Raises:
        RunError: It is damaged, or of another version.
    """
    size = content.rfind(b"\n") + 1
    run: dict[str, Any] = {}
    episodes: list[Episode] = []
    try:
        first, *lines = content[:size].splitlines()
        header = json.loads(first)
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']} is not {_VERSION}")
        run.update(header["run"])
        for line in lines:
            episodes.append(Episode.from_json(json.loads(line)))
        if len({(episode.spec, episode.index) for episode in episodes}) < len(episodes):
            raise ValueError("an episode is there twice")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error} after {len(episodes)} episodes"
        raise RunError(f"{path} is damaged: {reason}") from None
    return Found(path, run, tuple(episodes), size)


class Journal:
    """The file, open to be added to by one process at a time."""

    def __init__(self, path: Path, size: int, episodes: int) -> None:
        """Open it.

        Args:
            path: Of a journal that exists.
            size: Bytes of its whole lines; what is behind them is cut off.
            episodes: That it has.

        Raises:
            RunError: It cannot be opened, or another process is adding to it.
        """
        self._path, self._size, self._episodes = path, size, episodes
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            _lock(self._file, path)
            os.ftruncate(self._file, size)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def start(cls, folder: Path, run: Mapping[str, Any]) -> "Journal":
        """Start the journal of a new run, in the place of one that may be there.

        Args:
            folder: Made if need be.
            run: What identifies the run, as JSON has it.

        Raises:
            RunError: It cannot be written.
        """
        path = folder / NAME
        line = _line({"version": _VERSION, "run": run})
        if path.exists():
            cls(path, path.stat().st_size, 0).close()  # refuses where another process is adding to it
        try:
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            (folder / RESULTS).unlink(missing_ok=True)  # of the run that was there
            _sync_folder(folder)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
        return cls(path, len(line), 0)

    @classmethod
    def resume(cls, found: Found) -> "Journal":
        """Go on with a journal.

        Raises:
            RunError: It cannot be written, or another process is adding to it.
        """
        return cls(found.path, found.size, len(found.episodes))

    def add(self, episode: Episode) -> None:
        """Add a finished episode; it is on the disk when this returns.

        Raises:
            RunError: It cannot be written, for want of room for instance. The journal is left as it was.
        """
        rest = line = _line(episode.to_json())
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
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
        os.close(file)
        raise RunError(f"{path} is being written by another process") from None
    except OSError:
        pass  # a file system without locks


def _sync_folder(folder: Path) -> None:
    """Have the disk know of a file that was renamed into a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
