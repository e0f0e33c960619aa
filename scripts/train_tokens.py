"""Train a token policy on an environment's scripted expert: a bidirectional transformer over binned actions.

    python scripts/train_tokens.py --env asd/Avoid-v0 --out runs/avoid-tokens --steps 6000

Run again with the same options after an interruption, and it goes on where it stopped; with other --steps, on the
schedule of that length.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro
from rich.progress import Progress

import asd_envs
from asd_envs.experts import DEMONSTRATED
from asd_policy.chain.tokens import ORDERS
from asd_policy.checkpoints.token_folder import ACTION, MOST_BINS, TokenPolicyConfig, save_tokens
from asd_policy.cli.common import make_console, progress_bar
from training.episodes import join, measure_statistics
from training.recording import demonstrate
from training.token_trainer import TokenTrainer, TokenTraining, windows_of

console = make_console()


@dataclass(frozen=True)
class Options:
    """Train a token policy on an environment's scripted expert."""

    env: str
    """Gymnasium id of an environment with an expert, such as asd/Avoid-v0."""
    out: Path
    """Folder to write; training state is kept beside it, as <out>.training, until the training is done."""
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
    bins: int = 256
    """Bins of each number of an action, over its range in the demonstrations."""
    order: str = ORDERS[0]
    """Order in which plans are sampled: forward, coarse or random. The weights do not depend on it."""
    n_layer: int = 4
    """Layers of the transformer."""
    n_head: int = 4
    """Heads of its attention."""
    n_emb: int = 128
    """Its width."""
    smooth: float = 1.0
    """Standard deviation of a label around the demonstrated bin [bins]; 0 for none."""
    batch: int = 64
    """Windows per optimiser step."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    seed: int = 0
    """Seeds demonstrations, initial weights and batches."""
    device: str = "cpu"
    """PyTorch's device to train on, such as cuda."""
    save_every: int = 250
    """Steps between two saved training states."""
    snapshot_every: int = 0
    """Steps between two snapshots, <out>.snapshot: the policy as it is so far, to be evaluated; 0 for none."""


def learn(options: Options, progress: Progress) -> str:
    """Train and write the policy; return a sentence on it."""
    episodes = join(demonstrate(options.env, options.demonstrations, options.noise, options.seed, progress))
    sizes = ("n_obs_steps", "horizon", "n_action_steps", "bins", "order", "n_layer", "n_head", "n_emb")
    config = TokenPolicyConfig(
        input_dims=episodes.vectors,
        action_dim=episodes.features[ACTION].shape[1],
        **{name: getattr(options, name) for name in sizes},
    )
    statistics = measure_statistics(episodes.features)
    windows = windows_of(episodes, config, statistics)
    trainer = TokenTrainer(TokenTraining(**{e.name: getattr(options, e.name) for e in fields(TokenTraining)}), config)
    past = torch.cat([windows.vectors[name][windows.past] for name in config.input_dims], dim=-1).flatten(1)
    parameters = sum(value.numel() for value in trainer.network.parameters())
    own = {
        "env": options.env,
        "options": asdict(options) | {"out": options.out.name},
        "parameters": parameters,
        "windows": len(windows),
    }

    def write(folder: Path, notes: Mapping[str, Any]) -> None:
        save_tokens(folder, config, trainer.averaged(trainer.network), statistics, {**own, **notes})

    every = options.save_every, options.snapshot_every
    trainer.run(options.out, every, lambda: trainer.update(windows, past), write, progress)
    return f"{parameters / 1e6:.2f} M parameters, {len(windows)} windows of {options.env}"


def check(options: Options) -> None:
    """Refuse numbers that no training can have.

    Raises:
        SystemExit: One line that names the option, its value and what is valid.
    """
    for name in ("steps", "demonstrations", "batch", "save_every", "n_obs_steps", "horizon", "n_layer", "n_head"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(options, name)} is not a positive number")
    longest = options.horizon - options.n_obs_steps + 1
    if not 1 <= options.n_action_steps <= longest:
        raise SystemExit(f"--n-action-steps {options.n_action_steps} is not in 1 … {longest}")
    if not 2 <= options.bins <= MOST_BINS:
        raise SystemExit(f"--bins {options.bins} is not in 2 … {MOST_BINS}")
    if options.order not in ORDERS:
        raise SystemExit(f"--order {options.order!r} is not one of {', '.join(ORDERS)}")
    if options.n_emb < 2 or options.n_emb % 2 or options.n_emb % options.n_head:
        raise SystemExit(f"--n-emb {options.n_emb} is not even and a multiple of --n-head {options.n_head}")
    if not 0 <= options.noise <= 1:
        raise SystemExit(f"--noise {options.noise} is not in 0 … 1")
    if not options.smooth >= 0:
        raise SystemExit(f"--smooth {options.smooth} is negative")
    if not options.learning_rate > 0:
        raise SystemExit(f"--learning-rate {options.learning_rate} is not positive")
    if options.env not in gymnasium.registry or not options.env.startswith("asd/"):
        raise SystemExit(
            f"no environment {options.env!r} with an expert: {DEMONSTRATED} ({', '.join(asd_envs.METAWORLD_TASKS)})"
        )


def main() -> None:
    """Read the command line, check it, train."""
    options = tyro.cli(Options, description=__doc__)
    check(options)
    try:
        with progress_bar(console) as progress:
            said = learn(options, progress)
        console.print(f"wrote {options.out}: {said}", soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted: run the same command again to go on from the last saved state")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
