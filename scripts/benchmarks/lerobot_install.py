"""What does it take to install the plugin where LeRobot is? Table for docs/results/lerobot.md.

    .venv-lerobot-0.6.1/bin/python scripts/benchmarks/lerobot_install.py

A new environment of this Python gets LeRobot, as `make lerobot` has it, and then what is in this checkout. It is
removed afterwards. Nothing comes from pip's cache: the times are those of this machine's package index too.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import torch
import tyro

from asd_policy._common.hardware import hardware

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (".", "./plugins/lerobot_policy_asd")


@dataclass(frozen=True)
class Options:
    """What to install."""

    lerobot: str = "lerobot[core-scripts,diffusion,evaluation,multi_task_dit,pusht,training]==0.6.1"
    """LeRobot's requirement."""
    constraints: Path = Path("tests/with_lerobot/constraints-0.6.1.txt")
    """Versions of what it needs."""


def measure(site: Path) -> tuple[int, int, set[str]]:
    """Look at a folder of packages: bytes, files, and the names of the distributions in it."""
    sizes = [path.lstat().st_size for path in site.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(sizes), len(sizes), {each.name for each in distributions(path=[str(site)])}


def install(venv: Path, options: Options, names: Sequence[str]) -> float:
    """Install packages; return how long it took [s]."""
    begun = time.perf_counter()
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "-qq", "--no-cache-dir"]
    subprocess.run([*pip, "-c", str(options.constraints), *names], cwd=ROOT, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Install, measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        (site,) = venv.glob("lib/python*/site-packages")
        print("| what is installed | seconds | distributions | files | MB |\n|---|---|---|---|---|")
        before = measure(site)
        for what, names in (("LeRobot", [options.lerobot]), ("this package and the plugin, on top", PACKAGES)):
            took = install(venv, options, names)
            after = measure(site)
            size, files, added = after[0] - before[0], after[1] - before[1], after[2] - before[2]
            print(f"| {what} | {took:.0f} | {len(added)} | {files} | {size / 1e6:,.0f} |", flush=True)
            before = after
        print(f"\nAdded on top: {', '.join(sorted(added))}")
        subprocess.run([str(venv / "bin/python"), "-m", "pip", "check"], check=True)
    version = ".".join(map(str, sys.version_info[:3]))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"\n{hardware(torch.device('cpu'))}; Python {version}; {options.lerobot}; load averages {load}")


if __name__ == "__main__":
    main()
