"""Export a bundled policy, and one with a camera, and write down what PyTorch plans with them.

A machine without PyTorch repeats it.

python tests/without_torch/prepare.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asd_policy
from asd_policy import cli
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints.onnx.writing import export_policy
from asd_policy.evaluation.states import random_states
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import IMAGE, STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import Sensor, SensorEncoder

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/avoid"
SPECS = ("ddpm", "asd:window=16", "asd:window=8,draft=warm,verify=reflection")
ROWS = 4
FRAME = (40, 48)


def main() -> None:
    """Write policy.onnx and plans.npz into the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    words = ["export", "--policy", str(CHECKPOINT), "--format", "onnx", "--out", str(folder / "policy.onnx")]
    if cli.run(words):
        raise SystemExit(1)
    # The same network, so that differences are those of the arrays' library.
    policy = asd_policy.load_policy(folder / "policy.onnx")
    states = random_states(policy, ROWS, seed=0)
    shape = (ROWS, *policy.event)
    tape = NoiseTape.draw(shape, len(policy.chain), torch.Generator().manual_seed(0))
    found = {"cond": states.cond, "initial": tape.initial, "normals": tape.normals, "uniforms": tape.uniforms}
    for spec in SPECS:
        sampler = asd_policy.make_sampler(spec)
        result = sampler.sample(policy.denoiser, policy.chain, shape, states.cond, generator=tape)
        found |= {f"{spec} sample": result.sample, f"{spec} rounds": torch.tensor(result.stats.rounds)}
    arrays: dict[str, Any] = {name: values.numpy() for name, values in found.items()}
    np.savez(folder / "plans.npz", **arrays)
    prepare_camera(folder)


def prepare_camera(folder: Path) -> None:
    """Write camera.onnx, of random weights, and camera.npz: what it saw, and the conditioning of each plan."""
    torch.manual_seed(0)
    config = VisionConfig(FRAME, crop_shape=(30, 30), resize_shape=(34, 40), spatial_softmax_num_keypoints=4)
    colours, state = (Affine(torch.full((size,), 0.5), torch.full((size,), 2.0), torch.zeros(size)) for size in (3, 2))
    camera = Sensor((3, *FRAME), colours, RgbEncoder(config).eval(), config.size)
    encoder = SensorEncoder({STATE: state, IMAGE: camera})
    network = ConditionalUnet1d(UnetConfig(2, encoder.cond_dim(2), (8, 16), 3, 4, 16, True)).eval()
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 10}, None)
    policy = Policy(
        network, chain, asd_policy.make_sampler("ddpm"), Horizons(2, 8, 1), encoder, state, torch.device("cpu")
    )
    export_policy(policy, folder / "camera.onnx", {"policy": "a camera", "format": "none", "files": []})
    random = np.random.default_rng(0)
    frames, states = random.integers(0, 256, (3, *FRAME, 3), np.uint8), random.random((3, 2))
    for frame, numbers in zip(frames, states, strict=True):
        policy.select_action({STATE: numbers, IMAGE: frame})
    cond = np.stack([plan.cond[0].numpy() for plan in policy.plans])
    np.savez(folder / "camera.npz", frames=frames, states=states, cond=cond)


if __name__ == "__main__":
    main()
