"""The study: all its parts on a policy of a few thousand parameters, and what its tables are computed with."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.backends import Job
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts import one another, as Python does for the script it runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts/benchmarks")


@pytest.fixture
def common() -> ModuleType:
    return importlib.import_module("study_common")


def test_every_part_writes_its_section_and_resumes(
    checkpoint: Path, common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    study = importlib.import_module("study")
    root = tmp_path / "root"
    (root / "checkpoints").mkdir(parents=True)
    for name in ("asd_policy", "scripts"):
        (root / name).symlink_to(ROOT / name)
    checkpoint.rename(root / "checkpoints/small")
    manifest = [{"path": "checkpoints/small", "env": "asd/Avoid-v0"}]
    (root / "checkpoints/manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(common, "ROOT", root)
    # The chain has ten steps.
    monkeypatch.setattr(common, "ROLL_OUT", "asd:window=8")
    monkeypatch.setattr(importlib.import_module("study_grid"), "PEER", "paradigms:window=4")

    docs = tmp_path / "docs/results"
    docs.mkdir(parents=True)
    (docs / study.PAGES["grid"]).write_text("# Kept\n\n<!-- study:grid -->\nold\n<!-- /study:grid -->\n\nKept too.\n")
    words = "--checkpoints small --network small --row-by-row small --backends torch-eager --windows 4 100".split()
    words += "--states 30 --calibration 3 --mixture-plans 3 --clock-plans 2".split()
    words += "--steps 20 40 --network-steps 5 10 --sized-plans 2".split()
    words += ["--threads", str(torch.get_num_threads()), "--out", str(tmp_path / "out"), "--docs", str(docs)]
    monkeypatch.setattr(sys, "argv", ["study.py", "all", *words])
    study.main()

    pages = {part: (docs / page).read_text() for part, page in study.PAGES.items()}
    text = pages["grid"]
    assert text.startswith("# Kept") and "Kept too." in text and "old" not in text
    for part in ("grid", "scaling", "wallclock", "ceiling", "response", "sizes"):
        assert pages[part].count(f"<!-- study:{part} -->") == pages[part].count(f"<!-- /study:{part} -->") == 1
    assert all(f"`{draft}` + `{verifier}`" in text for draft in DRAFTS for verifier in VERIFIERS)
    assert (docs / "scaling.svg").stat().st_size < 100_000

    # The second time nothing is measured, and everything is as it was.
    monkeypatch.setattr(importlib.import_module("study_grid"), "count", None)
    monkeypatch.setattr(importlib.import_module("study_scaling"), "count", None)
    monkeypatch.setattr(importlib.import_module("study_wallclock"), "interleave", None)
    monkeypatch.setattr(importlib.import_module("study_ceiling"), "measure_ceiling", None)
    monkeypatch.setattr(importlib.import_module("study_response"), "count", None)
    monkeypatch.setattr(importlib.import_module("study_sizes"), "ProcessPoolExecutor", None)
    study.main()
    assert {part: (docs / page).read_text() for part, page in study.PAGES.items()} == pages


def test_results_of_other_options_are_not_taken_up(common: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    assert common.Results(path, {"seed": 0}).once("a", lambda: {"value": 1}) == {"value": 1}
    assert common.Results(path, {"seed": 0}).once("a", lambda: {"value": 2}) == {"value": 1}
    assert common.Results(path, {"seed": 1}).once("a", lambda: {"value": 2}) == {"value": 2}


def test_clustered_error(common: ModuleType) -> None:
    values = np.random.default_rng(0).normal(size=50)
    error, reach = common.clustered_error(values, np.arange(50))
    assert error == pytest.approx(stats.sem(values))
    low, high = stats.t.interval(0.95, 49, values.mean(), error)
    assert reach == pytest.approx((high - low) / 2)
    # States that say the same thing thrice are worth one.
    assert common.clustered_error(np.repeat(values, 3), np.repeat(np.arange(50), 3)) == pytest.approx((error, reach))
    with pytest.raises(ValueError, match="one episode"):
        common.clustered_error(values, np.zeros(50))


def test_counts_do_not_depend_on_the_batch(
    common: ModuleType, mixture: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = common.GaussianChain.from_scheduler({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}, 12)
    sampler = common.make_sampler("asd:window=6,draft=picard")
    together = common.count(mixture, chain, sampler, common.States.none(7, (2, 2)), None, 0)
    monkeypatch.setattr(common, "CHUNK", 3)
    apart = common.count(mixture, chain, sampler, common.States.none(7, (2, 2)), None, 0)
    assert together.rounds.tolist() == apart.rounds.tolist()
    assert together.nfe.tolist() == apart.nfe.tolist()


def test_exponent_of_a_power_law() -> None:
    scaling = importlib.import_module("study_scaling")
    records = [{"steps": k, "rounds_mean": 3 * k**0.5} for k in (25, 100, 400)]
    assert scaling.slope(records) == pytest.approx((0.5, 0))


@pytest.mark.parametrize(
    ("interval", "word"), [((14.1, 15), "reached"), ((12, 13.9), "not reached"), ((13, 15), "not told from the target")]
)
def test_a_target_is_judged_by_the_interval(interval: tuple[float, float], word: str) -> None:
    grid = importlib.import_module("study_grid")
    record = {"spec": "asd", "speedup": sum(interval) / 2, "speedup_ci95": interval}
    assert grid.verdict(record, 14.0).endswith(f", {word}")


def test_row_by_row_is_the_same_network(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    wallclock = importlib.import_module("study_wallclock")
    x, timestep = torch.randn(5, 2, 2, dtype=torch.float64), torch.arange(5)
    calls = []

    def counted(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        calls.append(len(x))
        return mixture(x, timestep)

    prepared = wallclock.RowByRow().prepare(counted, Job(chain, (2, 2), 0, torch.device("cpu")))
    torch.testing.assert_close(prepared(x, timestep, None), mixture(x, timestep))
    assert calls == [1] * 5
