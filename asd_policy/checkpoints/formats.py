"""Every checkpoint format by its name, and the search for a path's format."""

from importlib.util import find_spec
from pathlib import Path

from asd_policy._common.extras import install
from asd_policy.checkpoints.base import Format
from asd_policy.checkpoints.hub import fetch, is_hub_id, looks_like_a_path
from asd_policy.checkpoints.onnx import policy as onnx_policy
from asd_policy.checkpoints.plugins import find_plugin, load_plugins
from asd_policy.errors import CheckpointError

FORMATS: dict[str, Format] = {}
"""Every format of this package by its name in messages; `plugins.py` finds those of others."""
if find_spec("torch"):  # without it, an exported policy is all that can run
    from asd_policy.checkpoints import diffusers, diffusion_policy, robomimic, token_folder
    from asd_policy.checkpoints.lerobot import folder as lerobot

    FORMATS |= {
        "LeRobot diffusion folder": lerobot.FORMAT,
        "diffusers UNet1DModel folder": diffusers.FORMAT,
        "Diffusion Policy .ckpt": diffusion_policy.FORMAT,
        "robomimic .pth": robomimic.FORMAT,
        "token policy folder": token_folder.FORMAT,
    }
FORMATS["exported ONNX file"] = onnx_policy.FORMAT


def locate(path: str | Path) -> Path:
    """Find a checkpoint on this machine; one that is not here and looks like a Hub id is downloaded.

    Raises:
        CheckpointError: The path cannot be looked at; or it has the form of a Hub id and is a mistyped path, or the Hub
            has no such repository or cannot be asked.
    """
    try:
        exists = Path(path).exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise CheckpointError(f"no checkpoint at {str(path)[:200]}: {error.strerror}") from None
    if exists or not is_hub_id(str(path)):
        return Path(path)
    if (reason := looks_like_a_path(str(path))) is not None:
        raise CheckpointError(f"no checkpoint at {path}: the path does not exist, and the Hub was not asked: {reason}")
    formats = [*FORMATS.values(), *load_plugins()[0].values()]
    return fetch(str(path), [pattern for form in formats for pattern in form.hub_files])


def find_format(path: Path) -> tuple[str, Format]:
    """Find the name and the format of a checkpoint; plugins are asked where no format of this package fits.

    Raises:
        CheckpointError: No such path, or no known format.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: the path does not exist")
    for name, form in FORMATS.items():
        if form.detect(path):
            return name, form
    plugins, failures = load_plugins()
    found = find_plugin(path, plugins, failures)
    if found is None:
        known = ", ".join([*FORMATS, *plugins])
        what = f"{path} is not a checkpoint of a known format: {known}"
        raise CheckpointError("; ".join([what, *failures, *_explain(path)]))
    return found


def _explain(path: Path) -> list[str]:
    """Describe a file of no known format, where it can be recognised."""
    if not find_spec("torch"):
        return [f"all other formats need PyTorch: {install('torch')}"]
    from asd_policy.checkpoints.untrusted.archives import explain

    what = explain(path)
    return [] if what is None else [what]
