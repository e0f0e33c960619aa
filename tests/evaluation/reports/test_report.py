"""Tables: what a reader sees of a results.json object."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from asd_policy.checkpoints import load_policy
from asd_policy.evaluation.reports import report


def results(**changes: Any) -> dict[str, Any]:
    sampler = {
        "spec": "asd:window=8,draft=frozen,verify=reflection",
        "exact": True,
        "steps": 100,
        "episodes": 20,
        "plans": 95,
        "success_rate": 0.95,
        "success_ci95": [0.764, 0.991],
        "return_mean": 0.95,
        "return_ci95": [0.8453, 1.0],
        "mode_entropy": 2.7123,
        "rounds_mean": 19.96,
        "nfe_mean": 116.4,
        "algorithmic_speedup": 5.01,
        "wall_clock_speedup": 2.514,
        "overhead_fraction": 0.1034,
        "latency_ms": {"mean": 111.7, "p50": 101.6, "p95": 140.2, "p99": 158.0},
    }
    unknown = {**sampler, "spec": "ddim:10", "exact": False, "plans": 97, "mode_entropy": None}
    return {
        "env": "asd/Avoid-v0",
        "device": "A CPU",
        "torch": "2.0",
        "package": "0.1.0",
        "commit": "0123456789abcdef",
        "backend": "torch-eager",
        "dtype": "float32",
        "seed": 3,
        "samplers": [{**sampler, **changes}, {**unknown, "wall_clock_speedup": None}],
    }


def test_row() -> None:
    first, second = (report.row(sampler) for sampler in results()["samplers"])
    assert first == (
        "paper's asd θ=8", "95 [76, 99]", "2.51×", "112", "102", "140", "158", "20.0", "5.0×", "116", "0.95 [0.845, 1]",
        "2.71", "10.3 %",
    )  # fmt: skip
    assert second[0] == "ddim-10 ≈"
    assert dict(zip(report.COLUMNS, second, strict=True))["mode entropy"] == second[2] == "–"
    unknown = {"return_mean": None, "return_ci95": None}
    assert report.row(results(**unknown)["samplers"][0])[10] == "–"
    assert report.row(results(return_ci95=None)["samplers"][0])[10] == "0.95"


def shown(width: int, **changes: Any) -> str:
    written = io.StringIO()
    Console(width=width, file=written).print(report.table(results(**changes)))
    assert max(map(len, written.getvalue().splitlines())) <= width
    assert "…" not in written.getvalue().replace("95 … 97", "")
    return written.getvalue()


def test_a_wide_terminal_shows_every_cell() -> None:
    text = shown(160)
    for words in (
        "asd/Avoid-v0, seed 3: 20 episodes and 95 … 97 plans",
        "A CPU",
        *report.row(results()["samplers"][0]),
    ):
        assert words in text
    assert "no room" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_shows_success_and_time_whole(width: int) -> None:
    text = shown(width)
    for words in ("paper's asd θ=8", "ddim-10 ≈", "95 [76, 99]", "2.51×", "112", "140", "20.0"):
        assert words in text
    assert "nfe" in text.partition("no room here for: ")[2]
    assert "116" not in text


def test_an_empty_column_goes_at_any_width() -> None:
    assert "entropy" in shown(160)
    assert "entropy" not in shown(160, mode_entropy=None)


def test_markdown() -> None:
    lines = report.markdown([results(), results()]).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| `asd/Avoid-v0` | paper's asd θ=8 |")
    assert lines[3].startswith("|  | ddim-10 ≈ |")
    assert lines[-1].startswith("A CPU; torch 2.0, torch-eager, float32; seed 3; asd_policy 0.1.0 at 01234567; K = 100")
    assert "`asd/Avoid-v0` 20 episodes" in lines[-1]


def test_the_record_of_what_ran() -> None:
    assert "torch threads" in report.hardware(torch.device("cpu"))
    commit = report.git_commit()
    assert commit is None or len(commit) == 40


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("/home/ada/secret/avoid", "avoid"),
        ("checkpoints/avoid", "checkpoints/avoid"),
        ("owner/name@v1", "owner/name@v1"),
    ],
)
def test_an_absolute_path_is_known_by_its_end(given: str, named: str, small_checkpoint: Path) -> None:
    """Where a user keeps things is nobody's business who is given the file."""
    assert report.run_record("eval", given, None, 0, load_policy(small_checkpoint))["policy"] == named


def test_encoding_is_a_line_where_networks_encode() -> None:
    assert report.encodings(results()) == []
    encoding = results(encode_ms=91.7, encode_fraction=0.684)
    assert report.encodings(encoding) == ["encoding takes of a plan: paper's asd θ=8 92 ms (68 %)"]


def test_the_law_is_told_under_the_table() -> None:
    assert report.caption(results()) == "A CPU"
    trained = {**results(), "chain": "trained", "fixed_crop": True}
    said = report.caption(trained)
    assert "chain trained: the DDPM chain" in said and "fixed crop: frames are cropped in the middle" in said
    own = {**results(), "chain": "checkpoint", "reference": "ddim:16"}
    assert "chain checkpoint: DDIM without noise, whose own plan is ddim:16" in report.caption(own)
