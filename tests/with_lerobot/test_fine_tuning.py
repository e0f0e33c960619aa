"""`lerobot-train` with the plugin installed is what it is without: weights, evaluations, and what it saves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import ENVIRONMENT_STATE, STATE

LeRobotDataset = pytest.importorskip("lerobot.datasets.lerobot_dataset", exc_type=ImportError).LeRobotDataset
TrainPipelineConfig = pytest.importorskip("lerobot.configs.train").TrainPipelineConfig

DIMS = {STATE: 2, ENVIRONMENT_STATE: 16, "action": 2}


def record(root: Path) -> None:
    """Have LeRobot write an episode without sense."""
    features = {
        name: {"dtype": "float32", "shape": (dim,), "names": [f"{name}{index}" for index in range(dim)]}
        for name, dim in DIMS.items()
    }
    dataset = LeRobotDataset.create("local/recording", 10, features, root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(24):
        step = {name: rng.uniform(0, 512, dim).astype(np.float32) for name, dim in DIMS.items()}
        dataset.add_frame({**step, "task": "push"})
    dataset.save_episode()
    dataset.finalize()


EVALUATES = (
    "env_eval_freq" if "env_eval_freq" in TrainPipelineConfig.__dataclass_fields__ else "eval_freq"
)  # before 0.6


def train(folder: Path, recording: Path, out: Path, path: str) -> str:
    """Fine-tune for two steps, with an evaluation; return LeRobot's log."""
    program = str(Path(sys.executable).with_name("lerobot-train"))
    words = [
        *(f"--policy.{option}" for option in (f"path={folder}", "push_to_hub=false", "device=cpu")),
        *("--dataset.repo_id=local/recording", f"--dataset.root={recording}", f"--output_dir={out}"),
        *("--steps=2", "--save_freq=2", "--batch_size=2", "--num_workers=0", "--wandb.enable=false"),
        *("--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--env.episode_length=10"),
        *(f"--{EVALUATES}=2", "--eval.n_episodes=2", "--eval.batch_size=1"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASD_POLICY_SAMPLER")}
    ahead = os.pathsep.join(each for each in (path, os.environ.get("PYTHONPATH")) if each)
    environment |= {"HF_HUB_OFFLINE": "1", "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": ahead}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_nothing_of_it_is_touched(folder: Path, tmp_path: Path) -> None:
    """A package of the plugin's name that does nothing but leave a mark stands for LeRobot without it."""
    nothing = tmp_path / "nothing" / "lerobot_policy_asd"
    nothing.mkdir(parents=True)
    mark = tmp_path / "imported"
    (nothing / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()")
    record(tmp_path / "recording")
    logs, saved = [], []
    for name, path in (("with", ""), ("without", str(nothing.parent))):
        logs.append(train(folder, tmp_path / "recording", tmp_path / name, path))
        saved.append(tmp_path / name / "checkpoints" / "000002" / "pretrained_model")
    assert mark.exists()
    assert "plans with asd" not in logs[0]
    rewards = [re.findall(r"'sum_rewards': (\[.*?\])", log) for log in logs]
    assert rewards[0] and rewards[0] == rewards[1]
    weights = [load_file(each / "model.safetensors") for each in saved]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert [json.loads((each / "config.json").read_text())["type"] for each in saved] == ["diffusion"] * 2
