"""Files of Diffusion Policy, UMI and DP3 with cameras or clouds: equal to their own libraries' encoders and plans."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history
from support import image_files as images
from support import training_files as files

GOLDEN = load_file(images.GOLDEN)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*images.CASES, *images.ROBOMIMIC_CASES])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Policy]:
    path = images.save(tmp_path_factory.mktemp("files"), request.param)
    policy = asd_policy.load_policy(path)
    path.unlink()
    return request.param, policy


def seen(case: str, policy: Policy) -> dict[str, Any]:
    return images.history(images.observations(case), policy.horizons.n_obs_steps)


def test_features_are_those_of_its_library(loaded: tuple[str, Policy]) -> None:
    case, policy = loaded
    found = encode_history(policy.encoder, seen(case, policy), policy.horizons.n_obs_steps, CPU)
    wanted = GOLDEN[f"{case}/features"].reshape(images.ROWS, -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_plans_are_those_of_its_library(loaded: tuple[str, Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    case, policy = loaded
    start, steps = files.tape(images.ROWS, policy.event)
    drawn = NoiseTape.draw((images.ROWS, *policy.event), len(policy.chain), torch.Generator().manual_seed(0))
    normals = drawn.normals.clone() if policy.own else steps
    monkeypatch.setattr(NoiseTape, "draw", lambda *_, **__: replace(drawn, initial=start, normals=normals))
    chunk = policy.plan(seen(case, policy)).chunk
    wanted = GOLDEN[f"{case}/chunk"]
    scale = float(wanted.max() - wanted.min())
    torch.testing.assert_close(chunk, wanted, rtol=0, atol=1e-4 * scale)
    print(case, float((chunk - wanted).abs().max() / scale))
