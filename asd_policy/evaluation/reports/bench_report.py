"""A benchmark's results as tables and plots: the ceiling, the plans against it, and where their time goes."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from asd_policy._common.clock import STAGES
from asd_policy.evaluation.reports import plots
from asd_policy.evaluation.reports.plots import Drawer, LeftOut, Styles
from asd_policy.evaluation.reports.report import caption, reference_of, shown_name

_LEGEND_NAME = 55  # [characters] of a name that leaves room for another beside it


def ceiling_table(ceiling: dict[str, Any]) -> Table:
    """Lay out the `ceiling` of a results.json object as a table for the terminal."""
    rates = ", ".join(f"{1e-12 * rate:.3g} TFLOP/s {dtype}" for dtype, rate in ceiling["flops_per_second"].items())
    table = Table(
        title="network calls: median, and the time that the device's own matrix product and copy would need",
        caption=f"measured: {rates}, {1e-9 * ceiling['bytes_per_second']:.3g} GB/s",
    )
    columns = ("backend", "points", "call ms", "K calls ms", "operations ms", "weights ms", "traffic ms", "of limit")
    for column in columns:
        table.add_column(column, justify="left" if column == "backend" else "right")
    for backend in ceiling["backends"]:
        for index, point in enumerate(backend["curve"]):
            table.add_row(
                f"{backend['backend']}\n{backend['dtype']}" if index == 0 else "",
                str(point["points"]),
                _ms(point["call_ms"]),
                _ms(backend["sequential_ms"]) if index == 0 else "",
                *(_ms(point[key]) for key in ("compute_ms", "weights_ms", "traffic_ms")),
                "–" if point["of_limit"] is None else f"{100 * point['of_limit']:.0f} %",
            )
    return table


def latency_table(results: dict[str, Any]) -> Table:
    """Lay out the plans of a results.json object of `bench` as a table for the terminal."""
    baseline = results["baseline"]
    against = f"× is against {baseline['spec']} on {baseline['backend']}" if baseline else ""
    table = Table(
        title=f"{results['plans']} plans each, interleaved, batch {results['batch']}, states {results['states_from']}",
        caption=f"{caption(results)}; {against}",
    )
    columns = ("sampler on backend", "window", "rounds", "p50 / p95 / p99 / max ms", "× [95 %]", "× eager", "× rounds",
               "calls alone ms", "at best ms", "outside the network")  # fmt: skip
    encoded = any(each.get("encode_fraction") is not None for each in results["samplers"])
    if encoded:
        columns = (*columns[:-1], "encoding", "outside the networks")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for each in results["samplers"]:
        latency, interval = each["latency_ms"], each["wall_clock_speedup_ci95"]
        name = shown_name(each).replace(",", ",\n  ")
        table.add_row(
            f"{name}\n  on {each['backend']}",
            str(each["window"]),
            f"{each['rounds_mean']:.1f}",
            " / ".join(_ms(latency[key]) for key in ("p50", "p95", "p99", "max")),
            _ratio(each["wall_clock_speedup"])
            + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"),
            _ratio(each["speedup_over_eager"]),
            f"{each['algorithmic_speedup']:.1f}",
            _ms(each["floor_ms"]),
            _ms(each.get("limit_ms")),
            *([_share(each["encode_fraction"])] if encoded else []),
            _share(each.get("outside_fraction") if each["overhead_fraction"] is None else each["overhead_fraction"]),
        )
    return table


def _share(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def stages_table(results: dict[str, Any]) -> Table:
    """Lay out where a plan's time goes as a table for the terminal."""
    table = Table(title="where a plan's time goes, ms")
    table.add_column("sampler on backend")
    for stage in STAGES:
        table.add_column(stage, justify="right")
    for each in results["samplers"]:
        if each["stages_ms"]:
            cells = (_ms(each["stages_ms"][stage]) for stage in STAGES)
            table.add_row(f"{each['spec']} on {each['backend']}".replace(",", ",\n  "), *cells)
    return table


def _latencies(pyplot: Any, results: dict[str, Any], episodes: Sequence[Any]) -> str:
    samplers = results["samplers"]
    names = [_label(each, shown_name(each)) for each in samplers]
    columns = 2 if max(map(len, names)) <= _LEGEND_NAME else 1
    height = 3.5 + 0.15 * -(-len(names) // columns)
    figure, axis = pyplot.subplots(figsize=(8, height), layout="constrained")
    timed = [(each, each["latencies_ms"]) for each in samplers]
    plots.latencies(axis, timed, lambda each: _label(each, shown_name(each)), Styles(samplers))
    figure.legend(fontsize=7, loc="outside lower center", ncols=columns)
    return f"Share of the {results['plans']} plans each that took longer than a time: the lower left is the best."


def _speedups(pyplot: Any, results: dict[str, Any], episodes: Sequence[Any]) -> str:
    exact = [each for each in results["samplers"] if each["exact"] and each["wall_clock_speedup"] is not None]
    if not exact:
        raise LeftOut("no exact sampler was measured beside the sequential one")
    figure, axis = pyplot.subplots(figsize=(6, 5 + 0.18 * len(exact)), layout="constrained")
    axis.axhline(1, color="0.75", linewidth=1, zorder=0)
    styles = Styles(results["samplers"])
    plots.speedups(
        axis, exact, lambda each: _label(each, plots.without_window(each["spec"])), "wall_clock_speedup", styles
    )
    sequential = reference_of(results)
    axis.set(xlabel=f"window θ ({sequential}: 1)", ylabel=f"speedup over {sequential} on the best backend")
    figure.legend(loc="outside lower center")
    return f"Speedup over {sequential} on its fastest backend, with its 95 % interval, at each window."


BENCH_PLOTS: tuple[tuple[str, str, Drawer], ...] = (
    ("latency", "Latency of a plan", _latencies),
    ("speedup", "Speedup against window", _speedups),
)
"""Name, title, and what draws it."""


def _label(each: dict[str, Any], spec: str) -> str:
    return f"{spec} on {each['backend']}"


def _ms(value: float | None) -> str:
    """Write milliseconds with three digits, or more before the point."""
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
