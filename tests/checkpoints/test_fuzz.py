"""Damaged checkpoints: whatever is in their files, loading is refused in one line or gives a policy that plans.

Damage of the weights' own digits cannot be seen without a digest, see docs/guide/checkpoints.md. The same at large
scale, over every loader: scripts/maintenance/fuzz_checkpoints.py.
"""

import json
import random
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asd_policy
from asd_policy.checkpoints.lerobot.config import PLAIN_FIELDS
from asd_policy.checkpoints.untrusted.pickles import read_pickle
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.errors import CheckpointError
from support.fuzzing import (
    INSTRUCTIONS,
    SAMPLES,
    SCALE,
    SETTINGS,
    attempt,
    count_refusals,
    damage_bytes,
    damage_json,
    damage_pickle,
    damage_settings,
)

ROUNDS = 100 * SCALE
MOST_MEMORY = 300 * 2**20  # [bytes] that all of them together may add to what the process held at most


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


@pytest.mark.fuzz
def test_damaged_configurations_of_cameras_are_refused_or_harmless(camera_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(camera_checkpoint, tmp_path / "copy"))
    names = ["config.json", "policy_preprocessor.json"]

    def use() -> None:
        policy = asd_policy.load_policy(folder)
        seen = {name: np.full(shape, 0.5) for name, shape in policy.observation_shapes.items()}
        assert np.isfinite(policy.select_action(seen)).all()

    rounds = ROUNDS // 4
    assert count_refusals(folder, names, damage_json, use, rounds) > 0.3 * rounds


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


@pytest.mark.fuzz
@pytest.mark.parametrize("case", SETTINGS)
def test_damaged_configurations_of_encoders_are_refused(case: str, tmp_path: Path) -> None:
    """Or, if the damage is harmless, that the weights are not there."""
    rng = random.Random(7)
    for _ in range(ROUNDS // 2):
        path, done = damage_settings(tmp_path, case, rng)
        assert not attempt(path), done


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
