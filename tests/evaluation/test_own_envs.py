"""A user's own environment by `module:id`, end to end, and the line for each way in which one does not fit."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from asd_policy import cli


def evaluate(checkpoint: Path, env: str, out: Path) -> int:
    options = {"policy": checkpoint, "env": env, "samplers": "ddim:2", "episodes": 2, "out": out}
    return cli.run(["eval", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])


@pytest.mark.parametrize("form", ["flat", "dict"])
def test_a_module_is_imported_for_its_id(form: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate(checkpoint, f"own_envs:own/{form}-v0", out) == 0
    (sampler,) = json.loads((out / "results.json").read_text())["samplers"]
    assert (sampler["episodes"], sampler["success_rate"], sampler["return_mean"]) == (2, 1.0, 1.0)


def test_flat_and_dict_observations_are_one(checkpoint: Path) -> None:
    """The same numbers in either form give the same action."""
    import own_envs  # noqa: F401  registers them

    from asd_policy.checkpoints import load_policy

    policy, actions = load_policy(checkpoint, "ddim:2"), []
    for form in ("flat", "dict"):
        policy.reset(seed=0)
        observation, _ = gymnasium.make(f"own/{form}-v0").reset(seed=0)
        actions.append(policy.select_action(observation))
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize(
    "env, said",
    [
        ("own_envs:own/silent-v0", "success"),
        ("no_such_module:own/flat-v0", "no_such_module"),
        ("own_envs:own/none-v0", "own/none-v0"),
        ("asd/Fetch-Push-v0", "(4,)"),  # its actions; the policy's are (2,)
        ("asd/GymPushT-pixels-v0", "'agent_pos' has shape (2,)"),
        ("asd/GymPushT-state-v0", "(5,)"),
    ],
)
def test_what_does_not_fit_is_one_line(
    env: str, said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(checkpoint, env, tmp_path / "out") != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("asd-policy: ")]
    assert len(lines) == 1 and said in lines[0], lines


def test_a_missing_extra_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    assert evaluate(checkpoint, "asd/Fetch-Reach-v0", tmp_path / "out") == 2
    assert "pip install 'asd-policy[robotics]'" in capsys.readouterr().err
