"""Train a diffusion policy on demonstrations of an environment's scripted expert; write a LeRobot folder.

    python scripts/train.py --env asd/Avoid-v0 --out checkpoints/avoid --steps 6000

Run again with the same options after an interruption, and it goes on where it stopped.
"""

import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro
from rich.progress import Progress

import asd_envs
from asd_envs.experts import DEMONSTRATED
from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics, save_lerobot
from asd_policy.checkpoints.lerobot.vision import VISUAL, Vision
from asd_policy.cli.common import make_console, progress_bar
from asd_policy.evaluation.reports.report import shared_name
from asd_policy.networks.vision import VisionConfig
from training.episodes import Episodes, join, measure_statistics
from training.recording import demonstrate
from training.trainer import Trainer, Training, Windows

console = make_console()


@dataclass(frozen=True)
class Options:
    """Train a diffusion policy on demonstrations of an environment's scripted expert; write a LeRobot folder."""

    env: str
    """Gymnasium id of an environment with an expert, such as asd/Avoid-v0 or asd/MetaWorld-pick-place-v0."""
    out: Path
    """Folder to write; training state is kept beside it, as <out>.training, until the training is done."""
    steps: int = 6000
    """Optimiser steps."""
    demonstrations: int = 500
    """Successful episodes to learn from."""
    noise: float = 0.1
    """Standard deviation of the exploration noise added to the executed actions (not to the recorded ones), as a
    fraction of half the action range."""
    n_action_steps: int = 8
    """Actions of a plan to execute before the next; the weights do not depend on it."""
    down_dims: tuple[int, ...] = (64, 128, 256)
    """Channels of each resolution of the U-Net."""
    images: bool = False
    """Learn from the environment's frames, with a ResNet-18 (GroupNorm, SpatialSoftmax) trained with the U-Net."""
    crop: tuple[int, int] | None = None
    """Height and width of the part of frames that is looked at [pixels]: at a random place in training, the middle
    afterwards."""
    bfloat16: bool = False
    """Encode frames in bfloat16 while training: twice as fast on CPUs that compute with it."""
    batch: int = 256
    """Windows per optimiser step."""
    draws: int = 1
    """Noises drawn for each window: with frames, whose encoding takes most of the time, several make use of it."""
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


def configure(options: Options, episodes: Episodes) -> DiffusionConfig:
    """Describe the policy that learns from these episodes."""
    vision = Vision()
    if cameras := episodes.cameras:
        (_, height, width), *_ = cameras.values()
        vision = Vision(cameras, VisionConfig((height, width), options.crop))
    kinds = ["STATE", "ENV", "ACTION"]
    return DiffusionConfig(
        input_dims=episodes.vectors,
        action_dim=episodes.features[ACTION].shape[1],
        normalization_mapping=dict.fromkeys(kinds, "MIN_MAX") | ({VISUAL: "MEAN_STD"} if cameras else {}),
        n_action_steps=options.n_action_steps,
        down_dims=options.down_dims,
        vision=vision,
    )


def write(folder: Path, trainer: Trainer, windows: Windows, statistics: Statistics, notes: dict[str, Any]) -> None:
    """Write the policy as it is now, a LeRobot folder."""
    unet, encoder = trainer.weights()
    save_lerobot(folder, windows.config, unet, statistics, notes, encoder)


def learn(options: Options, episodes: Episodes, progress: Progress) -> str:
    """Train on episodes and write the policy; return a sentence on it."""
    state_path, snapshot = (options.out.with_name(options.out.name + end) for end in (".training", ".snapshot"))
    config = configure(options, episodes)
    statistics = measure_statistics(episodes.features)
    windows = Windows(episodes, config, statistics, options.device)
    trainer = Trainer(Training(**{each.name: getattr(options, each.name) for each in fields(Training)}), config)
    parameters = sum(value.numel() for value in trainer.network.parameters())
    notes = {
        "env": options.env,
        "command": shlex.join(["python", *map(shared_name, sys.argv)]),
        "options": asdict(options) | {"out": options.out.name},
        "parameters": parameters,
        "windows": len(windows),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
    }
    if state_path.exists():
        trainer.restore(state_path)
    task = progress.add_task("training", total=options.steps, completed=trainer.step)
    recent = 1.0
    while trainer.step < options.steps:
        recent += 0.02 * (trainer.update(windows) - recent)
        progress.update(task, completed=trainer.step, description=f"training, loss {recent:.4f}")
        if trainer.step % options.save_every == 0:
            trainer.save(state_path)
        if options.snapshot_every and trainer.step % options.snapshot_every == 0:
            write(snapshot, trainer, windows, statistics, notes | {"step": trainer.step})
    write(options.out, trainer, windows, statistics, notes)
    state_path.unlink(missing_ok=True)
    if snapshot.exists():
        shutil.rmtree(snapshot)
    return f"{parameters / 1e6:.2f} M parameters, {len(windows)} windows of {options.env}"


def train(options: Options) -> None:
    """Run the whole training."""
    with progress_bar(console) as progress:
        demonstrations = demonstrate(
            options.env, options.demonstrations, options.noise, options.seed, progress, options.images
        )
        said = learn(options, join(demonstrations), progress)
    console.print(f"wrote {options.out}: {said}", soft_wrap=True)


def check(options: Options) -> None:
    """Refuse numbers that no training can have.

    Raises:
        SystemExit: One line that names the option, its value and what is valid.
    """
    for name in ("steps", "demonstrations", "batch", "draws", "save_every"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(options, name)} is not a positive number")
    # A plan begins with the action for the oldest observation, so the first of its actions are in the past.
    longest = DiffusionConfig.horizon - DiffusionConfig.n_obs_steps + 1
    if not 1 <= options.n_action_steps <= longest:
        raise SystemExit(f"--n-action-steps {options.n_action_steps} is not in 1 … {longest}")
    if not 0 <= options.noise <= 1:
        raise SystemExit(f"--noise {options.noise} is not in 0 … 1")
    if not options.learning_rate > 0:
        raise SystemExit(f"--learning-rate {options.learning_rate} is not positive")
    # LeRobot asks that the horizon be a multiple of 2 to the number of resolutions.
    groups, levels = DiffusionConfig.n_groups, DiffusionConfig.horizon.bit_length() - 1
    if not 1 <= len(options.down_dims) <= levels or any(d < groups or d % groups for d in options.down_dims):
        raise SystemExit(
            f"--down-dims {' '.join(map(str, options.down_dims))} are not 1 … {levels} multiples of {groups}"
        )


def main() -> None:
    """Read the command line, check it, train."""
    options = tyro.cli(Options, description=__doc__)
    check(options)
    if options.env not in gymnasium.registry or not options.env.startswith("asd/"):
        tasks = ", ".join(asd_envs.METAWORLD_TASKS)
        raise SystemExit(f"no environment {options.env!r} with an expert: {DEMONSTRATED} ({tasks})")
    try:
        train(options)
    except KeyboardInterrupt:
        console.print("interrupted: run the same command again to go on from the last saved state")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
