"""Pickles that were made to do harm, and archives that were damaged: refused in one line, and nothing run."""

import copy
import io
import json
import os
import pickle
import random
import resource
import tracemalloc
import zipfile
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.checkpoints.diffusion_policy import describe_diffusion_policy
from asd_policy.checkpoints.untrusted.archives import TorchArchive
from asd_policy.checkpoints.untrusted.pickles import Record, StoredTensor, read_pickle
from asd_policy.errors import AsdError, CheckpointError
from support import training_files as files

TOUCHED = "asd_policy_pickle_was_run"


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Remember it."""
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return it."""
        return self.call


def harm(path: Path) -> list[tuple[str, Any]]:
    """Return payloads that would make a file, and whom they would call, by the names of pickle's protocol 2."""
    command = f"open({str(path)!r}, 'w')"
    return [
        (f"{os.name}.system", Calls(os.system, f"touch {path}")),
        ("builtins.eval", Calls(eval, command)),
        ("builtins.exec", Calls(exec, command)),
        ("builtins.__import__", Calls(getattr, Calls(__import__, "os"), "system")),
        ("builtins.getattr", Calls(getattr, "os", "upper")),
        ("itertools.imap", Calls(map, eval, [command])),
        ("torch.serialization.load", Calls(torch.load, str(path))),
        ("torch.hub.load", Calls(torch.hub.load, str(path), "x")),
        ("pickle.loads", Calls(pickle.loads, pickle.dumps(Calls(eval, command)))),
        (f"{io.open.__module__}.open", Calls(io.open, str(path), "w")),  # of io until Python 3.11, of _io since
        ("functools.partial", Calls(__import__("functools").partial, eval, command)),
        ("commands.Popen", Calls(__import__("subprocess").Popen, ["touch", str(path)])),
    ]


@pytest.mark.parametrize("place", ["payload", "configuration", "state dict", "unused"])
@pytest.mark.parametrize("index", range(len(harm(Path()))))
def test_nothing_is_run(index: int, place: str, tmp_path: Path) -> None:
    """Wherever a pickle asks for it; without the guard each of these would have run or raised something else."""
    culprit, payload = harm(tmp_path / TOUCHED)[index]
    whole = files.workspace("unet")
    if place == "configuration":
        whole["cfg"]["policy"] = {**whole["cfg"]["policy"], "horizon": payload}
    elif place == "state dict":
        whole["state_dicts"]["ema_model"]["model.x"] = payload
    elif place == "unused":
        whole["pickles"]["epoch"] = payload
    path = tmp_path / "latest.ckpt"
    if place == "payload":
        torch.save({"state_dicts": payload}, path)
    else:
        files.save_workspace(path, whole)
    with pytest.raises(CheckpointError) as error:
        asd_policy.load_policy(path)
    assert f"asks to call '{culprit}'" in str(error.value)
    assert not (tmp_path / TOUCHED).exists()


def test_the_harm_is_real(tmp_path: Path) -> None:
    """An unpickler would have run it."""
    path = tmp_path / TOUCHED
    pickle.loads(pickle.dumps(dict(harm(path))["builtins.eval"]))
    assert path.exists()


