"""`lerobot-rollout` as people type it, with a robot that has no hardware: plans, events, ends; offline."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

from conftest import STATE, make_config
from lerobot_policy_asd.settings import BACKEND, CHAIN, SAMPLER

pytest.importorskip("lerobot.rollout", reason="lerobot before 0.6 has no lerobot-rollout")

CAMERA, PIXELS, FPS, EXECUTED = "observation.images.front", 32, 20, 8
PLUGIN = ["--policy.path={folder}"]
OWN_TYPE = ["--policy.type=asd_diffusion", "--policy.pretrained_path={folder}"]


def save(policy: Any, path: Path) -> Path:
    """What LeRobot saves of a trained policy."""
    policy.save_pretrained(path)
    statistics = {name: {"min": torch.full((2,), -100.0), "max": torch.full((2,), 100.0)} for name in (STATE, "action")}
    statistics[CAMERA] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=statistics):
        pipeline.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell that has set none of the variables."""
    for name in (SAMPLER, CHAIN, BACKEND):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def robot_folder(tmp_path: Path) -> Path:
    """A policy for the fake robot: two joints and a camera."""
    torch.manual_seed(0)
    features = {
        STATE: PolicyFeature(FeatureType.STATE, (2,)),
        CAMERA: PolicyFeature(FeatureType.VISUAL, (3, PIXELS, PIXELS)),
    }
    return save(DiffusionPolicy(make_config(input_features=features, down_dims=(8,))), tmp_path / "trained")


@dataclass(frozen=True)
class Run:
    """What came of a command."""

    code: int
    log: str
    events: list[dict[str, Any]]
    """Of the robot."""

    @property
    def actions(self) -> list[dict[str, Any]]:
        """Those that the robot was given."""
        return [each for each in self.events if each["event"] == "act"]

    @property
    def plans(self) -> int:
        """As the line at exit counts them."""
        found = re.search(r"(\d+) plans, [\d.]+ sequential network calls each in place of 12", self.log)
        assert found, self.log
        return int(found[1])


def command(folder: Path, policy: list[str], *options: str) -> subprocess.Popen[str]:
    """Start it."""
    place = folder.parent
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_LEROBOT_HOME": str(place / "home"),
        "TORCH_LOGS": "recompiles",
    }
    words = [
        str(Path(sys.executable).with_name("lerobot-rollout")),
        *(word.format(folder=folder) for word in policy),
        "--policy.device=cpu",
        "--robot.type=fake",
        f"--robot.record={place / 'events'}",
        f"--robot.pixels={PIXELS}",
        f"--fps={FPS}",
        "--duration=2",
        "--return_to_initial_position=false",
        *options,
    ]
    return subprocess.Popen(words, cwd=place, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], folder: Path, timeout: float = 300) -> Run:
    """Wait for its end."""
    _, log = process.communicate(timeout=timeout)
    file = folder.parent / "events"
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return Run(process.returncode, log, events)


def check_end(run: Run) -> None:
    """The robot was let go by LeRobot, after its last action, and once."""
    assert [each["event"] for each in run.events].count("disconnect") == 1
    assert run.events[-1]["event"] == "disconnect"


@pytest.mark.parametrize("policy", [PLUGIN, OWN_TYPE], ids=["installed", "asd_diffusion"])
def test_at_a_rate(robot_folder: Path, policy: list[str]) -> None:
    """A plan for every eight control steps, none of them waited for its network to be tried."""
    run = finish(command(robot_folder, policy), robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert " policy plans with asd (asd:window=" in run.log, run.log
    assert FPS <= len(run.actions) <= 2 * FPS + 1  # fewer on a machine that is slow, more never
    assert run.plans == -(-len(run.actions) // EXECUTED)
    assert all(abs(value) < 150 for each in run.actions for value in each["values"])
    assert run.log.index("policy plans with asd") < run.log.index("Connecting robot")


def test_compiled(robot_folder: Path) -> None:
    """All is compiled before the robot is connected; nothing is again."""
    run = finish(command(robot_folder, OWN_TYPE, "--use_torch_compile=true"), robot_folder, 600)
    assert run.code == 0, run.log
    check_end(run)
    assert "without mode='reduce-overhead'" in run.log
    assert run.plans == -(-len(run.actions) // EXECUTED)
    assert "Recompiling" not in run.log[run.log.index("Connecting robot") :]


@pytest.mark.parametrize("policy", [PLUGIN, OWN_TYPE], ids=["installed", "asd_diffusion"])
def test_real_time_chunking(robot_folder: Path, policy: list[str]) -> None:
    run = finish(command(robot_folder, policy, "--inference.type=rtc"), robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert "RTC inference error" not in run.log
    assert "did not join" not in run.log
    assert FPS / 2 <= len(run.actions) <= 2 * FPS + 1
    assert run.plans > 2
    assert run.log.count("it stands for all 2 (n_obs_steps)") == 1


def test_interrupted(robot_folder: Path) -> None:
    """By Ctrl-C; what plans cost is said at the end as ever."""
    process = command(robot_folder, PLUGIN, "--duration=600")
    events, deadline = robot_folder.parent / "events", time.monotonic() + 200
    while not (events.exists() and '"act"' in events.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    run = finish(process, robot_folder, 60)
    assert run.code == 0, run.log
    check_end(run)
    assert run.plans >= 1
    assert "Traceback" not in run.log


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_a_plan_that_fails(robot_folder: Path, inference: str) -> None:
    """Its inputs are NaN from some observation on: the robot is let go, and the message says what is wrong."""
    options = (f"--inference.type={inference}", "--robot.broken_at=20", "--duration=60")
    run = finish(command(robot_folder, PLUGIN, *options), robot_folder, 120)
    check_end(run)
    print(run.log)
    assert all(value == value for each in run.actions for value in each["values"])
