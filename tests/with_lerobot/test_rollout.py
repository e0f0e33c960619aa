"""`lerobot-rollout` as people type it, with a robot that has no hardware: plans, events, ends; offline."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor

from conftest import STATE, make_config
from lerobot_policy_asd.settings import BACKEND, CHAIN, SAMPLER

pytest.importorskip("lerobot.rollout", reason="lerobot before 0.6 has no lerobot-rollout")

CAMERA, PIXELS, FPS, EXECUTED = "observation.images.front", 32, 20, 8
DOCUMENT = (Path(__file__).parents[2] / "docs/guide/lerobot.md").read_text()
PLAIN, COMPILED, CHUNKED = re.findall(r"^lerobot-rollout (.*)$", DOCUMENT, re.MULTILINE)
"""The document's commands: at a rate, with torch.compile, with real-time chunking."""


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


def command(folder: Path, line: str, **changes: str) -> subprocess.Popen[str]:
    """Start a command of the document's, for the fake robot."""
    place = folder.parent
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_LEROBOT_HOME": str(place / "home"),
        "TORCH_LOGS": "recompiles",
    }
    options = dict(word.split("=", 1) for word in line.replace("=PATH", f"={folder}").split())
    assert options.pop("--robot.port")
    options |= {
        "--robot.type": "fake",
        "--robot.record": str(place / "events"),
        "--robot.pixels": str(PIXELS),
        "--fps": str(FPS),
        "--duration": "2",
        "--return_to_initial_position": "false",
        **{f"--{name}": value for name, value in changes.items()},
    }
    words = [str(Path(sys.executable).with_name("lerobot-rollout")), *map("=".join, options.items())]
    return subprocess.Popen(words, cwd=place, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], folder: Path, timeout: float = 600) -> Run:
    """Wait for its end."""
    _, log = process.communicate(timeout=timeout)
    file = folder.parent / "events"
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return Run(process.returncode, log, events)


def check_end(run: Run) -> None:
    """The robot was let go by LeRobot, after its last action, and once."""
    assert [each["event"] for each in run.events].count("disconnect") == 1
    assert run.events[-1]["event"] == "disconnect"


def test_at_a_rate(robot_folder: Path) -> None:
    """A plan for every eight control steps; the network is tried before the robot is connected."""
    run = finish(command(robot_folder, PLAIN), robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert run.log.index(" policy plans with asd (asd:window=") < run.log.index("Connecting robot")
    assert EXECUTED < len(run.actions) <= 2 * FPS + 1  # as many as the machine makes in time, never more
    assert run.plans == -(-len(run.actions) // EXECUTED)
    assert all(abs(value) < 150 for each in run.actions for value in each["values"])


def test_compiled(robot_folder: Path) -> None:
    """All is compiled before the robot is connected; nothing is again."""
    run = finish(command(robot_folder, COMPILED), robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert "without mode='reduce-overhead'" in run.log
    assert "torch.compile configured for predict_action_chunk" in run.log
    assert run.plans == -(-len(run.actions) // EXECUTED)
    assert "Recompiling" not in run.log[run.log.index("Connecting robot") :]


def test_real_time_chunking(robot_folder: Path) -> None:
    run = finish(command(robot_folder, CHUNKED), robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert "RTC inference error" not in run.log
    assert "did not join" not in run.log
    assert EXECUTED < len(run.actions) <= 2 * FPS + 1
    assert run.plans > 2
    assert run.log.count("it stands for all 2 (n_obs_steps)") == 1


def test_the_robot_goes_on_as_it_was_bound_to(
    robot_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot's threads, with plans that take two control steps, and a reset from the other thread in between."""
    from lerobot.rollout import RolloutConfig, build_rollout_context, create_strategy
    from lerobot.rollout.inference.factory import RTCInferenceConfig
    from lerobot_robot_fake import FakeConfig

    monkeypatch.setattr(sys, "argv", ["lerobot-rollout"])
    policy_config: Any = PreTrainedConfig.from_pretrained(robot_folder)
    policy_config.pretrained_path = robot_folder
    policy_config.n_action_steps = 15  # all that a plan has
    robot = FakeConfig(record=tmp_path / "events", calibration_dir=tmp_path)
    inference = RTCInferenceConfig(queue_threshold=6)
    run: dict[str, Any] = {"fps": FPS, "duration": 4, "device": "cpu", "return_to_initial_position": False}
    config = RolloutConfig(robot=robot, policy=policy_config, inference=inference, **run)
    context = build_rollout_context(config, Event())
    policy: Any = context.policy.policy
    own, asked = policy.predict_action_chunk, list[tuple[int, Tensor | None, Tensor]]()
    times: list[float] = []

    def plan(batch: dict[str, Tensor], **given: Any) -> Tensor:
        time.sleep(1.5 / FPS)
        times.append(time.monotonic())
        actions = own(batch, **given)
        asked.append((given["inference_delay"], given["prev_chunk_left_over"], actions))
        return actions

    policy.predict_action_chunk = plan
    strategy = create_strategy(config.strategy)
    strategy.setup(context)
    reset, reset_at = Timer(2, context.policy.inference.reset), time.monotonic() + 2
    reset.start()
    strategy.run(context)
    reset.join()
    strategy.teardown(context)
    assert not context.policy.inference.failed
    given = 0
    for delay, left, actions in asked:
        assert not actions.requires_grad
        if left is not None:
            count = min(delay, int((left != 0).any(-1).sum()))
            assert torch.equal(actions[0, :count], left[:count])
            given += count
    assert given > 0
    assert asked[0][1] is None
    assert times[-1] > reset_at  # it plans on
    assert len(asked) == policy.asd_stats.plans


def test_interrupted(robot_folder: Path) -> None:
    """By Ctrl-C; what plans cost is said at the end as ever."""
    process = command(robot_folder, PLAIN, duration="600")
    events, deadline = robot_folder.parent / "events", time.monotonic() + 600
    while not (events.exists() and '"act"' in events.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    run = finish(process, robot_folder)
    assert run.code == 0, run.log
    check_end(run)
    assert run.plans >= 1
    assert "Traceback" not in run.log


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_a_plan_that_fails(robot_folder: Path, inference: str) -> None:
    """Its inputs are NaN from some observation on: the robot is let go, and the message says what is wrong."""
    changes = {"inference.type": inference, "robot.broken_at": "20", "duration": "60"}
    run = finish(command(robot_folder, PLAIN, **changes), robot_folder)
    check_end(run)
    assert run.actions
    assert all(math.isfinite(value) for each in run.actions for value in each["values"])
    assert "the network returned NaN or infinity" in run.log
    assert run.plans >= 1
