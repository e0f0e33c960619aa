"""The GPU benchmark: the whole of it in small, on a CPU, as on a machine that has PyTorch and little else."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.chain.gaussian import GaussianChain

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/gpu_bench.py"
MISSING = ("diffusers", "gymnasium", "huggingface_hub", "matplotlib", "mujoco", "onnxruntime", "rich", "scipy", "tyro")


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts import one another, as Python does for the script it runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture
def data() -> ModuleType:
    return importlib.import_module("gpu_bench_data")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the script where packages are missing."""
    code = (
        f"import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({MISSING}))\n"  # None there: not to be imported
        f"sys.argv = {['gpu_bench.py', *words]!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)


def test_the_whole_in_small(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--smoke", "--out", str(tmp_path), "--seconds", "500")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"] == "gpu_bench"
    assert results["training"]["smoke"]["train_steps"] > 0
    assert results["recording"]["environment"] == "asd/MetaWorld-pick-place-v0"
    assert [(part["network"], part["batch"]) for part in results["parts"]] == [("smoke", 4)]
    for part in results["parts"]:
        found = {(each["spec"].partition(":")[0], each["backend"]) for each in part["samplers"]}
        assert found >= {("ddpm", "torch-eager"), ("asd", "torch-eager")}
        assert ("ddim", "torch-eager") not in found
        assert part["baseline"]["spec"] == "ddpm"
        assert part["plans"] == 2
        assert part["ceiling"]["network"]["parameters"] == part["parameters"]
    skipped = [entry["what"] for entry in results["skipped"] if "diffusers" in entry["why"]]
    assert skipped == ["smoke at batch 4: ddim:10 on torch-eager"]
    for entry in results["skipped"]:
        assert f"skipped: {entry['what']}: {entry['why']}" in done.stdout
    assert (tmp_path / "network-smoke/model.safetensors").exists()


def test_no_time_is_said_and_a_trained_network_is_taken_up(
    tmp_path: Path, data: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, train = (importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_train"))
    recording = data.load(script.DATA)
    checkpoint = load_policy(data.CHECKPOINT)
    train.train(checkpoint, (16, 32), recording, 1e-9, tmp_path / "network-smoke", 0)
    before = (tmp_path / "network-smoke/model.safetensors").read_bytes()
    monkeypatch.setattr(script.gpu_bench_train, "train", None)  # it would fail
    monkeypatch.setattr(script, "SMOKE", replace(script.SMOKE, batches={2: 1, 8: 1}))
    words = ["gpu_bench.py", "--device", "cpu", "--smoke", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "0.001"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"] == []
    assert [entry["what"] for entry in results["skipped"]] == ["smoke at batch 2", "smoke at batch 8"]
    assert "0 s are left" in results["skipped"][0]["why"]

    # A part that breaks leaves the others, and the run says that it was not whole.
    monkeypatch.setattr(script.Run, "states", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "100"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["why"] for entry in results["skipped"]][-1] == "ZeroDivisionError: division by zero"
    assert results["training"]["smoke"]["train_steps"] == 1
    assert (tmp_path / "network-smoke/model.safetensors").read_bytes() == before
    assert "skipped: smoke at batch 8: ZeroDivisionError" in capsys.readouterr().out


def test_a_network_learns_from_the_recording(tmp_path: Path, data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error on the demonstrations' noise falls well below that of a guess of zero, which is 1."""
    script, train = (importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_train"))
    monkeypatch.setattr(train, "BATCH", 64)
    monkeypatch.setattr(train, "PEAK_LEARNING_RATE", 3e-3)
    ticks = iter(np.arange(0, 1000, 1.0))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))  # a second for each step
    notes = train.train(load_policy(data.CHECKPOINT), (16, 32), data.load(script.DATA), 100.0, tmp_path / "policy", 0)
    assert notes["train_steps"] == 99
    assert notes["loss"] < 0.7
    network = load_policy(tmp_path / "policy").network
    assert isinstance(network, torch.nn.Module)
    assert sum(weight.numel() for weight in network.parameters()) == notes["parameters"]


def test_the_recording_is_whole(data: ModuleType) -> None:
    script = importlib.import_module("gpu_bench")
    assert script.DATA.stat().st_size < 2 * 2**20
    recording = data.load(script.DATA)
    policy = load_policy(data.CHECKPOINT)
    dims = policy.horizons.n_obs_steps * sum(policy.observation_dims.values())
    assert recording.cond.shape == recording.previous.shape == (len(recording.first), dims)
    assert len(recording.episode) == len(recording.first)
    assert all(len(episode["action"]) == len(episode["agent_pos"]) for episode in recording.demonstrations)
    assert np.concatenate([episode["action"] for episode in recording.demonstrations]).min() >= -1.001
    # What was seen at the plan before is what another state of the episode is, for all but the few left out.
    later = ~torch.as_tensor(recording.first)
    told = {(int(episode), *row) for episode, row in zip(recording.episode, recording.cond.tolist(), strict=True)}
    before = zip(recording.episode[later.numpy()], recording.previous[later].tolist(), strict=True)
    assert np.mean([(int(episode), *row) in told for episode, row in before]) > 0.9
    assert not recording.previous[~later].any()


def test_last_plans_are_the_network_s_own(data: ModuleType) -> None:
    script = importlib.import_module("gpu_bench")
    recording = data.load(script.DATA)
    few = replace(recording.first_states(4), first=np.array([True, False, False, True]))
    policy = load_policy(data.CHECKPOINT, "ddim:2")
    found = data.last_plans(policy, few, seed=0)
    assert found.shape == (4, *policy.event)
    assert not found[[0, 3]].any()
    assert found[[1, 2]].flatten(1).any(1).all()
    executed = policy.horizons.n_action_steps
    assert torch.equal(found[1, -1], found[1, -executed - 1])  # moved on, its end held


def test_noise_is_mixed_as_the_chain_says(chain: GaussianChain) -> None:
    train = importlib.import_module("gpu_bench_train")
    signal, noise = train.mixing(chain)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(len(chain)), atol=1e-5, rtol=0)
    clean, drawn = torch.randn(len(chain), 3), torch.randn(len(chain), 3)
    noisy = signal[:, None] * clean + noise[:, None] * drawn
    input_scale, output_scale = (torch.as_tensor(values)[:, None] for values in (chain.input_scale, chain.output_scale))
    torch.testing.assert_close((input_scale * noisy + output_scale * drawn).float(), clean, atol=1e-3, rtol=0)


def test_the_learning_rate_rises_and_falls() -> None:
    train = importlib.import_module("gpu_bench_train")
    assert train.learning_rate(0) == 0
    assert train.learning_rate(train.WARM_UP_SHARE) == pytest.approx(train.PEAK_LEARNING_RATE, rel=0.01)
    assert train.learning_rate(0.5) == pytest.approx(train.PEAK_LEARNING_RATE / 2)
    assert train.learning_rate(1.2) == pytest.approx(0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seconds", "0"), "--seconds 0 is not above 0"),
        (("--seed", "-1"), "--seed -1 is not 0 or more"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--data", "nowhere.npz"), "nowhere.npz is no recording"),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = importlib.import_module("gpu_bench")
    monkeypatch.setattr(sys, "argv", ["gpu_bench.py", "--out", str(tmp_path), "--device", "cpu", *words])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert message in capsys.readouterr().err + str(stop.value.code)
    assert stop.value.code not in (0, None)
