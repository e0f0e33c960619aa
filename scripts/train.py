"""Train a diffusion policy on an environment's scripted expert, or on your data; write a LeRobot folder.

    python scripts/train.py --env asd/Avoid-v0 --out checkpoints/avoid --steps 6000
    python scripts/train.py --data recordings --images --out runs/my-policy --steps 20000

Data is a LeRobotDataset folder (version 3), a robomimic .hdf5 or a Diffusion Policy .zarr: docs/guide/training.md.

Run again with the same options after an interruption, and it goes on where it stopped; with other --steps, on the
schedule of that length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import gymnasium
import tyro
from rich.progress import Progress

import asd_envs
from asd_envs.experts import DEMONSTRATED
from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics, save_lerobot
from asd_policy.checkpoints.lerobot.vision import VISUAL, Vision
from asd_policy.cli.common import make_console, progress_bar
from asd_policy.evaluation.reports.report import shared_name
from asd_policy.networks.vision import VisionConfig
from asd_policy.networks.vision.resnet import STRIDE
from training.data import Choice, read_data
from training.episodes import Episodes, join, measure_statistics
from training.objectives import OBJECTIVES
from training.recording import demonstrate
from training.trainer import Trainer, Training, Windows

console = make_console()


@dataclass(frozen=True)
class Options:
    """Train a diffusion policy on an environment's scripted expert, or on your data; write a LeRobot folder."""

    out: Path
    """Folder to write; training state is kept beside it, as <out>.training, until the training is done."""
    env: str | None = None
    """Gymnasium id of an environment with an expert, such as asd/Avoid-v0 or asd/MetaWorld-pick-place-v0."""
    data: Path | None = None
    """A LeRobotDataset folder, a robomimic .hdf5, or a Diffusion Policy .zarr or .zarr.zip, in place of --env."""
    state: tuple[str, ...] | None = None
    """Vectors of --data that make up observation.state, in this order; where it is left out, the format's own."""
    objects: tuple[str, ...] | None = None
    """Vectors of --data that make up observation.environment_state; where it is left out, the format's own."""
    cameras: tuple[str, ...] | None = None
    """Cameras of --data to learn from, in this order; with --images alone, all."""
    resize: tuple[int, int] | None = None
    """Height and width that frames of --data are resized to [pixels], by the policy too."""
    objective: Literal["diffusion", "flow"] = "diffusion"
    """What the network learns: the noise of a DDPM, or the velocity of a flow from noise to actions."""
    steps: int = 6000
    """Optimiser steps."""
    demonstrations: int = 500
    """Successful episodes of the expert to learn from."""
    noise: float = 0.1
    """Standard deviation of the exploration noise added to the executed actions (not to the recorded ones), as a
    fraction of half the action range."""
    n_obs_steps: int = 2
    """Observations that a plan looks at."""
    horizon: int = 16
    """Actions of a plan, the first for the oldest of its observations."""
    n_action_steps: int = 8
    """Actions of a plan to execute before the next; the weights do not depend on it."""
    down_dims: tuple[int, ...] = (64, 128, 256)
    """Channels of each resolution of the U-Net."""
    images: bool = False
    """Learn from frames, with a ResNet-18 (GroupNorm, SpatialSoftmax) trained with the U-Net."""
    crop: tuple[int, int] | None = None
    """Height and width of the part of frames that is looked at [pixels]: at a random place in training, the middle
    afterwards."""
    bfloat16: bool = False
    """Encode frames in bfloat16 while training: twice as fast on CPUs that compute with it."""
    batch: int = 256
    """Windows per optimiser step."""
    draws: int = 1
    """Noises drawn for each window: with frames, whose encoding takes most of the time, several make use of it."""
    encoder_steps: int | None = None
    """Steps in which the encoder of frames learns; afterwards every frame is encoded once, and steps take a fraction of
    the time. Where it is left out, all."""
    auxiliary: float = 0.0
    """Weight of a second loss: a linear layer predicts the environment's state, which the policy does not observe, from
    the features of frames (as in arXiv 1707.02267). It makes the encoder look at what matters in hundreds of steps."""
    learning_rate: float = 5e-4
    """Peak of the cosine schedule."""
    seed: int = 0
    """Seeds demonstrations, initial weights and batches."""
    device: str = "cpu"
    """PyTorch's device to train on, such as cuda."""
    save_every: int = 250
    """Steps between two saved training states."""
    snapshot_every: int = 0
    """Steps between two snapshots, <out>.snapshot: the policy as it is so far, to be evaluated; 0 for none."""


