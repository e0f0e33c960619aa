"""The scripts that measure the control loop: they run, and print what they say."""

import importlib
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts/benchmarks"


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table's lines, the first two left out."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def run(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [module, "--env", "asd/Avoid-v0", "--backend", "torch-eager", *words])
    __import__(module).main()
    return capsys.readouterr().out


def test_jitter(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", str(small_checkpoint), "--samplers", "ddim:2", "--hz", "200", "--seconds", "0.2"]
    text = run("loop_jitter", [*words, "--priority", "0", "--loads", "False"], monkeypatch, capsys)
    found = rows(text)
    assert [row[0] for row in found] == ["no policy", "`ddim:2`, thread", "`ddim:2`, process"]
    assert all(len(row) == 9 and int(row[-1]) > 0 for row in found)


def test_the_clock_check(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether both agree is for who reads it; with three episodes all it says is how much."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(importlib.import_module("clock_check"), "control_rate", lambda env: 200.0)
    words = ["--policy", str(small_checkpoint), "--samplers", "ddim:2", "ddpm", "--episodes", "3"]
    text = run("clock_check", words, monkeypatch, capsys)
    found = rows(text)
    assert [row[0] for row in found] == ["`ddim:2`", "`ddpm`"]
    for row in found:
        assert int(row[2]) > 3
        mean, counted, apart = (float(cell.split()[0]) for cell in row[3:])
        assert apart == pytest.approx(mean - counted, abs=0.011)
    assert "3 episodes in real time, 9 counted." in text


@pytest.mark.parametrize("real", [False, True])
def test_soak(
    real: bool, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", str(small_checkpoint), "--sampler", "ddim:2", "--minutes", "0.05", "--samples", "4"]
    text = run("soak", [*words, *(["--real"] if real else [])], monkeypatch, capsys)
    found = rows(text)
    assert [int(row[0]) for row in found][:2] == [0, 37]
    assert all(float(row[2]) > 100 and int(row[4]) > 1000 for row in found)
    assert re.search(r"\bticks 150\b", text)
