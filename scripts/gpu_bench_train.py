"""Train a U-Net on a recording for as long as there is time, with PyTorch alone, and keep it as a LeRobot folder."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from asd_policy._common.files import atomic_folder, write_json
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.checkpoints.lerobot.folder import ACTION, CONFIG, UNET_PREFIX, WEIGHTS, DiffusionConfig
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.policy import Policy
from gpu_bench_data import CHECKPOINT, Recording
from training.episodes import make_windows

BATCH = 512
PEAK_LEARNING_RATE = 3e-4
WARM_UP_SHARE = 0.03
"""Of the time, in which the learning rate rises; after that it falls along a cosine."""
DECAY = 0.9999
"""Of the running average of the weights, at most; it begins as 1 − (1 + step)^(−3/4), as Diffusion Policy's own."""


def train(
    like: Policy, down_dims: tuple[int, ...], recording: Recording, seconds: float, folder: Path, seed: int
) -> dict[str, Any]:
    """Train a network for some seconds, in bfloat16 autocast, and write it with its normalisation and configuration.

    Args:
        like: The checkpoint's policy: chain, normalisation and horizons are its own.
        down_dims: Channels of each resolution.
        recording: What to learn from.
        seconds: How long.
        folder: LeRobot folder to write.
        seed: Of weights and batches.

    Returns: The contents of its training.json.
    """
    device = like.device
    config = DiffusionConfig(
        like.observation_dims,
        like.action_dim,
        {},
        n_obs_steps=like.horizons.n_obs_steps,
        horizon=like.horizons.horizon,
        down_dims=down_dims,
    )
    windows = make_windows(recording.demonstrations, config)
    cond = torch.cat([windows[name] for name in config.input_dims], dim=-1).flatten(1).to(device)
    actions = windows[ACTION].to(device)
    torch.manual_seed(seed)
    network = ConditionalUnet1d(config.unet).to(device)
    average = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6, fused=True
    )
    signal, noise = (values.to(device) for values in mixing(like.chain))
    timesteps = torch.as_tensor(like.chain.timesteps, device=device)
    start, step, recent = time.perf_counter(), 0, torch.ones((), device=device)
    while (share := (time.perf_counter() - start) / seconds) < 1 or step == 0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(share)
        rows = torch.randint(len(actions), (BATCH,), device=device)
        at = torch.randint(len(timesteps), (BATCH,), device=device)
        drawn = torch.randn_like(actions[rows])
        noisy = signal[at].view(-1, 1, 1) * actions[rows] + noise[at].view(-1, 1, 1) * drawn
        with torch.autocast(device.type, torch.bfloat16):
            predicted = network(noisy, timesteps[at], cond[rows])
        loss = functional.mse_loss(predicted.float(), drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(DECAY, 1 - (1 + step) ** -0.75)
            for mean, weight in zip(average, network.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
            recent.lerp_(loss, 0.02)
        if device.type == "cuda" and step % 50 == 0:
            torch.cuda.synchronize(device)  # otherwise the queue runs ahead of the clock
    with torch.no_grad():
        for weight, value in zip(network.parameters(), average, strict=True):
            weight.copy_(value)
    notes = {
        "down_dims": list(down_dims),
        "parameters": sum(weight.numel() for weight in average),
        "train_steps": step,
        "seconds": time.perf_counter() - start,
        "batch": BATCH,
        "loss": float(recent),
        "windows": len(actions),
        "precision": "bfloat16 autocast",
        "seed": seed,
        "recording": recording.notes,
        "torch": torch.__version__,
    }
    save(folder, network, down_dims, notes)
    return notes


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


def save(folder: Path, network: nn.Module, down_dims: tuple[int, ...], notes: dict[str, Any]) -> None:
    """Write the checkpoint's folder with another network in it, atomically, weights in half precision."""
    config = json.loads((CHECKPOINT / CONFIG).read_text()) | {"down_dims": list(down_dims)}
    weights = {UNET_PREFIX + name: value.half().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_folder(folder) as temporary:
        for path in CHECKPOINT.glob("policy_*"):
            shutil.copy(path, temporary)
        write_json(temporary / CONFIG, config)
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / "training.json", notes)
