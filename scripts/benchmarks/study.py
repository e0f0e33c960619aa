"""Measure the family of samplers and write the tables into docs/results.

    python scripts/benchmarks/study.py all

Run again after an interruption, and it goes on where it stopped; other code, weights or options start afresh.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import tyro

import study_ceiling
import study_grid
import study_response
import study_scaling
import study_sizes
import study_wallclock
from asd_policy._common.files import atomic_file
from asd_policy.checkpoints import load_policy
from asd_policy.evaluation.roofline import BLOCKS, CALLS
from study_common import ROOT, Results, Subject, bundled, console, load, provenance

ALWAYS_RELEVANT = ("states", "calibration", "seed", "threads")
Part = Literal["all", "grid", "scaling", "wallclock", "ceiling", "response", "sizes"]
PAGES = {
    "grid": "rounds.md",
    "scaling": "scaling.md",
    "wallclock": "wall_clock.md",
    "ceiling": "network_calls.md",
    "response": "response.md",
    "sizes": "sizes.md",
}
"""The page that each part writes its section into."""


@dataclass(frozen=True)
class Options:
    """Measure the family of samplers and write the tables into docs/results."""

    part: tyro.conf.Positional[Part] = "all"
    """Which study."""
    checkpoints: tuple[str, ...] = tuple(bundled())
    """Names of bundled checkpoints, folders of checkpoints/."""
    states: int = 200
    """States of each checkpoint to plan from."""
    calibration: int = 200
    """States to learn the experience from: as many plans, or the rest of the last episode more."""
    windows: tuple[int, ...] = (4, 8, 16, 32, 64, 100)
    """Of grid and response."""
    mixture_plans: int = 128
    """Plans for each point of the mixtures' scaling."""
    steps: tuple[int, ...] = (25, 50, 100, 200, 400, 1000)
    """Numbers of steps K of the mixtures' scaling."""
    network_steps: tuple[int, ...] = (10, 20, 25, 50, 100)
    """Numbers of steps K of the trained network's scaling, at most those of its training."""
    network: str = "metaworld-pick-place"
    """The checkpoint of that."""
    clock_plans: int = 50
    """Plans of each contender for the wall clock, at most the states."""
    clock_windows: tuple[int, ...] = (6, 8, 12, 16, 24, 32, 48, 64)
    """Fixed windows beside the default for the wall clock."""
    row_by_row: str = "avoid"
    """The checkpoint whose network is evaluated row by row, for a backend without parallelism."""
    large: Path | None = None
    """For wall clock and ceiling: a checkpoint of another size, trained where `network` was."""
    backends: tuple[str, ...] = ("torch-eager", "torch-compile", "onnx")
    """For wall clock and ceiling; torch-compile takes minutes to compile."""
    sized_plans: int = 200
    """Plans of each size to time."""
    seed: int = 0
    """Of episodes and tapes."""
    threads: int = 1
    """Of torch."""
    out: Path = Path("runs/study")
    """Folder for the records."""
    docs: Path = ROOT / "docs/results"
    """Folder of the pages, one for each part, whose sections are replaced."""


