"""What a checkpoint format is: three functions, and a description that needs no weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asd_policy._common.arrays import Device
from asd_policy.checkpoints.untrusted.reading import file_in
from asd_policy.policy.function import AcceleratedFn
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler


@dataclass(frozen=True)
class Description:
    """What a checkpoint's files say of it, whether it can be run here or not. Values are as stored, not checked."""

    network: str
    """What predicts, by its class name in its own library."""
    parameters: int
    """Numbers in the weights of the whole checkpoint, encoders included; of tied ones, once."""
    observation: Mapping[str, Any] = field(default_factory=dict)
    """Shape of each observation feature."""
    action: Mapping[str, Any] = field(default_factory=dict)
    """Shape of each output feature."""
    horizons: Mapping[str, Any] = field(default_factory=dict)
    """`n_obs_steps`, `horizon` and `n_action_steps` as far as they are known, in control steps."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """The noise scheduler's configuration by diffusers' names, `_class_name` first."""
    num_inference_steps: Any = None
    """Steps of the chain; None for all the training steps."""
    normalization: Mapping[str, Any] = field(default_factory=dict)
    """How each feature is normalised."""
    notes: tuple[str, ...] = ()
    """Other facts that a user has to know, a sentence each."""
    network_parameters: int | None = None
    """Numbers in the weights of the network alone; None where there is nothing beside it."""
    eta: Any = None
    """DDIM's η; None where the file has none."""


def pinned_steps(scheduler: Mapping[str, Any], steps: Any) -> tuple[str, ...]:
    """Write a note where diffusers 0.11, which training code pins, takes another chain than later versions."""
    train = scheduler.get("num_train_timesteps")
    if scheduler.get("_class_name") != "DDPMScheduler" or not (type(steps) is type(train) is int and steps < train):
        return ()
    return (
        f"num_inference_steps {steps} is below num_train_timesteps {train}: DDPMScheduler of diffusers 0.11, which its "
        "training code pins, then steps from t to t − 1 although it leaves timesteps out; here, as in later diffusers, "
        "a step leads to the next timestep of the chain, so plans differ from those of the pinned version",
    )


@dataclass(frozen=True)
class Format:
    """A checkpoint format. None of its functions runs code from a checkpoint."""

    detect: Callable[[Path], bool]
    """Tells whether a path holds this format, by content; reads as little as it can, and raises nothing."""
    load: Callable[[Path, Sampler, Device], Policy | AcceleratedFn]
    """Loads it, as a policy where it is one; raises a `CheckpointError` that names what is wrong."""
    describe: Callable[[Path], Description]
    """Describes it, even where `load` refuses it; raises a `CheckpointError` for unreadable ones."""
    hub_files: tuple[str, ...] = ()
    """Patterns of the files that `load` reads in a Hugging Face Hub repository; none for a format not found there."""
    reference: str = "ddpm"
    """Spec of the sequential sampler of its chains."""

    def files(self, path: Path) -> dict[str, Path]:
        """List the files that tell a checkpoint from others, by their names in it: those that `load` reads.

        Of a folder whose format does not say which these are, all regular files that lie in it.

        Raises:
            CheckpointError: One of them leads out of the folder, or is no regular file.
        """
        if path.is_file():
            return {path.name: path}
        if self.hub_files:
            found = {each for pattern in self.hub_files for each in path.glob(pattern)}
        else:
            found = {each for each in path.iterdir() if each.is_file() and not each.is_symlink()}
        names = sorted(str(each.relative_to(path)) for each in found)
        return {name: file_in(path, name) for name in names}
