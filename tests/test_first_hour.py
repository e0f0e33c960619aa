"""The newcomer's page, docs/guide/first_hour.md: an environment of their own to an evaluated policy, and a loop."""

import re
import shlex
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

import train
from asd_policy import cli
from asd_policy.cli.common import DONE
from support.policy_servers import serving

PAGE = (Path(__file__).parents[1] / "docs/guide/first_hour.md").read_text()
ENVIRONMENT, USE, LOOP, DEVICE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
FULL, SMALL = "record(path, episodes=200)", "record(path, episodes=3)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the page's environment, which records few demonstrations."""
    assert FULL in ENVIRONMENT
    (tmp_path / "my_robot.py").write_text(ENVIRONMENT.replace(FULL, SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_robot", raising=False)
    return tmp_path


def command(*begin: str) -> list[str]:
    """Find the page's command that begins so."""
    (found,) = (words for words in COMMANDS if words[: len(begin)] == list(begin))
    return found


def smaller(words: list[str], **values: str) -> list[str]:
    """Put other numbers in the place of options' values, or add them."""
    words = list(words)
    for name, value in values.items():
        if (option := f"--{name}") in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def test_from_an_environment_to_an_evaluated_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("python", "my_robot.py")
    exec(compile(ENVIRONMENT.replace(FULL, SMALL), "my_robot.py", "exec"), {"__name__": "__main__"})
    del gymnasium.registry["my/Robot-v0"]  # the command imports it anew
    with h5py.File("demos.hdf5") as file:
        ways = [np.asarray(file[f"data/demo_{index}/obs/agent_pos"]) for index in range(3)]
    assert {way[:, 1].max() > 0.35 for way in ways} == {True, False}, "the post is passed on one side only"
    assert all(way[-1, 0] > 0.8 for way in ways), "an expert hits the post"
    words = smaller(command("python", "scripts/train.py"), steps="4", batch="8")
    monkeypatch.setattr(sys, "argv", words[1:])
    train.main()
    words = smaller(command("asd-policy", "eval", "--policy", "runs/mine"), episodes="1")
    words[words.index("ddim:10") : words.index("asd") + 1] = ["asd:window=16,draft=picard,verify=block"]
    assert cli.run(words[1:]) == DONE
    assert (folder / "runs/mine-eval/report.html").exists()
    names: dict[str, object] = {}
    exec(USE, names)
    assert getattr(names["action"], "shape", None) == (2,)


def test_the_loop(folder: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port, seconds = "127.0.0.1:8470", "loop.run(10)"
    assert port in LOOP and seconds in LOOP
    with serving(small_checkpoint) as served:
        exec(LOOP.replace(port, served.address).replace(seconds, "loop.run(0.5)"), {})
    assert re.search(r"ticks [1-5], missed", capsys.readouterr().out)


def test_the_device(folder: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block alone: tests/without_torch plans with an exported file."""
    monkeypatch.chdir(small_checkpoint.parent)
    exec(DEVICE.replace("policy.onnx", small_checkpoint.name), {})
