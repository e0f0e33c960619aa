"""The GPU benchmark: the whole of it in small, on a CPU, as on a machine that has PyTorch and little else."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.backends.cuda_graphs import GraphedDenoiser
from asd_policy.networks.backends.torch_cuda_graph import TorchCudaGraph
from asd_policy.networks.backends.torch_network import torch_denoiser
from asd_policy.networks.backends.torch_sensor import RecordedSensor, torch_sensor
from support.replays import Replays

CPU = torch.device("cpu")
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
    assert results["training"].keys() == {"tiny", "tiny, two cameras"}
    assert all(notes["train_steps"] > 0 for notes in results["training"].values())
    seeing = results["training"]["tiny, two cameras"]
    assert seeing["loss_by_own_frames"] != seeing["loss_by_other_frames"]
    assert seeing["places_missed_by"] > 0
    assert results["recording"]["environment"] == "asd/MetaWorld-pick-place-v0"
    parts = {part["network"]: part for part in results["parts"]}
    assert [(name, part["batch"]) for name, part in parts.items()] == [("tiny", 4), ("tiny, two cameras", 1)]
    for name, part in parts.items():
        found = {each["spec"].partition(":")[0] for each in part["samplers"]}
        assert found == ({"ddpm", "asd", "ddim", "paradigms"} if name == "tiny" else {"ddpm", "asd"})
        assert part["baseline"]["spec"] == "ddpm"
        assert part["plans"] == 2
        assert part["ceiling"]["network"]["parameters"] == part["parameters"]
        for each in part["samplers"]:
            assert 0 < each["limit_ms"]
            assert each["wall_over_algorithmic"] == each["wall_clock_speedup"] / each["algorithmic_speedup"]
            assert (each["encode_ms"] is None) is (name == "tiny")
    assert parts["tiny"]["encoder_parameters"] == 0 < parts["tiny, two cameras"]["encoder_parameters"]
    assert len(results["kernels"]) == 4
    for each in results["kernels"]:
        assert (
            each["unit"] == "operators" and 0 < each["network"] and 0 < each["ours"] == each["round"] - each["network"]
        )
    graphs = "tiny, all: all on torch-cuda-graph"
    assert [entry["what"] for entry in results["skipped"]] == [graphs, graphs.replace("tiny", "tiny, two cameras")]
    tables = (tmp_path / "tables.md").read_text()
    for words in ("## tiny, two cameras, all", "of encoders, batch 1", "## Operators of a round", f"- {graphs}: "):
        assert words in tables
    for entry in results["skipped"]:
        assert f"skipped: {entry['what']}: {entry['why']}" in done.stdout
    assert (tmp_path / "network-tiny-two-cameras/model.safetensors").exists()


class Graphs(Replays):
    """Does the work while it is recorded, too, as a graph is warmed up."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Do it, and keep it."""
        work()
        return super().record(work)


