"""`asd-policy inspect`: true of what it loads, and of use for what cannot be loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import asd_policy
from asd_policy import cli
from asd_policy.samplers import OF_STEPS


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """Return the JSON object and what a person reads."""
    assert cli.run(["inspect", "--policy", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_policy_that_runs_here(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, read = inspect(checkpoint, capsys)
    weights = load_file(checkpoint / "model.safetensors")
    assert said["command"] == "inspect" and said["version"] == 1
    assert said["format"] == "LeRobot diffusion folder"
    assert said["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert said["observation"] == {"observation.state": [4], "observation.environment_state": [3]}
    assert said["action"] == {"action": [2]}
    assert said["horizons"] == {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8}
    assert said["scheduler"]["_class_name"] == "DDPMScheduler"
    assert said["prediction_type"] == "epsilon"
    assert said["chain"]["steps"] == 10 and said["chain"]["gaussian"]
    assert {each["spec"]: each["exact"] for each in said["samplers"]} == {
        name: name in ("ddpm", "asd") for name in OF_STEPS
    }
    digests = {each["name"]: each["sha256"] for each in said["files"]}
    assert digests["config.json"] == hashlib.sha256((checkpoint / "config.json").read_bytes()).hexdigest()
    assert said["runs_here"] and said["is_policy"] and not said["missing"]
    assert said["tuning"] is None
    for part in ("DiffusionConditionalUnet1d", "n_obs_steps 2", "yes, asd_policy.load_policy loads it", "MEAN_STD"):
        assert part in read


def test_ranges_are_what_the_network_sees_as_one(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The minimum and the maximum, or the mean less and plus a standard deviation; see the fixture's statistics."""
    said, _ = inspect(checkpoint, capsys)
    assert said["normalization"]["action"] == "MIN_MAX"
    ranges = said["ranges"]
    assert ranges["action"]["at_minus_one"] == pytest.approx([-1, -0.5])
    assert ranges["action"]["at_one"] == pytest.approx([0.5, 2])
    environment = ranges["observation.environment_state"]
    assert environment["at_minus_one"] == pytest.approx([-0.6, -1, -1.4])
    assert environment["at_one"] == pytest.approx([0.4, 1, 1.6])


def test_samplers_that_do_not_fit_the_chain_say_so(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(checkpoint / "config.json", num_inference_steps=5)
    samplers = {each["spec"]: each for each in inspect(checkpoint, capsys)[0]["samplers"]}
    assert not samplers["ddim"]["usable"]
    assert "is not in 1 … 5" in samplers["ddim"]["why"]
    assert samplers["asd"]["usable"]


def test_ddim_without_noise_is_described_with_the_way_to_an_exact_chain(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(checkpoint / "config.json", noise_scheduler_type="DDIM")
    said, read = inspect(checkpoint, capsys)
    assert said["runs_here"] and not said["chain"]["gaussian"] and not said["missing"]
    assert said["own_plan"] == "ddim:10" and "--chain trained" in said["chain"]["why"]
    assert said["horizons"]["horizon"] == 16
    assert [each["spec"] for each in said["samplers"] if each["usable"]] == ["ddim:10", "parallel"]
    assert "ddim:10: the checkpoint's own plan" in read and "asd: not here, only with --chain trained" in read


def test_tuning(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tune", "--policy", str(checkpoint), "--plans", "2", "--backends", "torch-eager"]) == 0
    capsys.readouterr()
    said, read = inspect(checkpoint, capsys)
    assert said["tuning"]["plans"] == asd_policy.load_policy(checkpoint).experience.plans == 2
    assert "2 plans in" in read
    Path(said["tuning"]["file"]).write_bytes(b"no")
    said, _ = inspect(checkpoint, capsys)
    assert "cannot be read" in said["missing"][0]


def test_text_from_a_checkpoint_cannot_act_on_the_terminal(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither as an escape sequence nor as rich's markup."""
    features = {"\x1b[2Jobservation\x9b": {"type": "[bold]STATE[/bold]", "shape": [float("nan"), "\x07"]}}
    edit(checkpoint / "config.json", input_features=features, beta_schedule="[red]\x1b]0;title")
    said, read = inspect(checkpoint, capsys)
    assert said["observation"] == {"\x1b[2Jobservation\x9b": ["nan", "\x07"]}
    assert not set(read) & {"\x1b", "\x9b", "\x07"}
    assert "[red]" in read


def test_what_cannot_be_described_is_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"no")
    assert cli.run(["inspect", "--policy", str(checkpoint)]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "is not a whole safetensors file" in said
