"""Episodes on Ray workers: the same as in this process, also when workers die; nothing stays behind."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from asd_policy import cli
from asd_policy.checkpoints import load_policy
from asd_policy.errors import BackendError, CheckpointError, SpecError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout import ray_local
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import find_run
from asd_policy.evaluation.rollout.ray_local import local_folder
from asd_policy.evaluation.rollout.ray_runner import RayRunner, Recipe, Workers
from asd_policy.evaluation.rollout.runner import LocalRunner, groups
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd import autotune as choice

ENV = "asd/Avoid-v0"
SPECS = ("ddim:2", "asd:window=5,draft=response,verify=block")
EPISODES, ENVS, SEED = 8, 2, 3
PATIENCE = 300  # [s] with a machine that is busy; one that is not needs a tenth


def signature(episode: Episode) -> Any:
    """Drop an episode's times."""
    record = episode.to_json()
    for plan in record["plans"]:
        del plan["seconds"], plan["network_seconds"]
    return record


@pytest.fixture(scope="module")
def planners(small_checkpoint: Path) -> dict[str, Policy]:
    env = make_env(ENV)
    found = closed_loop.prepare_planners(load_policy(small_checkpoint), env, [make_sampler(spec) for spec in SPECS])
    env.close()
    return dict(zip(SPECS, found, strict=True))


@pytest.fixture(scope="module")
def here(planners: dict[str, Policy]) -> list[Any]:
    """The episodes that this process runs, by sampler and index."""
    runner = LocalRunner(planners, make_envs(partial(make_env, ENV), ENVS), SEED)
    episodes = list(runner.run(groups(SPECS, EPISODES, ENVS)))
    runner.close()
    return in_order(episodes)


def in_order(episodes: Sequence[Episode]) -> list[Any]:
    return [signature(episode) for episode in sorted(episodes, key=lambda e: (e.spec, e.index))]


