"""The training of token policies: what it writes, resuming, what it learns, and wrong input, on a run of seconds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import asd_policy
import train_tokens
from asd_policy.checkpoints.token_folder import TokenPolicyConfig
from training.episodes import Episodes, measure_statistics
from training.token_trainer import TokenTrainer, TokenTraining, windows_of


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    words = ["--env", "asd/Avoid-v0", "--out", str(out), "--steps", "6", "--demonstrations", "2", "--noise", "0.01"]
    words += ["--n-layer", "1", "--n-emb", "16", "--bins", "32", "--batch", "4", "--save-every", "2", *more]
    monkeypatch.setattr(sys, "argv", ["train_tokens.py", *words])
    train_tokens.main()


def test_writes_a_policy_that_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "policy", monkeypatch, "--order", "coarse", "--snapshot-every", "3")
    policy = asd_policy.load_policy(tmp_path / "policy", "tokens:window=8")
    assert policy.select_action({"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}).shape == (2,)
    assert policy.law.tokens is not None and policy.law.tokens.order is not None
    assert policy.law.tokens.order[:2] == (30, 31) and policy.law.tokens.alphabet == 32
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    notes = json.loads((tmp_path / "policy" / "training.json").read_text())
    assert notes["step"] == 6 and str(tmp_path) not in json.dumps(notes)


def test_an_interrupted_training_goes_on_as_if_nothing_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", monkeypatch)
    update = TokenTrainer.update

    def interrupted(self: TokenTrainer, windows: object, past: torch.Tensor) -> float:
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, windows, past)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(TokenTrainer, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "halves", patch)
    assert stop.value.code == 130
    with pytest.raises(SystemExit, match="is of a training with smooth 1.0, not 0.5: remove it first"):
        run(tmp_path / "halves", monkeypatch, "--smooth", "0.5")
    run(tmp_path / "halves", monkeypatch)
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key


def test_it_learns_that_tokens_are_equal() -> None:
    """Actions of one number, drawn at random and held: once one token is known, so are the others."""
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(0, 4, (50, 1), generator=generator) / 2 - 0.75
    episodes = Episodes({"observation.state": torch.zeros(200, 1), "action": level.repeat_interleave(4, 0)}, [4] * 50)
    config = TokenPolicyConfig({"observation.state": 1}, 1, 1, 4, 2, bins=4, n_layer=1, n_head=2, n_emb=16)
    statistics = measure_statistics(episodes.features)
    windows = windows_of(episodes, config, statistics)
    trainer = TokenTrainer(TokenTraining(300, 32, 1e-2, 0, "cpu", smooth=0.0), config)
    past = torch.zeros(len(windows), 1)
    losses = [trainer.update(windows, past) for _ in range(300)]
    assert np.mean(losses[:10]) > 1.0
    # One set of known tokens in four is empty, and then there is nothing to know: ln 4 · ¼ is left.
    assert np.mean(losses[-50:]) < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0 is not a positive number"),
        (["--bins", "1"], "--bins 1 is not in 2 … 65536"),
        (["--order", "backward"], "--order 'backward' is not one of forward, coarse, random"),
        (["--n-emb", "18"], "--n-emb 18 is not even and a multiple of --n-head 4"),
        (["--n-action-steps", "16"], "--n-action-steps 16 is not in 1 … 15"),
        (["--smooth", "-1"], "--smooth -1.0 is negative"),
        (["--env", "CartPole-v1"], "no environment 'CartPole-v1' with an expert"),
    ],
)
def test_wrong_input_is_a_line(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "policy", monkeypatch, *words)
    assert message in str(stop.value)