def main() -> None:
    """Run the chosen studies, each with its section."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    options.docs.mkdir(parents=True, exist_ok=True)

    sizes = options.states, options.calibration, options.seed

    @cache
    def subject(name: str) -> Subject:
        with console.status(f"rolling out {name}"):
            return load(*bundled()[name], *sizes)

    def results(part: str, *relevant: str) -> Results:
        values = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(options).items()
            if name in (*ALWAYS_RELEVANT, *relevant)
        }
        return Results(options.out / f"{part}.json", values)

    line = provenance(shlex.join(["python", "scripts/benchmarks/study.py", *sys.argv[1:]]), options.seed)
    if options.part in ("all", "scaling"):
        records = results("scaling", "mixture_plans")
        problems = [
            study_scaling.mixture(event, options.steps, options.mixture_plans, options.calibration, options.seed)
            for event in study_scaling.MIXTURES
        ]
        network = subject(options.network)
        problems.append(study_scaling.trained(network, options.network_steps))
        curves = [study_scaling.measure(problem, options.seed, records) for problem in problems]
        study_scaling.plot(curves, options.docs / "scaling.svg")
        write_section(options.docs, "scaling", [SCALING_NOTE, *map(study_scaling.markdown, curves), line])
    if options.part in ("all", "grid"):
        records = results("grid")
        sections = [GRID_NOTE]
        for name in options.checkpoints:
            measured = list(study_grid.measure(subject(name), options.windows, options.seed, records))
            sections.append(study_grid.markdown(subject(name), measured))
            write_section(options.docs, "grid", [*sections, line])
    if options.part in ("all", "wallclock"):
        records = results("wallclock", "clock_plans", "clock_windows", "backends", "large")
        subjects = [subject(name) for name in options.checkpoints]
        if options.large is not None:
            with console.status(f"rolling out {options.large}"):
                subjects.append(load(options.large, bundled()[options.network][1], *sizes))
        clocked = options.backends, options.clock_windows
        entered = [(each, "network", study_wallclock.contenders(each, *clocked)) for each in subjects]
        by_row = subject(options.row_by_row)
        entered.append((by_row, "row by row", study_wallclock.row_by_row(by_row)))
        tables = []
        for each, key, contenders in entered:
            clocked = (each, contenders, options.clock_plans, options.seed, records, key)
            tables.append((each.name, study_wallclock.measure(*clocked)))
            write_section(options.docs, "wallclock", [WALLCLOCK_NOTE, study_wallclock.markdown(tables), line])
    if options.part in ("all", "ceiling"):
        records = results("ceiling", "backends", "large")
        folders = [bundled()[name][0] for name in options.checkpoints] + (
            [] if options.large is None else [options.large]
        )
        ceilings = {
            path.name: study_ceiling.measure(path.name, load_policy(path), options.backends, records)
            for path in folders
        }
        write_section(options.docs, "ceiling", [CEILING_NOTE, study_ceiling.markdown(ceilings), line])
    if options.part in ("all", "response"):
        records = results("response", "windows")
        measured = []
        for name in options.checkpoints:
            own = subject(name)
            measured.append((own, study_response.measure(own, options.windows, options.seed, records)))
            write_section(options.docs, "response", [RESPONSE_NOTE, study_response.markdown(measured), line])
    if options.part in ("all", "sizes"):
        sizes_of = study_sizes.measure(options.sized_plans, options.threads, results("sizes", "sized_plans"))
        write_section(options.docs, "sizes", [SIZES_NOTE, study_sizes.markdown(sizes_of), line])


RESPONSE_NOTE = """\
## The response along sines, against a full matrix

Mean rounds of `response` + `block` by how J_k is known: as a full matrix of D × D, fitted to as many products a step;
along sines over time, D gains a step, which is what the package does; not at all. Same states, tapes and plans to
learn from; ± is one standard error, of the last column that of the paired difference.
"""

SIZES_NOTE = """\
## Time and memory beside the network, by the size of a plan

Plans one after the other at batch 1, half of each executed, of a network that is one multiplication. CPU time of the
process, and that over the rounds; it includes the network, what is learned, and the noise. Memory is by how much the
process's peak grew. Each row is a process of its own; its first plan is left out.
"""

GRID_NOTE = """\
## Rounds by draft, verifier and window

Cells: algorithmic speedup K / mean rounds [95 % interval] · network evaluations / K · 95th percentile of rounds;
columns: window θ. Counts do not depend on the machine's load. All settings plan the same states on the same
tapes; the states are those that a policy meets in closed loop, with the plan before.
"""

WALLCLOCK_NOTE = """\
## Wall clock on a CPU

Plans at batch 1, contenders interleaved in rotating order, on the same states and tapes; the baseline of each
checkpoint is its fastest `ddpm`. `asd` is the default, window auto. On a noisy machine ratios within the run mean more
than milliseconds, medians more than tails. "Row by row" is a network whose latency is linear in its batch: nothing can
be gained there, and `asd` should not lose.
"""

CEILING_NOTE = f"""\
## Network calls on a CPU, and what limits them

Median milliseconds of {BLOCKS * CALLS} calls by their number of points, made in a row as plans make them, and, in
brackets, the share that the larger of two bounds would need: its matrix products and convolutions at the rate of a
large matrix product of PyTorch, and its weights read once at the bandwidth of a large copy. Above 100 % weights stay
in a cache from call to call, or the backend's products are faster, or fewer.
"""

SCALING_NOTE = """\
## Rounds against the number of steps

Window = K. Exponents are slopes of log mean rounds against log K, by least squares, with their standard errors. In
theory they are 1 (sequential), 2/3 (ASD, arXiv 2505.03983) and 1/2 (sequence-level acceptance, arXiv 2511.07869).
Mixtures: 8 modes of standard deviation 0.05 to 0.2 and an exact denoiser, K of the 1000 noise levels of a
squared-cosine schedule; there is no last plan, so no `warm`. The trained network has 100 training steps, so K ends
there.

![Mean rounds against K, by draft and verifier](scaling.svg)
"""


def write_section(folder: Path, name: str, parts: Sequence[str]) -> None:
    """Put text between the markers of a section, which come to the end of its page where there are none."""
    path = folder / PAGES[name]
    begin, end = f"<!-- study:{name} -->", f"<!-- /study:{name} -->"
    text = "\n".join(parts)
    section = f"{begin}\n{text}\n{end}"
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