def test_a_killed_worker_changes_nothing(
    planners: dict[str, Policy], here: list[Any], small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is killed at its first groups and one later, each with the processes of its environments left behind."""
    recipe = Recipe.of(str(small_checkpoint), "cpu", planners, ENV, ENVS, SEED)
    with contextlib.closing(RayRunner(Workers.parse("2"), recipe)) as runner:
        victim, *_ = first = runner.processes()
        assert runner.count == len(set(first)) == 2
        episodes, orphans = [], []
        for episode in runner.run(groups(SPECS, EPISODES, ENVS)):
            episodes.append(episode)
            if len(episodes) in (1, 5):
                orphans += psutil.Process(victim).children(recursive=True)
                os.kill(victim, signal.SIGKILL)
                (victim,) = set(runner.processes()) - set(first)
        assert in_order(episodes) == here
        _, alive = psutil.wait_procs(orphans, timeout=60)
        assert orphans and not alive
        assert subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode == 3  # Ray left signals alone
    assert capsys.readouterr().out == ""  # stdout is for results


def test_an_error_comes_back_as_it_is(planners: dict[str, Policy], tmp_path: Path) -> None:
    """One that a worker meets, such as a checkpoint that its machine does not have."""
    with pytest.raises(CheckpointError, match="nothing"):
        RayRunner(Workers.parse("1"), Recipe.of(str(tmp_path / "nothing"), "cpu", planners, ENV, 1, SEED))
    assert not left_behind()


def test_workers_without_room(planners: dict[str, Policy], small_checkpoint: Path) -> None:
    """They are refused, and not waited for."""
    recipe = Recipe.of(str(small_checkpoint), "cuda:1", planners, ENV, ENVS, SEED)
    with pytest.raises(BackendError, match=r"no room for 1 workers of 1 CPU and 1000 GPUs \(--gpus-per-worker\) each"):
        RayRunner(Workers.parse("1"), recipe, gpus_per_worker=1000)


@pytest.mark.parametrize(
    ("text", "workers"),
    [
        ("3", Workers(None, 3)),
        ("ray", Workers(None, len(os.sched_getaffinity(0)))),
        ("ray://head:10001", Workers("ray://head:10001", None)),
    ],
)
def test_workers(text: str, workers: Workers) -> None:
    assert Workers.parse(text) == workers


@pytest.mark.parametrize("text", ["0", "-1", "two", "ray:", "ray://", "1.5", ""])
def test_workers_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match=r"is not a number from 1 on, ray or ray://host:port"):
        Workers.parse(text)


def test_without_ray(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = eval_words(small_checkpoint, tmp_path / "out", "2")
    assert cli.run(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "asd-policy: --workers needs ray: pip install 'asd-policy[ray]'"
    assert not (tmp_path / "out").exists()


def test_no_cluster_at_the_address(planners: dict[str, Policy], small_checkpoint: Path) -> None:
    recipe = Recipe.of(str(small_checkpoint), "cpu", planners, ENV, ENVS, SEED)
    with pytest.raises(BackendError, match="Ray does not start ray://no-scheme-like-this.*RAY_AUTH_MODE=token"):
        RayRunner(Workers("ray://no-scheme-like-this:bad", None), recipe)


def eval_words(checkpoint: Path, out: Path, workers: str | None = None, env: str = ENV) -> list[str]:
    words = ["eval", "--policy", str(checkpoint), "--env", env, "--samplers", "ddpm", SPECS[1]]
    words += ["--episodes", "3", "--out", str(out)]
    return words if workers is None else [*words, "--workers", workers]


def episodes_of(out: Path) -> list[Any]:
    """Read the episodes of a run by sampler and index."""
    found = find_run(out)
    assert found is not None
    return in_order(found.episodes)


def timeless(value: Any) -> Any:
    """Drop from a results.json what depends on times, and on who ran it."""
    timed = {
        "started", "device", "workers", "wall_clock_speedup", "overhead_fraction", "latency_ms",
        "episodes_per_second", "environment_steps_per_second",
    }  # fmt: skip
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in timed}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def test_the_command_gives_the_same_results(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock, in a folder whose path is longer than a socket's may be, and with nothing left behind."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for Ray's workers, which import faulty_envs
    env = "faulty_envs:faulty/None-v0"  # whose episodes are of several plans
    threads = torch.get_num_threads()
    trace = tmp_path / "trace.txt"
    trace.write_text("40\n250\n330\n")
    clock = ["--clock", "async", "--hz", "10", "--latency", str(trace), "--continuity", "inpaint"]
    results, episodes = [], []
    for workers in (None, "2"):
        out = tmp_path / ("long" * 30) / str(workers)
        assert cli.run([*eval_words(small_checkpoint, out, workers, env), *clock, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
        assert json.loads((out / "results.json").read_text()) == results[-1]
        episodes.append(episodes_of(out))
    torch.set_num_threads(threads)
    assert [result["workers"] for result in results] == [1, 2]
    assert {sampler["timing"]["delay_steps_max"] for sampler in results[0]["samplers"]} == {4}
    assert timeless(results[0]) == timeless(results[1])
    assert episodes[0] == episodes[1]
    assert not left_behind()


def test_workers_run_what_was_chosen(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Times are measured once, here, and not by each worker for itself."""
    asked: list[int] = []
    monkeypatch.setattr(choice, "shortlist", lambda *_: asked.append(1) or [choice.Setting(6, *choice.DEFAULT.pair)])
    threads = torch.get_num_threads()
    words = ["eval", "--policy", str(small_checkpoint), "--env", ENV, "--samplers", "asd", "--envs", "2"]
    assert cli.run([*words, "--episodes", "4", "--workers", "2", "--out", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    found = find_run(tmp_path)
    assert found is not None
    assert {plan.window for episode in found.episodes for plan in episode.plans} == {6}
    assert "asd ran as asd:window=6," in capsys.readouterr().err
    assert len(asked) <= 3  # before and after some plans, and for plans together; not in the workers


def left_behind() -> list[psutil.Process]:
    """List what of Ray has not ended after a moment: its processes see each for itself that it is over."""
    return psutil.wait_procs(ray_processes(), timeout=60)[1]


def ray_processes() -> list[psutil.Process]:
    """List what runs of Ray below this process."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # those have ended
            # A path alone: the program of multiprocessing's fork server names all of sys.path, where Ray adds its own.
            if any(
                word.startswith("ray::") or ("-packages/ray/" in word and " " not in word) for word in each.cmdline()
            ):
                found.append(each)
    return found


def test_a_local_ray_is_for_its_user_alone(
    planners: dict[str, Policy], small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens on loopback, in a folder of its user, with a token of its own, and nobody is asked for a cloud."""
    monkeypatch.setenv("HOME", str(tmp_path))
    constants = pytest.importorskip("ray._private.ray_constants")
    monkeypatch.setattr(constants, "ENABLE_RAY_CLUSTER", True)  # as where the user has imported Ray before
    monkeypatch.delenv(constants.ENABLE_RAY_CLUSTERS_ENV_VAR, raising=False)
    before = dict(os.environ)
    recipe = Recipe.of(str(small_checkpoint), "cpu", planners, ENV, 1, SEED)
    with contextlib.closing(RayRunner(Workers.parse("1"), recipe)):
        processes = [psutil.Process(), *ray_processes()]
        sockets = [each for process in processes for each in process.net_connections() if each.status == "LISTEN"]
        assert sockets and {each.laddr.ip for each in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert not any("dashboard.py" in word for process in processes for word in process.cmdline())
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert not token.parent.exists()
    assert constants.ENABLE_RAY_CLUSTER and constants.ENABLE_RAY_CLUSTERS_ENV_VAR not in os.environ
    assert {name for name in os.environ if "AUTH" in name} == {name for name in before if "AUTH" in name}
    assert not (tmp_path / ".ray").exists()


def test_what_a_killed_command_left_is_ended_at_the_next_start(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends most of it by itself, but for two agents, and never its folder."""
    words = [*eval_words(small_checkpoint, tmp_path / "out", "1"), "--episodes", "100000"]
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="r"))  # where no other test would end it first
    monkeypatch.setattr(ray_local, "_PLACE", place)
    imports = "import pathlib; from asd_policy import cli; from asd_policy.evaluation.rollout import ray_local"
    there = f"{imports}; ray_local._PLACE = pathlib.Path({str(place)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = subprocess.Popen(
        [sys.executable, "-c", f"{there}; cli.main()", *words], env=environment, stderr=subprocess.DEVNULL
    )
    family: list[psutil.Process] = []
    try:
        while not (tmp_path / "out" / "episodes.jsonl").exists():
            assert command.poll() is None
            time.sleep(0.1)
        family = psutil.Process(command.pid).children(recursive=True)
        (folder,) = place.glob("asd-ray-*")
        with local_folder():
            assert folder.exists() and command.poll() is None  # one that is alive is left alone
        command.kill()
        command.wait()
        psutil.wait_procs(family, timeout=10)
        assert folder.exists()
        with (
            pytest.warns(UserWarning, match=r"ended \d+ processes of Ray that a killed command had left"),
            local_folder() as own,
        ):
            assert stat.S_IMODE(own.parent.stat().st_mode) == 0o700
        assert not folder.exists() and not own.parent.exists()
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class Cluster:
    """One of two CPUs on this machine, as its owner would start it."""

    address: str
    environment: dict[str, str]
    """Of processes that import this package from here, and show the cluster its token."""
    head: psutil.Process
    """Its children are all that makes up the cluster, but for what runs in it."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),  # of this cluster alone: the user's is another, or there is none
        "RAY_worker_niceness": "0",  # with Ray's 15 they hardly get a turn where tests run beside them
    }
    # A socket's name has room for 107 bytes, so the folder's is short.
    with tempfile.TemporaryDirectory(prefix="asd-ray-", dir="/tmp") as folder, contextlib.ExitStack() as ends:
        words = ["start", "--head", "--block", "--num-cpus=2", "--port=0", f"--ray-client-server-port={port}"]
        words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]  # not another's
        words += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        words += ["--node-ip-address=127.0.0.1", f"--object-store-memory={100 << 20}"]
        said = Path(folder) / "said.txt"
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=environment,
            stdout=ends.enter_context(said.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ends.callback(end_session, head)
        deadline = time.monotonic() + PATIENCE
        while b"Ray runtime started" not in said.read_bytes():  # the port is open before anybody serves it
            assert head.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        yield Cluster(f"ray://127.0.0.1:{port}", environment, psutil.Process(head.pid))


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started, also where it has ended by itself."""
    family = session(leader.pid)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family, timeout=30)
    leader.wait()


def session(leader: int) -> list[psutil.Process]:
    """List the processes of a session, their names noted."""
    found = []
    for each in psutil.process_iter(["name"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(each.pid) == leader:
                found.append(each)
    return found


def test_a_cluster_gives_the_same_results(cluster: Cluster, small_checkpoint: Path, tmp_path: Path) -> None:
    """One that is running, by its address; it goes on running, without what it ran."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    assert cli.run(eval_words(small_checkpoint, alone)) == 0
    torch.set_num_threads(threads)
    members = set(cluster.head.children())
    command = [sys.executable, "-m", "asd_policy.cli", *eval_words(small_checkpoint, shared, cluster.address)]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert set(cluster.head.children()) == members
    workers = [each for each in session(cluster.head.pid) if "ray::RayWorker" in each.info["name"]]
    assert not psutil.wait_procs(workers, timeout=60)[1]
    results = [json.loads((out / "results.json").read_text()) for out in (alone, shared)]
    assert [result["workers"] for result in results] == [1, 2]
    assert timeless(results[0]) == timeless(results[1])
    assert episodes_of(alone) == episodes_of(shared)
