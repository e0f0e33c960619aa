"""Results as tables for a paper: LaTeX for its text, CSV with all digits for its own plots."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from asd_policy.errors import printable
from asd_policy.evaluation.reports.names import reference_of, shown_name
from asd_policy.evaluation.reports.report import is_clocked

Row = dict[str, Any]
"""A sampler of results.json."""
_NONE = "--"
_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "θ": r"$\theta$", "≈": r"$\approx$", "×": r"$\times$", "…": r"\dots{}", "–": "--", "−": r"$-$", "η": r"$\eta$",
}  # fmt: skip

_Path = tuple[str | int, ...]


def _plain(*names: str) -> list[tuple[str, _Path]]:
    return [(name, (name,)) for name in names]


def _inside(name: str, *keys: str) -> list[tuple[str, _Path]]:
    return [(f"{name}_{key}", (name, key)) for key in keys]


def _ends(name: str) -> list[tuple[str, _Path]]:
    return [(f"{name}_{end}", (name, place)) for place, end in enumerate(("low", "high"))]


_CSV = (
    *_plain("spec", "ran", "exact", "backend", "window", "episodes", "success_rate"),
    *_ends("success_ci95"),
    *_plain("return_mean"),
    *_ends("return_ci95"),
    *_plain("mode_entropy", "plans", "rounds_mean", "nfe_mean", "acceptance_length_mean", "algorithmic_speedup"),
    *_plain("wall_clock_speedup"),
    *_ends("wall_clock_speedup_ci95"),
    *_inside("latency_ms", "mean", "p50", "p95", "p99", "max"),
    *_plain("overhead_fraction", "floor_ms", "limit_ms"),
    *((f"counted_latency_ms_{name}", ("timing", "counted_latency_ms", name)) for name in ("mean", "p50", "p95", "p99")),
    *_inside("timing", "delay_steps_mean", "stale_fraction", "missed_fraction", "control_frequency_hz", "jitter_ms"),
    *_inside("timing", "seam_mean"),
)
"""Columns, and where their numbers are in a sampler of results.json."""


def csv_text(results: dict[str, Any]) -> str:
    """Write a results.json object of `eval` or `bench` as CSV, a line for each sampler, with all digits.

    A column that no sampler has is left out; a cell that one sampler lacks is empty.

    Args:
        results: With at least one sampler.
    """
    rows = results["samplers"]
    there = [(name, path) for name, path in _CSV if any(_look_up(row, path) is not None for row in rows)]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["sampler", *(name for name, _ in there)])
    for row in rows:
        writer.writerow([shown_name(row), *(_look_up(row, path) for _, path in there)])
    return written.getvalue()


def _look_up(value: Any, path: _Path) -> Any:
    """Follow a path into an object of JSON; None where it ends before."""
    for key in path:
        if value is None or (isinstance(key, str) and key not in value):
            return None
        value = value[key]
    return value


def latex(results: dict[str, Any]) -> str:
    r"""Write a results.json object of `eval` or `bench` as a `tabular` of LaTeX's booktabs, to be taken in by `\input`.

    Args:
        results: With at least one sampler.
    """
    rows = results["samplers"]
    columns = _bench_columns(rows) if results["command"] == "bench" else _eval_columns(results)
    columns = [(head, cell) for head, cell in columns if any(cell(row) != _NONE for row in rows)]
    about = f"{results['device']}; seed {results['seed']}; speedups against {reference_of(results)}"
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {printable(about)}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["sampler", *(head for head, _ in columns)]) + r" \\",
        r"\midrule",
        *(" & ".join([escaped(shown_name(row)), *(cell(row) for _, cell in columns)]) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Write a text so that LaTeX shows it as it is."""
    return "".join(_ESCAPED.get(character, character) for character in printable(text))


_Columns = list[tuple[str, Callable[[Row], str]]]


def _eval_columns(results: dict[str, Any]) -> _Columns:
    columns: _Columns = [
        (r"success [\%]", lambda row: _between(row, ("success_rate",), ("success_ci95",), "{:.0f}", 100)),
        ("return", lambda row: _between(row, ("return_mean",), ("return_ci95",), "{:.3g}")),
        (r"calls, fewer", lambda row: _number(row, ("algorithmic_speedup",), r"{:.1f}$\times$")),
        ("latency p50 / p95 [ms]", lambda row: _latency(row, ("latency_ms",))),
        ("speedup", lambda row: _number(row, ("wall_clock_speedup",), r"{:.2f}$\times$")),
    ]
    if is_clocked(results):
        columns += [
            ("counted p50 / p95 [ms]", lambda row: _latency(row, ("timing", "counted_latency_ms"))),
            (r"stale steps [\%]", lambda row: _number(row, ("timing", "stale_fraction"), "{:.0f}", 100)),
        ]
    return columns


def _bench_columns(rows: Sequence[Row]) -> _Columns:
    columns: _Columns = [("backend", lambda row: escaped(row["backend"].partition(":")[0]))]
    if len({row["backend"] for row in rows}) > len({row["backend"].partition(":")[0] for row in rows}):
        columns = [("backend", lambda row: escaped(row["backend"]))]  # two of one kind
    return [
        *columns,
        ("calls", lambda row: _number(row, ("rounds_mean",), "{:.1f}")),
        ("latency p50 / p95 [ms]", lambda row: _latency(row, ("latency_ms",))),
        ("speedup", lambda row: _between(row, ("wall_clock_speedup",), ("wall_clock_speedup_ci95",), "{:.2f}")),
    ]


def _number(row: Row, path: _Path, form: str, scale: float = 1) -> str:
    value = _look_up(row, path)
    return _NONE if value is None else form.format(scale * value)


def _between(row: Row, path: _Path, ends: _Path, form: str, scale: float = 1) -> str:
    """Write a number, and its interval behind it."""
    interval = _look_up(row, ends)
    about = "" if interval is None else f" [{', '.join(form.format(scale * end) for end in interval)}]"
    return _number(row, path, form, scale) + about


def _latency(row: Row, path: _Path) -> str:
    return " / ".join(dict.fromkeys(_number(row, (*path, name), "{:.0f}") for name in ("p50", "p95")))
