"""Public checkpoint formats: each is a loader, found by the content of the path."""

from pathlib import Path

import torch

from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.lerobot import describe_lerobot, is_lerobot, load_lerobot
from asd_policy.checkpoints.plugins import find_plugin, plugin_names
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.policy import Policy
from asd_policy.samplers import make_sampler
from asd_policy.tuning import FILE, load_tuning

__all__ = ["FORMATS", "Description", "Format", "find_format", "load_policy"]

FORMATS: dict[str, Format] = {
    "LeRobot diffusion folder": Format(is_lerobot, load_lerobot, describe_lerobot),
}
"""Every format of this package by its name in messages; `plugins.py` finds those of others."""


def find_format(path: Path) -> tuple[str, Format]:
    """Return the name and the format of a checkpoint; plugins are asked where no format of this package fits.

    Raises:
        CheckpointError: No such path, or no known format.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: the path does not exist")
    for name, form in FORMATS.items():
        if form.detect(path):
            return name, form
    found, failures = find_plugin(path)
    if found is None:
        known = ", ".join([*FORMATS, *plugin_names()])
        raise CheckpointError("; ".join([f"{path} is not a checkpoint of a known format: {known}", *failures]))
    return found


def load_policy(path: str | Path, sampler: str = "ddpm", device: str = "cpu") -> Policy:
    """Load a policy from a checkpoint, with its tuning if `asd-policy tune` has left one there.

    Args:
        path: A LeRobot diffusion folder of a state-based policy.
        sampler: Spec of the sampler to plan with; `accelerate` changes it.
        device: A torch device such as "cpu" or "cuda".

    Raises:
        CheckpointError: No such path, no known format, or a checkpoint that is broken.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the policy.
    """
    path = Path(path)
    _, form = find_format(path)
    policy = form.load(path, make_sampler(sampler), _device(device))
    tuning = path / FILE
    if tuning.exists():
        dim = policy.horizons.horizon * policy.action_dim
        policy.experience = load_tuning(tuning, policy.chain, dim, policy.device)
    return policy


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {name!r} cannot be used here: {reason}") from None
    return device