def test_graphs_without_a_gpu(
    tmp_path: Path, data: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parts of a GPU: whole plans as recordings, which nobody can look into, and an encoder that is recorded."""
    script, layout = (importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_plan"))

    def recorded(backend: Any, network: Any, job: Any) -> Any:
        denoiser = GraphedDenoiser.__new__(GraphedDenoiser)
        parts = {"_denoiser": torch_denoiser(network, job, backend), "_device": CPU, "launcher": Graphs()}
        vars(denoiser).update(parts)
        return denoiser

    monkeypatch.setattr(TorchCudaGraph, "prepare_tensors", recorded)
    monkeypatch.setattr(
        TorchCudaGraph,
        "prepare_tensor_sensor",
        lambda backend, network, job: RecordedSensor(torch_sensor(network, job, backend), Graphs()),
    )
    seeing = layout.Subject("seeing", (16, 32), (96, 128), (48, 64))
    samplers = ("ddpm", "asd:window=8", "ddim:10")
    part = layout.Part(seeing, "graphs", ((layout.GRAPH, samplers),), 0, 60, 1, 2)
    size = replace(layout.SMOKE, steps=(layout.Training(seeing, 0, 0.1), part, layout.Counting(layout.GRAPH, 0)))
    monkeypatch.setattr(script, "SMOKE", size)
    monkeypatch.setattr(sys, "argv", ["gpu_bench.py", "--device", "cpu", "--smoke", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        script.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["skipped"] == []
    (found,) = results["parts"]
    for each in found["samplers"]:
        assert each["overhead_fraction"] is None and each["outside_fraction"] < 1
        assert each["encode_ms"] > 0
        assert f"{each['spec']} on torch-cuda-graph: p50" in printed
    assert [each["spec"] for each in results["kernels"]] == ["asd:window=8,draft=response,verify=block"]


def test_no_time_is_said_and_a_trained_network_is_taken_up(
    tmp_path: Path, data: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, train, layout = (
        importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_train", "gpu_bench_plan")
    )
    recording = data.load(script.DATA)
    checkpoint = load_policy(data.CHECKPOINT)
    tiny = layout.Subject("tiny", (16, 32))
    folder = tmp_path / "network-tiny"
    train.train(checkpoint, tiny, recording, 1e-9, folder, 0, 4)
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(script.gpu_bench_train, "train", None)  # it would fail
    entered = ((layout.EAGER, ("ddpm",)),)
    parts = tuple(layout.Part(tiny, f"batch {batch}", entered, 0, 30, batch, 2) for batch in (2, 8))
    monkeypatch.setattr(script, "SMOKE", replace(layout.SMOKE, steps=(layout.Training(tiny, 0, 1), *parts)))
    words = ["gpu_bench.py", "--device", "cpu", "--smoke", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "0.001"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"] == []
    assert [entry["what"] for entry in results["skipped"]] == ["tiny, batch 2", "tiny, batch 8"]
    assert "0 s of 0 s are left; 0 s are needed to prepare it" in results["skipped"][0]["why"]

    # A part that breaks leaves the others, and the run says that it was not whole, and what it was warned of.
    def break_(*_: Any) -> Any:
        warnings.warn("it runs in a slower way", stacklevel=1)
        return 1 / 0

    monkeypatch.setattr(script.Run, "states", break_)
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "100"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        script.main()
    assert stop.value.code == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["why"] for entry in results["skipped"]][-1] == "ZeroDivisionError: division by zero"
    assert results["warnings"] == ["it runs in a slower way"]
    assert "## Warnings\n\n- it runs in a slower way\n" in (tmp_path / "tables.md").read_text()
    assert results["training"]["tiny"]["train_steps"] == 1
    assert (folder / "model.safetensors").read_bytes() == before
    assert "skipped: tiny, batch 8: ZeroDivisionError" in capsys.readouterr().out


def test_a_run_that_hangs_is_ended_with_what_it_has(tmp_path: Path) -> None:
    """A compilation, say, which nothing can interrupt."""
    code = (
        "import sys, time, gpu_bench\n"
        "gpu_bench.GRACE = -498\n"  # as if 500 seconds were up after two
        "gpu_bench.Run.train = lambda *_: None\n"
        "gpu_bench.Run.part = lambda *_: time.sleep(100)\n"
        f"sys.argv = ['', '--device', 'cpu', '--smoke', '--seconds', '500', '--out', {str(tmp_path)!r}]\n"
        "gpu_bench.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["what"] for entry in results["skipped"]] == ["tiny, all"]
    assert results["skipped"][0]["why"] == "2 s are up: the run was ended in the middle of it"


def test_a_network_learns_from_the_recording(tmp_path: Path, data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error on the demonstrations' noise falls well below that of a guess of zero, which is 1."""
    script, train, layout = (
        importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_train", "gpu_bench_plan")
    )
    monkeypatch.setattr(train, "BATCH", 64)
    monkeypatch.setattr(train, "PEAK_LEARNING_RATE", 3e-3)
    ticks = iter(np.arange(0, 1000, 1.0))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))  # a second for each step
    given = (layout.Subject("tiny", (16, 32)), data.load(script.DATA))
    notes = train.train(load_policy(data.CHECKPOINT), *given, 100.0, tmp_path / "policy", 0, 4)
    assert notes["train_steps"] == 99
    assert notes["loss"] < 0.7
    network = load_policy(tmp_path / "policy").network
    assert isinstance(network, torch.nn.Module)
    assert sum(weight.numel() for weight in network.parameters()) == notes["parameters"]


