"""Return against latency: what is measured once, what is kept, and how it is told."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asd_policy.evaluation.rollout.latencies import Fixed

OWN = (
    {
        "spec": "ddpm",
        "exact": True,
        "backend": "onnx:threads=1",
        "latencies_ms": [140.0, 170.0],
        "latency_ms": {"mean": 155.0, "p50": 151.0, "p99": 170.0},
    },
    {
        "spec": "ddim:2",
        "exact": False,
        "backend": "onnx:threads=1",
        "latencies_ms": [3.0, 3.0],
        "latency_ms": {"mean": 3.0, "p50": 3.0, "p99": 3.0},
    },
)
SETTINGS = {"episodes": 8}


def results(value: float) -> dict[str, Any]:
    return {"return_mean": value, "return_ci95": [value - 0.5, value + 0.5], "success_rate": 0.75,
            "success_ci95": [0.41, 0.93], "timing": {"missed_fraction": 0.125}}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it imports another one."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts/benchmarks")
    return importlib.import_module("latency_curve")


@pytest.fixture
def options(script: Any, tmp_path: Path) -> Any:
    return script.Options(tmp_path, latencies=(0, 20, 50, 100), approximate=("ddim:2",))


@pytest.fixture
def task(script: Any) -> Any:
    return script.Task("intercept", "asd/Intercept-v0", 20.0, OWN)


def test_latencies_that_cost_the_same_are_one(script: Any, task: Any, options: Any) -> None:
    """Of the curve 0, 1, 1 and 2 steps of 50 ms; what the samplers take themselves is measured for each of them."""
    points = list(task.points(options))
    assert [point.latency for point in points[:12:4]] == [Fixed(0.0), Fixed(50.0), Fixed(100.0)]
    own = points[12:]
    assert [(point.mode, point.spec) for point in own] == [
        (mode, spec) for spec in (script.EXACT, "ddim:2") for mode in ("sync", "async")
    ]
    drawn = {own[0].latency.draw(own[0].spec, 9.0, np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {0.14, 0.17}


def test_points_are_kept(script: Any, task: Any, tmp_path: Path) -> None:
    """Without latency there is one for both modes; other settings are refused."""
    path, exact = tmp_path / "points.json", script.EXACT
    script.Points(path, SETTINGS).add(task.constant("sync", 0, exact), results(2.0))
    script.Points(path, SETTINGS).add(task.constant("sync", 1, exact), results(1.0))
    kept = script.Points(path, SETTINGS)
    assert kept.get(task.constant("async", 0, exact)) == results(2.0)
    assert kept.get(task.constant("async", 1, exact)) is None
    assert kept.get(task.constant("sync", 1, exact)) == results(1.0)
    assert len(json.loads(path.read_text())["points"]) == 2
    with pytest.raises(SystemExit, match="is of other settings"):
        script.Points(path, {"episodes": 9})


def test_table_and_plot(script: Any, task: Any, options: Any, tmp_path: Path) -> None:
    """Of what there is; samplers at their own latencies are points of their law's curve."""
    pytest.importorskip("matplotlib")
    points = script.Points(tmp_path / "points.json", SETTINGS)
    for delay, value in ((0, 3.0), (1, 2.5), (2, 2.0), (4, 1.0)):
        points.add(task.constant("async", delay, script.EXACT), results(value))
    for own, value in zip(OWN, (1.5, 0.7), strict=True):
        points.add(task.own_point("async", own), results(value))
    told = "\n".join(script.tables([task], options, points))
    cells = "75 % [41, 93]"
    exact = f"3.00 [2.50, 3.50]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.00 [1.50, 2.50]"
    assert f"| exact (`ddpm`, `asd`) | async | {exact}" in told
    assert f"| exact (`ddpm`, `asd`) | sync | 3.00 [2.50, 3.50]; {cells} | – | – | – |" in told
    assert f"| `ddpm` | onnx | 151 / 170 | – | – | 1.50 [1.00, 2.00]; {cells} | 12 |" in told
    assert f"| `ddim:2` | onnx | 3 / 3 | – | – | 0.70 [0.20, 1.20]; {cells} | 12 |" in told
    paths = {measure: tmp_path / f"{measure}.svg" for measure in script.MEASURES}
    for path in script.draw_all(told, paths):
        svg = path.read_text()
        for name in ("exact: ddpm, asd", "ddim-2 ≈", "at its own latency", "Intercept, async"):
            assert f">{name}<" in svg, name
    with pytest.raises(ValueError, match="no table of latency_curve"):
        list(script.draw_all("# nothing", paths))


@pytest.mark.parametrize("measure", ["return", "success"])
def test_the_drawings_of_the_page_are_those_of_its_tables(script: Any, measure: str, tmp_path: Path) -> None:
    """Their texts and the places of their points: what else is in a file depends on matplotlib's version."""
    pytest.importorskip("matplotlib")
    page = Path(__file__).parents[2] / "docs/results/latency.md"
    (made,) = (path.read_text() for path in script.draw_all(page.read_text(), {measure: tmp_path / "made.svg"}))
    kept = page.with_name(f"latency_{measure}.svg").read_text()
    for pattern in (r"<text[^>]*>([^<]*)</text>", r'<use [^>]*x="([\d.]+)" y="([\d.]+)"'):
        assert re.findall(pattern, made) == re.findall(pattern, kept) != []


def test_the_whole(script: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a policy of a few thousand parameters; a second time nothing is measured."""
    pytest.importorskip("matplotlib")
    bench, out = tmp_path / "bench.json", tmp_path / "out"
    bench.write_text(json.dumps({"samplers": OWN}))
    monkeypatch.setattr(script, "bundled", lambda: {"small": (checkpoint, "asd/Avoid-v0")})
    words = ["--checkpoints", "small", "--bench", bench, "--out", out, "--latencies", "0", "50", "100"]
    monkeypatch.setattr(
        "sys.argv", ["latency_curve", *map(str, words), "--approximate", "ddim:2", "--episodes", "2", "--envs", "1"]
    )
    script.main()
    kept = json.loads((out / "points.json").read_text())["points"]
    # 0 and 1 steps at 10 Hz, and two of its own, for the exact law and ddim:2; without latency both modes are one.
    assert len(kept) == 2 * (1 + 2 + 2)
    table = (out / "table.md").read_text()
    assert "| `ddpm` | onnx | 151 / 170 |" in table
    assert f"--bench {bench} --episodes 2 --envs 1`" in table  # the command, to have it again
    monkeypatch.setattr(script, "evaluate_point", None)
    script.main()
    assert json.loads((out / "points.json").read_text())["points"] == kept
    assert (out / "return.svg").exists()
    assert (out / "success.svg").exists()
