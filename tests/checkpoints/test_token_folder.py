"""Token policies on disk: written, described, loaded, planned with; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.checkpoints.inspection import inspect
from asd_policy.errors import CheckpointError, SpecError
from support.small_token_policies import write_token_policy

OBSERVATION = {"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small token policy."""
    return write_token_policy(tmp_path / "policy")


def test_a_policy_plans_and_says_what_it_cost(folder: Path) -> None:
    policy = asd_policy.load_policy(folder)
    assert policy.sampler.spec == "tokens" and policy.steps == 16
    assert policy.check()[0] > 0
    action = policy.select_action(OBSERVATION)
    assert action.shape == (2,) and -0.3 < action[0] < 0.3 and -0.1 < action[1] < 0.6
    assert policy.last_plan is not None and policy.last_plan.rounds == 16
    fast = asd_policy.load_policy(folder, "tokens:window=8")
    fast.select_action(OBSERVATION)
    assert fast.last_plan is not None and fast.last_plan.rounds < 16 and fast.last_plan.exact
    assert "tokens of 16 steps" in repr(policy)


def test_several_robots_plan_together_as_each_alone(folder: Path) -> None:
    policy = asd_policy.load_policy(folder, "tokens:window=4")
    policy.reset_batch([1, 2])
    for row in range(2):
        policy.observe(row, {name: value + 0.1 * row for name, value in OBSERVATION.items()})
    together = policy.act([0, 1])
    policy.reset(seed=2)
    alone = policy.select_action({name: value + 0.1 for name, value in OBSERVATION.items()})
    assert np.array_equal(together[1], alone)


def test_inspect_says_which_samplers_are_exact(folder: Path) -> None:
    said = inspect(str(folder))
    assert said["format"] == "token policy folder" and said["runs_here"] and said["is_policy"]
    assert said["own_plan"] == "tokens" and said["chain"]["steps"] == 16
    assert said["scheduler"]["alphabet"] == 16 and said["scheduler"]["order"] == "forward"
    assert [(each["spec"], each["usable"], each["exact"]) for each in said["samplers"]] == [("tokens", True, True)]
    stored = load_file(folder / "model.safetensors")
    assert said["parameters"] == sum(value.numel() for name, value in stored.items() if name.startswith("network."))


def test_samplers_of_gaussian_chains_are_refused(folder: Path) -> None:
    with pytest.raises(
        SpecError, match="needs a chain of Gaussian steps, and this policy samples 16 tokens of 16 values"
    ):
        asd_policy.load_policy(folder, "asd:window=4")
    policy = asd_policy.load_policy(folder)
    with pytest.raises(SpecError, match="window=17 is not in 1 … 16"):
        policy.with_sampler(asd_policy.make_sampler("tokens:17"))
    with pytest.raises(SpecError, match="needs a chain of Gaussian steps"):
        policy.law.check_gaussian("export")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bins": 1}, "bins is 1, not an integer in 2 … 65536"),
        ({"order": "backward"}, "order 'backward' is not one of forward, coarse, random"),
        ({"horizon": 9}, "does not fit config.json: network.pos_emb has shape"),
        ({"horizon": 4096}, "a plan of 4096 × 2 tokens; 4096 are the most"),
        ({"n_action_steps": 9}, "n_action_steps 9 is not in 1 … 7"),
        ({"n_emb": 15}, "n_emb 15 is not even and a multiple of n_head 2"),
        ({"input_features": {}}, "input_features is empty"),
        ({"dropout": 0.1}, "dropout is not known here"),
    ],
)
def test_a_bad_configuration_is_named(folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder, **values)
    with pytest.raises(CheckpointError) as info:
        asd_policy.load_policy(folder)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_a_missing_range_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["range.action.max"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors has no range.action.max"):
        asd_policy.load_policy(folder)


def test_a_network_that_is_not_finite_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["network.head.bias"] = torch.full_like(tensors["network.head.bias"], torch.nan)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"network.head.bias"):
        asd_policy.load_policy(folder)


def test_every_backend_of_the_cpu_gives_the_same_plan(folder: Path) -> None:
    plans = []
    for backend in ("torch-eager", "onnx"):
        policy = asd_policy.load_policy(folder, "tokens:window=4", backend=backend)
        policy.reset(seed=1)
        plans.append(policy.select_action(OBSERVATION))
    assert np.allclose(*plans, atol=1e-6)
