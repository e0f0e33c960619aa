"""How plots look, and those that `bench` and `eval` share: matplotlib's SVG, small, the same for the same data."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

INK, FAINT = "#24292f", "#8c959f"
COLOURS = ("#5b6470", "#d55e00", "#0072b2", "#009e73", "#aa3377", "#b8860b", "#56a0d3", "#7a5195")
"""Of a plot's lines, in order. Each also has a marker of its own, so that nobody has to tell colours apart."""
_MARKERS = "osD^vPX*"


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib's pyplot, set for SVG with text as text, no date and no random ids.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "asd",
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
        yield pyplot


def mark(index: int) -> dict[str, Any]:
    """Choose colour and marker of a plot's line by its place in the order."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}


def line_style(exact: bool) -> str:
    """Choose the style of a sampler's lines."""
    return "-" if exact else ":"


def latencies(axis: Any, contenders: Sequence[tuple[str, bool, Sequence[float]]]) -> None:
    """Draw for each contender the share of its plans that took longer than a time.

    Args:
        axis: To draw on.
        contenders: Label, whether it is exact, and the latencies of its plans [ms].
    """
    for index, (label, exact, times) in enumerate(contenders):
        longer = [1 - rank / len(times) for rank in range(len(times))]
        axis.step(
            sorted(times), longer, where="post", linestyle=line_style(exact), markevery=0.15, label=label, **mark(index)
        )
    axis.set(xscale="log", yscale="log", xlabel="latency of a plan [ms]", ylabel="plans that take longer")
    _plain_numbers(axis.xaxis, lambda value, _: f"{value:g}")
    _plain_numbers(axis.yaxis, lambda value, _: f"{100 * value:g} %", subs=(1.0,))


def speedups(
    axis: Any, contenders: Sequence[dict[str, Any]], name: Callable[[dict[str, Any]], str], key: str, **line: Any
) -> None:
    """Draw a speedup of samplers against their window, a line where they differ in nothing else.

    Args:
        axis: To draw on.
        contenders: Samplers of results.json that have this speedup.
        name: Names a line, given one of its samplers.
        key: Of the speedup; its interval, if there is one, has this name with `_ci95`.
        **line: Options of matplotlib for the lines.
    """
    for index, label in enumerate(dict.fromkeys(map(name, contenders))):
        there = sorted((each for each in contenders if name(each) == label), key=lambda each: each["window"])
        windows = [each["window"] for each in there]
        axis.plot(windows, [each[key] for each in there], **{"label": label, **mark(index), **line})
        for each in there:
            if each.get(f"{key}_ci95") is not None:
                axis.vlines(each["window"], *each[f"{key}_ci95"], color=mark(index)["color"], linewidth=1)
            if "window=auto" in each["spec"]:
                axis.annotate("auto", (each["window"], each[key]), (4, 4), textcoords="offset points", fontsize=8)
    windows = sorted({each["window"] for each in contenders})
    axis.set(xscale="log")
    axis.set_xticks(windows, [str(window) for window in windows])
    axis.minorticks_off()


def without_window(spec: str) -> str:
    """Remove the window from a spec."""
    return re.sub(r"window=\w+,?", "", spec).rstrip(":")


def _plain_numbers(axis: Any, write: Callable[[float, int], str], subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis with numbers, not powers."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(write))
    axis.set_minor_formatter(ticker.NullFormatter())
