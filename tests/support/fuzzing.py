"""What the fuzz tests share: how much they try (more by scripts/maintenance/fuzz.py), and how input is damaged."""

import copy
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.checkpoints.untrusted.pickles import CALLABLE
from asd_policy.errors import AsdError
from support import image_files as images
from support import training_files as files

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
"""Times as many damaged inputs as in a run of the whole suite."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -1e308, 1e308, float("nan"), float("inf"), "",
    "0", "MIN_MAX", "DDIM", "os.system", "../../etc/passwd", "/dev/zero", "\x1b[2J", [], [[]], [0], [2**62], [8] * 5000,
    {}, {"shape": [10**9]}, {"type": "STATE"},
]  # fmt: skip


def damage_json(path: Path, rng: random.Random) -> str:
    """Change, delete or rename one entry; return what was done."""
    value = json.loads(path.read_text())
    done = damage_value(value, rng)
    path.write_text(json.dumps(value))
    return f"{path.name}: {done}"


def damage_value(value: Any, rng: random.Random) -> str:
    """Change, delete or rename one entry of a JSON value in its place; return what was done."""
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
    return f"{action} {way} {last} {new!r:.60}"


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
    "workspace of DP3": lambda folder: images.save_halves(folder, "dp3"),
    "workspace of UMI": lambda folder: images.save_halves(folder, "umi-embedding"),
}
"""Formats of one file; those of a folder are damaged file by file."""


SETTINGS = ("hybrid", "transformer", "image", "image-shared", "dp3", "umi", "umi-vit", *images.ROBOMIMIC_CASES)
"""Policies with cameras or clouds whose configuration is damaged; without weights, so that files are small."""


def damage_settings(folder: Path, case: str, rng: random.Random) -> tuple[Path, str]:
    """Write a file of a policy without weights, its configuration damaged; return it, and what was done."""
    payload = images.without_weights(case)
    if case in images.ROBOMIMIC_CASES:
        done = damage_value(payload["config"]["observation"], rng)
        return files.save_robomimic(folder / "model.pth", payload), done
    done = damage_value(payload["cfg"]["policy"], rng)
    torch.save(payload, folder / "latest.ckpt")
    return folder / "latest.ckpt", done


def attempt(path: Path) -> bool:
    """Return whether a checkpoint is planned with; it is, or is refused in one line.

    Raises:
        AssertionError: Neither of the two.
    """
    try:
        json.dumps(inspection.inspect(str(path)), allow_nan=False)
        policy = asd_policy.load_policy(path, fixed_crop=True)
        policy.select_action({name: np.full(shape, 0.5) for name, shape in policy.observation_shapes.items()})
    except AsdError as error:
        assert "\n" not in str(error)
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return True


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
