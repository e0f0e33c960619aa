"""Folders with cameras that LeRobot saves: encoder, plans and actions are LeRobot's own, without LeRobot."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy, DiffusionRgbEncoder
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.cli.app import run
from asd_policy.networks.vision import RgbEncoder, VisionConfig
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder, encode_history
from conftest import ENVIRONMENT_STATE, IMAGE, STATE, STEPS, make_config

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
HEIGHT, WIDTH = 72, 88
RANGE = 512.0
Observation = dict[str, npt.NDArray[Any]]
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((IMAGE,), {}),
    "crop": ((IMAGE,), {"crop_shape": (64, 61)}),
    "batch norm": ((IMAGE,), {"use_group_norm": False, "crop_shape": (65, 64)}),
    "shared": ((WRIST, FRONT), {"crop_shape": (64, 64)}),
    "separate": ((WRIST, FRONT), {"use_separate_rgb_encoder_per_camera": True, "use_group_norm": False}),
    "separate, environment": ((FRONT, WRIST), {"use_separate_rgb_encoder_per_camera": True, "environment": True}),
    "min max": ((IMAGE,), {"normalization_mapping": {"VISUAL": "MIN_MAX", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}}),
    "identity": ((IMAGE,), {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}}),
    "resize": ((IMAGE,), {"resize_shape": (48, 60)}),
    "resize up, crop": ((FRONT, WRIST), {"resize_shape": (100, 120), "crop_ratio": 0.9}),
}


def camera_config(cameras: tuple[str, ...], environment: bool = False, **options: Any) -> DiffusionConfig:
    known = {each.name for each in fields(DiffusionConfig)}
    if not options.keys() <= known:
        pytest.skip("this LeRobot resizes no frames")
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (2,))}
    inputs |= {name: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for name in cameras}
    if environment:
        inputs[ENVIRONMENT_STATE] = PolicyFeature(FeatureType.ENV, (3,))
    vision = {"crop_shape": None, "spatial_softmax_num_keypoints": 8}
    return make_config(**{"input_features": inputs, **vision, **options})


def randomize(module: nn.Module) -> None:
    """Give batch normalisation statistics that are not the identity's."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


class Pair:
    """LeRobot's policy, and the one that is read from what it saves."""

    def __init__(self, folder: Path, cameras: tuple[str, ...], options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = camera_config(cameras, **options)
        self.theirs = DiffusionPolicy(config).eval()
        randomize(self.theirs)
        self.theirs.save_pretrained(folder)
        dims = {STATE: 2, "action": 2, ENVIRONMENT_STATE: 3}
        statistics = {
            name: {
                "min": torch.zeros(dim),
                "max": torch.full((dim,), RANGE),
                "mean": torch.full((dim,), RANGE / 2),
                "std": torch.full((dim,), RANGE / 4),
            }
            for name, dim in dims.items()
        }
        colours = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "min": (0.0, 0.1, 0.0), "max": (1.0, 0.9, 1.0)}
        for name in cameras:
            statistics[name] = {key: torch.tensor(value)[:, None, None] for key, value in colours.items()}
        self.before, self.after = make_pre_post_processors(config, dataset_stats=statistics)
        for pipeline in (self.before, self.after):
            pipeline.save_pretrained(folder)
        self.ours = asd_policy.load_policy(folder, "asd:window=1")
        self.cameras, self.range, self.steps = cameras, RANGE, STEPS

    def observe(self, count: int, seed: int = 0) -> list[Observation]:
        """What robots see at random, by LeRobot's names."""
        rng = np.random.default_rng(seed)
        return [
            {
                name: rng.uniform(0, self.range, shape).astype(np.float32)
                if len(shape) == 1
                else rng.integers(0, 256, (*shape[1:], 3), np.uint8)
                for name, shape in self.ours.observation_shapes.items()
            }
            for _ in range(count)
        ]

    def normalized(self, observation: Observation) -> dict[str, Tensor]:
        """An observation as LeRobot's policy takes it, a batch of one."""
        tensors = {name: torch.from_numpy(values) for name, values in observation.items()}
        frames = {name: tensors[name].permute(2, 0, 1).float() / 255 for name in self.cameras}
        return self.before(tensors | frames)

    def conditioning(self, steps: list[Observation]) -> Tensor:
        """LeRobot's conditioning for one robot that has seen these."""
        seen = [self.normalized(each) for each in steps]
        batch = {name: torch.stack([each[name] for each in seen], dim=1) for name in steps[0]}
        batch["observation.images"] = torch.stack([batch[name] for name in self.cameras], dim=-4)
        with torch.no_grad():
            return self.theirs.diffusion._prepare_global_conditioning(batch)


class Bundled(Pair):
    """The camera policy of this repository, read by LeRobot's own classes and without them."""

    def __init__(self) -> None:
        folder = Path(__file__).parents[2] / "checkpoints" / "avoid-pixels"
        self.theirs = DiffusionPolicy.from_pretrained(folder).eval()
        self.before, self.after = make_pre_post_processors(self.theirs.config, pretrained_path=str(folder))
        self.ours = asd_policy.load_policy(folder, "asd:window=1")
        self.cameras, self.range, self.steps = (IMAGE,), 0.3, 100


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair") / "saved", *CASES[request.param])


