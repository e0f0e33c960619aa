"""What a reader sees of a benchmark: the tables, with everything that may be missing missing, and the plots."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from asd_policy._common import hardware
from asd_policy._common.clock import STAGES
from asd_policy.evaluation.reports import bench_report, figures, report


def sampler(**changes: Any) -> dict[str, Any]:
    return {
        "spec": "asd:window=8,draft=frozen,verify=reflection",
        "backend": "fast",
        "exact": True,
        "window": 8,
        "rounds_mean": 19.96,
        "algorithmic_speedup": 5.01,
        "wall_clock_speedup": 2.514,
        "wall_clock_speedup_ci95": [2.4, 2.6],
        "speedup_over_eager": 9.8,
        "overhead_fraction": 0.1034,
        "floor_ms": 90.12,
        "limit_ms": 70.34,
        "outside_fraction": 0.2076,
        "latency_ms": {"mean": 103, "p50": 101.6, "p95": 140.2, "p99": 1158.0, "max": 9.876},
        "latencies_ms": [100.0, 110.0],
        "stages_ms": dict.fromkeys(STAGES, 1.234),
    } | changes


LONG = dict.fromkeys(("mean", "p50", "p95", "p99", "max"), 12345.6)


def results(*samplers: dict[str, Any]) -> dict[str, Any]:
    baseline = {"spec": "ddpm", "backend": "fast"}
    return {"plans": 7, "batch": 3, "states_from": "random", "device": "A CPU", "baseline": baseline,
            "samplers": list(samplers)}  # fmt: skip


def shown(table: Any, width: int = 200) -> str:
    written = io.StringIO()
    Console(width=width, file=written).print(table)
    assert max(map(len, written.getvalue().splitlines())) <= width
    return " ".join(written.getvalue().split())


def test_plans() -> None:
    text = shown(bench_report.latency_table(results(sampler(), sampler(spec="ddim:10", exact=False))))
    for words in ("7 plans each, interleaved, batch 3, states random", "A CPU; × is against ddpm on fast", "20.0",
                  "103 102 140 1158 9.88", "2.51 [2.40, 2.60]", "9.80", "5.0", "90.1", "70.3", "10.3 %",
                  "paper's asd θ=8", "ddim-10 ≈", "on fast"):  # fmt: skip
        assert words in text


def test_plans_of_recordings_have_what_is_outside_by_the_calls_alone() -> None:
    assert "20.8 %" in shown(bench_report.latency_table(results(sampler(overhead_fraction=None))))


def test_what_is_missing_is_a_dash_or_where_all_is_no_column() -> None:
    missing = ("wall_clock_speedup", "wall_clock_speedup_ci95", "speedup_over_eager", "floor_ms", "limit_ms",
               "stages_ms")  # fmt: skip
    bare = results(sampler(**dict.fromkeys(missing))) | {"baseline": None}
    alone = shown(bench_report.latency_table(bare))
    assert "–" not in alone and "eager" not in alone
    beside = results(sampler(**dict.fromkeys(missing)), sampler(spec="asd"))
    assert shown(bench_report.latency_table(beside)).count("–") == 4
    assert "1.23" not in shown(bench_report.stages_table(bare))
    assert shown(bench_report.stages_table(results(sampler()))).count("1.23") == len(STAGES)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_width_shows_the_mean_and_backends_in_full(width: int) -> None:
    """And no number is cut, whatever has to go."""
    backend = "onnx:provider=cpu,threads=auto"
    tables = bench_report.latency_table, bench_report.stages_table
    found = results(sampler(backend=backend), sampler(backend=backend, spec="ddim:10", exact=False, latency_ms=LONG))
    text = " ".join(shown(table(found), width) for table in tables)
    for words in (f"on {backend}", "12346", "103", "2.51 [2.40, 2.60]", "20.0", "1.23"):
        assert words in text
    assert "…" not in text
    assert ("no room" in text) is (width < 130)


def test_what_auto_ran_is_a_line() -> None:
    ran = "asd:window=12,draft=response,verify=block"
    auto = sampler(spec="asd:window=auto,draft=auto,verify=auto", ran=ran)
    same = sampler(ran="asd:window=8,draft=frozen,verify=reflection")
    assert report.choices(results(auto, same, sampler())) == [f"asd on fast ran as {ran}"]


def test_the_ceiling() -> None:
    known = {"points": 4, "call_ms": 12.34, "compute_ms": 6.17, "weights_ms": 1.5, "traffic_ms": 2.5, "of_limit": 0.5}
    unknown = known | {"points": 8} | dict.fromkeys(("compute_ms", "weights_ms", "traffic_ms", "of_limit"))
    backend = {"backend": "fast", "dtype": "float32", "sequential_ms": 1234.5, "curve": [known, unknown]}
    ceiling = {"flops_per_second": {"float32": 5e10}, "bytes_per_second": 8e9, "backends": [backend]}
    text = shown(bench_report.ceiling_table(ceiling))
    for words in ("0.05 TFLOP/s float32, 8 GB/s", "12.3", "1234", "6.17", "50 %", "8 12.3 – – – –"):
        assert words in text


def test_plots_have_a_line_for_each_kind_of_contender(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    wider = sampler(spec="asd:window=auto,draft=frozen,verify=reflection", window=32, wall_clock_speedup_ci95=None)
    ddpm = sampler(spec="ddpm", window=1)
    approximate = sampler(spec="ddim:10", exact=False)
    record = results(ddpm, sampler(), wider, approximate) | {"command": "bench"}
    latency, speedup = (path.read_text() for path in figures.draw_all(record, (), tmp_path, "svg").files)
    for name in ("ddpm on fast", "ddim-10 ≈ on fast", "paper's asd θ=8 on fast", "paper's asd on fast"):
        assert name in latency
    assert speedup.count("paper's asd θ=… on fast") == speedup.count("paper's asd on fast") == 1
    assert "θ chosen by asd" in speedup and "ddpm on fast" in speedup and "ddim" not in speedup


def test_what_a_record_says_of_the_machine() -> None:
    cpu = torch.device("cpu")
    assert hardware.versions(cpu)["torch"] == torch.__version__
    state = hardware.power_state(cpu)
    assert {"load", "usable_cpus", "scaling_governor", "scaling_cur_freq"} <= set(state)
    assert state["usable_cpus"] is None or state["usable_cpus"] >= 1
    assert set(hardware.float32_precision()) == {"matmul", "convolution_tf32"}


def test_encoding_has_a_column_where_networks_encode() -> None:
    text = shown(bench_report.latency_table(results(sampler(encode_fraction=0.4251), sampler(encode_fraction=None))))
    assert "encoding" in text and "networks" in text and "42.5 %" in text
    text = shown(bench_report.latency_table(results(sampler())))
    assert "encoding" not in text and "networks" not in text and "network" in text
