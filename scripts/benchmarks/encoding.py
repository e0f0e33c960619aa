"""What does it cost to encode frames: on each backend, and by how many control steps a plan is executed for?

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmarks/encoding.py --frame 96 96

CPU time of one thread, which is the same on a busy machine. The network has random weights: its time does not depend on
them. The calls of all backends take turns.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from asd_policy._common.hardware import hardware
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.backends import make_backend
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import IMAGES, STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import Sensor, SensorEncoder
from asd_policy.samplers import make_sampler

CPU = torch.device("cpu")
EVERY = (1, 2, 8)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    frame: tuple[int, int] = (96, 96)
    """Height and width of frames [pixels]."""
    cameras: int = 2
    """Cameras, which share a ResNet-18 with GroupNorm."""
    backends: tuple[str, ...] = ("torch-eager", "torch-compile", "onnx")
    """What runs it."""
    calls: int = 20
    """Calls of each backend at each number of frames."""
    steps: int = 32
    """Control steps of an episode, to count and time what its plans encode."""


def make_policy(options: Options) -> Policy:
    """Make a policy of a state [7] and cameras, with a small denoiser of two steps: encoding is what is measured."""
    torch.manual_seed(0)
    config = VisionConfig(options.frame)
    network, colours = RgbEncoder(config).eval(), Affine(torch.zeros(3), torch.ones(3), torch.zeros(3))
    state = Affine(torch.zeros(7), torch.ones(7), torch.zeros(7))
    cameras = {
        f"{IMAGES}{index}": Sensor((3, *options.frame), colours, network, config.size)
        for index in range(options.cameras)
    }
    encoder = SensorEncoder({STATE: state, **cameras})
    denoiser = ConditionalUnet1d(UnetConfig(7, encoder.cond_dim(2), (8, 16), 3, 4, 16, True)).eval()
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 2}, None)
    return Policy(denoiser, chain, make_sampler("ddpm"), Horizons(2, 16, 8), encoder, state, CPU)


def timed(work: Callable[..., object], *arguments: Any) -> float:
    """Take the CPU time of a call [ms]."""
    start = time.process_time()
    work(*arguments)
    return 1e3 * (time.process_time() - start)


def spread(values: list[float]) -> str:
    """Write median ± half the range of the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ± {(high - low) / 2:.1f}"


def compare_backends(policy: Policy, options: Options) -> None:
    """Print a table of the encoder's calls on each backend."""
    frames = torch.rand((4, 3, *options.frame), generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[Tensor], Tensor]] = {}
    for spec in options.backends:
        encoder = policy.with_backend(make_backend(spec)).encoder
        assert isinstance(encoder, SensorEncoder)
        run = next(iter(encoder.sensors.values())).run
        assert run is not None
        runs[spec] = run
    counts = (1, 2, 4)
    took: dict[tuple[str, int], list[float]] = {(spec, count): [] for spec in runs for count in counts}
    with torch.inference_mode():
        expected = runs[options.backends[0]](frames)
        for _ in range(options.calls + 2):
            for (spec, count), values in took.items():
                values.append(timed(runs[spec], frames[:count]))
        print("| backend | largest difference | " + " | ".join(f"{count} frames" for count in counts) + " |")
        print("|---" * (2 + len(counts)) + "|")
        for spec, run in runs.items():
            difference = float((run(frames) - expected).abs().max() / expected.abs().max())
            cells = [spread(took[spec, count][2:]) for count in counts]
            print(f"| `{spec}` | {difference:.1g} | " + " | ".join(cells) + " |")


def count_frames(policy: Policy, options: Options) -> None:
    """Print what the plans of an episode encode, with features kept and without, by how often it plans."""
    print("\n| actions executed of a plan | plans | frames encoded of frames seen | plan ms | without reuse |")
    print("|---|---|---|---|---|")
    random = np.random.default_rng(0)
    seen: list[dict[str, Any]] = [
        {
            STATE: random.random(7),
            **{
                name: random.integers(0, 256, (*options.frame, 3), np.uint8)
                for name in policy.encoder.sizes
                if name != STATE
            },
        }
        for _ in range(options.steps)
    ]
    for every in EVERY:
        other = policy.with_sampler(policy.sampler)
        other.horizons = replace(policy.horizons, n_action_steps=every)
        kept, fresh = [], []
        other.reset(seed=0)
        for step, observation in enumerate(seen):
            if not other.robots[0].queue:
                kept.append(timed(other.select_action, observation))
                steps = seen[max(0, step - 1)], observation
                history = {name: np.stack([each[name] for each in steps])[None] for name in observation}
                fresh.append(timed(other.plan, history))
            else:
                other.select_action(observation)
        encoded = sum(record.encoded or 0 for record in other.robots[0].records) * options.cameras
        looked = 2 * len(kept) * options.cameras
        print(f"| {every} | {len(kept)} | {encoded} of {looked} | {spread(kept)} | {spread(fresh)} |")


def main() -> None:
    """Measure."""
    options = tyro.cli(Options, description=__doc__)
    policy = make_policy(options)
    print(hardware(CPU), "\n")
    compare_backends(policy, options)
    count_frames(policy, options)


if __name__ == "__main__":
    main()
