"""Return against latency: what is measured once, what is kept, and how it is told."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from latency_curve import EXACT, Options, Points, Task, draw, tables

OWN = (
    {"spec": "ddpm", "exact": True, "backend": "onnx", "latency_ms": {"mean": 151.0}},
    {"spec": "ddim:2", "exact": False, "backend": "onnx", "latency_ms": {"mean": 3.0}},
)
SETTINGS = {"episodes": 8}


def point(value: float) -> dict[str, Any]:
    return {"return_mean": value, "return_ci95": [value - 0.5, value + 0.5], "success_rate": 0.75,
            "success_ci95": [0.41, 0.93]}  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path, latencies=(0, 20, 50, 100), approximate=("ddim:2",))


@pytest.fixture
def task() -> Task:
    return Task("intercept", "asd/Intercept-v0", 20.0, OWN)


def test_latencies_that_cost_the_same_are_one(task: Task, options: Options) -> None:
    """Of the curve 0, 1, 1 and 2 steps of 50 ms; the samplers' own 4 and 1."""
    assert task.delays(options) == [0, 1, 2, 4]


def test_points_are_kept(task: Task, tmp_path: Path) -> None:
    """Without latency there is one for both modes; other settings are refused."""
    path = tmp_path / "points.json"
    Points(path, SETTINGS).add(task, "sync", 0, EXACT, point(2.0))
    Points(path, SETTINGS).add(task, "sync", 1, EXACT, point(1.0))
    kept = Points(path, SETTINGS)
    assert kept.get(task, "async", 0, EXACT) == point(2.0)
    assert kept.get(task, "async", 1, EXACT) is None
    assert kept.get(task, "sync", 1, EXACT) == point(1.0)
    assert len(json.loads(path.read_text())["points"]) == 2
    with pytest.raises(SystemExit, match="is of other settings"):
        Points(path, {"episodes": 9})


def test_table_and_plot(task: Task, options: Options, tmp_path: Path) -> None:
    """Of what there is; samplers at their own latencies are points of their law's curve."""
    points = Points(tmp_path / "points.json", SETTINGS)
    for delay, value in ((0, 3.0), (1, 2.5), (2, 2.0), (4, 1.0)):
        points.add(task, "async", delay, EXACT, point(value))
    points.add(task, "async", 1, "ddim:2", point(0.7))
    told = "\n".join(tables([task], options, points))
    cells = "75 % [41, 93]"
    exact = f"3.00 [2.50, 3.50]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.00 [1.50, 2.50]"
    assert f"| exact (`ddpm`, `asd`) | async | {exact}" in told
    assert f"| exact (`ddpm`, `asd`) | sync | 3.00 [2.50, 3.50]; {cells} | – | – | – |" in told
    assert f"| `ddpm` | onnx | 151 | 4 | – | 1.00 [0.50, 1.50]; {cells} |" in told
    assert f"| `ddim:2` | onnx | 3 | 1 | – | 0.70 [0.20, 1.20]; {cells} |" in told
    draw([task], options, points, tmp_path / "curve.svg")
    svg = (tmp_path / "curve.svg").read_text()
    for name in ("exact: ddpm, asd", "ddim:2", "ddpm, onnx", "ddim:2, onnx", "asd/Intercept-v0, async"):
        assert f">{name}<" in svg, name
