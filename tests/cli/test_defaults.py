"""torch's default dtype and default device are the user's: no loader and no plan depends on them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_1d import UNet1DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import asd_policy
from asd_policy.checkpoints import inspection
from asd_policy.cli import run
from support import training_files as files

SAMPLERS = (
    *("ddpm", "ddim:2", "dpmsolver:4", "paradigms:window=4,tol=0.1"),
    *("asd:window=4,draft=frozen", "asd:window=4,draft=warm", "asd:window=4,draft=response"),
    "asd:window=4,verify=block",
)
UNET1D = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownResnetBlock1D", "DownResnetBlock1D"],
    "up_block_types": ["UpResnetBlock1D"], "block_out_channels": [8, 16], "mid_block_type": "MidResTemporalBlock1D",
    "out_block_type": "OutConv1DBlock", "time_embedding_type": "positional", "flip_sin_to_cos": False, "freq_shift": 1,
    "use_timestep_embedding": True, "layers_per_block": 1, "act_fn": "mish",
}  # fmt: skip


@pytest.fixture(params=["float64", "meta"])
def setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the user sets: the test does so itself, by `set_defaults`, after what it compares with."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def set_defaults(setting: str) -> None:
    if setting == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(torch.float64)


def plans(path: Path, spec: str) -> np.ndarray:
    """Take the actions of three plans in a row."""
    policy = asd_policy.load_policy(path, spec)
    policy.reset(seed=3)
    observation = {name: np.full(dim, 0.1, np.float32) for name, dim in policy.observation_dims.items()}
    return np.stack([policy.select_action(observation) for _ in range(3 * policy.horizons.n_action_steps)])


@pytest.mark.parametrize("kind", ["lerobot", "unet", "transformer-inpainting", "robomimic"])
def test_policies_plan_the_same(kind: str, setting: str, small_checkpoint: Path, tmp_path: Path) -> None:
    path = small_checkpoint
    if kind == "robomimic":
        path = files.save_robomimic(tmp_path / "model.pth", files.robomimic())
    elif kind != "lerobot":
        path = files.save_workspace(tmp_path / "latest.ckpt", files.workspace(kind))
    specs = SAMPLERS if kind == "lerobot" else SAMPLERS[:1]
    expected = {spec: plans(path, spec) for spec in specs}
    said = inspection.inspect(str(path))
    set_defaults(setting)
    for spec in specs:
        np.testing.assert_array_equal(plans(path, spec), expected[spec], err_msg=spec)
    assert inspection.inspect(str(path)) == said


def test_a_model_that_is_no_policy_samples_the_same(setting: str, tmp_path: Path) -> None:
    UNet1DModel(**UNET1D).save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=5, beta_schedule="sigmoid").save_pretrained(tmp_path)

    def sample() -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(0)
        return asd_policy.load_fn(tmp_path, "asd:window=2")((1, 8, 3), generator=generator).sample

    expected = sample()
    set_defaults(setting)
    found = sample()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_commands_run(setting: str, small_checkpoint: Path) -> None:
    """Those that draw situations and noise themselves."""
    set_defaults(setting)
    options = ["--policy", str(small_checkpoint), "--sampler", "asd:window=4", "--samples", "32", "--seed", "1"]
    assert run(["verify", *options]) in (0, 1)  # so few samples may show a difference by chance
    assert run(["tune", "--policy", str(small_checkpoint), "--plans", "2", "--backends", "torch-eager"]) == 0
