"""The studies behind docs/results/power.md run, on sizes of seconds, and their bisection finds what it should."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts/benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_power(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, page = load("power"), tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    words = ["--runs", "1", "--samples", "300", "--coupled", "300", "--plans", "16", "--observations", "1"]
    words += ["--checkpoint", str(checkpoint), "--most", "600", "--write", str(page)]
    monkeypatch.setattr(script, "PATHS_RECORDED", 2)
    monkeypatch.setattr(script, "MUTANTS", script.MUTANTS[:1])
    monkeypatch.setattr(sys, "argv", ["power.py", *words])
    script.main()
    written = page.read_text()
    assert written.startswith(f"before\n{script.BEGIN}\n| test |")
    assert written.endswith(f"{script.END}\nafter\n")
    assert "old" not in written
    table = written.removeprefix(f"before\n{script.BEGIN}\n").partition("\n\n")[0]
    assert table in capsys.readouterr().out
    assert {len(line.split(" | ")) for line in table.splitlines()[2:]} == {5}
    for test in ("law on a Gaussian", "law on a mixture", "verifier, one step", "`verify`, steps", "`verify`, energy"):
        assert test in table


def test_the_bisection_finds_the_threshold() -> None:
    """Runs that see a difference from 0.1 · 2^seed on: of five, four see what the fourth needs."""
    script = load("power")
    found = script.detectable(lambda size, seed: 0.0 if size >= 0.1 * 2**seed else 1.0, 0.5, 5, 0.02, 10.0)
    assert [float(size) for size in found] == pytest.approx([0.8, 1.6], rel=0.1)
    assert script.detectable(lambda size, seed: 1.0, 0.5, 2, 0.02, 10.0) == ["> 10", "> 10"]


def test_rounding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Points and guesses that are off by more than rounding would show as a large share of σ."""
    monkeypatch.setattr(sys, "argv", ["rounding.py", "--plans", "5", "--steps", "20", "--horizon", "2"])
    load("rounding").main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| held", "| response"]
    assert all(float(value.rstrip(" |")) < 1e-4 for row in rows for value in row[1:])
