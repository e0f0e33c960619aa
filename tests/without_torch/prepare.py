"""Export a bundled policy, and write down what PyTorch plans with it, for a machine without PyTorch to repeat.

python tests/without_torch/prepare.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asd_policy
from asd_policy import cli
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.states import random_states

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/avoid"
SPECS = ("ddpm", "asd:window=16", "asd:window=8,draft=warm,verify=reflection")
ROWS = 4


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


if __name__ == "__main__":
    main()
