"""Write docs/results/checkpoint_files.md: how far features and plans are from those of the libraries' own classes.

    python scripts/maintenance/compare_policies.py

The files, observations and noise are those of tests/support/image_files.py, the libraries' numbers those in
tests/support/golden/cameras.safetensors, which golden_policies.py wrote.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# The line above leads there.
from support import image_files as images  # noqa: E402
from support import training_files as files  # noqa: E402
from support.native_networks import native_features  # noqa: E402

OUT = ROOT / "docs/results/checkpoint_files.md"
COMMAND = "python scripts/maintenance/compare_policies.py"


def plan_along(policy: Policy, history: Mapping[str, Any]) -> torch.Tensor:
    """Plan with the noise of the golden plans."""
    start, steps = files.tape(images.ROWS, policy.event)
    drawn = NoiseTape.draw((images.ROWS, *policy.event), len(policy.chain), torch.Generator().manual_seed(0))
    tape = replace(drawn, initial=start, normals=drawn.normals if policy.law.own else steps)
    draw = NoiseTape.draw
    NoiseTape.draw = lambda *_, **__: tape
    try:
        return policy.plan(history).chunk
    finally:
        NoiseTape.draw = draw


def relative(found: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> str:
    """Write the largest difference in parts of a scale."""
    return f"{float((found - wanted).abs().max() / scale):.1e}"


def compare(case: str, golden: dict[str, torch.Tensor]) -> str:
    """Write the row of one file."""
    with tempfile.TemporaryDirectory() as folder:
        policy = asd_policy.load_policy(images.save(Path(folder), case), fixed_crop=case.startswith("umi"))
    steps = policy.horizons.n_obs_steps
    history = images.history(images.observations(case), steps)
    features = encode_history(policy.encoder, history, steps, torch.device("cpu"))
    wanted, chunk = golden[f"{case}/features"].reshape(images.ROWS, -1), golden[f"{case}/chunk"]
    kind = images.CASES.get(case, {"_target_": "robomimic.DiffusionPolicyUNet"})["_target_"].rpartition(".")[2]
    off = relative(features, wanted, wanted.abs().max())
    plan = relative(plan_along(policy, history), chunk, chunk.max() - chunk.min())
    return f"| `{case}` | {kind} | {policy.sampler.spec} | {off} | {plan} |"


def main() -> None:
    """Compare all files and networks, and write the page."""
    warnings.simplefilter("ignore")
    golden = load_file(images.GOLDEN)
    with safe_open(images.GOLDEN, "pt") as file:
        versions = ", ".join(f"{name} {version}" for name, version in json.loads(file.metadata()["versions"]).items())
    rows = [compare(case, golden) for case in (*images.CASES, *images.ROBOMIMIC_CASES)]
    networks = []
    for name in images.NETWORKS:
        wanted = golden[f"{name}/features"]
        networks.append(f"| `{name}` | {relative(native_features(name), wanted, wanted.abs().max())} |")
    OUT.write_text(
        f"""# Are files with cameras read as their libraries read them?

```sh
{COMMAND}
```

Largest differences to the libraries' own classes on the same weights, observations and noise: of features in parts of
the largest feature, of whole plans in parts of the range of their actions. Plans are those of the file's own sampler.
One small policy of random weights for each row (encoders whole, U-Nets of 8 and 16 channels), {images.ROWS} observation
histories, torch {torch.__version__} on a CPU; no spread, as nothing here is random.
The libraries' numbers: {versions};
diffusion_policy 5ba07ac with robomimic 0.2, robomimic 0.5 (d309eae), UMI d095ba9, DP3 47385d9, written by
`scripts/maintenance/golden_policies.py`. The policies are in `tests/support/image_files.py`.

| file | policy | sampler | features | plan |
|---|---|---|---|---|
{chr(10).join(rows)}

Networks that none of these files has, in parts of the largest feature:

| network | features |
|---|---|
{chr(10).join(networks)}
"""
    )
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
