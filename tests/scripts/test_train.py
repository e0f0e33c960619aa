"""The training script: what it writes, resuming, and wrong input, on a run of seconds."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import asd_policy
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.cli import common

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Import the script, with the others beside it, as Python does for the script it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("train")


def run(script: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    words = ["--env", "asd/Avoid-v0", "--out", str(out), "--steps", "8", "--demonstrations", "2", "--noise", "0.01"]
    words += ["--down-dims", "16", "32", "--batch", "8", "--save-every", "2", *more]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    script.main()


def test_writes_a_policy_that_acts(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(script, tmp_path / "policy", monkeypatch, "--n-action-steps", "3")
    policy = asd_policy.load_policy(tmp_path / "policy", "asd:window=8")
    action = policy.select_action({"agent_pos": torch.zeros(4), "environment_state": torch.zeros(3)})
    assert action.shape == (2,)
    assert policy.horizons.n_action_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert str(tmp_path) not in (tmp_path / "policy" / "training.json").read_text()


def test_a_log_file_can_be_followed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no terminal, lines say how far it is."""
    monkeypatch.setattr(common, "_LINE_EVERY", 0.0)
    run(script, tmp_path / "policy", monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert {"demonstrations: 1 of 2", "demonstrations: 2 of 2"} <= set(lines)
    assert any(re.fullmatch(r"training, loss \d\.\d+: 5 of 8", line) for line in lines)


def test_an_interrupted_training_goes_on_as_if_nothing_happened(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(script, tmp_path / "whole", monkeypatch)
    update = script.Trainer.update

    def interrupted(self: object, *args: torch.Tensor) -> float:
        if self.step == 5:  # pyright: ignore[reportAttributeAccessIssue]  # the script's class has no type here
            raise KeyboardInterrupt
        return update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(script.Trainer, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(script, tmp_path / "halves", patch)
    assert stop.value.code == 130
    assert (tmp_path / "halves.training").exists()
    with pytest.raises(SystemExit, match="of a training with other options"):
        run(script, tmp_path / "halves", monkeypatch, "--batch", "9")
    run(script, tmp_path / "halves", monkeypatch)
    assert not (tmp_path / "halves.training").exists()
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key


def test_windows_repeat_the_edges(script: ModuleType) -> None:
    config = DiffusionConfig({"observation.state": 1}, 1, {}, horizon=4)
    values = torch.arange(3.0)[:, None].numpy()
    windows = script.make_windows([{"agent_pos": values, "action": 10 * values}], config)
    assert windows["observation.state"][:, :, 0].tolist() == [[0, 0], [0, 1], [1, 2]]
    # A chunk begins with the action of the oldest observation, one step in the past.
    assert windows["action"][:, :, 0].tolist() == [[0, 0, 10, 20], [0, 10, 20, 20], [10, 20, 20, 20]]


def test_still_coordinates_keep_their_scale(script: ModuleType) -> None:
    values = torch.tensor([[[0.0, 5.0]], [[2.0, 5.0]]])
    statistics = script.measure_statistics({"x": values})["x"]
    assert statistics["min"].tolist() == [0.0, 4.0]
    assert statistics["max"].tolist() == [2.0, 6.0]


def test_wrong_environment(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no environment 'CartPole-v1' with an expert: asd/Avoid-v0"):
        run(script, tmp_path / "policy", monkeypatch, "--env", "CartPole-v1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0 is not a positive number"),
        (["--demonstrations", "-1"], "--demonstrations -1 is not a positive number"),
        (["--save-every", "0"], "--save-every 0 is not a positive number"),
        (["--n-action-steps", "16"], "--n-action-steps 16 is not in 1 … 15"),
        (["--noise", "2"], "--noise 2.0 is not in 0 … 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0 is not positive"),
        (["--down-dims", "12", "16"], "--down-dims 12 16 are not 1 … 4 multiples of 8"),
    ],
)
def test_wrong_numbers(
    words: list[str], message: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(script, tmp_path / "policy", monkeypatch, *words)
    assert not list(tmp_path.iterdir())