def crop_ratios(resize: tuple[int, int], crop: tuple[int, int]) -> list[float]:
    """Find parts of both sides of a resized frame that make the crop, as LeRobot rounds; none where there is none."""
    parts = [(side + extra) / whole for side, whole in zip(crop, resize, strict=True) for extra in (0, 0.5)]
    return [part for part in parts if part <= 1 and tuple(int(whole * part) for whole in resize) == crop]


def configure(options: Options, episodes: Episodes) -> DiffusionConfig:
    """Describe the policy that learns from these episodes."""
    vision = Vision()
    if cameras := episodes.cameras:
        (_, height, width), *_ = cameras.values()
        ratio = 1.0
        if options.resize and options.crop:  # LeRobot has a ratio then, of both sides
            ratio = crop_ratios(options.resize, options.crop)[0]
        encoder = VisionConfig((height, width), options.crop, options.resize)
        if problem := encoder.problem():
            raise SystemExit(f"--crop does not fit: {problem}")
        if max(encoder.seen) <= STRIDE:
            raise SystemExit(
                f"frames of {encoder.seen[0]} × {encoder.seen[1]} are a single place to the encoder: more than "
                f"{STRIDE} pixels are needed"
            )
        vision = Vision(cameras, encoder, crop_ratio=ratio)
    kinds = ["STATE", "ENV", "ACTION"]
    return DiffusionConfig(
        input_dims=episodes.vectors,
        action_dim=episodes.features[ACTION].shape[1],
        normalization_mapping=dict.fromkeys(kinds, "MIN_MAX") | ({VISUAL: "MEAN_STD"} if cameras else {}),
        n_obs_steps=options.n_obs_steps,
        horizon=options.horizon,
        n_action_steps=options.n_action_steps,
        down_dims=options.down_dims,
        vision=vision,
        **OBJECTIVES[options.objective],
    )


def write(folder: Path, trainer: Trainer, windows: Windows, statistics: Statistics, notes: dict[str, Any]) -> None:
    """Write the policy as it is now, a LeRobot folder."""
    unet, encoder = trainer.weights()
    save_lerobot(folder, windows.config, unet, statistics, notes, encoder)


def learn(options: Options, episodes: Episodes, progress: Progress) -> str:
    """Train on episodes and write the policy; return a sentence on it."""
    config = configure(options, episodes)
    statistics = measure_statistics(episodes.features)
    windows = Windows(episodes, config, statistics, options.device)
    unseen = episodes.unseen.shape[1] if options.auxiliary and episodes.unseen is not None else 0
    trainer = Trainer(Training(**{each.name: getattr(options, each.name) for each in fields(Training)}), config, unseen)
    parts = (trainer.network.unet, trainer.network.encoder)
    parameters = sum(value.numel() for part in parts if part is not None for value in part.parameters())
    own = {
        "env": options.env,
        **episodes.notes,
        "options": asdict(options) | {"out": options.out.name, "data": options.data and options.data.name},
        "parameters": parameters,
        "windows": len(windows),
    }

    def write_now(folder: Path, notes: Mapping[str, Any]) -> None:
        write(folder, trainer, windows, statistics, {**own, **notes})

    every = options.save_every, options.snapshot_every
    trainer.run(options.out, every, lambda: trainer.update(windows), write_now, progress)
    observed = ", ".join([*config.input_dims, *config.vision.cameras])
    source = options.env or shared_name(str(options.data))
    return f"{parameters / 1e6:.2f} M parameters, {len(windows)} windows of {source}; it observes {observed}"


