"""The plots of an evaluation, for its page each an SVG for the page itself, or the reason why there is none."""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy._common.extras import install
from asd_policy.evaluation.reports import names, plots, report
from asd_policy.evaluation.reports.plots import Drawer, LeftOut, Styles
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.policy.plan import PlanRecord

Results = dict[str, Any]
Episodes = Sequence[Episode]

_WIDTH = 4.3  # [in]: a column of a desk's screen, and about a phone's width, so that text is read at its own size
_NAME = 24  # [characters] of a mode's name
_MOST_MODES = 28  # that have room for a name each
_OTHERS = "all others"
_LEGEND_ROW = 0.18  # [in]


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
    return [_plot(name, title, drawer, results, episodes) for name, title, drawer in drawers(results)]


def drawers(results: Results) -> tuple[tuple[str, str, Drawer], ...]:
    """List the plots of a results.json object of `eval`: name, title, and what draws it."""
    return (*_PLOTS, *_CLOCKED_PLOTS) if report.is_clocked(results) else _PLOTS


def _plot(name: str, title: str, drawer: Drawer, results: Results, episodes: Episodes) -> Plot:
    try:
        with plots.drawing() as pyplot:
            caption = drawer(pyplot, results, episodes)
            return Plot(name, title, caption, _svg(pyplot.gcf(), name))
    except ImportError:
        return Plot(name, title, f"Not drawn: plots need matplotlib; {install('plots')}.", None)
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
    samplers, styles = results["samplers"], Styles(results["samplers"])
    _, axis = pyplot.subplots(figsize=(_WIDTH, 0.6 + 0.42 * len(samplers)), layout="constrained")
    for index, each in enumerate(samplers):
        rate, (low, high) = (100 * np.array(each[key]) for key in ("success_rate", "success_ci95"))
        style = styles.mark(each)
        axis.hlines(index, low, high, color=style["color"])
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
    timed = [(each, seconds[each["spec"]]) for each in there]
    plots.latencies(axis, timed, report.shown_name, Styles(results["samplers"]))
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
    styles = Styles(results["samplers"])
    plots.speedups(axis, windowed, _without_window, "algorithmic_speedup", styles, linestyle=":", fillstyle="none")
    if timed:
        plots.speedups(axis, timed, _without_window, "wall_clock_speedup", styles, label=None)
    axis.set(xlabel="window θ [points per network call]", ylabel=f"speedup over {sequential} [×]", ylim=(0, None))
    _legend(figure)
    return (
        "Hollow, dotted: K over mean rounds, what calls on many points would give if they cost what calls on one do. "
        "Filled, solid: by this machine's clock. Exact samplers alone. A ring is around the window that asd chose most "
        "often."
    )


def _acceptance(pyplot: Any, results: Results, episodes: Episodes) -> str:
    known = [
        (each, np.array(each["acceptance_by_step"], dtype=float))
        for each in results["samplers"]
        if each.get("acceptance_by_step") is not None
    ]
    if not known:
        raise LeftOut("no sampler of this run verifies drafts")
    figure, axis = _axes(pyplot, len(known))
    styles = Styles(results["samplers"])
    for each, rates in known:
        axis.plot(100 * rates, label=report.shown_name(each), markevery=0.12, **styles.line(each))
    steps = max(each["steps"] for each, _ in known)
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
    for each in results["samplers"]:
        by_step = rounds.get(each["spec"], {})
        met = {count for counts in by_step.values() for count in counts}
        if len(met) == 1:
            constant.append(f"{report.shown_name(each)}: always {met.pop()}")
        elif met:
            lines.append((each, sorted(by_step.items())))
    if not lines:
        raise LeftOut("every plan took the same number of rounds; " + ", ".join(constant))
    figure, axis = _axes(pyplot, len(lines))
    styles = Styles(results["samplers"])
    for each, by_step in lines:
        at = [step for step, _ in by_step]
        low, high = np.transpose([np.percentile(counts, (25, 75)) for _, counts in by_step])
        means = [np.mean(counts) for _, counts in by_step]
        style = styles.line(each)
        axis.plot(at, means, label=report.shown_name(each), markevery=0.12, **style)
        axis.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.set(xlabel="control step at which the plan was made", ylabel="rounds [network calls]", ylim=(0, None))
    _legend(figure)
    caption = "Mean over the episodes that still ran, and the middle half of them."
    return caption + (f" Not drawn: {', '.join(constant)}." if constant else "")


