"""Folders of diffusers with a `UNet1DModel`: trajectory models such as those of Diffuser (arXiv 2205.09991).

As `DiffusionPipeline.save_pretrained` writes them (model_index.json, unet/, scheduler/), or the model and its scheduler
saved into one folder. They hold a network and a noise schedule and are no policies: which of the channels are actions
and which observations, and how both were normalised, the pipeline (`ValueGuidedRLPipeline`) takes from an environment.
"""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy._common.extras import needed
from asd_policy._common.names import unknown_names, unknown_note, warn_of_unknown
from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.schedule import schedule_of
from asd_policy.checkpoints.untrusted.reading import count_numbers, find_json, read_json, read_shapes, read_tensors
from asd_policy.checkpoints.untrusted.weights import load_weights
from asd_policy.errors import CheckpointError, SpecError
from asd_policy.policy.function import AcceleratedFn
from asd_policy.samplers import Sampler

INDEX, CONFIG, WEIGHTS = "model_index.json", "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
HUB_FILES = (INDEX, *(at + name for at in ("", "unet/") for name in (CONFIG, WEIGHTS)), SCHEDULER, f"*/{SCHEDULER}")
CHANNELS = 2  # where a configuration has none
PICKLE = "diffusion_pytorch_model.bin"
MAX_BLOCKS = 32  # of each kind, and layers of each: more would only take time to build


@dataclass(frozen=True)
class Unet1dDenoiser:
    """A `UNet1DModel` as a denoiser of samples [N, horizon, channels], the layout of `ValueGuidedRLPipeline`."""

    network: nn.Module
    """The `UNet1DModel`."""
    channels: int
    """Numbers per time step of a sample."""
    multiple: int
    """Horizons are multiples of it, or of a part of it where blocks keep the length."""

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None, /) -> Tensor:
        """Predict what the scheduler's `prediction_type` says.

        Raises:
            SpecError: There is conditioning, which the network has no input for, or the channels or the horizon are not
                its own.
        """
        if cond is not None:
            raise SpecError(
                "a UNet1DModel takes no conditioning; known coordinates of a sample can be given by inpainting"
            )
        if x.ndim != 3 or x.shape[2] != self.channels:
            raise SpecError(f"the UNet1DModel samples (horizon, {self.channels}), not {tuple(x.shape[1:])}")
        try:
            return self.network(x.transpose(1, 2), timestep, return_dict=False)[0].transpose(1, 2)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # only its blocks, of many kinds, know which horizons fit
            reason = str(error).splitlines()[0]
            raise SpecError(
                f"the UNet1DModel takes no samples of horizon {x.shape[1]} ({reason}); try a larger one, a multiple of "
                f"{self.multiple}"
            ) from None


def is_unet1d(folder: Path) -> bool:
    """Tell whether a folder holds a `UNet1DModel` of diffusers."""
    return _place(folder) is not None


def describe_unet1d(folder: Path) -> Description:
    """Describe a folder with a `UNet1DModel`.

    Raises:
        CheckpointError: A file cannot be read.
    """
    at, config = _read_config(folder)
    shape = f"(horizon, {config.get('in_channels')!r})"
    notes = [f"it samples arrays {shape}; which channels are what, and their units, is not in the checkpoint"]
    unknown = [name for name in _options(config) if name not in _defaults()]
    notes += unknown_note(unknown, f"{at}{CONFIG}")
    pipeline = find_json(folder, INDEX).get("_class_name")
    if pipeline == "ValueGuidedRLPipeline":
        notes.append(f"its {pipeline} pushes samples towards value; what is sampled here is the law without that")
    return Description(
        network="UNet1DModel",
        parameters=count_numbers(read_shapes(folder, _weights(folder, at))),
        scheduler=_read_scheduler(folder, at),
        notes=tuple(notes),
    )


