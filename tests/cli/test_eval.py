"""`asd-policy eval` as something to rely on: killed and resumed, with episodes that fail, twice the same."""

import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import asd_policy
from asd_policy import cli
from asd_policy.evaluation.closed_loop import prepare_planners
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.journal import NAME, RESULTS, find_run
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd import autotune as choice
from asd_policy.samplers.base import Target

EPISODES = 12
SPECS = ("ddim:2", "asd:window=5")
TIMES = {"seconds", "network_seconds"}
NOT_COMPARED = {"started", "device", "latency_ms", "wall_clock_speedup", "overhead_fraction", "episodes_per_second",
                "environment_steps_per_second"}  # fmt: skip

TIMING = {"counted_latency_ms", "delay_steps_mean", "delay_steps_max", "stale_steps_mean", "stale_fraction",
          "seam_mean", "seam_p95", "missed_deadlines", "missed_fraction", "control_frequency_hz",
          "jitter_ms"}  # fmt: skip


def words(checkpoint: Path, out: Path, fault: str = "None", specs: Sequence[str] = SPECS, **options: Any) -> list[str]:
    env = f"faulty_envs:faulty/{fault}-v0"
    values = {"policy": checkpoint, "env": env, "out": out, "episodes": EPISODES, **options}
    pairs = [
        (f"--{name.replace('_', '-')}", *(() if value is True else (str(value),))) for name, value in values.items()
    ]
    return ["eval", *itertools.chain(*pairs), "--samplers", *specs]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULTS).read_text())


def untimed(value: Any) -> Any:
    """Drop from results what depends on the clock or the machine's load."""
    if isinstance(value, dict):
        return {key: untimed(entry) for key, entry in value.items() if key not in NOT_COMPARED}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def lines_of(folder: Path) -> list[str]:
    """Read the episodes of a journal by sampler and index, without their times."""
    found = find_run(folder)
    assert found is not None
    objects = [episode.to_json() for episode in sorted(found.episodes, key=lambda each: (each.spec, each.index))]
    for each in objects:
        each["plans"] = [{key: plan[key] for key in plan if key not in TIMES} for plan in each["plans"]]
    return [json.dumps(each) for each in objects]


