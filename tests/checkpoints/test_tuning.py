"""A tuning in the cache of another version, or that cannot be read, is no tuning: one warning, and all goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import asd_policy
from asd_policy import cli
from asd_policy.checkpoints.tuning import tuning_file
from asd_policy.errors import CheckpointError

Break = Callable[[Path, pytest.MonkeyPatch], None]


def of_another_version(checkpoint: Path, _: pytest.MonkeyPatch) -> None:
    path = tuning_file(checkpoint)
    path.parent.mkdir(parents=True)
    save_file({"noise": np.zeros(10, np.float32)}, path, {"version": "1"})


def unreadable(checkpoint: Path, _: pytest.MonkeyPatch) -> None:
    tuning_file(checkpoint).mkdir(parents=True)


def in_a_closed_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists, mkdir = Path.exists, Path.mkdir

    def closed(self: Path) -> None:
        if "tuning" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", lambda self, **options: closed(self) or exists(self, **options))
    monkeypatch.setattr(Path, "mkdir", lambda self, *words, **options: closed(self) or mkdir(self, *words, **options))


def without_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ASD_POLICY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another_version, "is of version '1', not"),
        (unreadable, "Is a directory"),
        (in_a_closed_home, "Permission denied"),
        (without_home, "there is no home folder: set HOME or ASD_POLICY_CACHE"),
    ],
)
def test_what_cannot_be_used(
    spoil: Break, said: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoint, monkeypatch)
    with pytest.warns(UserWarning, match=f"^no tuning is used: .*{said}"):
        assert asd_policy.load_policy(checkpoint).experience.plans == 0
    with pytest.warns(UserWarning, match="^no tuning is used: "):
        assert cli.run(["inspect", "--policy", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuning"] is None


@pytest.mark.parametrize("spoil", [in_a_closed_home, without_home])
def test_tune_without_a_place_to_keep_it(
    spoil: Break, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoint, monkeypatch)
    words = ["tune", "--policy", str(checkpoint), "--plans", "1", "--backends", "torch-eager", "--json"]
    with pytest.warns(UserWarning, match=r"the tuning will not be kept \(.*\): --out names a file for it"):
        assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out)["file"] is None


def test_tune_replaces_a_tuning_of_another_version(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_version(checkpoint, monkeypatch)
    with pytest.warns(UserWarning, match="^no tuning is used: "):
        assert cli.run(["tune", "--policy", str(checkpoint), "--plans", "1", "--backends", "torch-eager"]) == 0
    assert asd_policy.load_policy(checkpoint).experience.plans >= 1


def test_it_is_said_once_and_in_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_version(checkpoint, monkeypatch)
    words = [sys.executable, "-m", "asd_policy.cli", "inspect", "--policy", str(checkpoint), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "tuning" in line and "│" not in line]
    assert line.startswith("asd-policy: warning: no tuning is used: ")


def test_other_files_are_not_opened(checkpoint: Path, tmp_path: Path) -> None:
    """Neither a pipe nor a link to memory, nor what may not be read or has a name that is no UTF-8."""
    found = tuning_file(checkpoint)
    (checkpoint / "notes.txt").write_text("x")
    (checkpoint / "memory").symlink_to("/proc/self/mem")
    os.mkfifo(checkpoint / "pipe")
    Path(os.fsdecode(os.fsencode(checkpoint) + b"/\xff\xfe")).write_text("x")
    (checkpoint / "locked").write_text("x")
    (checkpoint / "locked").chmod(0)
    assert tuning_file(checkpoint) == found


def test_another_checkpoint_is_another_tuning(checkpoint: Path) -> None:
    before = tuning_file(checkpoint)
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    assert tuning_file(checkpoint) != before


def test_a_link_out_of_the_folder_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        tuning_file(checkpoint)
