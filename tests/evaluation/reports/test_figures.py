"""Figures and tables for a paper: all there, each style once, no label over another, and what is refused."""

import csv
import io
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from asd_policy import cli
from asd_policy._common.files import write_json
from asd_policy.errors import RunError
from asd_policy.evaluation.reports import bench_report, figures, page_plots, paper_tables, plots
from support.run_files import SPECS, episodes, results, sampler, save

pytest.importorskip("matplotlib")

WINDOWS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32, 33, 64)
EVAL = ("success", "tradeoff", "latency", "window", "acceptance", "rounds", "modes")
BACKENDS = ("torch-eager", "onnx:provider=cpu,threads=auto", "torch-compile")


def contender(spec: str, backend: str, window: int, speedup: float = 2.0) -> dict[str, Any]:
    latency = {"mean": 100 / speedup, "p50": 99 / speedup, "p95": 140 / speedup, "p99": 150.0, "max": 160.0}
    return {
        "spec": spec, "backend": backend, "exact": not spec.startswith("ddim"), "window": window, "rounds_mean": 12.3,
        "algorithmic_speedup": 8.1, "wall_clock_speedup": speedup, "wall_clock_speedup_ci95": [0.9 * speedup, 2.2],
        "latencies_ms": [99 / speedup, 140 / speedup, 160.0], "latency_ms": latency,
    }  # fmt: skip


def bench(**changes: Any) -> dict[str, Any]:
    """A results.json object of bench: two families of windows, `ddim:10` and `ddpm` on each of three backends."""
    samplers = [
        contender(spec, backend, window, 1 + 0.1 * place)
        for place, backend in enumerate(BACKENDS)
        for spec, window in (
            ("ddpm", 1), ("ddim:10", 1), ("asd:window=auto,draft=response,verify=block", 8),
            *((f"asd:window={window},draft=frozen,verify=reflection", window) for window in WINDOWS),
        )
    ]  # fmt: skip
    return {"version": 1, "command": "bench", "plans": 3, "device": "A_CPU 50% {x}", "seed": 0, "backends": BACKENDS,
            "samplers": samplers} | changes  # fmt: skip


def evaluation() -> dict[str, Any]:
    """A results.json object of eval by a clock, with more modes and windows than there is room for."""
    modes = {f"way {index} of some forty through the field": index for index in range(40)}
    counted = {"mean": 123.0, "p50": 120.0, "p95": 187.0, "p99": 190.0, "max": 200.0}
    timing = {"counted_latency_ms": counted, "stale_fraction": 0.125, "missed_fraction": 0.33}
    wide = [sampler(f"asd:window={w},draft=picard,verify=block", window=w, timing=timing) for w in WINDOWS]
    auto = sampler("asd:window=auto,draft=response,verify=block"[:3] + ":window=8", timing=timing)
    auto["spec"] = "asd:window=auto,draft=response,verify=block"
    first = [sampler(spec, modes=modes, timing=timing) for spec in SPECS]
    clock = {"clock": "async", "hz": 50.0, "env_hz": 50.0, "latency": "measured", "latency_sha256": None}
    return results(*first, *wide, auto, **clock, continuity="none")


def test_the_command_writes_every_figure_and_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save(tmp_path / "run", results(), episodes()), tmp_path / "figures"
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    for form, start in starts.items():
        assert cli.run(["report", str(folder), "--figures", str(out), "--format", form]) == 0
        for name in EVAL:
            assert (out / f"{name}.{form}").read_bytes().startswith(start), name
    said = capsys.readouterr().err
    assert f"written: {out / 'modes.pdf'}" in said and f"written: {out / 'results.tex'}" in said
    assert len(list(out.iterdir())) == len(EVAL) * len(starts) + 2
    assert not (folder / "report.html").exists()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    figures.write_all(folder, out, "pdf")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the same data give the same files


