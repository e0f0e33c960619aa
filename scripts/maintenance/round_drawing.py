"""Draw what a round of `asd` does beside the sequential sampler: draft, evaluate, verify, commit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asd_policy._common.files import atomic_file
from asd_policy.evaluation.reports import plots

DRAFTED, ACCEPTED = 6, 4
"""Steps of the drawn round. The one after those that are accepted is reflected, and the rest is dropped."""
COMMITTED = ACCEPTED + 1
KNOWN, DRAFT, CALL, FINAL = (plots.COLOURS[index] for index in (0, 1, 2, 3))
_SIZE = 8.6, 4.2  # [in]
_FIRST, _STEP = 4.1, 1.05  # x of the first point, and from one to the next
_ROWS = (
    ("DDPM", "a network call for each step"),
    ("1  draft", "roll the chain out on a guess\nof the clean actions: no call"),
    ("2  evaluate", "all drafted points in one call"),
    ("3  verify", "accept drafts, and reflect\nthe first one that fails"),
    ("4  commit", f"{COMMITTED} exact steps for one call"),
)


def draw(path: Path) -> None:
    """Draw a round as an SVG file.

    Args:
        path: To write.
    """
    with plots.drawing() as pyplot:
        figure = pyplot.figure(figsize=_SIZE)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, 11.2), ylim=(-4.55, 0.6))
        axis.axis("off")
        axis.axhline(-0.55, color=plots.FAINT, linewidth=0.8, xmin=0.015, xmax=0.985)
        for row, ((name, what), drawer) in enumerate(zip(_ROWS, _DRAWERS, strict=True)):
            axis.text(0.15, 0.14 - row, name, fontsize=11, weight="bold", va="center")
            axis.text(0.15, -0.08 - row, what, fontsize=8.5, va="top")
            drawer(axis, -row)
        with atomic_file(path) as temporary:
            plots.save(figure, temporary, "svg")


def _chain(axis: Any, y: float, styles: Sequence[tuple[str, bool]], dashes: str = "-") -> None:
    """Draw points with arrows between them: for each its colour, and whether it is final."""
    for step, (colour, final) in enumerate(styles):
        face = colour if final else "white"
        x = _FIRST + _STEP * step
        axis.plot(x, y, "o", markersize=12, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.6, zorder=3)
        if step and dashes:
            arrow = {"arrowstyle": "->", "color": colour, "linestyle": dashes, "shrinkA": 7, "shrinkB": 7}
            axis.annotate("", (x, y), (x - _STEP, y), arrowprops=arrow)


def _note(axis: Any, step: float, y: float, text: str, colour: str) -> None:
    axis.text(_FIRST + _STEP * step, y, text, fontsize=8, color=colour, ha="center", va="center")


def _sequential(axis: Any, y: float) -> None:
    _chain(axis, y, [(KNOWN, True)] * (DRAFTED + 1))
    for step in range(DRAFTED):
        _note(axis, step + 0.5, y + 0.2, "call", CALL)


def _draft(axis: Any, y: float) -> None:
    _chain(axis, y, [(KNOWN, True)] + [(DRAFT, False)] * DRAFTED, "--")


def _evaluate(axis: Any, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    width = _STEP * (DRAFTED - 1) + 0.6
    style = {"boxstyle": "round,pad=0,rounding_size=0.2", "facecolor": "#e3f0fa", "edgecolor": CALL, "linewidth": 1.2}
    axis.add_patch(FancyBboxPatch((_FIRST - 0.3, y - 0.3), width, 0.6, **style))
    _chain(axis, y, [(KNOWN, True)] + [(DRAFT, False)] * (DRAFTED - 1), "")
    _note(axis, DRAFTED, y, "one call", CALL)


def _verify(axis: Any, y: float) -> None:
    lost = [(plots.FAINT, False)] * (DRAFTED - COMMITTED)
    _chain(axis, y, [(KNOWN, True), *[(FINAL, False)] * ACCEPTED, (DRAFT, False), *lost], "")
    for step in range(1, DRAFTED + 1):
        word = "accept" if step <= ACCEPTED else "reflect" if step == COMMITTED else "drop"
        colour = FINAL if step <= ACCEPTED else DRAFT if step == COMMITTED else plots.FAINT
        _note(axis, step, y - 0.32, word, colour)


def _commit(axis: Any, y: float) -> None:
    _chain(axis, y, [(KNOWN, True)] + [(FINAL, True)] * COMMITTED)
    _note(axis, DRAFTED, y, "next round", plots.FAINT)


_DRAWERS = (_sequential, _draft, _evaluate, _verify, _commit)
"""Of `_ROWS`."""
