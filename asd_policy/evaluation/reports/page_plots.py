"""The plots of an evaluation's page: each an SVG for the page itself, or the reason why there is none."""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.evaluation.reports import names, plots, report
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.policy.plan import PlanRecord

Results = dict[str, Any]
Episodes = Sequence[Episode]

_WIDTH = 4.3  # [in]: a column of a desk's screen, and about a phone's width, so that text is read at its own size
_NAME = 24  # [characters] of a mode's name
_LEGEND_ROW = 0.18  # [in]


class LeftOut(Exception):
    """There is nothing to draw; the message says why."""


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    name: str
    """Of its element."""
    title: str
    caption: str
    """What the figure shows, or why there is none."""
    svg: str | None
    """An `<svg>` element whose colours are the page's, or None."""


def draw_page_plots(results: Results, episodes: Episodes) -> list[Plot]:
    """Draw the plots of a results.json object of `eval`.

    Args:
        results: With at least one sampler.
        episodes: Those it sums up; empty where they were not kept.
    """
    drawers = (*_PLOTS, *_CLOCKED_PLOTS) if report.is_clocked(results) else _PLOTS
    return [_plot(name, title, drawer, results, episodes) for name, title, drawer in drawers]


def _plot(name: str, title: str, drawer: "_Drawer", results: Results, episodes: Episodes) -> Plot:
    try:
        with plots.drawing() as pyplot:
            try:
                caption = drawer(pyplot, results, episodes)
                return Plot(name, title, caption, _svg(pyplot.gcf(), name))
            finally:
                pyplot.close("all")
    except ImportError:
        return Plot(name, title, "Not drawn: plots need matplotlib; pip install 'asd-policy[plots]'.", None)
    except LeftOut as reason:
        return Plot(name, title, f"Left out: {reason}.", None)


