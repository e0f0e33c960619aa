"""Damaged checkpoints: whatever is in their files, loading is refused in one line or gives a policy that plans.

Damage of the weights' own digits cannot be seen without a digest, see docs/checkpoints.md. The same at large scale,
over every loader: scripts/maintenance/fuzz_checkpoints.py.
"""

import copy
import json
import random
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_files as files
from fuzzing import SCALE, places

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.lerobot.config import PLAIN_FIELDS
from asd_policy.checkpoints.untrusted.pickles import CALLABLE, read_pickle
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import AsdError, CheckpointError

ROUNDS = 100 * SCALE
MOST_MEMORY = 300 * 2**20  # [bytes] that all of them together may add to what the process held at most

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -1e308, 1e308, float("nan"), float("inf"), "",
    "0", "MIN_MAX", "DDIM", "os.system", "../../etc/passwd", "/dev/zero", "\x1b[2J", [], [[]], [0], [2**62], [8] * 5000,
    {}, {"shape": [10**9]}, {"type": "STATE"},
]  # fmt: skip


def damage_json(path: Path, rng: random.Random) -> str:
    """Change, delete or rename one entry; return what was done."""
    value = json.loads(path.read_text())
    *way, last = rng.choice(list(places(value)))
    parent = value
    for key in way:
        parent = parent[key]
    action = rng.choice(["set", "set", "set", "delete", "duplicate"])
    new = copy.deepcopy(rng.choice(NASTY))
    if action == "set":
        parent[last] = new
    elif action == "delete":
        del parent[last]
    elif isinstance(parent, list):
        parent.append(parent[last])
    else:
        parent[f"{last}2"] = parent.pop(last)
    path.write_text(json.dumps(value))
    return f"{path.name}: {action} {way} {last} {new!r:.60}"


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Cut the file, flip bits near its beginning (sizes, names, shapes), or add to it; return what was done."""
    content = bytearray(path.read_bytes())
    action = rng.choice(["cut", "flip", "flip", "flip", "add"])
    at = rng.randrange(min(len(content), 3000) if action == "flip" else len(content))
    if action == "cut":
        del content[at:]
    elif action == "flip":
        content[at] ^= 1 << rng.randrange(8)
    else:
        content += bytes(rng.randrange(1, 99))
    path.write_bytes(content)
    return f"{path.name}: {action} at {at}"


def count_refusals(
    folder: Path, names: list[str], damage: Callable[[Path, random.Random], str], use: Callable[[], None], rounds: int
) -> int:
    """Return how many damaged copies of a checkpoint were refused; each in one line, and `use` works with the others.

    Args:
        folder: The checkpoint; what was whole is put back before each round.
        names: Files to damage, one in each round.
        damage: What is done to it.
        use: Loads the checkpoint and works with it.
        rounds: How many copies.
    """
    rng = random.Random(0)
    whole = {name: (folder / name).read_bytes() for name in names}
    refused = 0
    for _ in range(rounds):
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        done = damage(folder / rng.choice(names), rng)
        try:
            json.dumps(inspection.inspect(str(folder)), allow_nan=False)
            use()
        except AsdError as error:
            refused += 1
            assert "\n" not in str(error), done
        except Exception as error:
            raise AssertionError(done) from error
    return refused


@pytest.mark.fuzz
@pytest.mark.parametrize("damage", [damage_json, damage_bytes])
def test_damage_is_refused_or_harmless(damage: Callable[[Path, random.Random], str], checkpoint: Path) -> None:
    suffix = ".json" if damage is damage_json else ".safetensors"
    names = sorted(path.name for path in checkpoint.iterdir() if path.suffix == suffix and path.name != "training.json")

    def use() -> None:
        policy = asd_policy.load_policy(checkpoint)
        assert np.isfinite(policy.select_action([0.0] * sum(policy.observation_dims.values()))).all()

    held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert count_refusals(checkpoint, names, damage, use, ROUNDS) > 0.3 * ROUNDS
    assert 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < MOST_MEMORY


def damage_pickle(path: Path, rng: random.Random) -> str:
    """Change the pickle of a file of torch.save, with a right checksum; return what was done."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    content = bytearray(entries[name])
    at, action = rng.randrange(len(content)), rng.choice(["flip", "flip", "cut", "swap", "insert"])
    if action == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del content[at : at + rng.randrange(1, 9)]
    elif action == "swap":
        content[at : at + 4] = content[at : at + 4][::-1]
    else:
        content[at:at] = rng.choice(INSTRUCTIONS)(rng)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for each, data in (entries | {name: bytes(content)}).items():
            archive.writestr(each, data)
    return f"{path.name}: {action} at {at} of its pickle"


