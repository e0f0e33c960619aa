"""What a reader sees of a benchmark: the tables, with everything that may be missing missing, and the plots."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from asd_policy._common import hardware
from asd_policy._common.clock import STAGES
from asd_policy.evaluation.reports import bench_report, figures


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


def results(*samplers: dict[str, Any]) -> dict[str, Any]:
    baseline = {"spec": "ddpm", "backend": "fast"}
    return {"plans": 7, "batch": 3, "states_from": "random", "device": "A CPU", "baseline": baseline,
            "samplers": list(samplers)}  # fmt: skip


def shown(table: Any) -> str:
    written = io.StringIO()
    Console(width=200, file=written).print(table)
    return " ".join(written.getvalue().split())


def test_plans() -> None:
    text = shown(bench_report.latency_table(results(sampler(), sampler(spec="ddim:10", exact=False))))
    for words in ("7 plans each, interleaved, batch 3, states random", "A CPU; × is against ddpm on fast", "20.0",
                  "102 / 140 / 1158 / 9.88", "2.51 [2.40, 2.60]", "9.80", "5.0", "90.1", "70.3", "10.3 %",
                  "ddim:10 (approximate)"):  # fmt: skip
        assert words in text


def test_plans_of_recordings_have_what_is_outside_by_the_calls_alone() -> None:
    assert "20.8 %" in shown(bench_report.latency_table(results(sampler(overhead_fraction=None))))


def test_what_is_missing_is_a_dash() -> None:
    missing = ("wall_clock_speedup", "wall_clock_speedup_ci95", "speedup_over_eager", "floor_ms", "limit_ms",
               "stages_ms")  # fmt: skip
    bare = results(sampler(**dict.fromkeys(missing))) | {"baseline": None}
    assert shown(bench_report.latency_table(bare)).count("–") == 4
    assert "1.23" not in shown(bench_report.stages_table(bare))
    assert shown(bench_report.stages_table(results(sampler()))).count("1.23") == len(STAGES)


def test_the_ceiling() -> None:
    known = {"points": 4, "call_ms": 12.34, "compute_ms": 6.17, "weights_ms": 1.5, "traffic_ms": 2.5, "of_limit": 0.5}
    unknown = known | {"points": 8} | dict.fromkeys(("compute_ms", "weights_ms", "traffic_ms", "of_limit"))
    backend = {"backend": "fast", "dtype": "float32", "sequential_ms": 1234.5, "curve": [known, unknown]}
    ceiling = {"flops_per_second": {"float32": 5e10}, "bytes_per_second": 8e9, "backends": [backend]}
    text = shown(bench_report.ceiling_table(ceiling))
    for words in ("0.05 TFLOP/s float32, 8 GB/s", "12.3", "1234", "6.17", "50 %", "– │ – │ – │ –"):
        assert words in text


def test_plots_have_a_line_for_each_kind_of_contender(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    wider = sampler(spec="asd:window=auto,draft=frozen,verify=reflection", window=32, wall_clock_speedup_ci95=None)
    ddpm = sampler(spec="ddpm", window=1)
    approximate = sampler(spec="ddim:10", exact=False)
    record = results(ddpm, sampler(), wider, approximate) | {"command": "bench"}
    latency, speedup = (path.read_text() for path in figures.draw_all(record, (), tmp_path, "svg").files)
    for name in ("ddpm on fast", "ddim:10 (approximate) on fast", "window=8", "window=auto"):
        assert name in latency
    assert speedup.count("asd:draft=frozen,verify=reflection on fast") == 1
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
    assert "encoding" in text and "outside the networks" in text and "42.5 %" in text
    text = shown(bench_report.latency_table(results(sampler())))
    assert "encoding" not in text and "outside the network " in text