def episodes_of(options: Options, progress: Progress) -> Episodes:
    """Read the data, or record the expert."""
    if options.data:
        every = options.images and options.cameras is None
        cameras = None if every else options.cameras or ()
        return read_data(options.data, Choice(options.state, options.objects, cameras, options.resize), progress)
    assert options.env  # `check` saw to it
    return join(demonstrate(options.env, options.demonstrations, options.noise, options.seed, progress, options.images))


def train(options: Options) -> None:
    """Run the whole training."""
    with progress_bar(console) as progress:
        said = learn(options, episodes_of(options, progress), progress)
    console.print(f"wrote {options.out}: {said}", soft_wrap=True)


def check(options: Options) -> None:
    """Refuse numbers that no training can have.

    Raises:
        SystemExit: One line that names the option, its value and what is valid.
    """
    for name in ("steps", "demonstrations", "batch", "draws", "save_every", "n_obs_steps", "horizon"):
        if getattr(options, name) < 1:
            raise SystemExit(f"{_flag(name)} {getattr(options, name)} is not a positive number")
    # A plan begins with the action for the oldest observation, so the first of its actions are in the past.
    longest = options.horizon - options.n_obs_steps + 1
    if not 1 <= options.n_action_steps <= longest:
        raise SystemExit(f"--n-action-steps {options.n_action_steps} is not in 1 … {longest}")
    if not 0 <= options.noise <= 1:
        raise SystemExit(f"--noise {options.noise} is not in 0 … 1")
    if not options.learning_rate > 0:
        raise SystemExit(f"--learning-rate {options.learning_rate} is not positive")
    groups = DiffusionConfig.n_groups
    if not options.down_dims or any(d < groups or d % groups for d in options.down_dims):
        raise SystemExit(f"--down-dims {_words(options.down_dims)} are not multiples of {groups}")
    factor = 2 ** min(len(options.down_dims), options.horizon.bit_length())  # as LeRobot asks
    if options.horizon % factor:
        raise SystemExit(
            f"--horizon {options.horizon} is not a multiple of {factor}, as {len(options.down_dims)} --down-dims need"
        )
    for name in ("crop", "resize"):
        if (sides := getattr(options, name)) and min(sides) < 1:
            raise SystemExit(f"--{name} {_words(sides)} is not a height and a width")
    if options.resize and options.crop and not crop_ratios(options.resize, options.crop):
        raise SystemExit(
            f"--crop {_words(options.crop)} is not the same part of both sides of --resize {_words(options.resize)}"
        )
    check_source(options)


def check_source(options: Options) -> None:
    """Refuse options that contradict each other on what is learned from.

    Raises:
        SystemExit: One line that names them.
    """
    if (options.env is None) == (options.data is None):
        raise SystemExit("either --env or --data says what to learn from")
    if options.encoder_steps is not None and options.encoder_steps < 1:
        raise SystemExit(f"--encoder-steps {options.encoder_steps} is not a positive number")
    if options.auxiliary < 0:
        raise SystemExit(f"--auxiliary {options.auxiliary} is negative")
    if options.auxiliary and not (options.env and options.images):
        raise SystemExit("--auxiliary needs an environment that knows its state, and --images: --env and --images")
    if options.data:
        for name in ("demonstrations", "noise"):
            if getattr(options, name) != getattr(Options, name):
                raise SystemExit(f"{_flag(name)} is of an environment's expert: leave it out with --data")
        return
    for name in ("state", "objects", "cameras", "resize"):
        if getattr(options, name) is not None:
            raise SystemExit(f"{_flag(name)} is of --data: leave it out with --env")
    if options.env not in gymnasium.registry or not str(options.env).startswith("asd/"):
        tasks = ", ".join(asd_envs.METAWORLD_TASKS)
        raise SystemExit(f"no environment {options.env!r} with an expert: {DEMONSTRATED} ({tasks})")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def main() -> None:
    """Read the command line, check it, train."""
    options = tyro.cli(Options, description=__doc__)
    check(options)
    try:
        train(options)
    except KeyboardInterrupt:
        console.print("interrupted: run the same command again to go on from the last saved state")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
