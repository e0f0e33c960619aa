"""How plots look, and those that `bench` and `eval` share: matplotlib's figures, small, the same for the same data."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

INK, FAINT = "#24292f", "#8c959f"
COLOURS = ("#5b6470", "#d55e00", "#0072b2", "#009e73", "#aa3377", "#b8860b", "#56a0d3", "#7a5195")
"""Of samplers, in order. Each also has a marker of its own, so that nobody has to tell colours apart."""
FORMATS = ("pdf", "png", "svg")
"""Of files that a figure can be written to."""
_MARKERS = "osD^vPX*"
_MOST_STYLES = len(COLOURS) * len(_MARKERS)
_NARROW = 6  # times: numbers at 1, 2 and 5 alone would leave such an axis with one or two
_TICK_GAP = 0.07  # of an axis' length: closer numbers would run into each other


class LeftOut(Exception):
    """There is nothing to draw; the message says why."""


Drawer = Callable[[Any, dict[str, Any], Sequence[Any]], str]
"""Draws a results.json object and its episodes as pyplot's current figure; returns the caption, or raises LeftOut."""


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib's pyplot, set for text as text, no date and no random ids. Figures are closed at the end.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "asd",
        "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
        "savefig.dpi": 300,
        "font.size": 9,
        "text.parse_math": False,  # a name may hold a dollar sign
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.2,
        "lines.markersize": 4.5,
    }
    with matplotlib.rc_context():
        matplotlib.rcParams.update(style)
        try:
            yield pyplot
        finally:
            pyplot.close("all")


def save(figure: Any, path: Any, form: str) -> None:
    """Write a figure without a date, so that the same data give the same file.

    Args:
        figure: Of matplotlib.
        path: To write.
        form: One of `FORMATS`.
    """
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    figure.savefig(path, format=form, metadata=undated[form])


def mark(index: int, exact: bool = True) -> dict[str, Any]:
    """Choose colour and marker of a sampler by its place in the order; hollow where it is approximate.

    No two of the first 64 are the same.
    """
    turn, place = divmod(index % _MOST_STYLES, len(COLOURS))
    style = {"color": COLOURS[place], "marker": _MARKERS[(place + turn) % len(_MARKERS)]}
    return style if exact else style | {"fillstyle": "none"}


def dash(index: int) -> Any:
    """Choose the dashes of a backend's lines by its place in the order: solid, dashed, then with one dot more each."""
    return "-" if index == 0 else (0, (5, 1.5, *(1, 1.5) * (index - 1)))


class Styles:
    """How each sampler of a run looks on each backend, in all figures of the run: colour and marker, and dashes."""

    def __init__(self, samplers: Sequence[dict[str, Any]]) -> None:
        """Give every sampler and every backend its place.

        Args:
            samplers: Of results.json, in its order.
        """
        self._places = {spec: place for place, spec in enumerate(dict.fromkeys(each["spec"] for each in samplers))}
        self._backends = list(dict.fromkeys(each.get("backend") for each in samplers))

    def mark(self, each: dict[str, Any]) -> dict[str, Any]:
        """Choose colour and marker of a sampler of results.json."""
        return mark(self._places[each["spec"]], each["exact"])

    def dash(self, each: dict[str, Any]) -> dict[str, Any]:
        """Choose the dashes of a sampler of results.json, by its backend."""
        return {"linestyle": dash(self._backends.index(each.get("backend")))}

    def line(self, each: dict[str, Any]) -> dict[str, Any]:
        """Choose all of it."""
        return self.mark(each) | self.dash(each)


def latencies(
    axis: Any, contenders: Sequence[tuple[dict[str, Any], Sequence[float]]], name: Callable[[Any], str], styles: Styles
) -> None:
    """Draw for each contender the share of its plans that took longer than a time.

    Args:
        axis: To draw on.
        contenders: Samplers of results.json, and the latencies of their plans [ms].
        name: Names a line, given its sampler.
        styles: Of the run.
    """
    for each, times in contenders:
        longer = [1 - rank / len(times) for rank in range(len(times))]
        axis.step(sorted(times), longer, where="post", markevery=0.15, label=name(each), **styles.line(each))
    axis.set(xscale="log", yscale="log", xlabel="latency of a plan [ms]", ylabel="plans that take longer")
    plain_numbers(axis.xaxis, lambda value, _: f"{value:g}")
    plain_numbers(axis.yaxis, lambda value, _: f"{100 * value:g} %", subs=(1.0,))


def speedups(
    axis: Any,
    contenders: Sequence[dict[str, Any]],
    name: Callable[[dict[str, Any]], str],
    key: str,
    styles: Styles,
    **line: Any,
) -> None:
    """Draw a speedup of samplers against their window, a line where they differ in nothing else.

    A line looks as its first sampler does. A ring is around a window that the sampler chose.

    Args:
        axis: To draw on.
        contenders: Samplers of results.json that have this speedup.
        name: Names a line, given one of its samplers.
        key: Of the speedup; its interval, if there is one, has this name with `_ci95`.
        styles: Of the run.
        **line: Options of matplotlib for the lines.
    """
    for label in dict.fromkeys(map(name, contenders)):
        there = sorted((each for each in contenders if name(each) == label), key=lambda each: each["window"])
        style = styles.line(next(each for each in contenders if name(each) == label))
        windows = [each["window"] for each in there]
        axis.plot(windows, [each[key] for each in there], **{"label": label, **style, **line})
        for each in there:
            if each.get(f"{key}_ci95") is not None:
                axis.vlines(each["window"], *each[f"{key}_ci95"], color=style["color"], linewidth=1)
    chosen = [each for each in contenders if "window=auto" in each["spec"]]
    if chosen:
        ring = {"linestyle": "", "marker": "o", "markersize": 10, "fillstyle": "none", "color": FAINT}
        ring |= {"label": line.get("label", "θ chosen by asd")}
        axis.plot([each["window"] for each in chosen], [each[key] for each in chosen], **ring)
    windows = thinned(sorted({each["window"] for each in contenders}))
    axis.set(xscale="log")
    axis.set_xticks(windows, [str(window) for window in windows])
    axis.minorticks_off()


def thinned(values: Sequence[int]) -> list[int]:
    """Select values, in order, whose numbers have room beside each other on a logarithmic axis; the last one stays."""
    if len(values) < 2:
        return list(values)
    gap = _TICK_GAP * math.log(values[-1] / values[0])
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if math.log(kept[-1] / value) >= gap:
            kept.append(value)
    return kept[::-1]


def plain_numbers(axis: Any, write: Callable[[float, int], str], subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis with numbers, not powers: with more of them where its data are within one decade."""
    from matplotlib import ticker

    low, high = axis.get_data_interval()
    if len(subs) > 1 and high < _NARROW * low:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(write))
    axis.set_minor_formatter(ticker.NullFormatter())
