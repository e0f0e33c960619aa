"""Public checkpoint formats: each is a loader, found by the content of the path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from asd_policy.checkpoints.diffusion_policy import is_diffusion_policy, load_diffusion_policy
from asd_policy.checkpoints.lerobot import is_lerobot, load_lerobot
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.tuning import load_tuning, tuning_file


@dataclass(frozen=True)
class Format:
    """A checkpoint format."""

    detect: Callable[[Path], bool]
    """Whether a path holds this format; reads as little as will tell."""
    load: Callable[[Path, Sampler, torch.device], Policy]
    """Loads it; never runs code from it."""


FORMATS: dict[str, Format] = {
    "LeRobot diffusion folder": Format(is_lerobot, load_lerobot),
    "Diffusion Policy .ckpt": Format(is_diffusion_policy, load_diffusion_policy),
}
"""Every format by its name in messages."""


def load_policy(path: str | Path, sampler: str = "ddpm", device: str = "cpu") -> Policy:
    """Load a policy from a checkpoint, with its tuning if `asd-policy tune` has left one there.

    Args:
        path: A LeRobot diffusion folder, or a Diffusion Policy or robomimic file, of a state-based policy.
        sampler: Spec of the sampler to plan with; `accelerate` changes it.
        device: A torch device such as "cpu" or "cuda".

    Raises:
        CheckpointError: No such path, no known format, or a checkpoint that is broken.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the policy.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: the path does not exist")
    found = next((form for form in FORMATS.values() if form.detect(path)), None)
    if found is None:
        raise CheckpointError(f"{path} is not a checkpoint of a known format: {', '.join(FORMATS)}")
    policy = found.load(path, make_sampler(sampler), _device(device))
    tuning = tuning_file(path)
    if tuning.exists():
        dim = math.prod(policy.event)
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
