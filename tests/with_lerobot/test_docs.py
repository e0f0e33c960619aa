"""What docs/guide/lerobot.md tells people to type works, with a small policy and short episodes, offline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/guide/lerobot.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
PYTHON = [block for block in BLOCKS if "dit." not in block]
"""The others are of multi_task_dit, and run in test_multi_task_dit_policy.py."""
COMMANDS = re.findall(r"^(lerobot-eval .*)$", DOCUMENT, re.MULTILINE)
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")]
SMALLER = {"--eval.n_episodes": "2", "--eval.batch_size": "2", "--env.episode_length": "20"}


def run(words: list[str], folder: Path) -> str:
    """Run with LeRobot's Hub access off, from a folder; return what it printed."""
    user = {name: value for name, value in os.environ.items() if name != "ASD_POLICY_SAMPLER"}
    offline = {**user, "HF_HUB_OFFLINE": "1", "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run(words, cwd=folder, env=offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_document(folder: Path) -> None:
    """Its blocks build on one another: save under the new type; wrap, look, undo; evaluate in all three ways."""
    assert (len(PYTHON), len(COMMANDS)) == (4, 3)
    place = folder.parent
    folder.rename(place / "PATH")
    printed = run([sys.executable, "-c", "".join(PYTHON)], place)
    assert "SpeculationStats(plans=(PlanCost(rounds=" in printed
    assert json.loads((place / "COPY/config.json").read_text())["sampler"] == "asd:window=8"
    for number, command in enumerate(COMMANDS):
        words = dict(word.split("=", 1) for word in command.split()[1:]) | SMALLER | {"--output_dir": f"out{number}"}
        program = str(Path(sys.executable).with_name("lerobot-eval"))
        printed = run([program, *(f"{name}={value}" for name, value in words.items())], place)
        assert len(re.findall(r"diffusion policy plans with asd", printed)) == 1
        assert (
            len(re.findall(r"diffusion policy: \d+ plans, .* in place of 12; .* where LeRobot's loop took", printed))
            == 1
        )
        info = json.loads((place / f"out{number}/eval_info.json").read_text())
        assert info["overall"]["n_episodes"] == 2


def test_commands_work_with_parallel_environments() -> None:
    """LeRobot's processes for environments do not import gym_pusht."""
    commands = [line for page in PAGES for line in re.findall(r"^ *(lerobot-eval .*)$", page.read_text(), re.MULTILINE)]
    assert len(commands) > len(COMMANDS)
    assert [line for line in commands if "--eval.use_async_envs=false" not in line] == []