@pytest.fixture(scope="module")
def uninterrupted(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert cli.run(words(small_checkpoint, out)) == 0
    return out


@pytest.fixture(scope="module")
def side_by_side(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("side-by-side") / "out"
    assert cli.run(words(small_checkpoint, out, envs=2)) == 0
    return out


@pytest.fixture
def threads() -> Iterator[int]:
    """Those of torch, which commands with workers change."""
    count = torch.get_num_threads()
    yield count
    torch.set_num_threads(count)


def test_two_runs_are_the_same(small_checkpoint: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """But for times; and so is one of fewer episodes that was taken further."""
    assert cli.run(words(small_checkpoint, tmp_path, episodes=5)) == 0
    assert not results_of(tmp_path)["interrupted"]
    assert cli.run(words(small_checkpoint, tmp_path, resume=True)) == 0
    assert lines_of(tmp_path) == lines_of(uninterrupted)
    assert untimed(results_of(tmp_path)) == untimed(results_of(uninterrupted))
    assert results_of(tmp_path)["complete"]


def test_a_choice_is_kept(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on does so with what `asd` chose at first, and is the run of the sampler that was chosen."""
    first, again = tmp_path / "first", tmp_path / "again"
    monkeypatch.setattr(choice, "shortlist", lambda *_: [choice.Setting(8, *choice.DEFAULT.pair)])
    assert cli.run(words(small_checkpoint, first, specs=["asd"], episodes=2)) == 0
    monkeypatch.setattr(choice, "shortlist", lambda *_: [choice.Setting(2, *choice.DEFAULT.pair)])
    assert cli.run(words(small_checkpoint, first, specs=["asd"], resume=True)) == 0
    (found,) = results_of(first)["samplers"]
    assert found["spec"] == "asd:window=auto,draft=auto,verify=auto"
    assert found["ran"].startswith("asd:window=8,")
    assert cli.run(words(small_checkpoint, again, specs=[found["ran"]])) == 0
    assert [line.replace(found["spec"], found["ran"]) for line in lines_of(first)] == lines_of(again)
    (wanted,) = results_of(again)["samplers"]
    assert untimed({**found, "spec": found["ran"]}) == untimed(wanted)


def test_after_tune_nothing_is_timed(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So `asd` chooses alike in every run."""
    assert cli.run(["tune", "--policy", str(small_checkpoint), "--plans", "8", "--backends", "torch-eager"]) == 0
    monkeypatch.delattr(choice, "_time_call")
    monkeypatch.delattr(choice, "shortlist")
    for run in ("one", "two"):
        assert cli.run(words(small_checkpoint, tmp_path / run, specs=["asd"], episodes=2)) == 0
    assert untimed(results_of(tmp_path / "one")) == untimed(results_of(tmp_path / "two"))
    assert lines_of(tmp_path / "one") == lines_of(tmp_path / "two")
    assert results_of(tmp_path / "one")["tuning"]


def test_killed_and_resumed(small_checkpoint: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """By SIGKILL at random moments, one of them in the middle of a line: nothing is lost, nothing is there twice."""
    rng = random.Random(0)
    command = [sys.executable, "-m", "asd_policy.cli", *words(small_checkpoint, tmp_path, resume=True)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    journal, kills = tmp_path / NAME, 0
    for episodes in (1, 7, 13):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while not journal.exists() or journal.read_bytes().count(b"\n") <= episodes:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        before = find_run(tmp_path)
        assert before is not None
        assert len(before.episodes) >= episodes
    assert kills == 3
    journal.write_bytes(journal.read_bytes() + b'{"spec": "ddim:2,eta=0", "index": 11, "succ')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path) == lines_of(uninterrupted)
    assert untimed(results_of(tmp_path)) == untimed(results_of(uninterrupted))


@pytest.mark.parametrize("options", [{}, {"envs": 2}, {"envs": 2, "workers": 2}])
def test_interrupted_from_a_terminal(
    options: dict[str, Any],
    small_checkpoint: Path,
    tmp_path: Path,
    threads: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sends Ctrl-C to all processes. What is done is kept, nothing is left running, and --resume does the rest."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for Ray's workers, which import faulty_envs
    process = subprocess.Popen(
        [sys.executable, "-m", "asd_policy.cli", *words(small_checkpoint, tmp_path, **options, episodes=100_000)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in a shell's background, children ignore Ctrl-C unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / NAME
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") <= 3:
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert bool(family) == bool(options)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    assert re.search(r"interrupted: \d+ of 200000 episodes are kept in .*; --resume goes on", said)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    kept = results_of(tmp_path)
    # Of three in the journal, the last may have been in no results yet.
    assert kept["interrupted"] and sum(sampler["episodes"] for sampler in kept["samplers"]) >= 2
    assert cli.run(words(small_checkpoint, tmp_path, **options, resume=True)) == 0
    whole = results_of(request.getfixturevalue("side_by_side" if options else "uninterrupted"))
    assert untimed(results_of(tmp_path)) == {**untimed(whole), "workers": options.get("workers", 1)}


def test_a_folder_that_holds_a_run(
    small_checkpoint: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused in a line that says what to do, and left as it is."""

    def refusal(**options: Any) -> str:
        assert cli.run(words(small_checkpoint, options.pop("out", uninterrupted), **options)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    before = (uninterrupted / NAME).read_bytes(), (uninterrupted / RESULTS).read_bytes()
    assert "holds a run: --resume goes on with it, --overwrite replaces it" in refusal()
    assert "--resume cannot go on with: seed is 0 there, 1 here;" in refusal(resume=True, seed=1)
    assert "envs is 1 there, 2 here" in refusal(resume=True, envs=2)
    assert "env is" in refusal(resume=True, fault="Raise")
    assert "give one of them" in refusal(resume=True, overwrite=True)
    assert "--until-ci 0.7 is not between 0 and 0.5" in refusal(until_ci=0.7)
    assert "--envs 0 is not 1 or more" in refusal(envs=0)
    assert before == ((uninterrupted / NAME).read_bytes(), (uninterrupted / RESULTS).read_bytes())
    (tmp_path / RESULTS).write_text("{}")
    assert "holds the results.json of another run: --overwrite it, or name another --out" in refusal(out=tmp_path)


def test_failed_episodes(small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are counted as no success, and the exit status says so."""
    assert cli.run(words(small_checkpoint, tmp_path, fault="Raise", episodes=6)) == 1
    results = results_of(tmp_path)
    assert results["complete"]
    assert not results["interrupted"]
    for sampler in results["samplers"]:
        assert sampler["episodes"] == 6
        assert 0 < sampler["failed"] < 6
        assert sampler["success_rate"] == pytest.approx(1 - sampler["failed"] / 6)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 12 episodes failed; " in last
    assert "the environment raised RuntimeError: the gripper fell off" in last


def test_an_environment_that_cannot_begin(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words(small_checkpoint, tmp_path / "out", fault="Stuck")) == 2
    assert "asd-policy: the environment raised RuntimeError: the door is stuck" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_until_the_interval_is_narrow(small_checkpoint: Path, tmp_path: Path) -> None:
    """Wilson's interval of n successes in n is [n/(n + z²), 1]: narrower than ± 0.2 from n = 6 on; groups are of 4."""
    options = {"until_ci": 0.2, "episodes": 40, "envs": 4}
    assert cli.run(words(small_checkpoint, tmp_path, **options)) == 0
    results = results_of(tmp_path)
    assert (results["episodes"], results["until_ci"], results["complete"]) == (8, 0.2, True)
    assert [sampler["episodes"] for sampler in results["samplers"]] == [8, 8]
    low, high = results["samplers"][0]["success_ci95"]
    assert high - low <= 0.4
    assert len(lines_of(tmp_path)) == 16


def test_by_a_clock(small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the same, in one go and in two; another clock is another run; the record and the page say what it was."""
    trace, other = tmp_path / "trace.txt", tmp_path / "other.txt"
    trace.write_text("40\n250\n")
    other.write_text("40\n251\n")
    options = {"clock": "async", "hz": 10, "latency": trace, "episodes": 4}
    assert cli.run(words(small_checkpoint, tmp_path / "whole", **options)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "clock async, 10 Hz, latency" in said
    assert "note:" not in said  # the environment tells no rate of its own
    assert cli.run(words(small_checkpoint, tmp_path / "parts", **{**options, "episodes": 2})) == 0
    assert cli.run(words(small_checkpoint, tmp_path / "parts", **options, resume=True)) == 0
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    results = results_of(tmp_path / "whole")
    assert untimed(results_of(tmp_path / "parts")) == untimed(results)
    kept = {key: results[key] for key in ("clock", "hz", "env_hz", "latency")}
    assert kept == {"clock": "async", "hz": 10.0, "env_hz": None, "latency": str(trace)}
    for sampler in results["samplers"]:
        assert set(sampler["timing"]) == TIMING
        assert sampler["timing"]["counted_latency_ms"]["max"] == 250
        assert sampler["timing"]["delay_steps_max"] == 3
    page = (tmp_path / "whole" / "report.html").read_text()
    assert 'id="timing"' in page
    assert f"--clock async \\\n  --hz 10.0 \\\n  --latency {trace}" in page
    capsys.readouterr()
    for change, message in (
        ({"clock": "sync"}, 'clock is "async" there, "sync" here'),
        ({"hz": 20}, "hz is 10.0 there, 20.0 here"),
        ({"continuity": "inpaint"}, 'continuity is "none" there, "inpaint" here'),
        ({"latency": 40}, "latency_sha256 differs"),
        ({"latency": other}, "latency_sha256 differs"),
    ):
        assert cli.run(words(small_checkpoint, tmp_path / "whole", **{**options, **change}, resume=True)) == 2
        assert message in capsys.readouterr().err


def test_without_a_clock_nothing_is_said_of_one(uninterrupted: Path) -> None:
    results = results_of(uninterrupted)
    assert (results["clock"], results["hz"], results["latency"]) == ("none", None, None)
    assert {sampler["timing"] for sampler in results["samplers"]} == {None}
    assert 'id="timing"' not in (uninterrupted / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "sync", "hz": 0}, "--hz 0 is not a number of control steps in a second in 0.001 … 1e+06"),
        ({"clock": "async", "hz": -50}, "--hz -50 is not a number of control steps"),
        ({"clock": "async", "hz": "nan"}, "--hz nan is not a number of control steps"),
        ({"clock": "sync", "hz": 50, "latency": -3}, "--latency -3 is not a number of milliseconds in 0 … 1e+09"),
        ({"clock": "sync", "hz": 50, "latency": ""}, "--latency '' is neither 'measured', nor a number of"),
        ({"clock": "sync", "hz": 50, "latency": "nowhere"}, "nor a file that can be read: No such file or directory"),
        ({"clock": "sync"}, "does not tell its control frequency, which --clock sync needs: give --hz"),
        ({"hz": 50}, "--hz is for --clock sync or async; without a clock the environment waits for plans"),
        ({"latency": 20}, "--latency is for --clock sync or async"),
        ({"continuity": "soft"}, "--continuity soft is for --clock async"),
        ({"clock": "sync", "hz": 50, "continuity": "inpaint"}, "--continuity inpaint is for --clock async"),
        ({"clock": "async", "hz": 50, "continuity": "hard"}, "'hard' is not one of none, inpaint, soft"),
        ({"clock": "later"}, "--clock 'later' is not one of none, sync, async"),
    ],
)
def test_clocks_that_are_refused(
    options: dict[str, Any], message: str, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and nothing is written."""
    assert cli.run(words(small_checkpoint, tmp_path / "out", **options)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_deadline_cuts_plans_and_says_so(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves by 10 ms with every network call: four steps and a jump fit into 55 ms."""
    now, call = [0.0], Target.call

    def slowed(self: Target, *arguments: Any) -> Any:
        now[0] += 0.01
        return call(self, *arguments)

    monkeypatch.setattr(Target, "call", slowed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    options = {"episodes": 2, "deadline_ms": 55, "fallback": "jump"}
    assert cli.run(words(small_checkpoint, tmp_path, specs=("ddpm", "ddim:2"), **options)) == 0
    results = results_of(tmp_path)
    assert (results["deadline_ms"], results["fallback"]) == (55, "jump")
    ddpm, ddim = results["samplers"]
    assert (ddpm["exact"], ddpm["cut_plans"], ddpm["rounds_mean"]) == (False, ddpm["plans"], 5)
    assert (ddim["exact"], ddim["cut_plans"]) == (False, 0)
    found = find_run(tmp_path)
    assert found is not None
    assert all(plan.cut and not plan.exact for each in found.episodes if each.spec == "ddpm" for plan in each.plans)
    told = capsys.readouterr().err
    assert f"ddpm ≈: {ddpm['plans']} of {ddpm['plans']} plans cut at 55 ms and finished by jump (approximate)" in told
    assert "--deadline-ms 55" in (tmp_path / "report.html").read_text()
    assert cli.run(words(small_checkpoint, tmp_path, specs=("ddpm", "ddim:2"), episodes=2, resume=True)) == 2
    assert "deadline_ms" in capsys.readouterr().err


def test_the_floor_is_known_for_every_batch_before_the_first_episode(small_checkpoint: Path) -> None:
    """So that no batch that comes up later is timed within a plan, or refused in the middle of a run."""
    policy = asd_policy.load_policy(small_checkpoint).with_deadline(1e4)
    env = make_env("asd/Avoid-v0")
    (planner,) = prepare_planners(policy, env, [make_sampler("ddpm")], batch=3)
    env.close()
    times = [planner.experience.pace.least(("jump", batch)) for batch in range(1, 5)]
    assert all(seconds < 10 for seconds in times[:3])
    assert times[3] == math.inf


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deadline_ms": 0}, "deadline_ms=0 is not a positive number of milliseconds"),
        ({"deadline_ms": 5, "fallback": "guess"}, "fallback=guess is not one of jump, last_plan"),
        ({"fallback": "guess"}, "fallback=guess is not one of jump, last_plan"),
        ({"fallback": "last_plan"}, "--fallback last_plan is for --deadline-ms; without a deadline no plan is cut"),
        (
            {"deadline_ms": 50, "clock": "sync", "hz": 20, "latency": 40},
            "--latency 40 counts another time: give one of them",
        ),
        ({"deadline_ms": 1e-3}, "deadline_ms=0.001 is shorter than one network call, which takes"),
    ],
)
def test_deadlines_that_are_refused(
    options: dict[str, Any], said: str, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words(small_checkpoint, tmp_path, **options)) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / RESULTS).exists()