# The layout of a run.


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("trained", [False, True])
def test_a_run_ends_in_nine_minutes(slower: float, trained: bool) -> None:
    """One of them to set up. Only what is being prepared when the time is up goes on, until the run is ended."""
    script, layout = (importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_plan"))
    laid_out = layout.slots(layout.FULL.steps, script.SECONDS, lambda _: trained, lambda step: slower * step.prepare)
    done = [slot.step.name for slot in laid_out if not slot.skipped]
    assert 60 + script.SECONDS + script.GRACE <= 9 * 60
    assert all(slot.begins < script.SECONDS for slot in laid_out if not slot.skipped)
    over = max(slot.ends for slot in laid_out) - script.SECONDS
    assert over <= max((slower - 1) * step.prepare for step in layout.FULL.steps)
    if slower <= 1:
        needed = ["4.6M, graphs", "64M, graphs", "263M, two cameras, graphs", "kernels of a round", "64M, compiled"]
        assert set(needed) <= set(done)
    if slower <= 1 and trained:
        assert {"4.6M, compiled", "263M, two cameras, bfloat16"} <= set(done)


def test_a_layout_by_hand() -> None:
    layout = importlib.import_module("gpu_bench_plan")
    one, two = layout.Subject("one"), layout.Subject("two", (8, 16))
    part = layout.Part(one, "all", (), prepare=5, seconds=20)
    steps = (part, layout.Training(two, 1, 30), replace(part, subject=two, prepare=50), part)
    found = layout.slots(steps, 100, lambda _: False)
    assert [(slot.begins, slot.ends, slot.skipped) for slot in found] == [
        (10, 35, False), (35, 66, False), (66, 66, True), (66, 91, False)
    ]  # fmt: skip
    assert layout.slots(steps, 100, lambda _: True)[1].step.subject == two  # trained already
    # A preparation that takes longer than planned leaves the plans no time.
    slow = layout.slots((part,), 40, lambda _: False, lambda step: 28.0)
    assert (slow[0].ends, slow[0].skipped) == (40, False)
    assert (
        layout.describe(found).splitlines()[2]
        == "   66 …  66 s  two, all: no time is left for it, in a run of this length"
    )


def test_a_dry_run_says_what_would_be_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module("gpu_bench")
    monkeypatch.setattr(sys, "argv", ["gpu_bench.py", "--dry"])  # no GPU is needed
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(script.FULL.steps)
    assert "training of 263M, two cameras" in "".join(lines)


# Kernels.


def test_kernels_of_a_round_are_those_of_the_graph_launched_most() -> None:
    counting = importlib.import_module("gpu_bench_kernels")

    def graph(launch: int, *names: str) -> list[Any]:
        return [
            counting.Event("cudaGraphLaunch", launch, False), *(counting.Event(name, launch, True) for name in names)
        ]  # fmt: skip

    seen = [
        counting.Event("cudaLaunchKernel", 1, False),
        counting.Event("noise", 1, True),
        *graph(2, "begin"),
        *graph(3, "conv", "conv", "draft", "judge", "Memcpy DtoD"),
        *graph(4, "conv", "conv", "draft", "judge", "Memcpy DtoD"),
        *graph(5, "encode"),
    ]
    assert counting.of_round(seen, 2) == {"conv": 2, "draft": 1, "judge": 1}
    # As often as another, the one of more kernels.
    assert counting.of_round([*graph(2, "begin"), *graph(3, "conv", "draft")], 1) == {"conv": 1, "draft": 1}
    # Without graphs, the rounds share all.
    plain = [counting.Event(name, number, True) for number, name in enumerate(["conv"] * 4 + ["draft"] * 2)]
    assert counting.of_round(plain, 2) == {"conv": 2, "draft": 1}
    # A profiler that does not say what graphs launch.
    assert counting.of_round([counting.Event("cudaGraphLaunch", 9, False), *plain], 2) == {"conv": 2, "draft": 1}


# What cameras see.


def test_cameras_see_what_the_policy_is_not_told() -> None:
    scene = importlib.import_module("gpu_bench_scene")
    hand, surroundings = torch.zeros(3, 4), torch.zeros(3, 35)
    hand[:, :3] = torch.tensor([-0.8, -0.8, 0.8])
    surroundings[:, 32:35] = torch.tensor([-0.8, 0.8, -0.8])
    surroundings[1, :3] = torch.tensor([0.9, 0.5, 0.0])  # the object moves to the right, and back
    surroundings[2, :3] = torch.tensor([0.0, 0.0, -0.7])  # and down
    frames = scene.render(hand, surroundings, (48, 64))
    assert {name: tuple(each.shape) for name, each in frames.items()} == dict.fromkeys(scene.VIEWS, (3, 3, 48, 64))

    def reddest(view: str, row: int) -> tuple[int, int]:
        red, green, _ = frames[f"observation.images.{view}"][row].float()
        place = int((red - green).argmax())
        return place // 64, place % 64

    centre = reddest("front", 0)
    assert abs(centre[0] - 24) <= 1 and abs(centre[1] - 32) <= 1
    assert reddest("front", 1)[1] > 50 and abs(reddest("front", 1)[0] - centre[0]) <= 1
    assert reddest("top", 1)[1] > 50 and reddest("top", 1)[0] < 20
    assert reddest("front", 2)[0] > 36 and reddest("top", 2) == reddest("top", 0)
    assert torch.equal(frames["observation.images.top"][0], frames["observation.images.top"][2])


def test_states_are_those_that_the_cameras_would_show(tmp_path: Path, data: ModuleType) -> None:
    script, train, layout, scene = (
        importlib.import_module(name) for name in ("gpu_bench", "gpu_bench_train", "gpu_bench_plan", "gpu_bench_scene")
    )
    like, recording = load_policy(data.CHECKPOINT), data.load(script.DATA)
    seeing = layout.Subject("seeing", (16, 32), (96, 128), (48, 64))
    train.train(like, seeing, recording, 1e-9, tmp_path / "policy", 0, 4)
    policy = load_policy(tmp_path / "policy")
    recorded = recording.first_states(3).cond
    cond = scene.look(policy, recorded, like, seeing.frame)
    assert cond.shape == (3, policy.cond_dim) == (3, 2 * (4 + 2 * 64))
    steps = cond.unflatten(1, (2, -1))
    torch.testing.assert_close(steps[..., :4], recorded.unflatten(1, (2, -1))[..., :4], rtol=1e-3, atol=2e-3)
    other = recorded.clone()
    other[:, 4:7] += 0.5  # the object, one observation before
    moved = scene.look(policy, other, like, seeing.frame).unflatten(1, (2, -1))
    assert torch.equal(moved[:, 1], steps[:, 1])
    assert torch.equal(moved[:, 0, :4], steps[:, 0, :4])
    assert not torch.equal(moved[:, 0, 4:], steps[:, 0, 4:])


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
