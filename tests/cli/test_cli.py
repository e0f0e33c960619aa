"""The command line: what it writes, its exit status, and one clear line for each mistake."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy import cli
from asd_policy.checkpoints import load_policy
from asd_policy.cli import evaluate as commands_evaluate
from asd_policy.cli import tune as commands_tune
from asd_policy.errors import AsdError, EnvError, SpecError
from asd_policy.evaluation.rollout import environments
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.runner import Group, LocalRunner
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.tuning import load_tuning
from support.contract import CONTRACT, SAMPLER_CONTRACT, one_line


def arguments(checkpoint: Path, out: Path, **options: Any) -> list[str]:
    values = {"policy": checkpoint, "env": "asd/Avoid-v0", "out": out, "episodes": 1, "samplers": ["ddpm", "ddim:2"]}
    words = ["eval"]
    for name, value in {**values, **options}.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_eval_writes_results(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    words = arguments(checkpoint, out, episodes=2, samplers=["ddpm", "ddim:2", "asd:window=5", "ddpm"])
    assert cli.run([*words, "--json"]) == 0
    printed = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert json.loads(printed.out) == results
    assert "ddpm</strong>" in (out / "report.html").read_text()
    assert set(results) >= CONTRACT
    assert results["version"] == 1
    assert results["command"] == "eval"
    assert [sampler["spec"] for sampler in results["samplers"]] == [
        "ddpm",
        "ddim:2",
        "asd:window=5,draft=response,verify=block",
    ]
    assert [sampler["exact"] for sampler in results["samplers"]] == [True, False, True]
    for sampler in results["samplers"]:
        assert set(sampler) >= SAMPLER_CONTRACT
        assert set(sampler["latency_ms"]) == {"mean", "p50", "p95", "p99", "max"}
        assert sampler["episodes"] == 2
    assert results["policy"] == checkpoint.name and set(results["sha256"]) >= {"model.safetensors", "config.json"}
    for path in ("results.json", "episodes.jsonl", "report.html"):
        assert str(checkpoint) not in (out / path).read_text()
    assert "ddim-2 ≈" in printed.err
    assert str(out / "results.json") in printed.err


@pytest.mark.parametrize("command", ["eval", "verify", "tune"])
def test_results_name_the_backend(
    command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "eval": [
            "--env",
            "asd/Avoid-v0",
            "--episodes",
            "1",
            "--samplers",
            "ddim:2",
            "--overwrite",
            "--out",
            str(tmp_path / "out"),
        ],
        "verify": ["--samples", "16", "--observations", "2", "--sampler", "ddpm"],
        "tune": ["--plans", "1", "--out", str(tmp_path / "tuning")],
    }[command]
    for spec, dtype in (("torch-eager", "float32"), ("torch-eager:dtype=bfloat16", "bfloat16")):
        option = "--backends" if command == "tune" else "--backend"
        assert cli.run([command, "--policy", str(checkpoint), option, spec, "--json", *more]) == 0
        results = json.loads(capsys.readouterr().out)
        assert (results["backend"], results["dtype"]) == (spec, dtype)


def test_a_backend_keeps_its_tuning(checkpoint: Path) -> None:
    """The latencies that were measured, where they were measured on it."""
    assert cli.run(["tune", "--policy", str(checkpoint), "--plans", "1", *EAGER]) == 0
    tuned = load_policy(checkpoint).experience.latency
    assert tuned
    assert load_policy(checkpoint, backend="torch-eager").experience.latency == tuned
    assert not load_policy(checkpoint, backend="torch-eager:dtype=bfloat16").experience.latency


def test_tune_chooses_the_backend(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the least expected time of a plan, among those that can run here; auto then runs on it."""
    refusal = "backend 'auto' is what `asd-policy tune` finds best; it has not run for"
    with pytest.raises(SpecError, match=refusal):
        load_policy(checkpoint, backend="auto")
    faster = "torch-eager:dtype=bfloat16"
    clock = commands_tune._plan_seconds
    monkeypatch.setattr(
        commands_tune, "_plan_seconds", lambda policy: (0.01 if policy.backend.spec == faster else 1) * clock(policy)
    )
    words = ["tune", "--policy", str(checkpoint), "--plans", "1", "--json", "--backends"]
    assert cli.run([*words, "torch-eager", "torch-cuda-graph", faster]) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert (results["backend"], results["dtype"]) == (faster, "bfloat16")
    assert {each["backend"] for each in results["settings"]} == {"torch-eager", faster}
    assert "needs a CUDA GPU" in results["left_out"]["torch-cuda-graph"]
    assert "left out: torch-cuda-graph needs a CUDA GPU" in printed.err
    tuned = load_policy(checkpoint, backend="auto")
    assert tuned.backend.spec == faster
    assert tuned.experience.latency
    assert not load_policy(checkpoint).experience.latency  # those of another backend
    assert load_policy(checkpoint).experience.plans == 1
    assert "needs a CUDA GPU" in one_line([*words, "torch-cuda-graph"], capsys)