def _modes(pyplot: Any, results: Results, episodes: Episodes) -> str:
    samplers, styles = results["samplers"], Styles(results["samplers"])
    met = sum((Counter(each["modes"]) for each in samplers), Counter[str]())
    if not met:
        raise LeftOut("the environment reports no modes")
    names = sorted(mode for mode, _ in met.most_common(_MOST_MODES))
    rest = set(met) - set(names)
    written = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names] + [_OTHERS] * bool(rest)
    size = (_WIDTH, 0.4 + 0.62 * len(samplers) + 0.06 * max(map(len, written)))
    figure, axes = pyplot.subplots(
        len(samplers), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for each, axis in zip(samplers, axes[:, 0], strict=True):
        counts = [each["modes"].get(mode, 0) for mode in names]
        counts += [sum(each["modes"].get(mode, 0) for mode in rest)] * bool(rest)
        axis.bar(range(len(counts)), counts, color=styles.mark(each)["color"], width=0.7)
        entropy = "" if each["mode_entropy"] is None else f", entropy {each['mode_entropy']:.2f} nat"
        axis.set_title(report.shown_name(each) + entropy, fontsize=8, loc="left", pad=2)
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=2)
    axes[-1, 0].set_xticks(range(len(written)), written, rotation=90, fontsize=7)
    figure.supylabel("successful episodes", fontsize=9)
    return f"How often each of the {len(met)} ways that were met was taken, in successful episodes."


def _tradeoff(pyplot: Any, results: Results, episodes: Episodes) -> str:
    placed = [(each, latency) for each in results["samplers"] if (latency := _mean_latency(each))]
    if not placed:
        raise LeftOut("no sampler has plans that take time")
    figure, axis = _axes(pyplot, len(placed))
    draw_tradeoff(axis, placed, Styles(results["samplers"]))
    _legend(figure)
    return "Upper left is the best. Success with Wilson's 95 % interval, at the mean latency of a sampler's plans."


def draw_tradeoff(axis: Any, placed: Sequence[tuple[Results, float]], styles: Styles) -> None:
    """Draw success against latency, a point for each sampler.

    Args:
        axis: To draw on.
        placed: Samplers of results.json, and the mean latency of their plans [ms].
        styles: Of the run.
    """
    for each, latency in placed:
        style = styles.mark(each)
        axis.vlines(latency, *(100 * np.array(each["success_ci95"])), color=style["color"])
        label = report.shown_name(each)
        axis.plot(latency, 100 * each["success_rate"], linestyle="", label=label, **style | {"markersize": 7})
    axis.set(xscale="log", xlabel="mean latency of a plan [ms]", ylabel="successful episodes [%]", ylim=(0, 103))
    axis.margins(x=0.15)
    plots.plain_numbers(axis.xaxis, lambda value, _: f"{value:g}")


def _mean_latency(each: Results) -> float | None:
    """Find the mean latency of a sampler's plans [ms]: the one that was counted, where a clock ran."""
    counted = (each.get("timing") or {}).get("counted_latency_ms")
    latency = counted or each["latency_ms"]
    return None if latency is None else latency["mean"]


def _late(pyplot: Any, results: Results, episodes: Episodes) -> str:
    timed = [
        each
        for each in results["samplers"]
        if each["timing"] and each["timing"]["counted_latency_ms"] and each["return_mean"] is not None
    ]
    if not timed:
        raise LeftOut("no episode came to a second plan")
    figure, axis = _axes(pyplot, len(timed))
    styles = Styles(results["samplers"])
    for each in timed:
        at, style = each["timing"]["counted_latency_ms"]["mean"], styles.mark(each)
        if each["return_ci95"] is not None:
            axis.vlines(at, *each["return_ci95"], color=style["color"])
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


_PLOTS: tuple[tuple[str, str, Drawer], ...] = (
    ("success", "Success", _success),
    ("tradeoff", "Success against latency", _tradeoff),
    ("latency", "Latency of a plan", _latency),
    ("window", "Speedup against window", _window),
    ("acceptance", "Acceptance by step", _acceptance),
    ("rounds", "Rounds over an episode", _rounds),
    ("modes", "Modes", _modes),
)
_CLOCKED_PLOTS: tuple[tuple[str, str, Drawer], ...] = (("late", "Return against latency", _late),)
"""Of a run in which time went on while plans were made."""
