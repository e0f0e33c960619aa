"""Measure the family of samplers and write the tables into docs/benchmarks.md: counts, scaling, wall clock.

    python scripts/study.py all

Run again after an interruption, and it goes on where it stopped; other code, weights or options start afresh.
"""

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import tyro

import study_grid
from asd_policy.files import atomic_file
from study_common import ROOT, Results, Subject, bundled, console, load, provenance

ALWAYS_RELEVANT = ("states", "calibration", "seed", "threads")
Part = Literal["all", "grid", "scaling", "wallclock"]


@dataclass(frozen=True)
class Options:
    """Measure the family of samplers and write the tables into docs/benchmarks.md."""

    part: tyro.conf.Positional[Part] = "all"
    """Which study."""
    checkpoints: tuple[str, ...] = tuple(bundled())
    """Names of bundled checkpoints, folders of checkpoints/."""
    states: int = 200
    """States of each checkpoint to plan from."""
    peer_states: int = 64
    """How many of them drafts other than the default are measured on."""
    calibration: int = 64
    """States to learn the experience from: as many plans, or the rest of the last episode more."""
    windows: tuple[int, ...] = (4, 8, 16, 32, 64, 100)
    """Of the grid."""
    seed: int = 0
    """Of episodes and tapes."""
    threads: int = 1
    """Of torch."""
    out: Path = Path("runs/study")
    """Folder for the records."""
    docs: Path = ROOT / "docs/benchmarks.md"
    """File whose sections are replaced."""


def main() -> None:
    """Run the chosen studies, each with its section."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)

    @cache
    def subject(name: str) -> Subject:
        with console.status(f"rolling out {name}"):
            return load(name, options.states, options.calibration, options.seed)

    def results(part: str, *relevant: str) -> Results:
        values = {name: value for name, value in asdict(options).items() if name in (*ALWAYS_RELEVANT, *relevant)}
        return Results(options.out / f"{part}.json", values)

    line = provenance(shlex.join(["python", "scripts/study.py", *sys.argv[1:]]), options.seed)
    if options.part in ("all", "grid"):
        records = results("grid", "peer_states")
        sections = [GRID_NOTE]
        for name in options.checkpoints:
            found = study_grid.measure(subject(name), options.windows, options.peer_states, options.seed, records)
            sections.append(study_grid.markdown(subject(name), found))
            write_section(options.docs, "grid", "\n".join([*sections, line]))


GRID_NOTE = """\
## Rounds by draft, verifier and window

Cells: algorithmic speedup K / mean rounds [95 % interval] · network evaluations / K · 95th percentile of rounds;
columns: window θ; n: plans. Counts do not depend on the machine's load. All settings plan the same states on the same tapes.
"""


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of a section, which come to the end of the file where there are none."""
    begin, end = f"<!-- study:{name} -->", f"<!-- /study:{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    document = path.read_text() if path.exists() else ""
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(document):
        document = pattern.sub(lambda _: section, document)
    else:
        document = f"{document.rstrip()}\n\n{section}\n"
    with atomic_file(path) as temporary:
        temporary.write_text(document)
    console.print(f"wrote section {name} of {path}", highlight=False)


if __name__ == "__main__":
    main()
