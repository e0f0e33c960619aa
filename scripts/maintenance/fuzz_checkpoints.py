"""Is every damaged checkpoint refused in one line or harmless? tests/checkpoints/test_fuzz.py at large scale.

    python scripts/maintenance/fuzz_checkpoints.py --count 10000

Prints the outcomes by format. The exit status is 1 after the first that did anything else; that file is kept.
"""

import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# The line above leads there.
from support.fuzzing import (  # noqa: E402
    SAMPLES,
    SETTINGS,
    attempt,
    damage_bytes,
    damage_json,
    damage_pickle,
    damage_settings,
)


@dataclass(frozen=True)
class Options:
    """What to damage, and how often."""

    count: int = 1000
    """Damaged copies of each checkpoint."""
    seed: int = 0
    """Of the damage."""
    folder: Path = ROOT / "checkpoints/avoid"
    """A checkpoint that is a folder, to be damaged besides one file of each format."""


def damage_folder(path: Path, rng: random.Random) -> str:
    """Damage one file of a folder; return what was done."""
    file = rng.choice(sorted(each for each in path.iterdir() if each.suffix in (".json", ".safetensors")))
    return (damage_json if file.suffix == ".json" else damage_bytes)(file, rng)


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage a file of torch.save; return what was done."""
    return rng.choice([damage_pickle, damage_pickle, damage_bytes])(path, rng)


def fuzz(whole: Path, damage: Callable[[Path, random.Random], str], options: Options) -> int:
    """Plan with damaged copies of a checkpoint; return how many could be planned with.

    Raises:
        SystemExit: One was neither planned with nor refused in one line.
    """
    rng, planned = random.Random(options.seed), 0
    copy = whole.parent / "damaged" / whole.name
    for index in range(options.count):
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, copy)
        done = damage(copy, rng)
        try:
            planned += attempt(copy)
        except AssertionError as error:
            kept = shutil.move(copy, tempfile.mkdtemp(prefix="fuzz-"))
            raise SystemExit(f"copy {index} ({done}), kept as {kept}: {error}") from error
    return planned


def fuzz_settings(case: str, options: Options) -> None:
    """Load files without weights, their configuration damaged.

    Raises:
        SystemExit: One was not refused in one line.
    """
    rng, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="fuzz-"))
    for index in range(options.count):
        path, done = damage_settings(folder, case, rng)
        try:
            assert not attempt(path), "it was planned with"
        except AssertionError as error:
            raise SystemExit(f"copy {index} ({done}), kept as {path}: {error}") from error
    shutil.rmtree(folder)


def main() -> None:
    """Damage and load checkpoints, and print the outcomes."""
    options = tyro.cli(Options, description=__doc__)
    warnings.simplefilter("ignore")  # of unknown names, which damage makes
    with tempfile.TemporaryDirectory() as temporary:
        samples = {"folder": (Path(shutil.copytree(options.folder, Path(temporary) / "folder")), damage_folder)}
        for number, (kind, save) in enumerate(SAMPLES.items()):
            place = Path(temporary) / str(number)
            place.mkdir()
            samples[kind] = (save(place), damage_file)
        for kind, (whole, damage) in samples.items():
            start = time.perf_counter()
            planned = fuzz(whole, damage, options)
            seconds = time.perf_counter() - start
            print(f"{kind}: {options.count - planned} refused, {planned} planned with, {seconds:.0f} s", flush=True)
    for case in SETTINGS:
        start = time.perf_counter()
        fuzz_settings(case, options)
        print(f"configuration of {case}: {options.count} refused, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
