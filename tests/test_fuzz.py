"""Damaged checkpoints: whatever is in their files, loading is refused in one line or gives a policy that plans.

Damage of the weights' own digits cannot be seen without a digest, see docs/checkpoints.md.
"""

import copy
import json
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asd_policy
from asd_policy import inspection
from asd_policy.errors import AsdError

ROUNDS = 100
MOST_MEMORY = 300 * 2**20  # [bytes] that all of them together may add to what the process held at most

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -1e308, 1e308, float("nan"), float("inf"), "",
    "0", "MIN_MAX", "DDIM", "os.system", "../../etc/passwd", "/dev/zero", "\x1b[2J", [], [[]], [0], [2**62], [8] * 5000,
    {}, {"shape": [10**9]}, {"type": "STATE"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


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
