"""Pickles read without unpickling: nothing that a pickle names is imported, called or changed.

A pickle is a program for a small stack machine, and the harm of one lies in three of its instructions: GLOBAL imports
what it names, REDUCE calls it, BUILD sets its attributes. This machine runs the instructions that make plain values
(as `pickletools` in the standard library documents them); of those three it only writes down what they say. What
`torch.save` writes for a tensor is written down too, and read by `archives.py` if it is asked for.
"""

import math
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asd_policy.errors import CheckpointError

DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
"""Storage class in a pickle → dtype of its tensors."""
MAPPINGS = ("collections.OrderedDict", "collections.defaultdict")
TENSOR = "torch._utils._rebuild_tensor_v2"

# What training code leaves in checkpoints: numpy's numbers, what schedulers of the learning rate count, dates, paths,
# and how dill names types.
CALLABLE = {
    *MAPPINGS,
    TENSOR,
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "collections.Counter",
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta")),
    *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
    "dill._dill._load_type",
    "_codecs.encode",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
}
"""Names that a pickle may call, by REDUCE. None of them is imported; a call of any other means that the file is not
what it says, or an attack. What is only made, by NEWOBJ, is a record whatever its class."""
MAX_NAME = 500  # [characters] of a key or a storage's name; the longest of a real policy have a hundred
MAX_DIMENSIONS = 16  # of a tensor; those of a network have 4 at most
MAX_PARTS = 16  # of a key that is a tuple

_MEMO = {"BINPUT", "LONG_BINPUT"}
_RECALL = {"BINGET", "LONG_BINGET"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Global:
    """The name of a class or function."""

    name: str
    """Module and name, joined by a dot."""


@dataclass(eq=False, repr=False)
class Record:
    """An object that was not made: what the pickle says of it. It may hold itself, hence no comparison and no repr."""

    kind: str
    """The class or function that would have made it."""
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """A run of numbers in an archive."""

    dtype: torch.dtype
    key: str
    """Name of its entry below `data/`."""
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an archive, a view of a storage that has room for it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(data: bytes, source: str) -> Any:
    """Return what a pickle describes: plain values, with records and stored tensors in the place of objects.

    Containers may hold themselves, as pickled objects do: walk them along known paths, not all over.

    Args:
        data: The pickle.
        source: Its name, for messages.

    Raises:
        CheckpointError: It is damaged, calls what is not in `CALLABLE`, or does what no checkpoint needs.
    """
    try:
        return _run(data)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{source} is damaged: {type(error).__name__}: {error}") from None


def _run(data: bytes) -> Any:
    """Run the machine; anything but a `CheckpointError` means a damaged pickle."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    argument: Any  # of a kind that the instruction's name tells
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MEMO:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _RECALL:
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = tuple(stack.pop() for _ in range(count))[::-1]
            stack.append(items)
        elif name == "TUPLE":
            items = to_mark()
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = to_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = to_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            keys = items[::2]
            for key in keys:
                _check_key(key)
            _expect(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_global(f"{_expect(module, str)}.{_expect(last, str)}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, maker = stack.pop(), _expect(stack.pop(), Global)
            if name == "REDUCE":
                _check_call(maker)
            stack.append(_make(maker.name, _expect(arguments, tuple)))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], dict):  # a mapping's attributes, such as a state dict's versions, say nothing
                _expect(stack[-1], Record).state = state
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(f"the pickle uses the instruction {name}, which no checkpoint needs")
    raise ValueError("it has no end")  # genops has raised the same before


def _check_key(key: Any) -> None:
    """Refuse keys that no checkpoint has: a tuple's hash may take for ever, and numbers can be made to collide.

    Flat tuples of strings are keys where omegaconf remembers what a resolver, such as hydra's `now`, has said.
    """
    parts = key if isinstance(key, tuple) else (key,)
    named = len(parts) <= MAX_PARTS and all(isinstance(part, str) and len(part) <= MAX_NAME for part in parts)
    if not named and not (isinstance(key, int) and abs(key) < 2**31):
        raise TypeError(f"a {type(key).__name__} as a key, or a huge one")


def _expect(value: Any, kind: Any) -> Any:
    """Return a value of a kind, or raise the TypeError of a damaged pickle."""
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where the pickle needs something else")
    return value


def _global(name: str) -> Global:
    return Global(re.sub(r"^__builtin__\.", "builtins.", name))  # what protocol 2 calls that module


def _check_call(function: Global) -> None:
    if function.name not in CALLABLE:
        raise CheckpointError(
            f"the pickle asks to call {function.name[:MAX_NAME]!r}, which no checkpoint of this kind needs; nothing "
            "was run, and the file should not be opened with torch.load or dill"
        )


def _make(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what stands for a call or a new object."""
    if name in MAPPINGS:
        return {}
    if name != TENSOR:
        return Record(name, arguments)
    # torch._utils._rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks)
    storage, offset, shape, stride = arguments[:4]
    if not (isinstance(storage, Storage) and _counts((offset,)) and _counts(shape) and _counts(stride)):
        raise ValueError("a tensor whose storage, offset, size or stride is none")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    numel = math.prod(shape)
    if numel > storage.numel or (numel and last >= storage.numel):
        raise ValueError(f"a tensor of size {shape} and stride {stride} in a storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, shape, stride)


def _storage(identifier: Any) -> Storage:
    """Return the storage that `torch.save` calls ("storage", class, key, device, numel)."""
    _, kind, key, _, numel = _expect(identifier, tuple)
    named = isinstance(key, str) and len(key) <= MAX_NAME
    if not (isinstance(kind, Global) and kind.name in DTYPES and named and _counts((numel,))):
        raise ValueError("a storage whose class, key or length is none")
    return Storage(DTYPES[kind.name], key, numel)


def _counts(values: Sequence[Any]) -> bool:
    """Return whether values are a tuple of sizes or strides that a tensor can have; True and False are none."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