def save_workspace(folder: Path, case: str) -> Path:
    return files.save_workspace(folder / "latest.ckpt", files.workspace(case))


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "workspace of a U-Net": lambda folder: save_workspace(folder, "unet"),
    "workspace of a transformer": lambda folder: save_workspace(folder, "transformer-inpainting"),
    "robomimic": lambda folder: files.save_robomimic(folder / "model.pth", files.robomimic()),
}
"""Formats of one file; those of a folder are damaged file by file."""


def attempt(path: Path) -> bool:
    """Return whether a checkpoint is planned with; it is, or is refused in one line.

    Raises:
        AssertionError: Neither of the two.
    """
    try:
        json.dumps(inspection.inspect(str(path)), allow_nan=False)
        policy = asd_policy.load_policy(path)
        policy.select_action({name: [0.5] * dim for name, dim in policy.observation_dims.items()})
    except AsdError as error:
        assert "\n" not in str(error)
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return True


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_archives_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    path = SAMPLES[kind](tmp_path)
    whole, rng = path.read_bytes(), random.Random(3)
    done, planned = "", 0
    for _ in range(ROUNDS // 4):
        path.write_bytes(whole)
        done = rng.choice([damage_pickle, damage_pickle, damage_bytes])(path, rng)
        try:
            planned += attempt(path)
        except AssertionError as error:
            raise AssertionError(done) from error
    assert 0 < planned < ROUNDS // 4


def _text(rng: random.Random) -> bytes:
    """Return the instruction for a name that calls may have, or for some other text."""
    text = rng.choice([*sorted(CALLABLE), "storage", "cfg", "os.system", "a" * 600, ""]).encode()
    return b"X" + struct.pack("<I", len(text)) + text


INSTRUCTIONS: list[Callable[[random.Random], bytes]] = [
    _text,
    lambda rng: b"K" + bytes([rng.randrange(256)]),
    lambda rng: b"J" + rng.randbytes(4),
    lambda rng: b"G" + rng.randbytes(8),
    lambda rng: b"\x8a\x03" + rng.randbytes(3),
    lambda rng: rng.choice([b"q", b"h"]) + bytes([rng.randrange(4)]),
    lambda rng: b"c" + rng.choice(sorted(CALLABLE)).rpartition(".")[0].encode() + b"\nx\n",
    lambda rng: b"c" + b"\n".join(part.encode() for part in rng.choice(sorted(CALLABLE)).rpartition(".")[::2]) + b"\n",
    lambda rng: rng.choice([bytes([code]) for code in b"N]})(tRuesab\x85\x86\x87\x88\x89\x81\x8f\x90\x91\x93\x94Q"]),
]
"""Random instructions of a pickle, of every kind that is read."""


@pytest.mark.fuzz
def test_random_programs_of_pickles_end_and_run_nothing() -> None:
    rng, ended = random.Random(4), 0
    for _ in range(20 * ROUNDS):
        program = b"".join(rng.choice(INSTRUCTIONS)(rng) for _ in range(rng.randrange(1, 30)))
        try:
            read_pickle(b"\x80\x04" + program + b".", "x")
            ended += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert ended > 0


@pytest.mark.fuzz
def test_random_interpolations_lead_to_a_value_or_to_one_line() -> None:
    rng = random.Random(5)
    names = ["a", "b", "c", "d"]

    def value(depth: int) -> Any:
        if depth and rng.random() < 0.5:
            return {name: value(depth - 1) for name in names}
        way = ".".join(rng.choices(names, k=rng.randrange(1, 4)))
        return rng.choice(
            [3, "x", [1, f"${{{way}}}"], f"${{{way}}}", f"${{{'.' * rng.randrange(5)}{way}}}", "${eval:1}"]
        )

    def read(section: Settings, depth: int) -> None:
        section.plain()
        for name in section if depth else ():
            read(section.find(name), depth - 1)

    for _ in range(5 * ROUNDS):
        try:
            read(Settings({name: value(3) for name in names}, "cfg", "x"), 5)
        except CheckpointError as error:
            assert "leads from one interpolation to the next" in str(error)


def misspelt(name: str, rng: random.Random) -> str:
    """Return a name with a letter too few, too many, or in another's place."""
    at = rng.randrange(len(name) - 1)
    return rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name[:at] + name[at + 1] + name[at:]])


def test_a_misspelt_field_never_takes_its_default(checkpoint: Path) -> None:
    config, rng = json.loads((checkpoint / "config.json").read_text()), random.Random(6)
    for spec in PLAIN_FIELDS:
        wrong = misspelt(spec.name, rng)
        changed = {wrong if name == spec.name else name: value for name, value in config.items()}
        (checkpoint / "config.json").write_text(json.dumps(changed))
        with warnings.catch_warnings(), pytest.raises(CheckpointError, match=f"'{wrong}', which is not known; did you"):
            warnings.simplefilter("error")
            asd_policy.load_policy(checkpoint)
