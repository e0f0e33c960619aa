"""Where a checkpoint's tuning is: by the files that its format names, and by no others."""

import os
from pathlib import Path

import pytest

from asd_policy.errors import CheckpointError
from asd_policy.tuning import tuning_file


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
