"""Return against latency: what is measured once, what is kept, and how it is told."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

OWN = (
    {"spec": "ddpm", "exact": True, "backend": "onnx", "latency_ms": {"mean": 151.0}},
    {"spec": "ddim:2", "exact": False, "backend": "onnx", "latency_ms": {"mean": 3.0}},
)
SETTINGS = {"episodes": 8}


def point(value: float) -> dict[str, Any]:
    return {"return_mean": value, "return_ci95": [value - 0.5, value + 0.5], "success_rate": 0.75,
            "success_ci95": [0.41, 0.93]}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it imports another one."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    return importlib.import_module("latency_curve")


@pytest.fixture
def options(script: Any, tmp_path: Path) -> Any:
    return script.Options(tmp_path, latencies=(0, 20, 50, 100), approximate=("ddim:2",))


@pytest.fixture
def task(script: Any) -> Any:
    return script.Task("intercept", "asd/Intercept-v0", 20.0, OWN)


def test_latencies_that_cost_the_same_are_one(task: Any, options: Any) -> None:
    """Of the curve 0, 1, 1 and 2 steps of 50 ms; the samplers' own 4 and 1."""
    assert task.delays(options) == [0, 1, 2, 4]


def test_points_are_kept(script: Any, task: Any, tmp_path: Path) -> None:
    """Without latency there is one for both modes; other settings are refused."""
    path, exact = tmp_path / "points.json", script.EXACT
    script.Points(path, SETTINGS).add(task, "sync", 0, exact, point(2.0))
    script.Points(path, SETTINGS).add(task, "sync", 1, exact, point(1.0))
    kept = script.Points(path, SETTINGS)
    assert kept.get(task, "async", 0, exact) == point(2.0)
    assert kept.get(task, "async", 1, exact) is None
    assert kept.get(task, "sync", 1, exact) == point(1.0)
    assert len(json.loads(path.read_text())["points"]) == 2
    with pytest.raises(SystemExit, match="is of other settings"):
        script.Points(path, {"episodes": 9})


def test_table_and_plot(script: Any, task: Any, options: Any, tmp_path: Path) -> None:
    """Of what there is; samplers at their own latencies are points of their law's curve."""
    pytest.importorskip("matplotlib")
    points = script.Points(tmp_path / "points.json", SETTINGS)
    for delay, value in ((0, 3.0), (1, 2.5), (2, 2.0), (4, 1.0)):
        points.add(task, "async", delay, script.EXACT, point(value))
    points.add(task, "async", 1, "ddim:2", point(0.7))
    told = "\n".join(script.tables([task], options, points))
    cells = "75 % [41, 93]"
    exact = f"3.00 [2.50, 3.50]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.50 [2.00, 3.00]; {cells} | 2.00 [1.50, 2.50]"
    assert f"| exact (`ddpm`, `asd`) | async | {exact}" in told
    assert f"| exact (`ddpm`, `asd`) | sync | 3.00 [2.50, 3.50]; {cells} | – | – | – |" in told
    assert f"| `ddpm` | onnx | 151 | 4 | – | 1.00 [0.50, 1.50]; {cells} |" in told
    assert f"| `ddim:2` | onnx | 3 | 1 | – | 0.70 [0.20, 1.20]; {cells} |" in told
    script.draw([task], options, points, tmp_path / "curve.svg")
    svg = (tmp_path / "curve.svg").read_text()
    for name in ("exact: ddpm, asd", "ddim:2", "ddpm, onnx", "ddim:2, onnx", "asd/Intercept-v0, async"):
        assert f">{name}<" in svg, name


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
    # 0, 1 and 2 steps at 10 Hz, for the exact law and ddim:2; without latency both modes are one.
    assert len(kept) == 2 * (1 + 2 + 2)
    assert "| `ddpm` | onnx | 151 | 2 |" in (out / "table.md").read_text()
    monkeypatch.setattr(script, "evaluate_point", None)
    script.main()
    assert json.loads((out / "points.json").read_text())["points"] == kept
    assert (out / "curve.svg").exists()
