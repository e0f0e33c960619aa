"""What the README tells people to type works, from the repository's root."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
MAKE, INSTALL, LEROBOT, OTHERS = (
    [command for command in COMMANDS if command.split()[0] == program]
    for program in ("make", "pip", "lerobot-eval", "asd-policy")
)

# A run of seconds in the place of the README's own numbers.
SMALLER = {"--samples": "16"}
# `asd` chooses its window by the clock, so each run of a test draws plans of its own whatever the seed. A level of 0.01
# would fail an exact sampler once in a hundred runs.
SURE = ["--alpha", "1e-4"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) == 1
    assert len(MAKE) == 2
    assert len(INSTALL) == 2
    assert len(LEROBOT) == 1  # tests/with_lerobot has it
    assert len(OTHERS) == 1
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks(block: str) -> None:
    done = run(sys.executable, "-c", block)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", MAKE)
def test_make_targets(command: str) -> None:
    """They exist; running the tests from within the tests would not end."""
    done = run("make", "-n", command.split("#")[0].split()[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", INSTALL)
def test_what_is_installed(command: str) -> None:
    """It is there, and so are its extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in shlex.split(command)[2:]:
        folder, _, names = requirement.partition("[")
        assert (ROOT / folder / "pyproject.toml").exists()
        assert set(filter(None, names.rstrip("]").split(","))) <= extras.keys()


@pytest.mark.parametrize("command", OTHERS)
def test_commands(command: str, tmp_path: Path) -> None:
    words = command.split()
    program = Path(sys.executable).with_name(words[0])
    smaller = {**SMALLER, "--out": str(tmp_path / "out")}
    for name, value in smaller.items():
        if name in words:
            words[words.index(name) + 1] = value
    done = run(str(program), *words[1:], *(SURE if words[1] == "verify" else []))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").exists()
