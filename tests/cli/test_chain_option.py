"""`--chain` of every command: a DDIM file's own plan, and the chain that its network was trained for."""

import json
from pathlib import Path
from typing import Any

import pytest

import asd_policy
from asd_policy import cli
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.evaluation.rollout.ray_runner import Recipe
from support.small_checkpoints import save_random

ENV = "asd/Avoid-v0"
OWN = "ddim:5"


@pytest.fixture
def ddim(tmp_path: Path, small_config: DiffusionConfig) -> Path:
    """A LeRobot folder with DDIM."""
    folder = save_random(tmp_path / "ddim", small_config)
    path = folder / "config.json"
    options = {"noise_scheduler_type": "DDIM", "num_inference_steps": 5}
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run the command line; return status, stdout and stderr."""
    capsys.readouterr()
    status = cli.run([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.strip()


def results(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status, out, err = said(capsys, *words, "--json")
    assert status == 0, err
    return json.loads(out)


def test_an_unknown_chain_is_a_line_on_every_command(
    ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    for command, options in {
        "inspect": (),
        "verify": (),
        "tune": (),
        "serve": (),
        "bench": out,
        "export": out,
        "eval": (*out, "--env", ENV),
    }.items():
        status, _, err = said(capsys, command, "--policy", ddim, "--chain", "train", *options)
        assert (status, err) == (2, "asd-policy: chain 'train' is not one of checkpoint, trained, stochastic"), command


def test_what_needs_a_chain_is_refused_with_the_way_out(
    ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    for what, words in {
        "verify": ("verify", "--sampler", OWN),
        "tune": ("tune",),
        "export": ("export", *out),
        "asd": ("serve", "--sampler", "asd"),
        "ddpm": ("bench", *out, "--samplers", "ddpm"),
        "asd:window=4": ("bench", *out, "--samplers", OWN, "asd:window=4"),
    }.items():
        status, _, err = said(capsys, words[0], "--policy", ddim, *words[1:])
        assert status == 2 and "\n" not in err
        assert f"asd-policy: {what}" in err and "--chain trained" in err
    status, _, err = said(capsys, "eval", "--policy", ddim, "--env", ENV, "--samplers", "asd", *out)
    assert status == 2 and "needs a chain of Gaussian steps" in err and "--chain trained" in err
    assert not (tmp_path / "out").exists()


def test_eval_compares_with_the_own_plan(ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("eval", "--policy", ddim, "--env", ENV, "--episodes", 2, "--max-steps", 20, "--out", out)
    found = results(capsys, *words, "--samplers", OWN, "ddim:2")
    assert found["chain"] == "checkpoint" and found["reference"] == OWN
    own, other = found["samplers"]
    assert (own["spec"], own["exact"], own["steps"], own["algorithmic_speedup"]) == (OWN, True, 5, 1)
    assert (other["spec"], other["exact"], other["steps"], other["algorithmic_speedup"]) == ("ddim:2", False, 5, 2.5)
    assert own["wall_clock_speedup"] == 1 and other["paired_difference_ci95"] is not None
    assert other["equivalence"] is not None and own["equivalence"] is None
    page = (out / "report.html").read_text()
    assert OWN in page and "ddpm" not in page
    assert results(capsys, *words, "--samplers", OWN, "ddim:2", "--resume")["samplers"] == found["samplers"]
    status, _, err = said(capsys, *words, "--samplers", OWN, "ddim:2", "--resume", "--chain", "trained")
    assert status == 2 and "chain" in err


def test_eval_of_the_trained_chain(ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("eval", "--policy", ddim, "--env", ENV, "--episodes", 1, "--max-steps", 20, "--chain", "trained")
    found = results(capsys, *words, "--out", tmp_path / "out", "--samplers", "ddpm", "asd:window=4", OWN)
    assert found["chain"] == "trained" and found["reference"] == "ddpm"
    assert [(each["spec"].partition(":")[0], each["exact"]) for each in found["samplers"]] == [
        ("ddpm", True), ("asd", True), ("ddim", False)
    ]  # fmt: skip
    assert {each["steps"] for each in found["samplers"]} == {10}
    assert "--chain trained" in (tmp_path / "out" / "report.html").read_text()


def test_bench_adds_the_own_plan_as_its_baseline(
    ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "--policy", ddim, "--plans", 2, "--env", ENV, "--out", tmp_path / "out")
    found = results(capsys, *words, "--samplers", "ddim:2")
    assert found["chain"] == "checkpoint" and found["baseline"]["spec"] == OWN
    assert {each["spec"]: (each["exact"], each["asked"], each["steps"]) for each in found["samplers"]} == {
        "ddim:2": (False, True, 5), OWN: (True, False, 5)
    }  # fmt: skip


def test_the_others_run_on_the_trained_chain(ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--policy", ddim, "--chain", "trained")
    found = results(capsys, "bench", *chosen, "--plans", 2, "--samplers", "asd:window=4", "--out", tmp_path / "bench")
    assert found["chain"] == "trained" and found["baseline"]["spec"] == "ddpm"
    found = results(capsys, "verify", *chosen, "--sampler", "asd:window=4", "--samples", 16, "--observations", 1)
    assert found["chain"] == "trained" and found["steps"] == 10
    found = results(capsys, "tune", *chosen, "--plans", 2, "--backends", "torch-eager")
    assert found["chain"] == "trained"
    found = results(capsys, "inspect", *chosen)
    assert found["chain"]["runs"] == "trained" and found["own_plan"] == OWN and found["tuning"]


def test_an_export_holds_the_trained_chain(ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "policy.onnx"
    found = results(capsys, "export", "--policy", ddim, "--chain", "trained", "--out", file)
    assert found["chain"] == "trained"
    policy = asd_policy.load_policy(file, "asd")
    expected = asd_policy.load_policy(ddim, chain="trained")
    assert policy.law.own is None and policy.chain.config == expected.chain.config
    assert policy.chain.a.tolist() == expected.chain.a.tolist()
    said_of = results(capsys, "inspect", "--policy", file)
    assert said_of["chain"]["runs"] == policy.law.runs == "trained"
    assert any(f"its plan {OWN}" in note and "--chain trained" in note for note in said_of["notes"])
    timed = results(capsys, "bench", "--policy", file, "--plans", 1, "--samplers", "ddpm", "--out", tmp_path / "bench")
    assert timed["chain"] == "trained"


def test_without_samplers_the_own_plan_runs(ddim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, "bench", "--policy", ddim, "--plans", 1, "--out", tmp_path / "bench")
    assert [each["spec"] for each in found["samplers"]] == [OWN]
    words = ("eval", "--policy", ddim, "--env", ENV, "--episodes", 1, "--max-steps", 10, "--out", tmp_path / "eval")
    assert [each["spec"] for each in results(capsys, *words)["samplers"]] == [OWN]


@pytest.mark.parametrize("chain", ["checkpoint", "trained"])
def test_workers_run_the_same_law(chain: str, ddim: Path) -> None:
    policy = asd_policy.load_policy(ddim, chain=chain)
    recipe = Recipe.of(str(ddim), "cpu", {policy.sampler.spec: policy}, ENV, 1, 0)
    assert recipe.chain == chain
    recipe.cook().close()
