"""Evaluate the bundled checkpoints with DDPM, DDIM and ASD; print one table and write it as Markdown.

    python scripts/demo.py --episodes 15 --out runs/demo

With --resume, run again with the same options after an interruption, it goes on where it stopped.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from asd_policy import cli
from asd_policy._common.files import atomic_file
from asd_policy.cli.common import DONE
from asd_policy.evaluation.reports import report
from asd_policy.networks.backends.torch_eager import TorchEager

ROOT = Path(__file__).resolve().parents[1]
SAMPLERS = (
    "ddpm",
    "ddim:10",
    "asd:window=8,draft=frozen,verify=reflection",  # the paper's
    "asd:window=32,draft=picard,verify=reflection",
    "asd:window=32",
    "asd",
)


@dataclass(frozen=True)
class Options:
    """Evaluate the bundled checkpoints with DDPM, DDIM and ASD; print one table and write it as Markdown."""

    episodes: int = 15
    """Episodes for each checkpoint and sampler."""
    seed: int = 0
    """Seed of the evaluation."""
    out: Path = Path("runs/demo")
    """Folder for table.md and, by checkpoint, results.json."""
    checkpoints: tuple[str, ...] = ("avoid", "metaworld-pick-place")
    """Names of bundled checkpoints, folders of checkpoints/."""
    samplers: tuple[str, ...] = SAMPLERS
    """Sampler specs."""
    backend: str = TorchEager.name
    """What runs the network; onnx is the fastest on a CPU."""
    resume: bool = False
    """Go on with what is in the folder, and do not replace it."""


def main() -> int:
    """Run `asd-policy eval` once per checkpoint; return its exit status when one fails."""
    options = tyro.cli(Options, description=__doc__)
    entries = {
        Path(entry["path"]).name: entry for entry in json.loads((ROOT / "checkpoints/manifest.json").read_text())
    }
    unknown = [name for name in options.checkpoints if name not in entries]
    if unknown:
        print(f"no bundled checkpoint {unknown[0]!r}; there are {', '.join(entries)}", file=sys.stderr)
        return cli.BAD_INPUT
    all_results = []
    for name in options.checkpoints:
        out = options.out / name
        path = ROOT / entries[name]["path"]
        if path.is_relative_to(Path.cwd()):  # so that the page's command, to repeat the run, names it as it is found
            path = path.relative_to(Path.cwd())
        words = ["--policy", str(path), "--env", entries[name]["env"], "--out", str(out)]
        words += ["--episodes", str(options.episodes), "--seed", str(options.seed), "--backend", options.backend]
        words += ["--samplers", *options.samplers, "--resume" if options.resume else "--overwrite"]
        status = cli.run(["eval", *words])
        if status != DONE:
            return status
        all_results.append(json.loads((out / "results.json").read_text()))
    with atomic_file(options.out / "table.md") as temporary:
        temporary.write_text(report.markdown(all_results))
    print(f"the same as Markdown: {options.out / 'table.md'}", file=sys.stderr)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