PROTOCOL = b"\x80\x02"
INSTRUCTIONS = {
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(cbuiltins\nint\no.",
    "EXT1": b"\x82\x01.",
    "PERSID": b"Pname\n.",
    "NEWOBJ_EX": b"\x80\x04cbuiltins\nint\n)}\x92.",
    "DUP": b"N2.",
    "STRING": b"S'x'\n.",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_no_checkpoint_needs(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"uses the instruction {name}|is damaged"):
        read_pickle(INSTRUCTIONS[name], "x")


class Tags(list[str]):
    """A class of lists."""


class Table(dict[str, int]):
    """A class of mappings."""


class Own:
    """A class that no library has."""

    def __init__(self) -> None:
        """Have a state."""
        self.value = 3


def test_objects_of_any_class_are_records(tmp_path: Path) -> None:
    """What training code keeps beside the weights is nobody's business here, and keeps no file from being read."""
    record = read_pickle(pickle.dumps(Own(), 2), "x")
    assert isinstance(record, Record)
    assert record.kind.endswith("test_pickles.Own")
    assert record.state == {"value": 3}
    payload = files.workspace("unet")
    payload["pickles"] = {"own": Own(), "schedule": Counter([3, 5]), "out": Path("runs"), "when": date(2023, 1, 2)}
    asd_policy.load_policy(files.save_workspace(tmp_path / "latest.ckpt", payload))


UNUSED: dict[str, Any] = {
    "set": {1, 2},
    "frozen set": frozenset([1]),
    "slice": slice(1, 2),
    "range": range(3),
    "complex": 1j,
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "deque": deque([1], 3),
    "large integer": 10**700,
    "type": type(None),
    "list of a class": Tags("ab"),
    "mapping of a class": Table(a=1),
    "decimal": Decimal("1.5"),
    "zone": UTC,
    "namespace": SimpleNamespace(a=1),
    "path of Python 3.13": Path("runs"),
    "module": torch.nn.Linear(2, 2),
    "array": np.arange(3, dtype=np.uint16),
    "array of objects": np.array([{}, None], dtype=object),
    "masked array": np.ma.array([1, 2], mask=[False, True]),
    "generator": np.random.default_rng(0),
    "old generator": np.random.RandomState(0),
    "torch's generator": torch.Generator(),
    "sparse tensor": torch.eye(2).to_sparse(),
    **{str(kind): torch.arange(3).to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64, torch.complex64)},
    "float8": torch.zeros(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_training_code_leaves_behind_keeps_no_file_from_being_read(name: str, tmp_path: Path) -> None:
    for protocol in (2, 4, 5):
        torch.save({"epoch": 3, "unused": UNUSED[name]}, tmp_path / "x", pickle_protocol=protocol)
        with TorchArchive(tmp_path / "x") as archive:
            assert archive.payload()["epoch"] == 3


DILL = {
    "set": b"cdill._dill\n_load_type\n(X\x07\x00\x00\x00SetTypetR(]K\x01atR.",
    "array": b"cdill._dill\n_create_array\n(cnumpy.core.multiarray\n_reconstruct\nNNNtR.",
    "lambda": b"cdill._dill\n_create_function\n(cdill._dill\n_create_code\n(K\x01tRc__builtin__\n__main__\ntR.",
    "named tuple": b"cdill._dill\n_create_namedtuple\n(X\x01\x00\x00\x00N]X\x01\x00\x00\x00mtRK\x01K\x02\x86R.",
    "path of Python 3.13": b"cpathlib._local\nPosixPath\n(X\x04\x00\x00\x00runstR.",
}


@pytest.mark.parametrize("name", DILL)
def test_what_dill_writes_is_inert(name: str) -> None:
    """As dill 0.4 spells it at protocol 2."""
    assert isinstance(read_pickle(PROTOCOL + DILL[name], "x"), Record)


def test_what_is_called_is_dills_type_and_nothing_else_that_was_made() -> None:
    """A function that dill describes could be anything, and so could an object of a class."""
    function = b"cdill._dill\n_create_function\n(NtR)R."
    partial = b"cfunctools\npartial\n(cbuiltins\neval\nt\x81(X\x01\x00\x00\x001tR."
    for data in (function, partial):
        with pytest.raises(CheckpointError, match="^x is damaged: TypeError: a Record where"):
            read_pickle(PROTOCOL + data, "x")


def test_tensors_of_other_dtypes_are_no_weights(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    name = "model.mid_modules.0.blocks.1.block.0.bias"
    payload["state_dicts"]["ema_model"][name] = torch.zeros(16).to(torch.float8_e5m2)
    with pytest.raises(
        CheckpointError, match=f"state_dicts.ema_model.{name} is a torch._utils._rebuild_tensor_v3, not"
    ):
        asd_policy.load_policy(files.save_workspace(tmp_path / "latest.ckpt", payload))


BOMBS = {
    "a long name, again and again": b"\x80\x04" + b"X" + (2**20).to_bytes(4, "little") + b"a" * 2**20
    + b"q\x00" + b"h\x00h\x00\x93" * 100_000 + b".",
    "lists": PROTOCOL + b"]" * (2**22 - 3) + b".",
    "mappings": PROTOCOL + b"}" * (2**22 - 3) + b".",
    "marks": PROTOCOL + b"(" * (2**22 - 3) + b".",
    "records": PROTOCOL + b"cnumpy\ndtype\nq\x01" + b"h\x01)R" * 2**20 + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_of_many_objects_take_little_memory(name: str) -> None:
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="has 2097152 characters|more than 1000000 instructions"):
        read_pickle(BOMBS[name], "x")
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) < 150 * 2**20


def test_a_list_that_many_settings_share_is_not_copied_for_each(tmp_path: Path) -> None:
    payload = files.workspace("unet")
    shared: list[Any] = [None] * 50_000
    scheduler = {**files.SCHEDULER, **{f"x{number}": shared for number in range(10_000)}}
    payload["cfg"]["policy"] = {**payload["cfg"]["policy"], "noise_scheduler": scheduler}
    path = tmp_path / "latest.ckpt"
    torch.save(payload, path)
    tracemalloc.start()
    try:
        describe_diffusion_policy(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_a_key_twice_in_a_mapping() -> None:
    with pytest.raises(CheckpointError, match="the key 'a' twice in a mapping"):
        read_pickle(PROTOCOL + b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.", "x")


def test_a_call_is_refused_however_it_is_named() -> None:
    """A dotted name could lead from a harmless module to another one."""
    for module, name in (("pathlib", "os.system"), ("collections", "Counter.__init__"), ("builtins", "eval")):
        call = b"\x80\x04" + _push(module) + _push(name) + b"\x93)R."
        with pytest.raises(CheckpointError, match=f"asks to call '{module}.{name}'"):
            read_pickle(call, "x")


def test_known_names_are_inert() -> None:
    """They are noted, not imported and not called; and what they are given is not called either."""
    data = PROTOCOL + b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x88tR}X\x01\x00\x00\x00aK\x01sb."
    record = read_pickle(data, "x")
    assert isinstance(record, Record)
    assert (record.kind, record.arguments, record.state) == ("numpy.dtype", ("f4", True), {"a": 1})


DAMAGED = {
    "nothing": b"",
    "no end": PROTOCOL + b"N",
    "an empty stack": PROTOCOL + b"\x85.",
    "an empty stack at the end": PROTOCOL + b".",
    "a tuple without its mark": PROTOCOL + b"t.",
    "an unknown memo": PROTOCOL + b"h\x07.",
    "an unknown instruction": PROTOCOL + b"\xff.",
    "a list in the place of a mapping": PROTOCOL + b"]K\x01K\x02s.",
    "a number that is called": PROTOCOL + b"K\x01)R.",
    "a call without arguments": PROTOCOL + b"cbuiltins\nint\nK\x01R.",
    "an unhashable key": PROTOCOL + b"}]K\x01s.",
    "a key of tuples": PROTOCOL + b"}))\x86K\x01s.",
    "a key of numbers": PROTOCOL + b"}K\x01K\x01\x86K\x01s.",
    "a key of many strings": PROTOCOL + b"}(" + b"X\x00\x00\x00\x00" * 17 + b"tK\x01s.",
    "a length beyond the end": PROTOCOL + b"X\xff\xff\xff\x7fabc.",
    "a negative length": PROTOCOL + b"\x8b\xff\xff\xff\xff.",
    "an odd number of items": PROTOCOL + b"}(K\x01u.",
    "a state of a number": PROTOCOL + b"K\x01}b.",
    "a storage that is none": PROTOCOL + b"K\x01Q.",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_pickles(damage: str) -> None:
    with pytest.raises(CheckpointError, match="^x is damaged: "):
        read_pickle(DAMAGED[damage], "x")


def tensor_pickle(size: Any, stride: Any, offset: Any = 0, numel: Any = 4, key: Any = "0") -> bytes:
    """Return the pickle of a tensor as `torch.save` writes it."""
    parts = [
        PROTOCOL + b"ctorch._utils\n_rebuild_tensor_v2\n((",
        *(_push("storage"), b"ctorch\nFloatStorage\n", _push(key), _push("cpu"), _push(numel), b"tQ"),
        *(_push(offset), _push(size), _push(stride), b"\x89}tR."),
    ]
    return b"".join(parts)


def _push(value: Any) -> bytes:
    """Return the instructions that put a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize(
    ("size", "stride", "offset", "numel"),
    [
        ((2**40,), (0,), 0, 4),
        ((2**20, 2**20), (0, 0), 0, 4),
        ((4,), (1,), 1, 4),
        ((2, 2), (4, 1), 0, 4),
        ((-1,), (1,), 0, 4),
        ((2**70,), (1,), 0, 2**70),
        ((2,), (-1,), 1, 4),
        ((2,), (1, 1), 0, 4),
        ((2,), (1,), -1, 4),
        ((2,), (1,), 0, -1),
        ((2.0,), (1,), 0, 4),
        ([2], (1,), 0, 4),
        ((True,), (1,), 0, 4),
        ("ab", (1, 1), 0, 4),
        ((0, 2**62, 2**62), (1, 1, 1), 0, 0),
        ((0,), (2**61,), 0, 4),
        ((0,), (1,), 2**61, 4),
    ],
)
def test_tensors_that_no_storage_holds(size: Any, stride: Any, offset: Any, numel: Any) -> None:
    with pytest.raises(CheckpointError, match="^x is damaged: "):
        read_pickle(tensor_pickle(size, stride, offset, numel), "x")
    assert isinstance(read_pickle(tensor_pickle((2, 2), (2, 1)), "x"), StoredTensor)


@pytest.mark.parametrize("key", ["../../../etc/passwd", "/etc/passwd", "9", "0/../0", ""])
def test_storages_outside_the_archive(key: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x", {"a/data.pkl": tensor_pickle((4,), (1,), key=key), "a/data/0": bytes(16)})
    with TorchArchive(path) as archive:
        stored = archive.payload()
        with pytest.raises(CheckpointError, match="has no entry"):
            archive.tensor(stored)


def write_zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_storage_of_another_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x", {"a/data.pkl": tensor_pickle((4,), (1,)), "a/data/0": bytes(12)})
    with TorchArchive(path) as archive, pytest.raises(CheckpointError, match="has 12 bytes, its tensor 16"):
        archive.tensor(archive.payload())


def test_tensors_are_those_of_torch(tmp_path: Path) -> None:
    """Views, shared storages, empty ones and every dtype."""
    base = torch.arange(24.0)
    saved = {
        "view": base.view(4, 6)[1:, ::2],
        "transposed": base.view(4, 6).T,
        "shared": base[3:5],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "empty view": base.view(4, 6)[:, 2:2],
        **{str(kind): torch.arange(3).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64, torch.bool)},
    }
    torch.save(saved, tmp_path / "x")
    with TorchArchive(tmp_path / "x") as archive:
        for name, stored in archive.payload().items():
            read = archive.tensor(stored)
            assert read.dtype == saved[name].dtype
            assert torch.equal(read, saved[name])


def test_zip_bombs(tmp_path: Path) -> None:
    """What is compressed is not unpacked, and a pickle of more than a few megabytes not read."""
    zeros = bytes(10**7)
    path = write_zip(tmp_path / "compressed", {"a/data.pkl": b"state_dicts" + zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match="data.pkl has more than 4194304 bytes"):
        asd_policy.load_policy(path)
    path = write_zip(tmp_path / "small", {"a/data.pkl": b"state_dicts" + zeros[: 10**6]}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="data.pkl is compressed or longer than the file"):
        asd_policy.load_policy(path)


def test_shared_and_recursive_values_take_no_time(tmp_path: Path) -> None:
    """A list of two lists of two lists … , thirty deep, in a few hundred bytes; and a mapping that holds itself."""
    bomb: Any = "lol"
    for _ in range(30):
        bomb = [bomb, bomb]
    itself: dict[str, Any] = {}
    itself["cfg"] = itself
    for config in (bomb, itself, {"policy": bomb}):
        path = tmp_path / "latest.ckpt"
        torch.save({"cfg": config, "state_dicts": {}}, path)
        with pytest.raises(CheckpointError) as error:
            asd_policy.load_policy(path)
        assert len(str(error.value)) < 300


def test_two_pickles_and_none(tmp_path: Path) -> None:
    data = pickle.dumps({"state_dicts": {}, "cfg": {}}, 2)
    with pytest.raises(CheckpointError, match="it has 2 pickles, not 1"):
        asd_policy.load_policy(write_zip(tmp_path / "two", {"a/data.pkl": data, "b/data.pkl": data}))
    with pytest.raises(CheckpointError, match="it has 0 pickles, not 1"):
        TorchArchive(write_zip(tmp_path / "none", {"a/data.txt": data}))


def test_another_byte_order(tmp_path: Path) -> None:
    data = pickle.dumps({"state_dicts": {}, "cfg": {}}, 2)
    with pytest.raises(CheckpointError, match="byteorder is not little"):
        asd_policy.load_policy(write_zip(tmp_path / "x", {"a/data.pkl": data, "a/byteorder": b"big"}))


MUTATIONS = 80


@pytest.mark.parametrize("kind", ["workspace", "robomimic"])
def test_mutated_files_fail_clearly_or_load_unharmed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits flipped, ends cut off, stretches overwritten, anywhere in a real file: an error, or the policy it was.

    Numbers in the weights are guarded by the zip file's checksums; a mutation of the pickle is too, so pickles are
    mutated apart, below.
    """
    path = tmp_path / "latest.ckpt"
    if kind == "workspace":
        files.save_workspace(path, files.workspace("unet"))
    else:
        files.save_robomimic(path, files.robomimic())
    whole, rng = path.read_bytes(), random.Random(0)
    policy = asd_policy.load_policy(path)
    wanted = [value.clone() for value in policy.network.parameters()]  # pyright: ignore[reportAttributeAccessIssue]  # a module
    unharmed = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole, rng))
        try:
            loaded: Any = asd_policy.load_policy(path).network
        except AsdError as error:
            assert 0 < len(str(error)) < 1000
            continue
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), wanted, strict=True))
        unharmed += 1
    assert 0 < unharmed < MUTATIONS  # padding and the weights that are not used may be anything


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one thing wrong."""
    damaged, place = bytearray(data), rng.randrange(len(data))
    how = rng.randrange(4)
    if how == 0:
        damaged[place] ^= 1 << rng.randrange(8)
    elif how == 1:
        return bytes(damaged[:place])
    elif how == 2:
        damaged[place : place + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(1, 64))
    else:
        damaged[-rng.randrange(1, 2000) :] = rng.randbytes(rng.randrange(1, 2000))
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["workspace", "robomimic"])
def test_mutated_pickles_fail_clearly(kind: str, tmp_path: Path) -> None:
    """The pickle alone is mutated, its checksum made right again: what an attacker would do.

    A flipped bit in a number of the configuration is another configuration, and may load; nothing else may happen.
    """
    path = tmp_path / "latest.ckpt"
    if kind == "workspace":
        files.save_workspace(path, files.workspace("unet"))
    else:
        files.save_robomimic(path, files.robomimic())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in entries if name.endswith("/data.pkl")]
    rng, refused = random.Random(1), 0
    for _ in range(MUTATIONS):
        pickled = mutate(entries[name], rng)
        try:
            asd_policy.load_policy(write_zip(path, {**entries, name: pickled}))
        except AsdError as error:
            assert 0 < len(str(error)) < 1000
            refused += 1
    assert refused > MUTATIONS / 2


def test_weights_that_share_a_storage_are_not_larger_than_the_file(tmp_path: Path) -> None:
    """A file of a megabyte that describes a network of gigabytes is refused before one is built."""
    payload = files.workspace("unet")
    shared = torch.zeros(2**18)
    payload["state_dicts"]["ema_model"] = {f"model.{number}": shared.view(512, 512) for number in range(100)}
    with pytest.raises(CheckpointError, match="104857600 bytes of weights in a file of"):
        asd_policy.load_policy(files.save_workspace(tmp_path / "latest.ckpt", payload))


def test_values_that_cannot_be_shown_are_not(tmp_path: Path) -> None:
    """Where a scheduler's option, a name or a key is huge, the message is not."""
    bomb: Any = "lol"
    for _ in range(30):
        bomb = [bomb, bomb]
    path = tmp_path / "latest.ckpt"
    for value in (bomb, "x" * 10**6, 10**600, {"a": bomb}, 2.5):
        payload = files.workspace("unet")
        policy = {**payload["cfg"]["policy"]}
        policy["noise_scheduler"] = {**files.SCHEDULER, "beta_start": value}
        torch.save({**payload, "cfg": {**payload["cfg"], "policy": policy}}, path)
        with pytest.raises(AsdError, match="beta_start .* is not a number in") as error:
            asd_policy.load_policy(path)
        assert len(str(error.value)) < 300
    payload["state_dicts"]["ema_model"]["x" * 1000] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="a str as a key, or a huge one"):
        asd_policy.load_policy(files.save_workspace(path, payload))


