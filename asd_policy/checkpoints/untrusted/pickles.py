"""Pickles read without unpickling: nothing that a pickle names is imported, called or changed.

A pickle is a program for a small stack machine, and the harm of one lies in three of its instructions: GLOBAL imports
what it names, REDUCE calls it, BUILD sets its attributes. This machine runs the instructions that make plain values
(as `pickletools` in the standard library documents them); of those three it only writes down what they say. What
`torch.save` writes for a tensor is written down too, and read by `archives.py` if it is asked for.
"""

import math
import pickletools
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


def _inside(module: str, *names: str) -> list[str]:
    return [f"{module}.{name}" for name in names]


DILL_TYPES = tuple(_inside("dill._dill", "_load_type", "_create_namedtuple", "_create_type"))
"""How dill names a type, and writes down a class of the script that was run; a pickle may call what they give."""
# What training code leaves in checkpoints: tensors of other kinds, numpy's numbers and generators, what schedulers of
# the learning rate count, plain containers and numbers, dates, paths, and how dill writes types, arrays and functions.
CALLABLE = {
    *MAPPINGS,
    TENSOR,
    *DILL_TYPES,
    *_inside("torch._utils", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state"),
    *_inside("torch._utils", "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"),
    *_inside("torch", "Size", "device", "_tensor._rebuild_from_type_v2", "serialization._get_layout", "_C.Generator"),
    *_inside("collections", "Counter", "deque"),
    *_inside("datetime", "date", "datetime", "time", "timedelta", "timezone"),
    *("decimal.Decimal", "fractions.Fraction", "types.SimpleNamespace", "copyreg._reconstructor", "_codecs.encode"),
    *(
        f"{module}.{kind}Path"
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for kind in ("Posix", "PurePosix", "PureWindows", "Windows")
    ),
    *_inside("dill._dill", "_import_module", "_create_array", "_create_cell", "_create_code", "_create_dtypemeta"),
    *("dill._dill._create_function", "numpy.random.bit_generator.__pyx_unpickle_SeedSequence"),
    *("numpy.dtype", "numpy.ma.core._mareconstruct"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *_inside("numpy.random._pickle", "__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    *_inside(
        "builtins", "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object"
    ),
    *_inside("builtins", "range", "set", "slice", "str", "tuple", "type"),
}
"""Names that a pickle may call, by REDUCE. None of them is imported; a call of any other means that the file is not
what it says, or an attack. An object that is only made, by NEWOBJ, becomes a record whatever its class."""
MAX_INSTRUCTIONS = 10**6  # each makes a value of some hundred bytes at most; a policy of a thousand tensors has 60,000
MAX_NAME = 500  # [characters] of a key, a class or a storage; the longest of a real policy have a hundred
MAX_DIMENSIONS = 16  # of a tensor; those of a network have 4 at most
MAX_PARTS = 16  # of a key that is a tuple

_MEMO = {"BINPUT", "LONG_BINPUT"}
_RECALL = {"BINGET", "LONG_BINGET"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"),
}
_SETS = {"EMPTY_SET": "builtins.set", "FROZENSET": "builtins.frozenset"}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names of modules in protocol 2, which are those of Python 2."""
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function."""

    name: str
    """Module and name, joined by a dot."""


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object that was not made: how the pickle describes it. It may hold itself, hence no comparison and no repr."""

    kind: str
    """The class or function that would have made it."""
    arguments: Any
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in an archive."""

    dtype: torch.dtype
    key: str
    """Name of its entry below `data/`."""
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an archive, a view of a storage that has room for it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(data: bytes, source: str) -> Any:
    """Read what a pickle describes: plain values, with records and stored tensors in the place of objects.

    Containers may hold themselves, as pickled objects do: walk them along known paths only.

    Args:
        data: The pickle.
        source: Its name, for messages.

    Raises:
        CheckpointError: It is damaged, calls what is not in `CALLABLE`, or does something that no checkpoint needs.
    """
    try:
        return _Machine().run(data)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{source} is damaged: {type(error).__name__}: {error}") from None


class _Machine:
    """The stack machine. Any error of it except a `CheckpointError` means a damaged pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Run a pickle's instructions; give what it leaves on the stack."""
        argument: Any  # its type depends on the instruction
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if count >= MAX_INSTRUCTIONS:
                raise CheckpointError(
                    f"the pickle has more than {MAX_INSTRUCTIONS} instructions, far more than policies"
                )
            if name == "STOP":
                return self._stack.pop()
            if name in ("PROTO", "FRAME") or self._push(name, argument) or self._combine(name, argument):
                continue
            raise CheckpointError(f"the pickle uses the instruction {name}, which no checkpoint needs")
        raise ValueError("it has no end")  # genops has raised the same before

    def _push(self, name: str, argument: Any) -> bool:
        """Run an instruction that makes a plain value or moves one; tell whether this is one."""
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MEMO:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _RECALL:
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_SET":
            stack.append(Record(_SETS[name], ()))
        elif name in _TUPLES:
            stack.append(self._pop(_TUPLES[name]))
        elif name in ("TUPLE", "FROZENSET"):
            items = tuple(self._pop_to_mark())
            self._stack.append(items if name == "TUPLE" else Record(_SETS[name], items))
        else:
            return False
        return True

    def _combine(self, name: str, argument: Any) -> bool:
        """Run an instruction that fills a container, or names, makes or sets up an object; tell whether this is one."""
        if name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            if not isinstance(self._stack[-1], Record):  # what a set, or a class of lists, holds is not needed
                _expect(self._stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            if not isinstance(self._stack[-1], Record):  # as above, of a class of mappings
                _set_items(_expect(self._stack[-1], dict), items)
        elif name == "GLOBAL":
            self._stack.append(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, last = self._pop(2)
            self._stack.append(_global(_expect(module, str), _expect(last, str)))
        elif name in ("REDUCE", "NEWOBJ"):
            maker, arguments = self._pop(2)
            self._stack.append(_make(_maker(maker, called=name == "REDUCE"), _expect(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self._pop(1)
            if not isinstance(self._stack[-1], dict):  # attributes of a mapping, such as a state dict's versions
                _expect(self._stack[-1], Record).state = state
        elif name == "BINPERSID":
            self._stack.append(_storage(*self._pop(1)))
        else:
            return False
        return True

    def _pop(self, count: int) -> tuple[Any, ...]:
        """Take that many values off the stack, in the order in which they were pushed."""
        return tuple(self._stack.pop() for _ in range(count))[::-1]

    def _pop_to_mark(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        items, self._stack = self._stack, self._below.pop()
        return items


def _set_items(mapping: dict[Any, Any], items: Sequence[Any]) -> None:
    """Add keys and values, in turn, to a mapping that has none of these keys yet."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        _check_key(key)
        if key in mapping:
            raise ValueError(f"the key {key!r} twice in a mapping")
        mapping[key] = value


def _check_key(key: Any) -> None:
    """Refuse keys that no checkpoint has: a tuple's hash may take for ever, and numbers can be made to collide.

    Flat tuples of strings are keys where omegaconf remembers what a resolver, such as hydra's `now`, has said.
    """
    parts = key if isinstance(key, tuple) else (key,)
    named = len(parts) <= MAX_PARTS and all(isinstance(part, str) and len(part) <= MAX_NAME for part in parts)
    if not named and not (isinstance(key, int) and abs(key) < 2**31):
        raise TypeError(f"a {type(key).__name__} as a key, or a huge one")


def _expect(value: Any, kind: Any) -> Any:
    """Check the type of a value; another one is the TypeError of a damaged pickle."""
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where the pickle needs something else")
    return value


def _global(module: str, name: str) -> Global:
    if len(module) + len(name) > MAX_NAME:  # named again and again, it would fill the memory
        raise ValueError(f"a class or function whose name has {len(module) + len(name)} characters")
    name = "range" if (module, name) == ("__builtin__", "xrange") else name
    return Global(f"{_RENAMED.get(module, module)}.{name}")


def _maker(maker: Any, called: bool) -> str:
    """Find the name of what makes an object; refuse one that a pickle has no reason to call."""
    if isinstance(maker, Record) and maker.kind in DILL_TYPES:
        return maker.kind
    name = _expect(maker, Global).name
    if called and name not in CALLABLE:
        raise CheckpointError(
            f"the pickle asks to call {name!r}, which no checkpoint of this kind needs; nothing was run, and the file "
            "should not be opened with torch.load or dill"
        )
    return name


def _make(name: str, arguments: tuple[Any, ...]) -> Any:
    """Make what stands for a call or a new object."""
    if name in MAPPINGS:
        return {}
    if name != TENSOR or (arguments and isinstance(arguments[0], Record)):  # such a storage is of another dtype
        return Record(name, arguments)
    # torch._utils._rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks)
    storage, offset, shape, stride = arguments[:4]
    if not (isinstance(storage, Storage) and _counts((offset,)) and _counts(shape) and _counts(stride)):
        raise ValueError("a tensor whose storage, offset, size or stride is none")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    numel = math.prod(shape)
    if math.prod(max(size, 1) for size in shape) >= 2**60 or max(offset, *stride, 0) >= 2**60:
        raise ValueError(f"a tensor of size {shape}, stride {stride} and offset {offset}")
    if numel > storage.numel or (numel and last >= storage.numel):
        raise ValueError(f"a tensor of size {shape} and stride {stride} in a storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, shape, stride)


def _storage(identifier: Any) -> Storage | Record:
    """Read a storage, for `torch.save` ("storage", class, key, device, numel); a record where the dtype is another."""
    _, kind, key, _, numel = _expect(identifier, tuple)
    named = isinstance(key, str) and len(key) <= MAX_NAME
    if not (isinstance(kind, Global) and named and _counts((numel,))):
        raise ValueError("a storage whose class, key or length is none")
    return Storage(DTYPES[kind.name], key, numel) if kind.name in DTYPES else Record(kind.name, (key, numel))


def _counts(values: Sequence[Any]) -> bool:
    """Tell whether values are a tuple of sizes or strides that a tensor can have; True and False are no numbers."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
