"""The scripts that measure plans without noise and an energy-based policy, in small."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts import one another, as Python does for the script it runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts/benchmarks")
    monkeypatch.syspath_prepend(ROOT / "scripts")


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Run a script's `main`; return the rows of its table."""
    monkeypatch.setattr(sys, "argv", ["script", *words])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    importlib.import_module(name).main()
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]


def test_plans_without_noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policies", "--flow-steps", "6", "12", "--states", "8", "--settings", "parallel:tol=0", "parallel:tol=9"]
    rows = run("without_noise", monkeypatch, capsys, *words)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [cell[0] for cell in cells] == ["`a mixture's flow` Euler-6"] * 2 + ["`a mixture's flow` Euler-12"] * 2
    for exact, loose in (cells[:2], cells[2:]):
        assert float(exact[5].split("/")[1]) < 1e-5 < float(loose[5].split("/")[0])
        assert loose[2] == "1.00 ± 0.00" and float(exact[2].split("±")[0]) > 2


def test_the_flow_in_closed_form_leads_to_its_data() -> None:
    without_noise: Any = importlib.import_module("without_noise")
    network = without_noise.MixtureVelocity(0)
    chain = without_noise.GaussianChain.from_flow(100, eta=0)
    states = without_noise.States.none(20, (16, 2))
    found = without_noise.sample(network, states, chain, without_noise.Ddpm(), 0).plans.flatten(1)
    nearest = (found[:, None] - network._means).square().mean(2).sqrt().amin(1)
    assert float(nearest.median()) == pytest.approx(0.05, rel=0.4)


def test_an_energy_based_policy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--demonstrations", "10", "--updates", "30", "--steps", "12", "--plans", "6", "--settings", "asd:window=6"]
    (row,) = run("energy_policy", monkeypatch, capsys, *words)
    steps, setting, rounds, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert (steps, setting) == ("12", "`asd:window=6`") and 2 <= float(rounds.split("±")[0]) <= 12
