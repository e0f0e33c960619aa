"""Draw return and success against latency from the tables that latency_curve.py writes; nothing is measured.

    python scripts/benchmarks/latency_drawing.py --page docs/results/latency.md

So that figures and tables of a page are of the same numbers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from asd_policy._common.files import atomic_file
from asd_policy.evaluation.reports import plots
from asd_policy.evaluation.reports.names import short_name
from asd_policy.evaluation.rollout.clocks import PILOTS
from asd_policy.samplers import make_sampler

EXACT = "exact: ddpm, asd"
"""Names the law that every exact sampler has."""
MEASURES = ("return", "success")
"""What is plotted: the two halves of a cell, in its order."""
_NUMBER = r"(-?[\d.]+|nan)"
_INTERVAL = rf"{_NUMBER} (?:% )?\[{_NUMBER}, {_NUMBER}\]"
_CELL = re.compile(rf"{_INTERVAL}; {_INTERVAL}")

Point = tuple[float, float, float, float]
"""Latency [ms], mean, and the two ends of its interval."""


@dataclass(frozen=True)
class Options:
    """Draw return and success against latency from the tables that latency_curve.py writes."""

    page: Path
    """A page with such tables. <page>_return.svg and <page>_success.svg are written beside it."""


@dataclass
class Curves:
    """What is plotted of a task; keys are measure, clock and law."""

    title: str
    constant: dict[tuple[str, str, str], list[Point]] = field(default_factory=dict)
    """By constant latencies."""
    own: dict[tuple[str, str, str], list[Point]] = field(default_factory=dict)
    """Of samplers at the latencies that they have, by the median of these."""


def read_curves(text: str) -> list[Curves]:
    """Read the tables of a page.

    Raises:
        ValueError: There is none.
    """
    found: list[Curves] = []
    latencies: list[float] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heading := re.match(r"#+ `(\S+?)(?:-v\d+)?`, ", line):
            found.append(Curves(heading[1].rpartition("/")[2]))
        elif line.startswith("| law |"):
            latencies = [float(cell.partition(" ms")[0]) for cell in cells[2:]]
        elif found and line.startswith("| ") and len(cells) > 2 and cells[1] in PILOTS:
            law = short_law(cells[0])
            for latency, cell in zip(latencies, cells[2:], strict=True):
                _add(found[-1].constant, latency, cell, cells[1], law)
        elif found and line.startswith("| `") and len(cells) == 3 + 2 * len(PILOTS) and " / " in cells[2]:
            latency = float(cells[2].partition(" / ")[0])
            for clock, cell in zip(PILOTS, cells[3::2], strict=True):
                _add(found[-1].own, latency, cell, clock, short_law(cells[0]))
    if not any(curves.constant for curves in found):
        raise ValueError("no table of latency_curve.py")
    return found


def short_law(cell: str) -> str:
    """Name the law of a table's first cell, which has a spec in it."""
    spec = cell.split("`")[1]
    return EXACT if make_sampler(spec).exact else short_name(spec, exact=False)


def _add(points: dict[tuple[str, str, str], list[Point]], latency: float, cell: str, clock: str, law: str) -> None:
    if (found := _CELL.match(cell)) is not None:
        numbers = [float(number) for number in found.groups()]
        for measure, (mean, low, high) in zip(MEASURES, (numbers[:3], numbers[3:]), strict=True):
            points.setdefault((measure, clock, law), []).append((latency, mean, low, high))


def draw(tasks: Sequence[Curves], measure: str, path: Path) -> None:
    """Plot one of `MEASURES` against latency: a column for each task, a row for each clock."""
    laws = list(dict.fromkeys(law for task in tasks for _, _, law in (*task.constant, *task.own)))
    with plots.drawing() as pyplot:
        size = (3.2 * len(tasks), 5.4)
        figure, axes = pyplot.subplots(
            len(PILOTS), len(tasks), figsize=size, layout="constrained", squeeze=False, sharey="col", sharex="col"
        )
        for column, task in enumerate(tasks):
            for axis, clock in zip(axes[:, column], PILOTS, strict=True):
                for index, law in enumerate(laws):
                    _curve(axis, task, (measure, clock, law), plots.mark(index, law == EXACT))
                axis.set(title=f"{task.title}, {clock}", ylabel="" if column else _label(measure))
            axes[-1, column].set_xlabel("latency of a plan [ms]")
        handles, names = axes[0, 0].get_legend_handles_labels()
        own = pyplot.Line2D([], [], linestyle="", marker="x", color=plots.FAINT)
        figure.legend([*handles, own], [*names, "at its own latency"], loc="outside lower center", ncols=len(laws) + 1)
        with atomic_file(path) as temporary:
            plots.save(figure, temporary, "svg")


def _label(measure: str) -> str:
    return "successful episodes [%]" if measure == "success" else "return"


def _curve(axis: Any, task: Curves, key: tuple[str, str, str], style: dict[str, Any]) -> None:
    law = key[2]
    points = task.constant.get(key, [])
    axis.plot([ms for ms, *_ in points], [mean for _, mean, *_ in points], label=law, **style)
    axis.vlines(
        [ms for ms, *_ in points],
        [low for *_, low, _ in points],
        [high for *_, high in points],
        color=style["color"],
        linewidth=0.8,
    )
    own = task.own.get(key, [])
    axis.plot(
        [ms for ms, *_ in own],
        [mean for _, mean, *_ in own],
        linestyle="",
        marker="x",
        markersize=7,
        color=style["color"],
    )


def draw_all(text: str, paths: dict[str, Path]) -> Iterator[Path]:
    """Draw every measure of a page's tables into its file; yield the files."""
    tasks = read_curves(text)
    for measure, path in paths.items():
        draw(tasks, measure, path)
        yield path


def main() -> None:
    """Draw."""
    page = tyro.cli(Options, description=__doc__).page
    paths = {measure: page.with_name(f"{page.stem}_{measure}.svg") for measure in MEASURES}
    print(f"written: {', '.join(map(str, draw_all(page.read_text(), paths)))}")


if __name__ == "__main__":
    main()
