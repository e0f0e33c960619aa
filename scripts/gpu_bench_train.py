"""Train a U-Net on a recording for as long as there is time, with PyTorch alone, and keep it as a LeRobot folder.

With cameras, frames are drawn as they are needed (`gpu_bench_scene`), and the encoder is trained along. In the few
minutes that there are it would hardly find what matters by the policy's loss alone, so a linear map of its features,
which is thrown away, learns to tell where the object and the goal are.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gpu_bench_scene
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.checkpoints.lerobot.folder import ACTION, DiffusionConfig, save_lerobot
from asd_policy.checkpoints.lerobot.vision import Vision
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from asd_policy.policy.policy import Policy
from gpu_bench_data import Recording
from gpu_bench_plan import Subject
from training.episodes import make_windows

BATCH = 512
"""Noisy actions of a training step."""
PEAK_LEARNING_RATE = 3e-4
WARM_UP_SHARE = 0.03
"""Of the time, in which the learning rate rises; after that it falls along a cosine."""
DECAY = 0.9999
"""Of the running average of the weights, at most; it begins as 1 − (1 + step)^(−3/4), as Diffusion Policy's own."""
DRAWS = 8
"""Noises for each observation with cameras: a frame takes longer to encode than a prediction does."""
COLOUR_MEAN, COLOUR_DEVIATION = 0.5, 0.25