EAGER = ("--backends", "torch-eager")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("policy", "nowhere", "no checkpoint at nowhere: the path does not exist"),
        ("env", "asd/Nothing-v0", "no environment 'asd/Nothing-v0'; the nearest are asd/"),
        ("env", "asd/MetaWorld-reach-v0", "the policy's actions have shape (2,)"),
        (
            "samplers",
            "fast",
            "no sampler 'fast' in 'fast'; there are ddpm, ddim, dpmsolver, euler, paradigms, parallel, asd, tokens",
        ),
        ("samplers", "asd:speed=9", "no option 'speed' in 'asd:speed=9'; asd has window, draft, verify"),
        ("samplers", "asd:window=0", "window=0 is not in 1 … K"),
        ("samplers", "asd:window=11", "window=11 is not in 1 … 10"),
        ("episodes", "0", "--episodes 0 is not 1 or more"),
        ("episodes", "many", "--episodes 'many' is not a whole number; see asd-policy eval --help"),
        ("seed", "-1", "--seed -1 is not 0 or more"),
        ("margin", "0", "--margin 0 is not between 0 and 1"),
        ("workers", "many", "--workers 'many' is not a number from 1 on, ray or ray://host:port"),
        ("gpus-per-worker", "1.5", "--gpus-per-worker 1.5 is neither a share in 0 … 1 nor a whole number"),
        ("device", "abacus", "device 'abacus' cannot be used here"),
        ("backend", "abacus", "no backend 'abacus' in 'abacus'; there are torch-eager"),
        ("backend", "torch-eager:dtype=int8", "dtype=int8 is none of float32, bfloat16, float16"),
        ("backend", "torch-replicas:devices=cuda:99", "no device 'cuda:99' here for torch-replicas"),
        ("colour", "red", "eval has no option --colour; see asd-policy eval --help"),
    ],
)
def test_mistakes(
    option: str, value: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert message in one_line(arguments(checkpoint, out, **{option: value}), capsys)
    assert not out.exists()


def test_missing_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing from asd-policy eval: --policy --env --out" in one_line(["eval"], capsys)
    assert "eval" in one_line([], capsys)
    assert "evaluate" in one_line(["evaluate"], capsys)


def test_broken_weights(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = "diffusion.unet.final_conv.1.bias"
    save_file(tensors | {name: torch.full((2,), math.nan)}, path)
    assert f"{name} holds NaN or infinity" in one_line(arguments(checkpoint, tmp_path / "out"), capsys)
    save_file(tensors | {name: torch.zeros(3)}, path)
    assert f"{name} has shape (3,), not (2,)" in one_line(arguments(checkpoint, tmp_path / "out"), capsys)


def test_a_folder_that_cannot_be_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = one_line(arguments(checkpoint, tmp_path / "file"), capsys)
    assert str(tmp_path / "file") in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(AsdError):
        cli.run([*arguments(tmp_path / "none", tmp_path), "--debug"])


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["eval", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--policy", "--env", "--samplers", "--episodes", "--seed", "--out", "--json", "--video"):
        assert option in text


def test_interruption_keeps_what_was_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LocalRunner.run

    def interrupted(self: LocalRunner, work: Iterable[Group]) -> Iterator[Episode]:
        for count, episode in enumerate(run(self, work)):
            if count == 3:
                raise KeyboardInterrupt
            yield episode

    monkeypatch.setattr(LocalRunner, "run", interrupted)
    assert cli.run(arguments(checkpoint, tmp_path, episodes=5)) == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"]
    assert [sampler["episodes"] for sampler in results["samplers"]] == [2, 1]
    assert "interrupted: 3 of 10 episodes are kept in" in capsys.readouterr().err


def test_no_room_for_the_results(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full just then: no episode is lost, and the same command can be given again."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = [*arguments(checkpoint, tmp_path), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(commands_evaluate, "write_json", full)
        assert cli.run(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    reason = "No space left on device; all episodes are kept, and --resume writes it"
    assert last == f"asd-policy: {tmp_path / 'results.json'} cannot be written: {reason}"
    journal = (tmp_path / "episodes.jsonl").read_bytes()
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "results.json").read_text())["complete"]
    assert (tmp_path / "episodes.jsonl").read_bytes() == journal


def test_a_failure_midway_keeps_what_was_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network breaks after some episodes: they are kept, and the last line says what happened."""
    calls = 0
    modulated = ConditionalUnet1d.modulated

    def broken(self: ConditionalUnet1d, x: torch.Tensor, modulations: Sequence[torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return modulated(self, x, modulations) * (math.nan if calls > 150 else 1.0)

    monkeypatch.setattr(ConditionalUnet1d, "modulated", broken)
    assert cli.run(arguments(checkpoint, tmp_path, episodes=100, samplers="ddpm")) == 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"]
    assert 1 <= results["samplers"][0]["episodes"] < 100
    assert "the network returned NaN or infinity" in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupt_while_packages_are_imported(tmp_path: Path) -> None:
    """Those take seconds: one line, and no traceback from the depths of them."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport nothing_like_it\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from asd_policy.cli import main; main(['eval', '--help'])"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "asd-policy: interrupted\n")


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_results_of_another_command_are_not_replaced(
    command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--policy", str(checkpoint), "--out", str(tmp_path)]
    for text in ('{"command": "eval"}', '["no", "record"]', "no JSON"):
        (tmp_path / "results.json").write_text(text)
        assert cli.run(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line == f"asd-policy: {tmp_path / 'results.json'} is not of asd-policy {command}: name another --out"
        assert (tmp_path / "results.json").read_text() == text
    (tmp_path / "episodes.jsonl").write_text("")
    assert cli.run(words) == 2
    assert "holds a run of asd-policy eval: name another --out" in capsys.readouterr().err


def test_an_interrupt_that_comes_out_as_another_error(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_env(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise ImportError("a package is not installed")
            except ImportError as error:
                raise EnvError("no such environment") from error

    monkeypatch.setattr(environments, "make_env", make_env)
    assert cli.run(arguments(checkpoint, tmp_path / "out")) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_video(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    words = arguments(checkpoint, tmp_path, samplers=["ddpm", "ddim:2", "asd:window=5,draft=frozen,verify=block"])
    assert cli.run([*words, "--video"]) == 0
    for name in ("ddpm", "ddim-2", "asd-window=5-draft=frozen-verify=block", "side-by-side"):
        assert (tmp_path / f"{name}.mp4").stat().st_size > 1000
    assert 'src="data:video/mp4;base64,' in (tmp_path / "report.html").read_text()


def test_tune_keeps_what_it_measured_with_the_policy(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["tune", "--policy", str(checkpoint), "--plans", "5", "--json", *EAGER]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["command"] == "tune"
    assert results["plans"] == 5
    file = Path(results["file"])
    assert file.is_relative_to(tmp_path / "cache")
    tried = [each for each in results["settings"] if each["plan_ms"] is not None]
    assert 1 in {each["window"] for each in tried}
    # Those that were dropped earlier have the times that the machine had then.
    longest = max(each["plans"] for each in tried)
    least = min(each["plan_ms"] for each in tried if each["plans"] == longest)
    (best,) = [each for each in tried if results["sampler"].endswith(f"={each['verify']}")
               and f"window={each['window']},draft={each['draft']}," in results["sampler"]]  # fmt: skip
    assert best["plan_ms"] <= 1.02 * least  # of settings as good as each other the one with the shortest tail
    (sequential,) = [each["plan_ms"] for each in tried if each["window"] == 1]
    assert results["expected_speedup"] == pytest.approx(sequential / best["plan_ms"])
    policy = load_policy(checkpoint)
    assert policy.experience.plans == 5
    assert policy.experience.latency and policy.experience.trials[1, None, None].done
    assert set(policy.experience.judgements) == {(each["draft"], each["verify"]) for each in results["settings"]}
    # In an environment, to a file of one's own; nothing of the earlier tuning is left in it.
    out = tmp_path / "other"
    words = ["tune", "--policy", str(checkpoint), "--env", "asd/Avoid-v0", "--plans", "2", "--out", str(out)]
    assert cli.run([*words, *EAGER]) == 0
    assert "window" in capsys.readouterr().err
    assert load_tuning(out, policy.chain, policy.event, policy.device)[0].plans >= 2
    file.write_bytes(b"damaged")
    assert f"{file.name} cannot be read" in one_line(arguments(checkpoint, tmp_path / "results"), capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plans", "0"), "--plans 0 is not 1 or more"),
        (("--seed", "-1"), "--seed -1 is not 0 or more"),
        (("--env", "asd/MetaWorld-reach-v0"), "the policy's actions have shape (2,)"),
    ],
)
def test_tune_refuses(
    words: tuple[str, ...], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in one_line(["tune", "--policy", str(checkpoint), *EAGER, *words], capsys)
    assert not list(tmp_path.rglob("tuning/*"))


ODD = "faulty_envs:faulty/Odd-{}-v0"


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (
            ODD.format("constructor"),
            [],
            "cannot make environment 'faulty_envs:faulty/Odd-constructor-v0': FileNotFoun",
        ),
        (
            "faulty_envs:faulty/Unfilmed-v0",
            ["--video"],
            "takes no render_mode, so it cannot be filmed: leave out --vi",
        ),
        (ODD.format("chatty"), ["--video"], "it renders an array of object (), and not one of uint8 (height, width, 3"),
        (ODD.format("endless"), ["--max-steps", "0"], "--max-steps 0 is not 1 or more"),
    ],
)
def test_environments_that_are_refused(
    env: str, options: list[str], message: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is done."""
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "out"
    assert cli.run([*arguments(checkpoint, out, env=env), *options]) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("asd-policy: "))
    assert message in line
    assert not out.exists()


def test_paths_and_errors_are_text(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not markup, or emoji, of the console."""
    out = tmp_path / "run[exp1][/x]:smile:"
    assert cli.run(arguments(checkpoint, out, env=ODD.format("topics"))) == 1
    told = capsys.readouterr().err
    assert f"results: {out / 'results.json'}" in told
    assert "the environment raised TimeoutError: no message on [/joint_states, /tf] for 1 s" in told


def test_stdout_holds_one_object(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever an environment prints, in this process and in its own, from Python and from a library."""
    words = arguments(checkpoint, tmp_path / "out", env=ODD.format("chatty"), envs=2, episodes=2, samplers="ddim:2")
    done = command(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (0, True), done.stderr
    assert done.stdout.count("\n") == 1
    assert "scene loaded\n" in done.stderr and "scene loaded by a library\n" in done.stderr


def test_a_limit_of_steps_is_said_once(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(checkpoint, tmp_path, env=ODD.format("endless"), samplers="ddim:2")
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "results.json").read_text())["max_steps"] == 1000
    note = "declares no time limit: an episode that does not end by itself is cut at 1000 steps (--max-steps)"
    assert capsys.readouterr().err.count(note) == 1
    assert cli.run([*words, "--max-steps", "25", "--resume"]) == 2
    assert "max_steps is 1000 there, 25 here" in capsys.readouterr().err
    assert cli.run([*words, "--max-steps", "25", "--overwrite"]) == 0
    assert "no time limit" not in capsys.readouterr().err
    (line,) = (tmp_path / "episodes.jsonl").read_text().splitlines()[1:]
    assert json.loads(line)["steps"] == 25


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "asd_policy.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("more", [[], ["--workers", "1"]], ids=["here", "workers"])
def test_sigterm_writes_the_results(more: list[str], checkpoint: Path, tmp_path: Path) -> None:
    """As Ctrl-C does: with status 130, and the run can go on."""
    if more:
        pytest.importorskip("ray")
    words = [*arguments(checkpoint, tmp_path, episodes=10000, samplers="ddim:2"), *more]
    run = subprocess.Popen(
        [sys.executable, "-m", "asd_policy.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    journal = tmp_path / "episodes.jsonl"
    while run.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.05)
    run.terminate()
    _, told = run.communicate(timeout=120)
    assert run.returncode == 130, told
    assert "--resume goes on" in told and "Traceback" not in told
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"]
    kept = journal.read_bytes().count(b"\n") - 1
    assert kept >= 3
    assert results["samplers"][0]["episodes"] in (kept, kept - 1)  # it came between the journal and the count
