"""The zip files of `torch.save` (torch 1.6 and later): a pickle, `data.pkl`, and an entry of numbers per storage."""

import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from asd_policy.checkpoints.untrusted.pickles import Record, StoredTensor, read_pickle
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import CheckpointError

_ZIP, _NO_ENTRIES, _TAR = b"PK\x03\x04", b"PK\x05\x06", b"ustar"
_TAR_AT = 257
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the magic number of torch 0.1.10 to 1.5
MAX_PICKLE = 4 * 2**20  # [bytes] of data.pkl; a policy of a thousand tensors with its optimiser takes one tenth


class TorchArchive:
    """A checkpoint open for reading; a context manager. Tensors are read one by one, when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open a file and find its pickle.

        Raises:
            CheckpointError: It is not a zip file of `torch.save`, or a damaged one.
        """
        self.path = path
        self._size = path.stat().st_size
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{path} is not a whole zip file of torch.save: {error}") from None
        self._entries = {info.filename: info for info in self._zip.infolist()}
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(self._entries) != len(self._zip.infolist()):
            self._zip.close()
            raise CheckpointError(f"{path} is not a zip file of torch.save: it has {len(pickles)} pickles, not 1")
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, bytearray] = {}  # read once each, however many tensors there are in one

    def __enter__(self) -> "TorchArchive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def pickle(self) -> bytes:
        """Read the pickle's bytes.

        Raises:
            CheckpointError: It is damaged or too large.
        """
        name = f"{self._root}data.pkl"
        if self._entries[name].file_size > MAX_PICKLE:
            raise CheckpointError(f"{self.path}: {name} has more than {MAX_PICKLE} bytes, far more than policies have")
        return self._read(name)

    def payload(self) -> Any:
        """Read what was saved, tensors as `StoredTensor`; see `read_pickle`.

        Raises:
            CheckpointError: The pickle is damaged, or asks for something that no checkpoint needs.
        """
        order = f"{self._root}byteorder"
        if order in self._entries and self._read(order) != b"little":
            raise CheckpointError(f"{self.path}: byteorder is not little; save it again on a little-endian machine")
        return read_pickle(self.pickle(), f"{self.path}: data.pkl")

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor of the archive.

        Raises:
            CheckpointError: Its numbers are missing, too few or damaged.
        """
        storage = stored.storage
        name = f"{self._root}data/{storage.key}"
        if name not in self._entries:
            raise CheckpointError(f"{self.path} has no entry {name!r}, which its pickle refers to")
        needed, found = storage.numel * storage.dtype.itemsize, self._entries[name].file_size
        if found != needed:
            raise CheckpointError(f"{self.path}: {name} has {found} bytes, its tensor {needed}")
        if storage.numel == 0:
            return torch.empty(stored.shape, dtype=storage.dtype)
        if name not in self._storages:
            self._storages[name] = bytearray(self._read(name))
        numbers = torch.frombuffer(self._storages[name], dtype=storage.dtype)
        if 0 in stored.shape:  # torch would check strides and offset
            return numbers.new_empty(stored.shape)
        return numbers.as_strided(stored.shape, stored.stride, stored.offset)

    def state_dict(self, state: Settings, first_name: Callable[[str], str] = str) -> dict[str, Tensor]:
        """Read the tensors of a state dict, which is a section of the payload.

        Args:
            state: The section.
            first_name: Of a name under which a library lists a tensor once more, the name under which it does first;
                of any other, that name. One that is the same tensor as the first is left out.

        Raises:
            CheckpointError: An entry is no tensor, or damaged, or tensors share storages to be larger than the file.
        """
        every = {name: state.stored_tensor(name) for name in state}
        firsts = {name: first_name(name) for name in every}
        stored = {
            name: tensor for name, tensor in every.items()
            if firsts[name] == name or every.get(firsts[name]) != tensor
        }  # fmt: skip
        size = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in stored.values())
        if size > self._size:
            raise CheckpointError(f"{self.path}: {size} bytes of weights in a file of {self._size}")
        return {name: self.tensor(tensor) for name, tensor in stored.items()}

    def _read(self, name: str) -> bytes:
        """Read an entry and check its checksum."""
        info = self._entries[name]
        # torch.save does not compress: a compressed entry is there to unpack to a huge one.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self._size:
            raise CheckpointError(f"{self.path}: {name} is compressed or longer than the file")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from None


def count_stored(tensors: Iterable[StoredTensor]) -> int:
    """Count the numbers in all tensors; one that is there several times counts once."""
    return sum(math.prod(tensor.shape) for tensor in set(tensors))


def mentions(path: Path, *names: str) -> bool:
    """Tell whether a file of `torch.save` has an entry of one of the names; True for a damaged one, which might have.

    A pickle holds every string as it is, so nothing has to be interpreted.
    """
    if not _head(path).startswith(_ZIP):
        return False
    try:
        with TorchArchive(path) as archive:
            pickle = archive.pickle()
            return any(name.encode() in pickle for name in names)
    except CheckpointError:
        return True


def explain(path: Path) -> str | None:
    """Describe a file of `torch.save` of an unknown format, and say what to do; None for any other file."""
    head = _head(path)
    if head[_TAR_AT:].startswith(_TAR) or head.startswith(_LEGACY):
        form = "tar file" if head[_TAR_AT:].startswith(_TAR) else "bare pickle"
        return f"it looks like a {form} of torch.save before 1.6: load it where it was made, and save it with today's"
    if head.startswith(_NO_ENTRIES):
        return "it is a zip file with nothing in it"
    if not head.startswith(_ZIP):
        return None
    try:
        with TorchArchive(path) as archive:
            payload = archive.payload()
    except CheckpointError as error:
        return str(error)
    if not isinstance(payload, dict):
        what = payload.kind if isinstance(payload, Record) else type(payload).__name__
        return (
            f"it holds a {what} as a whole: save the policy's state dict, with its configuration, as its training does"
        )
    names = ", ".join(str(name) for name in list(payload)[:3])
    if payload and all(isinstance(value, StoredTensor) for value in payload.values()):
        return (
            f"it is a bare state dict of {len(payload)} tensors ({names}, …), which says neither what they are nor how "
            "observations are normalised: take the file that the training saved, with its configuration"
        )
    return f"it holds a mapping with {names or 'nothing in it'}, of no training that is known here"


def _head(path: Path) -> bytes:
    """Read the first bytes of a file; empty where there is no file or it cannot be read."""
    if not path.is_file():  # a pipe would wait
        return b""
    try:
        with path.open("rb") as file:
            return file.read(_TAR_AT + len(_TAR))
    except OSError:
        return b""