def history(steps: list[Observation]) -> dict[str, npt.NDArray[Any]]:
    """What one robot has seen, as `Policy.plan` takes it."""
    return {name: np.stack([each[name] for each in steps])[None] for name in steps[0]}


def test_frames_become_lerobots_features(pair: Pair) -> None:
    steps = pair.observe(2)
    expected = pair.conditioning(steps)
    cond = encode_history(pair.ours.encoder, history(steps), 2, torch.device("cpu"))
    assert not cond.is_inference()
    torch.testing.assert_close(cond, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("sampler", ["ddpm", "asd:window=1"])
def test_plans_are_lerobots_on_one_tape(pair: Pair, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_plans(pair, sampler, monkeypatch)


def compare_plans(pair: Pair, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan by both from the same noise, after the same observations."""
    steps = pair.observe(2)
    tape = NoiseTape.draw((1, 16, 2), pair.steps, torch.Generator().manual_seed(5), torch.device("cpu"))
    noises: Iterator[Tensor] = iter(tape.normals.unbind(1))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises))
        sample = DiffusionModel.conditional_sample(
            pair.theirs.diffusion, 1, pair.conditioning(steps), noise=tape.initial
        )
    expected = pair.after(sample)
    policy: Policy = pair.ours.with_sampler(asd_policy.make_sampler(sampler))
    plan = policy.plan(history(steps), torch.Generator().manual_seed(5))
    torch.testing.assert_close(plan.chunk, expected, rtol=0, atol=1e-4 * pair.range)


@pytest.mark.parametrize("sampler", ["ddpm", "asd:window=1"])
def test_the_bundled_camera_policy_plans_as_in_lerobot(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Bundled()
    expected = pair.conditioning(pair.observe(2))
    cond = encode_history(pair.ours.encoder, history(pair.observe(2)), 2, torch.device("cpu"))
    torch.testing.assert_close(cond, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    compare_plans(pair, sampler, monkeypatch)


def test_actions_are_lerobots_in_closed_loop(tmp_path: Path) -> None:
    """History, queue and noise: over two plans."""
    pair = Pair(tmp_path / "saved", *CASES["shared"])
    asd_policy.accelerate(pair.theirs, "asd:window=1")
    pair.theirs.reset()
    pair.ours.reset()
    actions: list[Tensor] = []
    for observation in pair.observe(12, seed=3):
        torch.manual_seed(7)
        pair.ours.generator.manual_seed(7)
        actions.append(torch.from_numpy(pair.ours.select_action(observation)))
        with torch.no_grad():
            expected = pair.after(pair.theirs.select_action(pair.normalized(observation)))
        torch.testing.assert_close(actions[-1], expected[0], rtol=0, atol=1e-4 * RANGE)
    assert len({tuple(each.tolist()) for each in actions}) == 12


@pytest.mark.parametrize("group_norm", [False, True], ids=["batch", "group"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_networks_are_lerobots(backbone: str, group_norm: bool) -> None:
    """Names, shapes and numbers."""
    torch.manual_seed(0)
    options = {"vision_backbone": backbone, "use_group_norm": group_norm, "crop_shape": (33, 64)}
    theirs = DiffusionRgbEncoder(camera_config((IMAGE,), **options)).eval()
    randomize(theirs)
    ours = RgbEncoder(VisionConfig((HEIGHT, WIDTH), (33, 64), None, backbone, group_norm, 8)).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    ours.load_state_dict(state)
    frames = torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames), theirs(frames), rtol=1e-5, atol=1e-6)


def test_live_policies_and_files_plan_alike(tmp_path: Path) -> None:
    """One of LeRobot's classes accelerated in place, and the same read from its folder."""
    pair = Pair(tmp_path / "saved", *CASES["crop"])
    assert isinstance(pair.ours.encoder, SensorEncoder)
    steps = pair.observe(2)
    cond = pair.conditioning(steps)
    asd_policy.accelerate(pair.theirs, "asd:window=6")
    with torch.no_grad():
        sample = pair.theirs.diffusion.conditional_sample(1, cond, torch.Generator().manual_seed(2))
    plan = pair.ours.with_sampler(asd_policy.make_sampler("asd:window=6")).plan(
        history(steps), torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(plan.chunk, pair.after(sample), rtol=0, atol=1e-3 * RANGE)


@pytest.mark.parametrize("case", ["plain", "separate"], ids=["one camera", "two cameras"])
@pytest.mark.parametrize(("sampler", "status"), [("asd:window=4,draft=picard", 0), ("ddim:2", 1)])
def test_verify_takes_a_folder_with_cameras(case: str, sampler: str, status: int, tmp_path: Path) -> None:
    """As a user does who has only the folder: `asd` has the law of its chain, and a sampler that has not is seen."""
    Pair(tmp_path / "saved", *CASES[case])
    words = ["verify", "--policy", str(tmp_path / "saved"), "--sampler", sampler, "--samples", "64"]
    assert run([*words, "--observations", "1"]) == status