def test_a_bench_has_figures_too(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", bench())
    written = figures.write_all(tmp_path, tmp_path / "out", "svg")
    assert [path.name for path in written.files] == ["latency.svg", "speedup.svg", "results.tex", "results.csv"]


def test_what_is_left_out_is_said_and_an_older_one_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save(tmp_path / "run", results(sampler("ddpm"), sampler("ddim:10")), []), tmp_path / "figures"
    out.mkdir()
    (out / "window.pdf").write_text("of another run")
    assert cli.run(["report", str(folder), "--figures", str(out)]) == 0
    assert "window.pdf is left out: no sampler with a window was measured" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["modes.pdf", "results.csv", "results.tex", "success.pdf",
                                                           "tradeoff.pdf"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--figures", "out", "--format", "jpg"], "--format jpg is not one of pdf, png, svg"),
        (["--format", "png"], "--format png is for --figures, which is not given"),
        (["--figures", "run/results.json"], "results.json is a file; it names the folder to write into"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "run", results(), episodes())
    assert cli.run(["report", "run", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (bench(samplers=[]), "has no sampler: nothing had finished"),
        (bench(samplers=[contender("ddpm", "onnx", 1) | {"latencies_ms": [0.0]}]), "has 0.0, which is no time"),
        (bench(samplers=[{"spec": "ddpm"}]), "lacks 'backend'"),
        (results() | {"command": "verify"}, "is of asd-policy verify"),
    ],
)
def test_runs_that_make_no_figures(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", record)
    with pytest.raises(RunError) as error:
        figures.write_all(tmp_path, tmp_path / "out", "pdf")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_there_is_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "run", results(), episodes())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match=r"pip install 'asd-policy\[plots\]'"):
        figures.write_all(folder, tmp_path / "out", "pdf")
    assert not (tmp_path / "out").exists()


def test_plans_that_take_no_time_are_not_on_a_logarithmic_axis() -> None:
    """As with `--clock async --latency 0`."""
    at_once = {"counted_latency_ms": dict.fromkeys(("mean", "p50", "p95", "p99", "max"), 0.0)}
    drawers = {name: drawer for name, _, drawer in page_plots.drawers(results())}
    with plots.drawing() as pyplot, pytest.raises(plots.LeftOut, match="no sampler has plans that take time"):
        drawers["tradeoff"](pyplot, results(sampler("ddpm", timing=at_once)), [])


def test_no_style_repeats() -> None:
    styles = plots.Styles(bench()["samplers"])
    lines = [str(styles.line(each)) for each in bench()["samplers"]]
    assert len(set(lines)) == len(lines) == 48
    assert len({(mark["color"], mark["marker"]) for mark in map(plots.mark, range(64))}) == 64
    assert len({str(plots.dash(index)) for index in range(8)}) == 8


def test_a_sampler_has_one_colour_and_marker_and_a_backend_one_dash() -> None:
    samplers = bench()["samplers"]
    styles = plots.Styles(samplers)
    for each in samplers:
        assert styles.mark(each) == styles.mark(next(one for one in samplers if one["spec"] == each["spec"]))
        assert styles.dash(each) == styles.dash(next(one for one in samplers if one["backend"] == each["backend"]))
    hollow = [each["spec"] for each in samplers if styles.mark(each).get("fillstyle") == "none"]
    assert set(hollow) == {"ddim:10"}


CASES = [
    *((name, drawer, evaluation, episodes) for name, _, drawer in page_plots.drawers(evaluation())),
    *((f"bench {name}", drawer, bench, list) for name, _, drawer in bench_report.BENCH_PLOTS),
]


@pytest.mark.parametrize(("name", "drawer", "record", "done"), CASES, ids=[case[0] for case in CASES])
def test_no_label_lies_over_another(
    name: str, drawer: plots.Drawer, record: Any, done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one stand outside its figure."""
    from matplotlib.backends.backend_agg import RendererAgg

    drawn: dict[int, Any] = {}
    monkeypatch.setattr(RendererAgg, "draw_text", lambda self, *_, mtext, **__: drawn.update({id(mtext): mtext}))
    with plots.drawing() as pyplot:
        drawer(pyplot, record(), done())
        figure = pyplot.gcf()
        figure.canvas.draw()
        boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in drawn.values()]
        assert len(boxes) > 5
        for (one, box), (other, second) in itertools.combinations(boxes, 2):
            assert not box.overlaps(second), f"{one!r} and {other!r}"
        for text, box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text


def test_numbers_on_an_axis_have_room() -> None:
    assert plots.thinned([8]) == [8]
    assert plots.thinned([8, 16, 32]) == [8, 16, 32]
    assert plots.thinned([1, 2, 31, 32, 33, 64]) == [1, 2, 33, 64]


def test_the_table_in_csv_has_all_digits() -> None:
    record = results(sampler("ddpm", success_rate=1 / 3), sampler("ddim:10", return_ci95=None))
    first, second = csv.DictReader(io.StringIO(paper_tables.csv_text(record)))
    assert float(first["success_rate"]) == 1 / 3 and first["latency_ms_p99"] == "70.0"
    assert second["return_ci95_low"] == "" and "stale_fraction" not in second


def test_the_table_in_csv_has_what_became_of_deadlines() -> None:
    row = next(csv.DictReader(io.StringIO(paper_tables.csv_text(evaluation()))))
    assert row["counted_latency_ms_p95"] == "187.0" and row["timing_stale_fraction"] == "0.125"


def test_the_table_in_latex() -> None:
    lines = paper_tables.latex(bench()).splitlines()
    assert lines[1] == "% A_CPU 50% {x}; seed 0; speedups against ddpm"
    assert lines[2] == r"\begin{tabular}{lrrrr}"
    assert r"ddpm & torch-eager & 12.3 & 99 / 140 & 1.00 [0.90, 2.20] \\" in lines
    assert r"ddim-10 $\approx$ & onnx & 12.3 & 90 / 127 & 1.10 [0.99, 2.20] \\" in lines
    for line in lines:
        assert line.startswith(("%", "\\")) or line.count("&") == 4
    evaluated = paper_tables.latex(evaluation())
    assert r"75 [41, 93]" in evaluated and r"12.5$\times$" in evaluated and "120 / 187" in evaluated


def test_latex_shows_any_text_as_it_is() -> None:
    assert paper_tables.escaped("a_b & 50 % {$x$} #1 \\\n~^") == (
        r"a\_b \& 50 \% \{\$x\$\} \#1 \textbackslash{}\textbackslash{}n\textasciitilde{}\textasciicircum{}"
    )
    assert paper_tables.escaped("ddim-10 ≈, θ=32") == r"ddim-10 $\approx$, $\theta$=32"
    hostile = paper_tables.latex(results(device="A GPU\n\\input{/etc/passwd}", seed="1\n2"))
    assert [line for line in hostile.splitlines() if "input{" in line] == [hostile.splitlines()[1]]
