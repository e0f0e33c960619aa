"""The registry: formats are found by content, and other distributions add theirs by entry point."""

import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import asd_policy
from asd_policy.checkpoints import FORMATS, find_format, inspection
from asd_policy.errors import CheckpointError
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig

# A format of another distribution: a folder with a file `copy_of` that names a LeRobot folder.
PLUGIN = """
from pathlib import Path
from asd_policy.checkpoints import Format
from asd_policy.checkpoints.lerobot import describe_lerobot, load_lerobot

def target(path):
    return Path((path / "copy_of").read_text())

copy = Format(
    detect=lambda path: (path / "copy_of").exists(),
    load=lambda path, sampler, device: load_lerobot(target(path), sampler, device),
    describe=lambda path: describe_lerobot(target(path)),
)
number = 3
rude = Format(detect=lambda path: 1 / 0, load=copy.load, describe=copy.describe)
"""

DOCUMENT = (Path(__file__).parents[2] / "docs/guide/checkpoints.md").read_text()
EXAMPLE, ANY_FUNCTION = (
    next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if word in block)
    for word in ("our_formats", "accelerate_fn")
)

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with the given entry points (name = object) on the path."""
    site = tmp_path / "site"

    def write(**points: str) -> None:
        info = site / "other_formats-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-formats\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[asd_policy.checkpoint_formats]\n{lines}\n")
        for name, source in (("other_formats", PLUGIN), ("our_formats", EXAMPLE)):
            (site / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return write


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / "copy_of").write_text(str(checkpoint))
    return folder


def test_a_plugin_adds_a_format(install: Install, checkpoint: Path, copied: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of a known format"):
        asd_policy.load_policy(copied)
    install(copies="other_formats:copy")
    assert find_format(copied)[0] == "copies"
    assert asd_policy.load_policy(copied).action_dim == asd_policy.load_policy(checkpoint).action_dim


def test_the_documented_example(install: Install, tmp_path: Path) -> None:
    (line,) = re.findall(r'^"(.*)" = "(.*)"$', DOCUMENT, re.MULTILINE)
    install(**{line[0]: line[1]})
    config = UnetConfig(action_dim=2, cond_dim=4, down_dims=(32, 64))
    tensors = ConditionalUnet1d(config).state_dict() | {"state_low": -torch.ones(4), "state_high": torch.ones(4)}
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(tensors, folder / "weights.safetensors")
    (folder / "settings.json").write_text('{"made_by": "our lab", "execute": 3}')
    policy = asd_policy.load_policy(folder, "asd:window=8")
    assert policy.horizons.n_action_steps == 3
    assert policy.select_action([0.0] * 4).shape == (2,)
    said = inspection.inspect(str(folder))
    assert said["format"] == "our lab's folder"
    assert said["runs_here"]
    assert [each["name"] for each in said["files"]] == ["settings.json", "weights.safetensors"]


def test_the_documented_function(capsys: pytest.CaptureFixture[str]) -> None:
    exec(ANY_FUNCTION, {})
    assert capsys.readouterr().out.startswith("torch.Size([1, 16, 2]) ")


def test_broken_plugins_are_named_and_break_no_other(install: Install, copied: Path, tmp_path: Path) -> None:
    install(a="no_such_module:form", b="other_formats:missing", c="other_formats:number", d="other_formats:rude",
            e="other_formats:copy")  # fmt: skip
    assert find_format(copied)[0] == "e"
    with pytest.raises(CheckpointError) as error:
        find_format(tmp_path)
    said = str(error.value)
    assert f"known format: {', '.join(FORMATS)}, d, e; " in said
    for part in (
        "'a' does not work: no_such_module:form raises ModuleNotFoundError: No module named 'no_such_module'",
        "'b' does not work: other_formats:missing raises AttributeError",
        "'c' does not work: other_formats:number is a int, not a Format",
        "'d' does not work: detect raises ZeroDivisionError",
    ):
        assert part in said


def test_a_broken_plugin_is_not_asked_for_a_format_of_this_package(install: Install, checkpoint: Path) -> None:
    install(a="no_such_module:form")
    assert asd_policy.load_policy(checkpoint).action_dim == 2


def test_formats_are_found_by_content(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever the folder is called; a file is no folder, and a format that is not there is refused."""
    renamed = checkpoint.rename(tmp_path / "model.ckpt")
    assert find_format(renamed)[0] == "LeRobot diffusion folder"
    for path in (renamed / "config.json", renamed / "model.safetensors"):
        with pytest.raises(CheckpointError, match="not a checkpoint of a known format"):
            find_format(path)


def save_legacy(path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)


def save_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("pickle"))


OTHERS: list[tuple[Callable[[Path], None], str]] = [
    (
        save_legacy,
        "looks like a bare pickle of torch.save before 1.6: load it where it was made, and save it with today's",
    ),
    (lambda path: zipfile.ZipFile(path, "w").close(), "it is a zip file with nothing in it"),
    (save_tar, "looks like a tar file of torch.save before 1.6"),
    (
        lambda path: torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, path),
        "bare state dict of 2 tensors (a, b, …)",
    ),
    (lambda path: torch.save(torch.nn.Linear(2, 2), path), "holds a torch.nn.modules.linear.Linear as a whole"),
    (lambda path: torch.save({"epoch": 3}, path), "holds a mapping with epoch, of no training that is known here"),
    (lambda path: torch.save({"x": Path}, path), "holds a mapping with x, of no training"),
]


@pytest.mark.parametrize(("save", "message"), OTHERS)
def test_files_of_torch_that_are_no_checkpoint_are_explained(
    save: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a known format") as error:
        asd_policy.load_policy(tmp_path / "model.pt")
    assert message in str(error.value)


def test_a_path_that_no_system_has_is_named() -> None:
    with pytest.raises(CheckpointError, match=f"^no checkpoint at {'x' * 200}: File name too long$"):
        asd_policy.load_policy("x" * 5000)
