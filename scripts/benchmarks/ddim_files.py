"""How do a DDIM file's own plans compare with `asd` on its trained chain? Table for docs/results/ddim_files.md.

    python scripts/benchmarks/ddim_files.py --out runs/ddim-files

A bundled checkpoint is written again as DDIM files of a few numbers of steps, as people train and run them: one
network, another scheduler. Each is evaluated as what it says, and its network once more on its trained chain.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """Folder for the files and the runs."""
    checkpoints: tuple[str, ...] = ("avoid", "intercept")
    """Names of bundled checkpoints."""
    steps: tuple[int, ...] = (10, 16)
    """Steps of the DDIM files."""
    episodes: int = 100
    """Episodes of each row."""
    backend: str = "onnx"
    """Backend spec."""


def write_ddim(source: Path, steps: int, folder: Path) -> Path:
    """Write a checkpoint again as a DDIM file."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"noise_scheduler_type": "DDIM", "num_inference_steps": steps}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def evaluate(options: Options, policy: Path, env: str, chain: str, samplers: tuple[str, ...]) -> dict[str, Any]:
    """Run `asd-policy eval`; return its results."""
    words = ["--policy", policy, "--env", env, "--chain", chain, "--backend", options.backend, "--episodes"]
    words += [options.episodes, "--out", options.out / f"{policy.name}-{chain}", "--overwrite", "--json"]
    words += ["--samplers", *samplers] if samplers else []
    command = [sys.executable, "-m", "asd_policy.cli", "eval", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def rows(options: Options, name: str, env: str) -> Iterator[str]:
    """Yield the rows of one checkpoint."""
    source, found = ROOT / "checkpoints" / name, []
    for steps in options.steps:
        policy = write_ddim(source, steps, options.out / f"{name}-ddim-{steps}")
        found.append((f"DDIM-{steps}, as it says", evaluate(options, policy, env, "checkpoint", ())))
    policy = options.out / f"{name}-ddim-{options.steps[-1]}"
    found.append(("the same, trained chain", evaluate(options, policy, env, "trained", ("ddpm", "asd"))))
    for what, results in found:
        for each in results["samplers"]:
            low, high = (100 * bound for bound in each["success_ci95"])
            latency = each["latency_ms"]
            cells = [
                f"{100 * each['success_rate']:.0f} [{low:.0f}, {high:.0f}]",
                f"{each['rounds_mean']:.1f}",
                f"{latency['p50']:.0f} / {latency['p95']:.0f}",
            ]
            law = "exact" if each["exact"] else "approximate"
            yield f"| `{name}` | {what} | `{each['spec']}` | {law} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    entries = json.loads((ROOT / "checkpoints/manifest.json").read_text())
    envs = {Path(entry["path"]).name: entry["env"] for entry in entries}
    print("| checkpoint | file | sampler | law | success % | rounds | latency p50 / p95 ms |")
    print("|---|---|---|---|---|---|---|")
    for name in options.checkpoints:
        for line in rows(options, name, envs[name]):
            print(line, flush=True)
    last = options.out / f"{options.checkpoints[-1]}-ddim-{options.steps[-1]}-trained"
    run = json.loads((last / "results.json").read_text())
    what = f"n = {options.episodes} episodes of each row on the same seeds, 95 % intervals (Wilson)"
    print(f"\n{run['device']}; torch {run['torch']}, backend `{options.backend}`; {what}")


if __name__ == "__main__":
    main()
