"""The wheel with its extra `edge`, where PyTorch is not installed: it plans from an exported file (`make edge`)."""

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers.compiled import ROUNDS, STEPS, load_kernels

FOLDER = Path(os.environ["ASD_EDGE_FILES"])


@pytest.fixture(scope="module")
def plans() -> dict[str, Any]:
    """What PyTorch planned."""
    return dict(np.load(FOLDER / "plans.npz"))


def test_the_wheel_runs_and_there_is_no_pytorch() -> None:
    assert Path(asd_policy.__file__).is_relative_to(sys.prefix)
    assert not [name for name in ("torch", "scipy", "diffusers", "gymnasium", "onnx") if find_spec(name)]


def test_rounds_are_compiled() -> None:
    """What makes plans fast is installed, too."""
    assert load_kernels(ROUNDS) is not None and load_kernels(STEPS) is not None


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=16", "asd:window=8,draft=warm,verify=reflection"])
def test_plans_are_those_of_pytorch(spec: str, plans: dict[str, Any]) -> None:
    policy = asd_policy.load_policy(FOLDER / "policy.onnx", spec)
    tape = NoiseTape(*(plans[name] for name in ("initial", "normals", "uniforms")))
    shape = plans[f"{spec} sample"].shape
    result = policy.sampler.sample(policy.denoiser, policy.chain, shape, plans["cond"], generator=tape)
    assert isinstance(result.sample, np.ndarray)
    np.testing.assert_allclose(result.sample, plans[f"{spec} sample"], rtol=0, atol=1e-4)
    assert list(result.stats.rounds) == plans[f"{spec} rounds"].tolist()


def test_a_closed_loop() -> None:
    """With the default, which measures, chooses and learns."""
    policy = asd_policy.load_policy(FOLDER / "policy.onnx", "asd")
    policy.reset(seed=0)
    observation = {name: np.zeros(dim, np.float32) for name, dim in policy.observation_dims.items()}
    actions = [policy.select_action(observation) for _ in range(3 * policy.horizons.n_action_steps)]
    assert np.isfinite(actions).all()
    assert policy.experience.plans >= 2
    again = asd_policy.load_policy(FOLDER / "policy.onnx", "asd:window=8")
    again.reset(seed=0)
    other = asd_policy.load_policy(FOLDER / "policy.onnx", "asd:window=8")
    other.reset(seed=0)
    np.testing.assert_array_equal(again.select_action(observation), other.select_action(observation))


@pytest.mark.parametrize("form", ["bytes", "floats"])
def test_a_camera(form: str) -> None:
    """Frames of both forms become the conditioning that PyTorch made of them, each encoded once."""
    files = dict(np.load(FOLDER / "camera.npz"))
    policy = asd_policy.load_policy(FOLDER / "camera.onnx", "ddpm")
    assert policy.observation_shapes["observation.image"] == (3, 40, 48)
    policy.reset(seed=0)
    for frame, state in zip(files["frames"], files["states"], strict=True):
        seen = frame if form == "bytes" else np.moveaxis(frame, -1, 0).astype(np.float32) / 255
        assert np.isfinite(policy.select_action({"agent_pos": state, "pixels": seen})).all()
    assert [plan.encoding and plan.encoding.observations for plan in policy.plans] == [1, 1, 1]
    for plan, expected in zip(policy.plans, files["cond"], strict=True):
        assert isinstance(plan.cond, np.ndarray)
        np.testing.assert_allclose(plan.cond[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(asd_policy.ObservationError, match="is uint8"):
        policy.select_action({"agent_pos": [0.1, 0.2], "pixels": np.moveaxis(files["frames"][0], -1, 0)})


def test_what_needs_pytorch_says_so(tmp_path: Path) -> None:
    with pytest.raises(asd_policy.CheckpointError, match="is not a checkpoint of a known format: exported ONNX file"):
        asd_policy.load_policy(tmp_path)
    with pytest.raises(asd_policy.CheckpointError, match=r"need PyTorch: pip install 'asd-policy\[torch\]'"):
        asd_policy.load_policy(tmp_path)
    with pytest.raises(asd_policy.SpecError, match=r"needs torch: pip install 'asd-policy\[torch\]'"):
        asd_policy.load_policy(FOLDER / "policy.onnx", device="cuda")
    with pytest.raises(asd_policy.BackendError, match="torch-eager runs on PyTorch's tensors"):
        asd_policy.load_policy(FOLDER / "policy.onnx", backend="torch-eager")


@pytest.mark.parametrize("spec", ["ddim:10", "ddim:10,eta=1", "dpmsolver:10"])
def test_samplers_through_diffusers_say_so(spec: str) -> None:
    with pytest.raises(asd_policy.SpecError, match=rf"^{spec} needs \w+: pip install 'asd-policy\[diffusers\]'$"):
        asd_policy.load_policy(FOLDER / "policy.onnx", spec)


@pytest.mark.parametrize("words", [[], ["--help"], ["eval", "--policy", "policy.onnx"]])
def test_the_command_line_says_so(words: list[str]) -> None:
    done = subprocess.run([Path(sys.executable).with_name("asd-policy"), *words], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"asd-policy: the command line needs \w+: pip install 'asd-policy\[eval\]'\n", done.stderr)


def test_the_rest_says_so() -> None:
    with pytest.raises(asd_policy.BackendError, match=r"needs grpc: pip install 'asd-policy\[client\]'"):
        importlib.import_module("asd_policy.deploy.serving")
    with pytest.raises(asd_policy.MissingPackageError, match=r"needs torch: pip install 'asd-policy\[torch\]'"):
        asd_policy.GaussianChain.from_scheduler({"num_train_timesteps": 100})
    with pytest.raises(asd_policy.MissingPackageError, match=r"needs gymnasium: pip install 'asd-policy\[eval\]'"):
        importlib.import_module("asd_policy.evaluation.rollout.environments")
    with pytest.raises(ImportError, match=r"needs gymnasium: pip install 'asd-policy\[envs\]'"):
        importlib.import_module("asd_envs")
