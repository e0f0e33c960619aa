"""A benchmark's results as tables and plots: the ceiling, the plans against it, and where their time goes."""

from collections.abc import Callable, Sequence
from typing import Any

from asd_policy._common.clock import STAGES
from asd_policy.evaluation.reports import plots
from asd_policy.evaluation.reports.layout import NOTHING, Column, Sheet
from asd_policy.evaluation.reports.names import name_at_any_window, reference_of, shown_name
from asd_policy.evaluation.reports.plots import Drawer, LeftOut, Styles
from asd_policy.evaluation.reports.report import caption

_LEGEND_NAME = 55  # [characters] of a name that leaves room for another beside it


def ceiling_table(ceiling: dict[str, Any]) -> Sheet:
    """Lay out the `ceiling` of a results.json object as a table for the terminal."""
    rates = ", ".join(f"{1e-12 * rate:.3g} TFLOP/s {dtype}" for dtype, rate in ceiling["flops_per_second"].items())
    points = [(backend, point) for backend in ceiling["backends"] for point in backend["curve"]]

    def column(name: str, key: str, leaves: int = 0) -> Column:
        return Column(name, tuple(_ms(point[key]) for _, point in points), leaves)

    return Sheet(
        "network calls in a row: median, and the time that PyTorch's own matrix product and copy would need",
        [
            Column("points", tuple(str(point["points"]) for _, point in points)),
            column("call ms", "call_ms"),
            column("operations ms", "compute_ms", 2),
            column("weights ms", "weights_ms", 3),
            column("traffic ms", "traffic_ms", 1),
            Column("of limit", tuple(_share(point["of_limit"], 0) for _, point in points)),
        ],
        f"measured: {rates}, {1e-9 * ceiling['bytes_per_second']:.3g} GB/s",
        [
            f"{_on(backend)}, {backend['dtype']}; one plan's calls one by one: {_ms(backend['sequential_ms'])} ms"
            for backend, _ in points
        ],
    )


def latency_table(results: dict[str, Any]) -> Sheet:
    """Lay out the plans of a results.json object of `bench` as a table for the terminal."""
    baseline, samplers = results["baseline"], results["samplers"]
    against = f"× is against {baseline['spec']} on {baseline['backend']}" if baseline else ""
    encoded = any(each.get("encode_fraction") is not None for each in samplers)

    def column(name: str, cell: Callable[[dict[str, Any]], str], leaves: int = 0) -> Column:
        return Column(name, tuple(map(cell, samplers)), leaves)

    def latency(name: str, leaves: int = 0) -> Column:
        return column(f"{name} ms", lambda each: _ms(each["latency_ms"][name]), leaves)

    return Sheet(
        f"{results['plans']} plans each, interleaved, batch {results['batch']}, states {results['states_from']}",
        [
            column("sampler", shown_name),
            latency("mean"),
            latency("p50", 7),
            latency("p95"),
            latency("p99", 6),
            latency("max", 3),
            column("× [95 %]", _speedup),
            column("× eager", lambda each: _ratio(each["speedup_over_eager"]), 4),
            column("× rounds", lambda each: f"{each['algorithmic_speedup']:.1f}", 5),
            column("rounds", lambda each: f"{each['rounds_mean']:.1f}"),
            column("calls alone ms", lambda each: _ms(each["floor_ms"]), 2),
            column("at best ms", lambda each: _ms(each.get("limit_ms")), 1),
            column("encoding", lambda each: _share(each.get("encode_fraction"))),
            column(f"outside the network{'s' if encoded else ''}", _outside, 8),
        ],
        "; ".join(filter(None, (caption(results), against))),
        [_on(each) for each in samplers],
    )


def _speedup(each: dict[str, Any]) -> str:
    interval = each["wall_clock_speedup_ci95"]
    reach = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    return _ratio(each["wall_clock_speedup"]) + reach


def _outside(each: dict[str, Any]) -> str:
    """Write the share outside the network: as clocked, or by what the calls alone take."""
    return _share(each.get("outside_fraction") if each["overhead_fraction"] is None else each["overhead_fraction"])


def _share(fraction: float | None, digits: int = 1) -> str:
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def stages_table(results: dict[str, Any]) -> Sheet:
    """Lay out where a plan's time goes as a table for the terminal."""
    known = [each for each in results["samplers"] if each["stages_ms"]]
    stages = [Column(stage, tuple(_ms(each["stages_ms"][stage]) for each in known)) for stage in STAGES]
    names = Column("sampler", tuple(map(shown_name, known)))
    return Sheet("where a plan's time goes, ms", [names, *stages], headings=[_on(each) for each in known])


def _latencies(pyplot: Any, results: dict[str, Any], episodes: Sequence[Any]) -> str:
    samplers = results["samplers"]
    names = [_label(each, shown_name(each)) for each in samplers]
    columns = 2 if max(map(len, names)) <= _LEGEND_NAME else 1
    height = 3.5 + 0.15 * -(-len(names) // columns)
    figure, axis = pyplot.subplots(figsize=(8, height), layout="constrained")
    timed = [(each, each["latencies_ms"]) for each in samplers]
    plots.latencies(axis, timed, lambda each: _label(each, shown_name(each)), Styles(samplers))
    figure.legend(fontsize=7, loc="outside lower center", ncols=columns, handlelength=4)
    return f"Share of the {results['plans']} plans each that took longer than a time: the lower left is the best."


def _speedups(pyplot: Any, results: dict[str, Any], episodes: Sequence[Any]) -> str:
    exact = [each for each in results["samplers"] if each["exact"] and each["wall_clock_speedup"] is not None]
    if not exact:
        raise LeftOut("no exact sampler was measured beside the sequential one")
    lines = {_label(each, name_at_any_window(each["spec"])) for each in exact}
    figure, axis = pyplot.subplots(figsize=(6, 4 + 0.18 * len(lines)), layout="constrained")
    axis.axhline(1, color="0.75", linewidth=1, zorder=0)
    styles = Styles(results["samplers"])
    plots.speedups(
        axis, exact, lambda each: _label(each, name_at_any_window(each["spec"])), "wall_clock_speedup", styles
    )
    sequential = reference_of(results)
    axis.set(xlabel=f"window θ ({sequential}: 1)", ylabel=f"speedup over {sequential} on the best backend")
    figure.legend(loc="outside lower center", handlelength=4)
    return f"Speedup over {sequential} on its fastest backend, with its 95 % interval, at each window."


BENCH_PLOTS: tuple[tuple[str, str, Drawer], ...] = (
    ("latency", "Latency of a plan", _latencies),
    ("speedup", "Speedup against window", _speedups),
)
"""Name, title, and what draws it."""


def _label(each: dict[str, Any], name: str) -> str:
    return f"{name} {_on(each)}"


def _on(each: dict[str, Any]) -> str:
    return f"on {each['backend']}"


def _ms(value: float | None) -> str:
    """Write milliseconds with three digits, or more before the point."""
    return NOTHING if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
