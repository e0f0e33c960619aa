"""A run as figures and tables for a paper, each a file: what `asd-policy report --figures` writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

from asd_policy._common.extras import install
from asd_policy._common.files import atomic_file
from asd_policy._common.shapes import LARGEST, Count, check_shape
from asd_policy.errors import RunError
from asd_policy.evaluation.comparison import load_run, read_results
from asd_policy.evaluation.reports import bench_report, page_plots, paper_tables, plots
from asd_policy.evaluation.reports.plots import Drawer, LeftOut
from asd_policy.evaluation.rollout.episodes import Episode


class _Contender(TypedDict):
    """A sampler on a backend in the results.json of bench: the fields that are drawn."""

    spec: str
    backend: str
    exact: bool
    window: Count
    rounds_mean: float
    algorithmic_speedup: float
    wall_clock_speedup: float | None
    wall_clock_speedup_ci95: tuple[float, float] | None
    latencies_ms: list[float]
    latency_ms: dict[str, float]


class _Bench(TypedDict):
    """The results.json of bench: the fields that are drawn."""

    plans: Count
    device: str
    seed: Any
    samplers: list[_Contender]


@dataclass
class Written:
    """What was written for a paper, and what was not."""

    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why figures are not there, a line for each."""


def write_all(folder: Path, out: Path, form: str) -> Written:
    """Write the figures of a run, and its results as a table in LaTeX and in CSV. Older files of these names go.

    Args:
        folder: The --out of an `asd-policy eval` or `bench`, or its results.json.
        out: Folder to write into.
        form: Of the figures, one of `plots.FORMATS`.

    Raises:
        RunError: The results are not what these commands write, have no sampler, or matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise RunError(f"figures need matplotlib: {install('plots')}")
    path, results, episodes = _load(folder)
    if not results["samplers"]:
        raise RunError(f"{path} has no sampler: nothing had finished")
    try:
        tables = {out / "results.tex": paper_tables.latex(results), out / "results.csv": paper_tables.csv_text(results)}
        written = draw_all(results, episodes, out, form)
    except KeyError as error:
        raise RunError(f"{path} lacks {error}, which asd-policy of this version writes") from error
    for file, text in tables.items():
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.files.append(file)
    return written


def draw_all(results: dict[str, Any], episodes: Sequence[Episode], out: Path, form: str) -> Written:
    """Draw the figures of a run, each into a file of its name.

    Args:
        results: A results.json object of `eval` or `bench`, with at least one sampler.
        episodes: Those of an `eval` that it sums up; empty where they were not kept.
        out: Folder to write into.
        form: One of `plots.FORMATS`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    written = Written()
    drawers = bench_report.BENCH_PLOTS if results["command"] == "bench" else page_plots.drawers(results)
    for name, _, drawer in drawers:
        path = out / f"{name}.{form}"
        try:
            _draw(drawer, results, episodes, path, form)
        except LeftOut as reason:
            path.unlink(missing_ok=True)  # an older one would pass for this run's
            written.left_out.append(f"{path.name} is left out: {reason}")
        else:
            written.files.append(path)
    return written


def _draw(drawer: Drawer, results: dict[str, Any], episodes: Sequence[Episode], path: Path, form: str) -> None:
    with plots.drawing() as pyplot:
        drawer(pyplot, results, episodes)
        with atomic_file(path) as temporary:
            plots.save(pyplot.gcf(), temporary, form)


def _load(folder: Path) -> tuple[Path, dict[str, Any], list[Episode]]:
    """Read a run of eval or bench: the path of its results, the results, and the episodes that they sum up."""
    path, results = read_results(folder)
    if results["command"] != "bench":
        run = load_run(folder)
        return run.path, run.results, [each for each in run.episodes or () if each.index < run.results["episodes"]]
    try:
        check_shape(results, _Bench, "results")
        for index, each in enumerate(results["samplers"]):
            for value in each["latencies_ms"]:
                if not 0 < value < LARGEST:
                    raise ValueError(f"results.samplers[{index}].latencies_ms has {value}, which is no time")
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    return path, results, []
