"""The results of gpu_bench.py as lines and as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = (
    *("sampler", "backend", "p50 / p95 / p99 ms", "× DDPM", "× eager", "rounds", "nfe", "× by rounds"),
    *("wall / rounds", "outside", "encoding ms", "calls alone ms", "at best ms", "memory MiB"),
)
KERNELS = (
    "network",
    "sampler",
    "points",
    "ours a round",
    "the network's",
    "copies of a plan",
    "rounds",
    "launches of graphs",
)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """Write a share in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def outside(each: Mapping[str, Any]) -> float | None:
    """Find the share of a plan outside its networks: as clocked, or by what the calls alone take."""
    return each["outside_fraction"] if each["overhead_fraction"] is None else each["overhead_fraction"]


def line(each: Mapping[str, Any]) -> str:
    """Format one contender's results in a line."""
    latency, interval = each["latency_ms"], each["wall_clock_speedup_ci95"]
    percentiles = " / ".join(number(latency[key]) for key in ("p50", "p95", "p99", "max"))
    speedup = "" if each["wall_clock_speedup"] is None else f", {each['wall_clock_speedup']:.2f}×"
    reach = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    eager = "" if each["speedup_over_eager"] is None else f", {each['speedup_over_eager']:.2f}× eager"
    return (
        f"{each['spec']} on {each['backend']}: p50 / p95 / p99 / max {percentiles} ms{speedup}{reach}{eager}, "
        f"{each['algorithmic_speedup']:.1f}× by rounds, {share(outside(each))} outside the network, at best "
        f"{number(each['limit_ms'])} ms"
    )


def row(each: Mapping[str, Any]) -> list[str]:
    """Format one contender's results as the cells of `HEADER`."""
    latency = each["latency_ms"]
    ratios = (each["wall_clock_speedup"], each["speedup_over_eager"])
    return [
        f"`{each['spec']}`" + ("" if each["exact"] else " (approximate)"),
        f"`{each['backend']}`",
        " / ".join(number(latency[key]) for key in ("p50", "p95", "p99")),
        *(number(ratio) for ratio in ratios),
        *(number(each[name]) for name in ("rounds_mean", "nfe_mean", "algorithmic_speedup", "wall_over_algorithmic")),
        share(outside(each)),
        *(number(each[name]) for name in ("encode_ms", "floor_ms", "limit_ms")),
        number(each["memory_mib"]),
    ]


def tables(results: Mapping[str, Any]) -> str:
    """Format all parts, and what was left out."""
    lines = [f"{results['device']}; torch {results['torch']}; seed {results['seed']}; at {results['commit']}"]
    for part in results["parts"]:
        size = f"{part['parameters'] / 1e6:.1f} M"
        if part["encoder_parameters"]:
            size += f" and {part['encoder_parameters'] / 1e6:.1f} M of encoders"
        base = part["baseline"]
        against = "nothing" if base is None else f"{base['spec']} on {base['backend']}"
        lines += [
            "",
            f"## {part['network']}, {part['kind']}: {size}, batch {part['batch']}, {part['plans']} plans each",
            "",
            *markdown(HEADER, [row(each) for each in part["samplers"]]),
            "",
            f"× DDPM is against {against}.",
        ]
    if results["kernels"]:
        names = ("points", "ours", "network", "copies", "rounds", "graph_launches")
        rows = [
            [each["network_name"], f"`{each['spec']}`", *(str(each[name]) for name in names)]
            for each in results["kernels"]
        ]
        lines += ["", f"## {results['kernels'][0]['unit'].capitalize()} of a round", "", *markdown(KERNELS, rows)]
    if results["warnings"]:
        lines += ["", "## Warnings", "", *(f"- {each}" for each in results["warnings"])]
    if results["skipped"]:
        lines += ["", "## Left out", "", *(f"- {each['what']}: {each['why']}" for each in results["skipped"])]
    return "\n".join(lines) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
