"""What does it cost to plan from frames on a server? Table for docs/results/serving.md.

    python scripts/benchmarks/server_frames.py

A policy with random weights and two cameras: a ResNet-18 for both, and a small U-Net, so that the wire and the encoder
are what is measured. The server is a process of its own on this machine, so the wire is as fast as it can be; the last
column says on which slower networks compression pays: where it saves more time than it takes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro

from asd_policy._common.hardware import hardware
from asd_policy.checkpoints.lerobot.config import DiffusionConfig
from asd_policy.checkpoints.lerobot.folder import ACTION, save_lerobot
from asd_policy.checkpoints.lerobot.vision import Vision
from asd_policy.deploy.serving import RemotePolicy
from asd_policy.deploy.serving.frames import pack
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.observation import IMAGES, STATE
from server_load import load, serve

STATE_DIM = 14
CAMERAS = (f"{IMAGES}front", f"{IMAGES}wrist")
Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    frame: tuple[int, int] = (480, 640)
    """Height and width of frames [pixels]."""
    backend: str = "torch-eager"
    """Backend spec of the server."""
    sampler: str = "ddim:2"
    """Sampler spec: of few steps, because the network is not what is measured."""
    plans: int = 15
    """Plans of each kind."""
    clients: tuple[int, ...] = (1, 4)
    """Numbers of robots that ask at once."""
    seconds: float = 15.0
    """For each number of them."""


def write(folder: Path, frame: tuple[int, int]) -> None:
    """Write a policy with random weights."""
    torch.manual_seed(0)
    vision = Vision({name: (3, *frame) for name in CAMERAS}, VisionConfig(frame))
    modes = {"STATE": "MIN_MAX", "VISUAL": "MEAN_STD", "ACTION": "MIN_MAX"}
    config = DiffusionConfig(
        {STATE: STATE_DIM}, STATE_DIM, modes, n_action_steps=1, down_dims=(16, 32, 64), vision=vision
    )
    known = {name: {"min": torch.full((STATE_DIM,), -1.0), "max": torch.ones(STATE_DIM)} for name in (STATE, ACTION)}
    known |= {name: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)} for name in CAMERAS}
    assert vision.encoder is not None
    encoder = RgbEncoder(vision.encoder).state_dict()
    save_lerobot(folder, config, ConditionalUnet1d(config.unet).state_dict(), known, {"weights": "random"}, encoder)


def smooth(shape: tuple[int, int], random: np.random.Generator) -> Frame:
    """Draw a frame like a camera's: patches of many sizes, and a sensor's noise of two units."""
    frame = np.zeros((*shape, 3))
    for size in (8, 32, 128):
        patches = random.uniform(-40, 40, (-(-shape[0] // size), -(-shape[1] // size), 3))
        frame += np.repeat(np.repeat(patches, size, 0), size, 1)[: shape[0], : shape[1]]
    return np.clip(128 + frame + 2 * random.standard_normal(frame.shape), 0, 255).astype(np.uint8)


def noise(shape: tuple[int, int], random: np.random.Generator) -> Frame:
    """Draw a frame of noise, which no method compresses."""
    return random.integers(0, 256, (*shape, 3), np.uint8)


def middle(values: list[float]) -> str:
    """Write the median ± half the range [ms]."""
    return f"{1e3 * statistics.median(values):.1f} ± {500 * (max(values) - min(values)):.1f}"


def observe(options: Options, draw: Callable[..., Frame]) -> list[dict[str, Any]]:
    """Draw the observations of an episode."""
    random = np.random.default_rng(0)
    return [
        {STATE: random.uniform(-1, 1, STATE_DIM), **{name: draw(options.frame, random) for name in CAMERAS}}
        for _ in range(options.plans + 2)
    ]


def ask(address: str, options: Options, draw: Callable[..., Frame], compress: bool) -> list[str]:
    """Ask for plans; format cells of the table."""
    seen = observe(options, draw)
    latency, wire, packing, sizes = [], [], [], []
    with RemotePolicy(address, timeout=300, compress=compress) as robot:
        for observation in seen:
            robot.select_action(observation)
            plan = robot.last_plan
            assert plan is not None
            latency.append(plan.seconds)
            wire.append(plan.seconds - plan.waited - plan.planned)
    for before, after in zip(seen, seen[1:], strict=False):
        start = time.perf_counter()
        messages = [pack([before[name], after[name]], compress) for name in CAMERAS]
        packing.append(time.perf_counter() - start)
        sizes.append(sum(len(message.data) for message in messages))
    raw = 2 * sum(seen[0][name].size for name in CAMERAS)
    size, took = statistics.mean(sizes), statistics.median(packing)
    pays = "–" if not compress or size >= raw else f"below {8e-6 * (raw - size) / took:.0f} Mbit/s"
    return [f"{size / 1e6:.2f}", middle(packing), middle(wire[2:]), middle(latency[2:]), pays]


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    height, width = options.frame
    with TemporaryDirectory() as folder:
        write(Path(folder) / "policy", options.frame)
        print("| frames | compressed | MB a plan | packing ms | wire ms | latency ms | compression pays |")
        print("|---|---|---|---|---|---|---|")
        with serve(str(Path(folder) / "policy"), options.backend, options.sampler) as address:
            for name, draw in (("like a camera's", smooth), ("noise", noise)):
                for compress in (False, True):
                    cells = ask(address, options, draw, compress)
                    print(f"| {name} | {'yes' if compress else 'no'} | {' | '.join(cells)} |", flush=True)
            print("\n| robots | plans/s | latency p50 / p99 ms | batch | plans of a robot |\n|---|---|---|---|---|")
            for clients in options.clients:
                row = load(address, clients, options.seconds, [observe(options, smooth)]).row()
                print(f"| {clients} | {' | '.join(row)} |", flush=True)
    print(
        f"\n{hardware(torch.device('cpu'))}; torch {torch.__version__}, grpcio {version('grpcio')}; two cameras of "
        f"{height} × {width}, two observations a plan, `{options.sampler}` on `{options.backend}`, n = {options.plans} "
        "plans, median ± half the range; the wire holds packing, gRPC on this machine, and unpacking"
    )


if __name__ == "__main__":
    main()
