"""Run every fuzz test at large scale: checkpoints, pickles, ONNX files, tampered runs, lying servers.

    python scripts/maintenance/fuzz.py --scale 100

Seeds are fixed, so that a failure repeats; a larger scale goes on where a smaller one ends.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    """How much to try."""

    scale: int = 100
    """Times as many damaged inputs as in the test suite, which takes about a minute."""


def main() -> None:
    """Run them, one after the other, and end with pytest's status."""
    options = tyro.cli(Options, description=__doc__)
    run = [sys.executable, "-m", "pytest", "-m", "fuzz", "--durations", "10"]
    environment = {**os.environ, "FUZZ_SCALE": str(options.scale), "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run(run, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
