"""What does a policy of the size people run cost here? Table for docs/results/at_size.md.

    OMP_NUM_THREADS=1 python scripts/benchmarks/at_size.py --out runs/at-size
    asd-policy bench --policy runs/at-size --out runs/at-size-bench --samplers ddpm asd:window=8 --plans 3

A LeRobot folder with random weights: a U-Net of LeRobot's default widths and a ResNet-18 for each camera. Times and
memory do not depend on the weights' values; how many drafts `asd` accepts does, so rounds are not looked at.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

import asd_policy
from asd_policy._common.hardware import hardware, versions
from asd_policy.checkpoints.lerobot.config import DiffusionConfig
from asd_policy.checkpoints.lerobot.folder import ACTION, save_lerobot
from asd_policy.checkpoints.lerobot.vision import Vision
from asd_policy.networks.backends import make_backend
from asd_policy.networks.denoiser import encode
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.observation import IMAGES, STATE
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history

CPU = torch.device("cpu")
STATE_DIM = 14
POINTS = (1, 8, 32)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """Folder to write the policy to, about 1.2 GB; one that is there is used again."""
    frame: tuple[int, int] = (480, 640)
    """Height and width of frames [pixels]."""
    cameras: int = 2
    """Cameras."""
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    """Channels of each resolution of the U-Net."""
    backends: tuple[str, ...] = ("torch-eager", "onnx")
    """Backend specs."""
    calls: int = 5
    """Calls of each kind; the median is shown, and half the range."""


def write(options: Options) -> None:
    """Write the folder."""
    torch.manual_seed(0)
    names = [f"{IMAGES}{name}" for name in ("front", "wrist", "left", "right")[: options.cameras]]
    vision = Vision({name: (3, *options.frame) for name in names}, VisionConfig(options.frame), separate=True)
    config = DiffusionConfig(
        input_dims={STATE: STATE_DIM},
        action_dim=STATE_DIM,
        normalization_mapping={"STATE": "MIN_MAX", "VISUAL": "MEAN_STD", "ACTION": "MIN_MAX"},
        down_dims=options.down_dims,
        vision=vision,
    )
    assert vision.encoder is not None
    encoders = nn.ModuleList(RgbEncoder(vision.encoder) for _ in names)
    known = {name: {"min": torch.full((STATE_DIM,), -1.0), "max": torch.ones(STATE_DIM)} for name in (STATE, ACTION)}
    known |= {name: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)} for name in names}
    unet = ConditionalUnet1d(config.unet).state_dict()
    save_lerobot(options.out, config, unet, known, {"weights": "random"}, encoders.state_dict())


def timed(work: Callable[[], object]) -> float:
    """Time a call [s]."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(work: Callable[[], object], calls: int) -> str:
    """Time calls after a first one; write their median ± half the range [ms]."""
    work()
    took = [1e3 * timed(work) for _ in range(calls)]
    return f"{statistics.median(took):.0f} ± {(max(took) - min(took)) / 2:.0f} ms"


def peak() -> str:
    """Write the largest memory of this process so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def observe(policy: Policy, seed: int) -> dict[str, Any]:
    """Make an observation of noise."""
    random = np.random.default_rng(seed)
    return {
        name: random.integers(0, 256, (*shape[1:], 3), np.uint8) if len(shape) == 3 else random.uniform(-1, 1, shape)
        for name, shape in policy.observation_shapes.items()
    }


def measure(policy: Policy, options: Options, row: Callable[[str, str], None]) -> None:
    """Measure one backend's encoder, calls and plans."""
    frames = {name: np.stack([value] * 2)[None] for name, value in observe(policy, 0).items()}
    steps = policy.horizons.n_obs_steps
    looked = spread(lambda: encode_history(policy.encoder, frames, steps, CPU), options.calls)
    row(f"encoding of {steps} × {options.cameras} frames", looked)
    encoded = encode(policy.denoiser, torch.zeros(1, policy.cond_dim))
    for points in POINTS:
        inputs = torch.zeros(points, *policy.event), torch.full((points,), 50), encoded.expand(points, -1)
        row(f"network call, {points} points", spread(partial(policy.denoiser, *inputs), options.calls))
    policy.reset(seed=0)
    first = timed(lambda: policy.select_action(observe(policy, 1)))
    assert policy.last_plan is not None
    row(f"first plan after loading, `{policy.sampler.spec}`", f"{first:.1f} s, {policy.last_plan.rounds} rounds")


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    if not options.out.exists():
        write(options)
    print("| what | measured |\n|---|---|")

    def row(what: str, value: str) -> None:
        print(f"| {what} | {value} |", flush=True)

    before = peak()
    start = time.perf_counter()
    policy = asd_policy.load_policy(options.out)
    row("loading", f"{time.perf_counter() - start:.1f} s")
    network = policy.network
    assert isinstance(network, nn.Module)
    row("parameters of the network", f"{sum(each.numel() for each in network.parameters()) / 1e6:.0f} M")
    row("memory before and after loading, at most", f"{before}, {peak()}")
    for spec in options.backends:
        print(f"| **{spec}** | |")
        start = time.perf_counter()
        running = policy.with_backend(make_backend(spec))
        row("making ready", f"{time.perf_counter() - start:.1f} s")
        measure(running, options, row)
        row("memory, at most", peak())
    found = versions(CPU)
    print(f"\n{hardware(CPU)}; torch {found['torch']}, onnxruntime {found['onnxruntime']}; n = {options.calls} calls")


if __name__ == "__main__":
    main()