def _svg(figure: Any, name: str) -> str:
    """Write a figure as an element of a page, with ids of its own and the page's colours, light or dark."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"', r"\1", svg, count=2)
    variables = {plots.INK: "--ink", plots.FAINT: "--faint"}
    variables |= {colour: f"--line-{index}" for index, colour in enumerate(plots.COLOURS)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _success(pyplot: Any, results: Results, episodes: Episodes) -> str:
    samplers = results["samplers"]
    figure, axis = pyplot.subplots(figsize=(_WIDTH, 0.6 + 0.42 * len(samplers)), layout="constrained")
    for index, each in enumerate(samplers):
        rate, (low, high) = (100 * np.array(each[key]) for key in ("success_rate", "success_ci95"))
        style = plots.mark(index)
        axis.hlines(index, low, high, color=style["color"], linestyle=plots.line_style(each["exact"]))
        axis.plot(rate, index, **style)
        axis.annotate(report.shown_name(each), (0, index - 0.22), fontsize=8)
        if each["spec"] == report.reference_of(results):
            axis.axvspan(low, high, color=style["color"], alpha=0.12, linewidth=0)
    axis.set(xlim=(0, 102), ylim=(len(samplers) - 0.6, -0.7), xlabel="successful episodes [%]")
    axis.tick_params(left=False, labelleft=False)
    axis.spines["left"].set_visible(False)
    band = report.reference_of(results)
    return f"Share of successful episodes with Wilson's 95 % interval; the shaded band is that of {band}."


def _latency(pyplot: Any, results: Results, episodes: Episodes) -> str:
    seconds = defaultdict(list)
    for spec, plan in _plans(episodes):
        seconds[spec].append(1e3 * plan.seconds)
    there = [each for each in results["samplers"] if each["spec"] in seconds]
    figure, axis = _axes(pyplot, len(there))
    plots.latencies(axis, [(report.shown_name(each), each["exact"], seconds[each["spec"]]) for each in there])
    _legend(figure)
    batches = sorted({plan.batch for _, plan in _plans(episodes)})
    together = (
        f" Up to {batches[-1]} plans were made together, and each counts the whole time." if batches[-1] > 1 else ""
    )
    return f"Share of plans that took longer than a time: the lower left is the best.{together}"


def _window(pyplot: Any, results: Results, episodes: Episodes) -> str:
    sequential = report.reference_of(results)
    windowed = [each for each in results["samplers"] if each["exact"] and each["spec"] != sequential and each["plans"]]
    windows = sorted({each["window"] for each in windowed})
    if len(windows) < 2:
        measured = f"only window {windows[0]} was" if windows else "no sampler with a window was"
        raise LeftOut(f"{measured} measured; name two or more, as in asd:window=8 asd:window=32")
    timed = [each for each in windowed if each["wall_clock_speedup"] is not None]
    figure, axis = _axes(pyplot, len({_without_window(each) for each in windowed}))
    axis.axhline(1, color=plots.FAINT, linewidth=1, zorder=0)
    plots.speedups(axis, windowed, _without_window, "algorithmic_speedup", linestyle=":", fillstyle="none")
    if timed:
        plots.speedups(axis, timed, _without_window, "wall_clock_speedup", label=None)
    axis.set(xlabel="window θ [points per network call]", ylabel=f"speedup over {sequential} [×]", ylim=(0, None))
    _legend(figure)
    return (
        "Hollow, dotted: K over mean rounds, what calls on many points would give if they cost what calls on one do. "
        "Filled, solid: by this machine's clock. Exact samplers alone; auto stands at the window it took most often."
    )


def _acceptance(pyplot: Any, results: Results, episodes: Episodes) -> str:
    known = [
        (index, each, np.array(each["acceptance_by_step"], dtype=float))
        for index, each in enumerate(results["samplers"])
        if each.get("acceptance_by_step") is not None
    ]
    if not known:
        raise LeftOut("no sampler of this run verifies drafts")
    figure, axis = _axes(pyplot, len(known))
    for index, each, rates in known:
        axis.plot(100 * rates, label=report.shown_name(each), markevery=0.12, **plots.mark(index))
    steps = max(each["steps"] for _, each, _ in known)
    axis.set(xlim=(-1, steps), ylim=(0, 103), xlabel=f"step k of {steps} (0 is the noisiest)")
    axis.set_ylabel("drafts accepted [%]")
    _legend(figure)
    return (
        "Share of the drafts of a step that verification accepted. The last step adds no noise, and is never drafted."
    )


def _rounds(pyplot: Any, results: Results, episodes: Episodes) -> str:
    rounds: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for spec, plan in _plans(episodes):
        rounds[spec][plan.at].append(plan.rounds)
    constant, lines = [], []
    for index, each in enumerate(results["samplers"]):
        by_step = rounds.get(each["spec"], {})
        met = {count for counts in by_step.values() for count in counts}
        if len(met) == 1:
            constant.append(f"{report.shown_name(each)}: always {met.pop()}")
        elif met:
            lines.append((index, each, sorted(by_step.items())))
    if not lines:
        raise LeftOut("every plan took the same number of rounds; " + ", ".join(constant))
    figure, axis = _axes(pyplot, len(lines))
    for index, each, by_step in lines:
        at = [step for step, _ in by_step]
        low, high = np.transpose([np.percentile(counts, (25, 75)) for _, counts in by_step])
        means = [np.mean(counts) for _, counts in by_step]
        style = plots.mark(index)
        line = {"linestyle": plots.line_style(each["exact"]), "label": report.shown_name(each), "markevery": 0.12}
        axis.plot(at, means, **line, **style)
        axis.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.set(xlabel="control step at which the plan was made", ylabel="rounds [network calls]", ylim=(0, None))
    _legend(figure)
    caption = "Mean over the episodes that still ran, and the middle half of them."
    return caption + (f" Not drawn: {', '.join(constant)}." if constant else "")


def _modes(pyplot: Any, results: Results, episodes: Episodes) -> str:
    samplers = results["samplers"]
    names = sorted({mode for each in samplers for mode in each["modes"]})
    if not names:
        raise LeftOut("the environment reports no modes")
    written = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names]
    size = (_WIDTH, 0.4 + 0.62 * len(samplers) + 0.06 * max(map(len, written)))
    figure, axes = pyplot.subplots(
        len(samplers), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for index, (each, axis) in enumerate(zip(samplers, axes[:, 0], strict=True)):
        counts = [each["modes"].get(mode, 0) for mode in names]
        axis.bar(range(len(names)), counts, color=plots.mark(index)["color"], width=0.7)
        entropy = "" if each["mode_entropy"] is None else f", entropy {each['mode_entropy']:.2f} nat"
        axis.set_title(report.shown_name(each) + entropy, fontsize=8, loc="left", pad=2)
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=2)
    axes[-1, 0].set_xticks(range(len(names)), written, rotation=90, fontsize=7)
    figure.supylabel("successful episodes", fontsize=9)
    return f"How often each of the {len(names)} ways that were met was taken, in successful episodes."


def _late(pyplot: Any, results: Results, episodes: Episodes) -> str:
    timed = [
        (index, each)
        for index, each in enumerate(results["samplers"])
        if each["timing"] and each["timing"]["counted_latency_ms"] and each["return_mean"] is not None
    ]
    if not timed:
        raise LeftOut("no episode came to a second plan")
    figure, axis = _axes(pyplot, len(timed))
    for index, each in timed:
        at, style = each["timing"]["counted_latency_ms"]["mean"], plots.mark(index)
        if each["return_ci95"] is not None:
            axis.vlines(at, *each["return_ci95"], color=style["color"], linestyle=plots.line_style(each["exact"]))
        axis.plot(at, each["return_mean"], linestyle="", label=report.shown_name(each), **style)
    axis.set(xlabel="mean latency that was counted [ms]", ylabel="return", xlim=(0, None))
    _legend(figure)
    return "Mean return with its 95 % interval (Student's), at the mean latency of a sampler's plans."


def _axes(pyplot: Any, labels: int) -> tuple[Any, Any]:
    return pyplot.subplots(figsize=(_WIDTH, 2.7 + _LEGEND_ROW * labels), layout="constrained")


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower left", labelspacing=0.35, handlelength=3)


def _plans(episodes: Episodes) -> list[tuple[str, PlanRecord]]:
    """List every plan with the spec that made it.

    Raises:
        LeftOut: There are none.
    """
    plans = [(episode.spec, plan) for episode in episodes for plan in episode.plans]
    if not plans:
        raise LeftOut("it is drawn from episodes.jsonl, which has no plans here")
    return plans


def _without_window(each: dict[str, Any]) -> str:
    return names.name_at_any_window(each["spec"])


_Drawer = Callable[[Any, Results, Episodes], str]
_PLOTS: tuple[tuple[str, str, _Drawer], ...] = (
    ("success", "Success", _success),
    ("latency", "Latency of a plan", _latency),
    ("window", "Speedup against window", _window),
    ("acceptance", "Acceptance by step", _acceptance),
    ("rounds", "Rounds over an episode", _rounds),
    ("modes", "Modes", _modes),
)
_CLOCKED_PLOTS: tuple[tuple[str, str, _Drawer], ...] = (("late", "Return against latency", _late),)
"""Of a run in which time went on while plans were made."""
