"""Train a diffusion policy on demonstrations of an environment's scripted expert; write a LeRobot folder.

    python scripts/train.py --env asd/Avoid-v0 --out checkpoints/avoid --steps 6000

Run again with the same options after an interruption, and it goes on where it stopped.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

import asd_envs
from asd_envs.experts import DEMONSTRATED, make_expert
from asd_policy._common.files import atomic_file
from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, Statistics, save_lerobot
from asd_policy.cli.common import make_console, progress_bar
from asd_policy.evaluation.reports.report import shared_name
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.normalisation import make_affine
from asd_policy.policy.observation import ENVIRONMENT_KEYS
from demonstrations import Demonstration, make_windows

MAX_ATTEMPTS_PER_DEMONSTRATION = 10
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
    batch: int = 256
    """Windows per optimiser step."""
    learning_rate: float = 5e-4
    """Peak of the cosine schedule."""
    seed: int = 0
    """Seeds demonstrations, initial weights and batches."""
    save_every: int = 250
    """Steps between two saved training states."""


def record_episode(env: gymnasium.Env[Any, Any], noise: float, seed: int) -> Demonstration | None:
    """Record one demonstration; None where the expert failed.

    The expert's own action is recorded and a noisy one executed, so that the data shows how to recover
    (as in DART, arXiv 1703.09327).
    """
    rng = np.random.default_rng(seed)
    expert = make_expert(env)
    expert.reset(rng)
    observation, info = env.reset(seed=seed)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)  # all environments with an expert have one
    steps, done = [], False
    while not done:
        action = expert.act(observation)
        steps.append({**observation, "action": action})
        executed = action + noise * (space.high - space.low) / 2 * rng.standard_normal(action.shape)
        observation, _, terminated, truncated, info = env.step(
            np.clip(executed, space.low, space.high).astype(space.dtype)
        )
        done = terminated or truncated
    if not info["success"]:
        return None
    return {key: np.stack([step[key] for step in steps]).astype(np.float32) for key in steps[0]}


def demonstrate(options: Options, progress: Progress) -> list[Demonstration]:
    """Record as many successful episodes as asked for.

    Raises:
        SystemExit: The expert fails nine times out of ten.
    """
    env = gymnasium.make(options.env)
    task = progress.add_task("demonstrations", total=options.demonstrations)
    found: list[Demonstration] = []
    for attempt in range(options.demonstrations * MAX_ATTEMPTS_PER_DEMONSTRATION):
        demonstration = record_episode(env, options.noise, seed=options.seed * 1_000_003 + 500_000 + attempt)
        if demonstration is not None:
            found.append(demonstration)
            progress.advance(task)
        if len(found) == options.demonstrations:
            return found
    raise SystemExit(f"the expert of {options.env} fails too often with --noise {options.noise}: try less")


def measure_statistics(windows: dict[str, Tensor]) -> Statistics:
    """Compute minimum, maximum, mean and standard deviation of every feature.

    A coordinate that (almost) never moves gets a range of 1 either way: scaled by its own tiny range, the first
    unseen value would be thrown far outside of what the network knows.
    """
    statistics: Statistics = {}
    for name, values in windows.items():
        flat = values.flatten(0, 1)
        low, high = flat.amin(0), flat.amax(0)
        still = high - low < 1e-4
        statistics[name] = {
            "min": torch.where(still, low - 1, low),
            "max": torch.where(still, high + 1, high),
            "mean": flat.mean(0),
            "std": flat.std(0),
        }
    return statistics


class Trainer:
    """Network, optimiser, schedule, running average and random stream, saved and restored together."""

    def __init__(self, options: Options, config: DiffusionConfig) -> None:
        """Build everything from the seed."""
        torch.manual_seed(options.seed)
        self.options = options
        self.network = ConditionalUnet1d(config.unet)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6
        )
        self.schedule = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=min(500, options.steps // 10), num_training_steps=options.steps
        )
        # The warm-up of Diffusion Policy's own EMA: 1 − (1 + step)^(−3/4).
        self.average = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
        self.generator = torch.Generator().manual_seed(options.seed)
        scheduler_config = {k: v for k, v in config.scheduler.items() if k != "_class_name"}
        self.scheduler = DDPMScheduler(**scheduler_config)
        self.step = 0

    def update(self, actions: Tensor, cond: Tensor) -> float:
        """Take one optimiser step on a random batch; return its loss."""
        rows = torch.randint(len(actions), (self.options.batch,), generator=self.generator)
        clean = actions[rows]
        noise = torch.randn(clean.shape, generator=self.generator)
        steps_in_chain = int(self.scheduler.config["num_train_timesteps"])
        timesteps = torch.randint(steps_in_chain, (len(rows),), generator=self.generator)
        # add_noise is annotated for 32-bit timesteps and takes any integers.
        noisy = self.scheduler.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        loss = functional.mse_loss(self.network(noisy, timesteps, cond[rows]), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.step(self.network.parameters())
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write the training state, atomically."""
        state = {
            "options": repr(self.options),
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "generator": self.generator.get_state(),
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            SystemExit: It belongs to a training with other options.
        """
        state = torch.load(path, weights_only=True)
        if state["options"] != repr(self.options):
            raise SystemExit(f"{path} is of a training with other options ({state['options']}): remove it first")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def train(options: Options) -> None:
    """Run the whole training."""
    state_path = options.out.with_name(options.out.name + ".training")
    with progress_bar(console) as progress:
        demonstrations = demonstrate(options, progress)
        dims = {name: demonstrations[0][key].shape[1] for name, key in ENVIRONMENT_KEYS.items()}
        config = DiffusionConfig(
            input_dims=dims,
            action_dim=demonstrations[0]["action"].shape[1],
            normalization_mapping={"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
            n_action_steps=options.n_action_steps,
            down_dims=options.down_dims,
        )
        windows = make_windows(demonstrations, config)
        statistics = measure_statistics(windows)
        scaled = {
            name: make_affine(config.mode_of(name), statistics[name], name, values.shape[-1]).normalize(values)
            for name, values in windows.items()
        }
        cond = torch.cat([scaled[name] for name in config.input_dims], dim=-1).flatten(1)
        trainer = Trainer(options, config)
        if state_path.exists():
            trainer.restore(state_path)
        task = progress.add_task("training", total=options.steps, completed=trainer.step)
        recent = 1.0
        while trainer.step < options.steps:
            recent += 0.02 * (trainer.update(scaled[ACTION], cond) - recent)
            progress.update(task, completed=trainer.step, description=f"training, loss {recent:.4f}")
            if trainer.step % options.save_every == 0:
                trainer.save(state_path)
    trainer.average.copy_to(trainer.network.parameters())
    weights = {name: value.half() for name, value in trainer.network.state_dict().items()}
    parameters = sum(value.numel() for value in trainer.network.parameters())
    notes = {
        "env": options.env,
        "command": shlex.join(["python", *map(shared_name, sys.argv)]),
        "options": asdict(options) | {"out": options.out.name},
        "parameters": parameters,
        "windows": len(cond),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
    }
    save_lerobot(options.out, config, weights, statistics, notes)
    state_path.unlink(missing_ok=True)
    console.print(
        f"wrote {options.out}: {parameters / 1e6:.2f} M parameters, {len(cond)} windows of {options.env}",
        soft_wrap=True,
    )


def check(options: Options) -> None:
    """Refuse numbers that no training can have.

    Raises:
        SystemExit: One line that names the option, its value and what is valid.
    """
    for name in ("steps", "demonstrations", "batch", "save_every"):
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