def load_unet1d(folder: Path, sampler: Sampler, device: torch.device) -> AcceleratedFn:
    """Load a `UNet1DModel` and its scheduler.

    Args:
        folder: As diffusers saves them.
        sampler: How to sample.
        device: Where to sample.

    Raises:
        CheckpointError: A file is missing or malformed, or the tensors do not fit the configuration.
        ChainError: The noise scheduler is not one that can be sampled here.
        SpecError: The sampler's options do not fit the chain.
    """
    unet = _unet()
    at, config = _read_config(folder)
    schedule = schedule_of(_read_scheduler(folder, at), None)
    defaults = _defaults()
    warn_of_unknown(unknown_names(_options(config), defaults, f"{at}{CONFIG}", CheckpointError), f"{at}{CONFIG}")
    _check(config, defaults, f"{at}{CONFIG}")
    known = {name: config[name] for name in defaults if name in config}
    weights_file = _weights(folder, at)
    weights = read_tensors(folder, weights_file)

    def make() -> nn.Module:
        return unet(**known)

    network = load_weights(make, weights, lambda key: key, weights_file, f"{at}{CONFIG}").to(device)
    blocks = len(list(network.get_submodule("down_blocks").children()))
    multiple = 2 ** (blocks + 1)  # they may halve the length each, and the middle once more
    denoiser = Unet1dDenoiser(network, config.get("in_channels", CHANNELS), multiple)
    return AcceleratedFn(denoiser, schedule.law, sampler, device)


def _unet() -> Any:
    """Import the class of the network.

    Raises:
        CheckpointError: diffusers is not installed.
    """
    with needed("a folder of diffusers", "diffusers", CheckpointError):
        from diffusers.models.unets.unet_1d import UNet1DModel
    return UNet1DModel


def _defaults() -> dict[str, Any]:
    """List the options of a `UNet1DModel` and their defaults."""
    parameters = signature(_unet().__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


def _options(config: dict[str, Any]) -> list[str]:
    """List the names of a configuration's options; diffusers' own notes begin with an underscore."""
    return [name for name in config if not name.startswith("_")]


def _place(folder: Path) -> str | None:
    """Find the model in a folder: "unet/", or "" for the folder itself."""
    places = (at for at in ("unet/", "") if find_json(folder, at + CONFIG).get("_class_name") == "UNet1DModel")
    return next(places, None)


def _read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Find the model in a folder, and read its configuration."""
    at = _place(folder) or ""
    return at, read_json(folder, at + CONFIG)


def _read_scheduler(folder: Path, at: str) -> dict[str, Any]:
    """Read the scheduler's configuration."""
    return read_json(folder, f"scheduler/{SCHEDULER}" if at else SCHEDULER)


def _weights(folder: Path, at: str) -> str:
    """Find the name of the weights' file.

    Raises:
        CheckpointError: There is none.
    """
    if not (folder / (at + WEIGHTS)).exists():
        raise CheckpointError(
            f"{folder / (at + WEIGHTS)}: No such file; a {PICKLE} in its place is a pickle, which could run code and "
            "is not read: load and save it with diffusers, which writes safetensors"
        )
    return at + WEIGHTS


def _check(config: dict[str, Any], defaults: dict[str, Any], name: str) -> None:
    """Refuse networks that would take too long to build, or whose predictions do not have a sample's shape."""
    for key, default in defaults.items():
        if key in config and not _is_like(config[key], default):
            raise CheckpointError(f"{name}: {key} is of type {type(config[key]).__name__}; its default is {default!r}")
    for key in ("down_block_types", "up_block_types", "block_out_channels"):
        if len(config.get(key, [])) > MAX_BLOCKS:
            raise CheckpointError(f"{name}: {key} has more than {MAX_BLOCKS} entries")
    layers = config.get("layers_per_block", 1)
    if not 1 <= layers <= MAX_BLOCKS:
        raise CheckpointError(f"{name}: layers_per_block {layers!r} is not in 1 … {MAX_BLOCKS}")
    if config.get("out_block_type") == "ValueFunction":
        raise CheckpointError(f"{name} is of a value function, which predicts a number and no sample")
    channels, out = (config.get(f"{way}_channels", CHANNELS) for way in ("in", "out"))
    if channels != out or config.get("extra_in_channels", 0) != 0:
        raise CheckpointError(f"{name}: {channels!r} channels in (and extra ones?) but {out!r} out make no denoiser")


def _is_like(value: Any, default: Any) -> bool:
    """Tell whether a value from JSON has the type of a default; diffusers checks some only at the first sample."""
    if default is None:
        return value is None or isinstance(value, str | int)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, list if isinstance(default, tuple) else str)


FORMAT = Format(is_unet1d, load_unet1d, describe_unet1d, HUB_FILES)
