"""Public checkpoint formats: each is a loader, found by the content of the path."""

import math
from importlib.util import find_spec
from pathlib import Path

from asd_policy.arrays import find_device, on_cpu
from asd_policy.backends import make_backend
from asd_policy.checkpoints import onnx_policy
from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.hub import fetch, is_hub_id, looks_like_a_path
from asd_policy.checkpoints.plugins import find_plugin, load_plugins
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.function import AcceleratedFn
from asd_policy.policy import Policy
from asd_policy.samplers import make_sampler
from asd_policy.tuning import find_tuning

__all__ = ["FORMATS", "Description", "Format", "find_format", "load", "load_fn", "load_policy", "locate"]

AUTO = "auto"
"""In the place of a backend's spec: the one that was measured to be the fastest here."""
MAX_PLAN = 2**27  # random numbers; half a gigabyte

FORMATS: dict[str, Format] = {}
"""Every format of this package by its name in messages; `plugins.py` finds those of others."""
if find_spec("torch"):  # without it, an exported policy is all that can run
    from asd_policy.checkpoints import diffusers, diffusion_policy, lerobot, robomimic

    FORMATS |= {
        "LeRobot diffusion folder": lerobot.FORMAT,
        "diffusers UNet1DModel folder": diffusers.FORMAT,
        "Diffusion Policy .ckpt": diffusion_policy.FORMAT,
        "robomimic .pth": robomimic.FORMAT,
    }
FORMATS["exported ONNX file"] = onnx_policy.FORMAT


def locate(path: str | Path) -> Path:
    """Return where a checkpoint is on this machine; one that is not here and looks like a Hub id is fetched.

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
    """Return the name and the format of a checkpoint; plugins are asked where no format of this package fits.

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
    """Say what a file of no known format is, where that can be told."""
    if not find_spec("torch"):
        return []
    from asd_policy.checkpoints.archives import explain

    what = explain(path)
    return [] if what is None else [what]


def load_policy(path: str | Path, sampler: str = "ddpm", device: str = "cpu", backend: str | None = None) -> Policy:
    """Load a policy from a checkpoint, with its tuning if `asd-policy tune` has left one there.

    Args:
        path: A checkpoint of one of `FORMATS`, or a Hugging Face Hub id `owner/name` or `owner/name@revision`.
        sampler: Spec of the sampler to plan with; `accelerate` changes it.
        device: A torch device such as "cpu" or "cuda".
        backend: Spec of what runs the network; None for `torch-eager`, or `onnx` for an exported file; "auto" for the
            one that `asd-policy tune` found best here.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        CheckpointError: No such path, no known format, a checkpoint that is broken, or one that is no policy.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the policy.
    """
    loaded = load(locate(path), sampler, device, backend)
    if not isinstance(loaded, Policy):
        raise CheckpointError(
            f"{path} is no policy: it does not say which numbers are observations and which are actions, nor how they "
            "are normalised; asd_policy.load_fn samples from it"
        )
    return loaded


def load_fn(path: str | Path, sampler: str = "asd", device: str = "cpu") -> AcceleratedFn:
    """Load a checkpoint that is no policy, a network and its noise schedule, as something to sample from.

    Args:
        path: As for `load_policy`.
        sampler: Spec of the sampler.
        device: A torch device such as "cpu" or "cuda".

    Raises:
        CheckpointError: No such path, no known format, a checkpoint that is broken, or one that is a policy.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the schedule.
    """
    loaded = load(locate(path), sampler, device)
    if isinstance(loaded, Policy):
        raise CheckpointError(f"{path} is a policy: asd_policy.load_policy loads it")
    return loaded


def load(path: Path, sampler: str, device: str, backend: str | None = None) -> Policy | AcceleratedFn:
    """Load what a checkpoint on this machine holds; a policy with its tuning, if there is one.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        CheckpointError: No such path, no known format, or a checkpoint that is broken.
        ChainError: Its noise scheduler cannot be sampled here.
        SpecError: The sampler or the device does not exist, or the sampler does not fit the schedule.
    """
    wanted = None if backend in (None, AUTO) else make_backend(backend)  # before the work, if it is misspelt
    with on_cpu():
        loaded = find_format(path)[1].load(path, make_sampler(sampler), find_device(device))
    if not isinstance(loaded, Policy):
        return loaded
    _check_size(loaded)
    tuned = None
    if (tuning := find_tuning(path, loaded)) is not None:
        loaded.experience, tuned = tuning.experience, tuning.backend
    if backend == AUTO:
        if tuned is None:
            raise SpecError(f"backend {AUTO!r} is what `asd-policy tune` finds best; it has not run for {path} here")
        wanted = make_backend(tuned)
    known = loaded.experience
    if wanted is not None and wanted != loaded.backend:
        loaded = loaded.with_backend(wanted)
    loaded.experience = known if loaded.backend.spec == tuned else known.without_times()
    return loaded


def _check_size(policy: Policy) -> None:
    """Refuse a policy whose plans need more memory than a configuration should be trusted with."""
    numbers = len(policy.chain) * math.prod(policy.event)
    if numbers > MAX_PLAN:
        raise CheckpointError(
            f"a plan of {policy.event[0]} × {policy.event[1]} numbers in {len(policy.chain)} steps needs "
            f"{numbers} random numbers; {MAX_PLAN} are the most that a checkpoint may ask for"
        )