@dataclass
class Task:
    """Two networks to train together, and what to learn."""

    config: DiffusionConfig
    unet: ConditionalUnet1d
    encoder: RgbEncoder | None
    windows: dict[str, Tensor]
    """Normalised, on the device: STATE and ENVIRONMENT_STATE [N, n_obs_steps, dim], ACTION [N, horizon, dim]."""
    places: nn.Linear | None = None
    """Tells by the features of all cameras where the object and the goal are."""

    @property
    def weights(self) -> list[nn.Parameter]:
        """Of all that there is, the policy's first."""
        parts = (self.unet, self.encoder, self.places)
        return [weight for part in parts if part is not None for weight in part.parameters()]

    def observe(self, rows: Tensor, frames_of: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the conditioning of rows [R, cond_dim], and the mean square by which the places are missed.

        Args:
            rows: Of the windows.
            frames_of: The rows whose frames are seen; None for the same.
        """
        if self.encoder is None or self.places is None:
            seen = [self.windows[name][rows] for name in self.config.input_dims]
            return torch.cat(seen, dim=-1).flatten(1), torch.zeros((), device=rows.device)
        seen = rows if frames_of is None else frames_of
        hand, surroundings = (self.windows[name][seen].flatten(0, 1) for name in (STATE, ENVIRONMENT_STATE))
        frames = gpu_bench_scene.render(hand, surroundings, self.encoder.config.seen)
        steps = self.windows[STATE].shape[1]
        stacked = torch.cat([frames[name] for name in self.config.vision.cameras]).float() / 255
        stacked = (stacked - COLOUR_MEAN) / COLOUR_DEVIATION
        features = self.encoder(stacked).float().unflatten(0, (len(frames), len(rows), steps))
        told = self.places(torch.cat([*features], dim=-1).flatten(0, 1)).float()
        missed = functional.mse_loss(told, gpu_bench_scene.places(surroundings))
        return torch.cat([self.windows[STATE][rows], *features], dim=-1).flatten(1), missed


def make_task(like: Policy, subject: Subject, recording: Recording, seed: int) -> Task:
    """Make untrained networks for a subject, and bring the recording to its device."""
    cameras = Vision()
    if subject.frame is not None:
        encoder = VisionConfig(subject.frame, resize_shape=subject.resized)
        cameras = Vision(dict.fromkeys(gpu_bench_scene.VIEWS, (3, *subject.frame)), encoder)
    assert subject.down_dims is not None
    whole = DiffusionConfig(
        dict(like.observation_dims),
        like.action_dim,
        {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "VISUAL": "MEAN_STD", "ACTION": "MIN_MAX"},
        n_obs_steps=like.horizons.n_obs_steps,
        horizon=like.horizons.horizon,
        down_dims=subject.down_dims,
    )
    windows = {name: each.to(like.device) for name, each in make_windows(recording.demonstrations, whole).items()}
    config = whole
    if cameras.encoder is not None:  # which observes the environment by its cameras alone
        config = replace(whole, input_dims={STATE: whole.input_dims[STATE]}, vision=cameras)
    torch.manual_seed(seed)
    unet = ConditionalUnet1d(config.unet).to(like.device)
    looking = None if cameras.encoder is None else RgbEncoder(cameras.encoder).to(like.device)
    known = len(gpu_bench_scene.VIEWS) * cameras.encoder.size if cameras.encoder else 0
    places = nn.Linear(known, gpu_bench_scene.PLACES).to(like.device) if known else None
    return Task(config, unet, looking, windows, places)


def train(
    like: Policy, subject: Subject, recording: Recording, seconds: float, folder: Path, seed: int, observations: int
) -> dict[str, Any]:
    """Train a network for some seconds, in bfloat16 autocast, and write it with its normalisation and configuration.

    Args:
        like: The checkpoint's policy: chain, normalisation and horizons are its own.
        subject: What to train.
        recording: What to learn from.
        seconds: How long.
        folder: LeRobot folder to write.
        seed: Of weights and batches.
        observations: In a batch, where there are cameras.

    Returns: The contents of its training.json.
    """
    device, task = like.device, make_task(like, subject, recording, seed)
    weights = task.weights
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    signal, noise = (values.to(device) for values in mixing(like.chain))
    batch, draws = (BATCH, 1) if task.encoder is None else (observations, DRAWS)
    step, recent = 0, torch.ones((), device=device)
    loss_of = loss_function(task, like.chain, signal, noise)
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / seconds) < 1 or step == 0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(share)
        rows = torch.randint(len(task.windows[ACTION]), (batch,), device=device)
        loss, missed = loss_of(rows, draws, None)
        optimizer.zero_grad()
        (loss + missed).backward()
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(DECAY, 1 - (1 + step) ** -0.75)
            for mean, weight in zip(average, weights, strict=True):
                mean.lerp_(weight, 1 - decay)
            recent.lerp_(loss, 0.02)
        if device.type == "cuda" and step % 20 == 0:
            torch.cuda.synchronize(device)  # otherwise the queue runs ahead of the clock
    took = time.perf_counter() - start
    with torch.no_grad():
        for weight, value in zip(weights, average, strict=True):
            weight.copy_(value)
    notes = {
        "down_dims": list(task.config.down_dims),
        "parameters": sum(weight.numel() for part in (task.unet, task.encoder) if part for weight in part.parameters()),
        "train_steps": step,
        "seconds": took,
        "batch": batch * draws,
        "observations": batch,
        "loss": float(recent),
        **look_at_others(task, loss_of, batch),
        "windows": len(task.windows[ACTION]),
        "precision": "bfloat16 autocast",
        "seed": seed,
        "recording": recording.notes,
        "torch": torch.__version__,
    }
    save(folder, task, like, notes)
    return notes


def loss_function(
    task: Task, chain: GaussianChain, signal: Tensor, noise: Tensor
) -> Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]]:
    """Make the function that computes the loss of rows [R], each with so many noises, by the frames of these or others.

    Beside the loss it gives the mean square by which places are missed.

    Args:
        task: What is trained.
        chain: Of the policy.
        signal: √ᾱ of each step [K].
        noise: √(1 − ᾱ) of each step [K].
    """
    timesteps = torch.as_tensor(chain.timesteps, device=signal.device)

    def loss(rows: Tensor, draws: int, frames_of: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(signal.device.type, torch.bfloat16):
            observed, missed = task.observe(rows, frames_of)
            cond = observed.repeat(draws, 1)
            actions = task.windows[ACTION][rows].repeat(draws, 1, 1)
            at = torch.randint(len(timesteps), (len(actions),), device=signal.device)
            drawn = torch.randn_like(actions)
            noisy = signal[at].view(-1, 1, 1) * actions + noise[at].view(-1, 1, 1) * drawn
            predicted = task.unet(noisy, timesteps[at], cond)
        return functional.mse_loss(predicted.float(), drawn), missed

    return loss


def look_at_others(
    task: Task, loss_of: Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]], batch: int, batches: int = 4
) -> dict[str, float]:
    """Compare the loss by a state's own frames with that by another's: equal, if the vision does not matter."""
    if task.encoder is None:
        return {}
    losses: dict[str, list[Tensor]] = {"loss_by_own_frames": [], "loss_by_other_frames": []}
    missed: list[Tensor] = []
    with torch.no_grad():
        for seed in range(batches):
            rows, others = torch.randint(
                len(task.windows[ACTION]), (2, batch), generator=torch.Generator().manual_seed(seed)
            ).to(task.windows[ACTION].device)
            for name, seen in zip(losses, (rows, others), strict=True):
                torch.manual_seed(seed)  # the same noise for both
                loss, squares = loss_of(rows, DRAWS, seen)
                losses[name].append(loss)
                missed.append(squares)
    known = {"places_missed_by": float(torch.stack(missed).mean().sqrt())}  # in halves of the range of the data
    return {name: float(torch.stack(values).mean()) for name, values in losses.items()} | known


def mixing(chain: GaussianChain) -> tuple[Tensor, Tensor]:
    """Compute √ᾱ and √(1 − ᾱ) of each step of a chain whose network predicts noise, float32 [K]."""
    # x̂0 = (x − √(1 − ᾱ) ε) / √ᾱ
    signal = 1 / torch.as_tensor(chain.input_scale)
    return signal.float(), (-torch.as_tensor(chain.output_scale) * signal).float()


def learning_rate(share: float) -> float:
    """Compute the learning rate when a share 0 … 1 of the time has passed."""
    if share < WARM_UP_SHARE:
        return PEAK_LEARNING_RATE * share / WARM_UP_SHARE
    return PEAK_LEARNING_RATE * (1 + math.cos(math.pi * min(share, 1))) / 2


def save(folder: Path, task: Task, like: Policy, notes: dict[str, Any]) -> None:
    """Write a LeRobot folder, weights in half precision, with the normalisation of the checkpoint."""

    def ends(name: str, dim: int) -> dict[str, Tensor]:
        affine, ones = like.normalization[name], torch.ones(dim, device=like.device)
        return {"min": affine.unnormalize(-ones).cpu(), "max": affine.unnormalize(ones).cpu()}

    def half(network: nn.Module | None) -> dict[str, Tensor]:
        state = {} if network is None else network.state_dict()
        return {name: value.half().cpu().contiguous() for name, value in state.items()}

    statistics = {name: ends(name, dim) for name, dim in {**task.config.input_dims, ACTION: like.action_dim}.items()}
    for name in task.config.vision.cameras:
        colours = {"mean": COLOUR_MEAN, "std": COLOUR_DEVIATION}
        statistics[name] = {key: torch.full((3, 1, 1), value) for key, value in colours.items()}
    save_lerobot(folder, task.config, half(task.unet), statistics, notes, half(task.encoder) or None)


def trained_notes(folder: Path) -> dict[str, Any]:
    """Read how the network of a folder was trained."""
    return json.loads((folder / "training.json").read_text())


def count_parameters(policy: Policy) -> dict[str, int]:
    """Count the numbers of a policy's network, and of the encoders of its cameras."""
    encoders: Sequence[Any] = list({id(each.network): each.network for each in sensors_of(policy)}.values())
    return {
        "parameters": sum(each.numel() for each in modules_of([policy.network])),
        "encoder_parameters": sum(each.numel() for each in modules_of(encoders)),
    }


def sensors_of(policy: Policy) -> list[Any]:
    """List what of a policy's observation a network encodes."""
    return list(getattr(policy.encoder, "sensors", {}).values())


def modules_of(networks: Sequence[Any]) -> list[Tensor]:
    """List the weights of networks."""
    return [weight for network in networks for weight in network.parameters()]
