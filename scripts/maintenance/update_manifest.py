"""Measure bundled checkpoints with their sequential sampler and write them into checkpoints/manifest.json.

python scripts/maintenance/update_manifest.py --episodes 100
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from asd_policy import cli
from asd_policy._common.files import write_json
from asd_policy.checkpoints import load_policy
from asd_policy.cli.common import DONE

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints"
MANIFEST = BUNDLED / "manifest.json"


@dataclass(frozen=True)
class Options:
    """Measure bundled checkpoints with their sequential sampler and write them into checkpoints/manifest.json."""

    checkpoints: tuple[str, ...] = tuple(sorted(path.parent.name for path in BUNDLED.glob("*/training.json")))
    """Names of folders of checkpoints/; the entries of the others stay as they are."""
    episodes: int = 100
    """Episodes for each checkpoint."""
    seed: int = 1000
    """Seed of the evaluation."""
    backend: str = "torch-eager"
    """What runs the network; onnx is the fastest on a CPU."""
    out: Path = Path("runs/manifest")
    """Folder for the evaluations' results.json."""


def describe(folder: Path, options: Options) -> dict[str, Any]:
    """Describe a checkpoint for the manifest: what made it, what is in it, how well it does.

    Raises:
        SystemExit: The evaluation failed or was interrupted.
    """
    notes = json.loads((folder / "training.json").read_text())
    out, reference = options.out / folder.name, load_policy(folder).reference.spec
    words = ["--policy", str(folder), "--env", notes["env"], "--out", str(out), "--overwrite", "--samplers", reference]
    words += ["--backend", options.backend]
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
        "train_steps": notes.get("step", notes["options"]["steps"]),  # a snapshot says its own
        "parameters": notes["parameters"],
        "success_rate": result["success_rate"],
        "success_ci95": result["success_ci95"],
        "episodes": result["episodes"],
        "licence": "MIT",
    }


def main() -> None:
    """Measure folders of checkpoints/."""
    options = tyro.cli(Options, description=__doc__)
    entries = {Path(entry["path"]).name: entry for entry in json.loads(MANIFEST.read_text())}
    unknown = [name for name in options.checkpoints if not (BUNDLED / name / "training.json").exists()]
    if unknown:
        raise SystemExit(f"no bundled checkpoint {unknown[0]!r}; there are {', '.join(Options.checkpoints)}")
    for name in options.checkpoints:
        entries[name] = describe(BUNDLED / name, options)
        write_json(MANIFEST, [entries[key] for key in sorted(entries)])
    print(f"wrote {', '.join(options.checkpoints)} into checkpoints/manifest.json", file=sys.stderr)


if __name__ == "__main__":
    main()
