"""Folders of diffusers with a UNet1DModel: sampled exactly, with values held; described; refused where broken."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_1d import UNet1DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints import find_format, inspection
from asd_policy.errors import AsdError, CheckpointError, SpecError
from asd_policy.samplers.inpainting import Inpainting
from support.fuzzing import count_refusals, damage_bytes, damage_json

HORIZON, STATE, ACTION = 8, 3, 2
CPU = torch.device("cpu")
CONFIG, WEIGHTS, SCHEDULER = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)

# The architecture of diffusers' scripts/convert_models_diffuser_to_diffusers.py, which made the public planning models.
DIFFUSER: dict[str, Any] = {
    "in_channels": ACTION + STATE,
    "out_channels": ACTION + STATE,
    "down_block_types": ["DownResnetBlock1D", "DownResnetBlock1D"],
    "up_block_types": ["UpResnetBlock1D"],
    "block_out_channels": [16, 32],
    "mid_block_type": "MidResTemporalBlock1D",
    "out_block_type": "OutConv1DBlock",
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "use_timestep_embedding": True,
    "layers_per_block": 1,
    "act_fn": "mish",
}


@pytest.fixture
def network() -> UNet1DModel:
    torch.manual_seed(0)
    return UNet1DModel(**DIFFUSER)


@pytest.fixture
def folder(network: UNet1DModel, tmp_path: Path) -> Path:
    """As `ValueGuidedRLPipeline.save_pretrained` lays it out, without the value function."""
    folder = tmp_path / "planner"
    network.save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", clip_sample=False,
                              variance_type="fixed_small_log", prediction_type="sample")  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ValueGuidedRLPipeline"}))
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_network_is_diffusers_own(folder: Path, network: UNet1DModel) -> None:
    sample = asd_policy.load_fn(folder)
    x, timestep = torch.randn(4, HORIZON, ACTION + STATE), torch.tensor([0, 3, 9, 19])
    with torch.inference_mode():
        expected = network.eval()(x.transpose(1, 2), timestep, return_dict=False)[0].transpose(1, 2)
        assert torch.equal(sample.denoise(x, timestep, None), expected)
    assert len(sample.chain) == 20
    assert sample.chain.config["prediction_type"] == "sample"


def test_plans_from_a_state_that_is_held(folder: Path) -> None:
    """As Diffuser plans: the first state is given; a window of one is the sequential sampler to the bit."""
    shape = (2, HORIZON, ACTION + STATE)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, 0, ACTION:] = True
    held = Inpainting(mask, torch.full(shape, 0.5))
    samples = {
        spec: asd_policy.load_fn(folder, spec)(shape, generator=torch.Generator().manual_seed(0), inpainting=held)
        for spec in ("ddpm", "asd:window=1", "asd:window=5")
    }
    for result in samples.values():
        assert (result.sample[:, 0, ACTION:] == 0.5).all()
    assert torch.equal(samples["ddpm"].sample, samples["asd:window=1"].sample)
    assert samples["asd:window=5"].stats.algorithmic_speedup > 1


def test_it_is_no_policy(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is no policy: it does not say which numbers are observations"):
        asd_policy.load_policy(folder)


def test_model_and_scheduler_in_one_folder(network: UNet1DModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=5).save_pretrained(tmp_path)
    assert len(asd_policy.load_fn(tmp_path, "ddpm").chain) == 5


@pytest.mark.parametrize(("flag", "prediction"), [(False, "sample"), (True, "epsilon")])
def test_the_old_flag_predict_epsilon(flag: bool, prediction: str, folder: Path) -> None:
    """The library ignores it today, and would sample a network that predicts samples as one that predicts noise."""
    path = folder / SCHEDULER
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config | {"predict_epsilon": flag}))
    assert asd_policy.load_fn(folder).chain.config["prediction_type"] == prediction


def test_options_that_are_misspelt_are_refused_and_unknown_ones_listed(folder: Path) -> None:
    """`freq_shift` moves no tensor, and without it the network would be another."""
    config = json.loads((folder / CONFIG).read_text())
    shift = config.pop("freq_shift")
    (folder / CONFIG).write_text(json.dumps(config | {"freq_shifts": shift}))
    with pytest.raises(CheckpointError, match=r"has 'freq_shifts', which is not known; did you mean 'freq_shift'\?"):
        asd_policy.load_fn(folder)
    (folder / CONFIG).write_text(json.dumps(config | {"freq_shift": shift, "tea": "green"}))
    edit(folder / SCHEDULER, coffee="black")
    with pytest.warns(UserWarning, match="not known here and are not looked at: (tea|coffee)"):
        asd_policy.load_fn(folder)
    notes = " ".join(inspection.inspect(str(folder))["notes"])
    assert "not looked at: tea" in notes and "not looked at: coffee" in notes


def test_wrong_calls_are_named(folder: Path) -> None:
    sample = asd_policy.load_fn(folder)
    with pytest.raises(SpecError, match=r"samples \(horizon, 5\), not \(8, 4\)"):
        sample((1, HORIZON, 4))
    with pytest.raises(SpecError, match="takes no conditioning"):
        sample((1, HORIZON, ACTION + STATE), torch.zeros(1, 3))


def test_a_horizon_that_does_not_fit_is_named(tmp_path: Path) -> None:
    deep = {"down_block_types": ["DownResnetBlock1D"] * 3, "up_block_types": ["UpResnetBlock1D"] * 2}
    UNet1DModel(**{**DIFFUSER, **deep, "block_out_channels": [16, 32, 32]}).save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=5).save_pretrained(tmp_path)
    sample = asd_policy.load_fn(tmp_path)
    with pytest.raises(SpecError, match=r"no samples of horizon 10 \(.*\); try a larger one, a multiple of 16"):
        sample((1, 10, ACTION + STATE))
    sample((1, 16, ACTION + STATE))


def unet(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, **values)


def test_a_folder_with_ddim_samples_its_own_plan_or_the_trained_chain(folder: Path) -> None:
    config = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps(config | {"_class_name": "DDIMScheduler"}))
    own = asd_policy.load_fn(folder)
    assert own.sampler.spec == "ddim:20" and own.sampler.exact
    with pytest.raises(SpecError, match="plan is ddim:20: --chain trained"):
        asd_policy.load_fn(folder, "asd")
    theirs: Any = DDIMScheduler.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    theirs.set_timesteps(20)
    noise = NoiseTape.draw((1, HORIZON, ACTION + STATE), 20, torch.Generator().manual_seed(0), CPU).initial
    x = noise
    with torch.no_grad():
        for timestep in theirs.timesteps:
            x = theirs.step(own.denoise(x, timestep[None], None), int(timestep), x).prev_sample
    found = own((1, HORIZON, ACTION + STATE), generator=torch.Generator().manual_seed(0)).sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    trained = asd_policy.load_fn(folder, chain="trained")
    assert trained.sampler.spec.startswith("asd") and len(trained.chain) == 20
    said = inspection.inspect(str(folder))
    assert said["own_plan"] == "ddim:20" and said["runs_here"] and said["chain"]["runs"] == "checkpoint"


def scheduler(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / SCHEDULER, **values)


def poison(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, folder / WEIGHTS)


BREAKAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"), "is a pickle, which could run code"),
    (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "is not a whole safetensors file"),
    (poison, "holds NaN or infinity"),
    (lambda f: (f / SCHEDULER).unlink(), "scheduler_config.json: No such file"),
    (scheduler(_class_name="EulerDiscreteScheduler"), "is no chain of Gaussian steps"),
    (unet(block_out_channels=[16, 64]), "does not fit unet/config.json"),
    (unet(block_out_channels=[16, 10**6]), "does not fit unet/config.json"),
    (unet(block_out_channels=[16, 10**12]), "describes no possible network"),
    (unet(block_out_channels=[16] * 33), "block_out_channels has more than 32 entries"),
    (unet(block_out_channels=3), "block_out_channels is of type int; its default is (32, 32, 64)"),
    (unet(block_out_channels=[]), "describes no possible network"),
    (unet(freq_shift=[1]), "unet/config.json: freq_shift is of type list; its default is 0.0"),
    (unet(flip_sin_to_cos=None), "flip_sin_to_cos is of type NoneType; its default is True"),
    (unet(layers_per_block=10**9), "layers_per_block 1000000000 is not in 1 … 32"),
    (unet(mid_block_type="os.system"), "describes no possible network"),
    (unet(act_fn="__import__"), "describes no possible network"),
    (unet(out_block_type="ValueFunction"), "is of a value function"),
    (unet(out_channels=1), "5 channels in (and extra ones?) but 1 out make no denoiser"),
]


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES, ids=[message for _, message in BREAKAGES])
def test_broken_folders_are_named(breakage: Callable[[Path], Any], message: str, folder: Path) -> None:
    breakage(folder)
    assert find_format(folder)[0] == "diffusers UNet1DModel folder"
    with pytest.raises(AsdError) as error:
        asd_policy.load_fn(folder)
    assert message in str(error.value)


def test_inspect_says_what_it_is_and_what_is_missing(folder: Path) -> None:
    said = inspection.inspect(str(folder))
    assert said["network"] == "UNet1DModel"
    assert said["runs_here"] and not said["is_policy"]
    assert said["chain"]["steps"] == 20
    assert said["prediction_type"] == "sample"
    assert any("which channels are what, and their units, is not in the checkpoint" in note for note in said["notes"])
    assert any("ValueGuidedRLPipeline pushes samples towards value" in note for note in said["notes"])
    assert {each["name"] for each in said["files"]} == {CONFIG, WEIGHTS, SCHEDULER, "model_index.json"}


@pytest.mark.parametrize("damage", [damage_json, damage_bytes])
def test_damage_is_refused_or_harmless(damage: Callable[[Path, random.Random], str], folder: Path) -> None:
    def use() -> None:
        sample = asd_policy.load_fn(folder, "asd:window=2")
        if len(sample.chain) <= 100:
            assert torch.isfinite(sample((1, HORIZON, ACTION + STATE)).sample).all()

    names = [CONFIG, SCHEDULER] if damage is damage_json else [WEIGHTS]
    assert count_refusals(folder, names, damage, use, rounds=60) > 10