def test_deep_values_do_not_exhaust_the_stack() -> None:
    """Tuples in each other, and records."""
    value = read_pickle(PROTOCOL + b"N" + b"\x85" * 10**5 + b".", "x")
    assert isinstance(value, tuple)
    known = b"cnumpy\ndtype\nq\x01"
    value = read_pickle(PROTOCOL + known + b"h\x01" * 10**5 + b")" + b"R\x85" * 10**5 + b".", "x")
    assert isinstance(value, tuple)


NASTY: list[Any] = [
    *(None, True, 0, -1, 3, 2**31, 10**30, 0.5, float("nan"), float("inf"), "", "0", "${horizon}", "os.system"),
    *([], [[]], [0], [2**62], [8] * 100, {}, {"a": 1}, torch.zeros(2)),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every entry of nested mappings."""
    if not isinstance(value, dict):
        return []
    return [way for key, entry in value.items() for way in ((*path, key), *places(entry, (*path, key)))]


@pytest.mark.parametrize("kind", ["unet", "transformer", "robomimic"])
def test_configurations_with_any_values_fail_clearly_or_plan(kind: str, tmp_path: Path) -> None:
    """One value of the configuration, or of what else is read beside the weights, is replaced or removed."""
    rng, refused, planned = random.Random(2), 0, 0
    for _ in range(MUTATIONS):
        whole = copy.deepcopy(files.robomimic() if kind == "robomimic" else files.workspace(kind))
        heads = (
            ("config", "shape_metadata", "obs_normalization_stats", "algo_name") if kind == "robomimic" else ("cfg",)
        )
        *way, last = rng.choice([way for way in places(whole) if way[0] in heads])
        section = whole
        for key in way:
            section = section[key]
        if rng.random() < 0.2:
            del section[last]
        else:
            section[last] = rng.choice(NASTY)
        path = tmp_path / "x"
        try:
            if isinstance(whole.get("config"), dict):  # robomimic's is text
                whole["config"] = json.dumps(whole["config"], default=str)
            torch.save(whole, path)
            policy = asd_policy.load_policy(path)
            policy.select_action({name: [0.5] * dim for name, dim in policy.observation_dims.items()})
            planned += 1
        except AsdError as error:
            assert 0 < len(str(error)) < 1000
            refused += 1
    assert refused > 5
    assert planned > 5  # most of a configuration is about training
