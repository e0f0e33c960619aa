"""What the README tells people to type works, from the repository's root."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
MAKE, OTHERS = ([c for c in COMMANDS if c.startswith("make ") is wanted] for wanted in (True, False))

# A run of seconds in the place of the README's own numbers.
SMALLER = {"--episodes": "1", "--steps": "2", "--demonstrations": "1", "--samples": "16", "--plans": "2"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) == 2
    assert len(MAKE) == 2
    assert len(OTHERS) == 6


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


@pytest.mark.parametrize("command", OTHERS)
def test_commands(command: str, tmp_path: Path) -> None:
    words = command.split()
    program = Path(sys.executable).with_name(Path(words[0]).name)
    if "--out" not in words:  # tune writes into the user's cache, which is not a test's to change
        words += ["--out", ""]
    smaller = {**SMALLER, "--out": str(tmp_path / "out")}
    for name, value in smaller.items():
        if name in words:
            words[words.index(name) + 1] = value
    done = run(str(program), *words[1:])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").exists()
