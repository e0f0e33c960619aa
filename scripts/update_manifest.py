"""Measure the bundled checkpoints with DDPM and write checkpoints/manifest.json.

python scripts/update_manifest.py --episodes 100
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from asd_policy import cli
from asd_policy.commands.common import DONE
from asd_policy.files import write_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """Measure the bundled checkpoints with DDPM and write checkpoints/manifest.json."""

    episodes: int = 100
    """Episodes for each checkpoint."""
    seed: int = 1000
    """Seed of the evaluation."""
    out: Path = Path("runs/manifest")
    """Folder for the evaluations' results.json."""


def describe(folder: Path, options: Options) -> dict[str, Any]:
    """Return a checkpoint's entry: what made it, what is in it, how well it does.

    Raises:
        SystemExit: The evaluation failed or was interrupted.
    """
    notes = json.loads((folder / "training.json").read_text())
    out = options.out / folder.name
    words = ["--policy", str(folder), "--env", notes["env"], "--out", str(out), "--overwrite", "--samplers", "ddpm"]
    status = cli.run(["eval", *words, "--episodes", str(options.episodes), "--seed", str(options.seed)])
    if status != DONE:
        raise SystemExit(status)
    (result,) = json.loads((out / "results.json").read_text())["samplers"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return {
        "path": f"checkpoints/{folder.name}",
        "env": notes["env"],
        "sha256": digests,
        "command": notes["command"],
        "seed": notes["options"]["seed"],
        "demonstrations": notes["options"]["demonstrations"],
        "train_steps": notes["options"]["steps"],
        "parameters": notes["parameters"],
        "success_rate": result["success_rate"],
        "success_ci95": result["success_ci95"],
        "episodes": result["episodes"],
        "licence": "MIT",
    }


def main() -> None:
    """Measure every folder of checkpoints/."""
    options = tyro.cli(Options, description=__doc__)
    folders = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/training.json"))
    write_json(ROOT / "checkpoints/manifest.json", [describe(folder, options) for folder in folders])
    print(f"wrote checkpoints/manifest.json: {', '.join(folder.name for folder in folders)}", file=sys.stderr)


if __name__ == "__main__":
    main()
