"""A token policy in eval, bench and verify, like every other policy; and what refuses it."""

import json
from pathlib import Path
from typing import Any

import pytest

from asd_policy import cli
from support.small_token_policies import write_token_policy

ENV = "asd/Avoid-v0"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small token policy, in coarse order."""
    return write_token_policy(tmp_path_factory.mktemp("tokens") / "policy", "coarse")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.run([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def results(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status, out, err = said(capsys, *words, "--json")
    assert status == 0, err
    return json.loads(out)


def test_eval_compares_with_the_sequential_sampler(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--policy", policy, "--env", ENV, "--episodes", 2, "--max-steps", 8, "--out", tmp_path / "out")
    found = results(capsys, "eval", *words)
    assert found["reference"] == "tokens"
    sequential, fast = found["samplers"]
    assert (sequential["spec"], fast["spec"]) == ("tokens", "tokens:window=16,draft=frozen,verify=sequence")
    assert sequential["exact"] and fast["exact"] and sequential["steps"] == fast["steps"] == 16
    assert sequential["rounds_mean"] == sequential["nfe_mean"] == 16
    assert fast["rounds_mean"] < 16 and fast["algorithmic_speedup"] > 1
    assert said(capsys, "eval", *words, "--resume")[0] == 0


def test_bench_measures_windows(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, "bench", "--policy", policy, "--plans", 2, "--windows", 4, "--out", tmp_path / "out")
    assert {each["spec"] for each in found["samplers"]} == {
        "tokens", "tokens:window=4,draft=frozen,verify=sequence", "tokens:window=16,draft=frozen,verify=sequence"
    }  # fmt: skip
    assert found["baseline"]["spec"] == "tokens"


@pytest.mark.parametrize("sampler", [(), ("--sampler", "tokens:window=8,draft=picard,verify=token")])
def test_verify_finds_no_difference(sampler: tuple[str, ...], policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, "verify", "--policy", policy, "--samples", 64, "--observations", 2, *sampler)
    assert found["holds"] and found["steps_tested"] and found["reference"] == "tokens" and found["steps"] == 16
    assert {"step shape", "bias along marginals 1 steps old"} <= {check["name"] for check in found["checks"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune",), "tune needs a chain of Gaussian steps, and this policy samples 16 tokens of 16 values"),
        (("export", "--out", "x.onnx"), "export needs a chain of Gaussian steps"),
        (("verify", "--sampler", "asd"), "asd:window=auto,draft=auto,verify=auto needs a chain of Gaussian steps"),
        (("verify", "--sampler", "tokens:32"), "window=32 is not in 1 … 16"),
    ],
)
def test_what_it_cannot_do_is_a_line(
    words: tuple[str, ...], message: str, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capsys, *words, "--policy", policy)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_prefix_and_a_deadline_are_refused(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("eval", "--policy", policy, "--env", ENV, "--episodes", 1, "--samplers", "tokens:window=4")
    status, _, err = said(capsys, *words, "--deadline-ms", 1000, "--out", tmp_path / "deadline")
    assert status == 2 and "no deadline can cut tokens:window=4" in err
    clock = ("--clock", "async", "--continuity", "inpaint")
    status, _, err = said(capsys, *words, *clock, "--out", tmp_path / "continuity")
    assert status == 2 and "a prefix needs a chain of Gaussian steps" in err
