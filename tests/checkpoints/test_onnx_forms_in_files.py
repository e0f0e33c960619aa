"""An exported file holds its network in two forms, as a network that is exported in memory has them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from asd_policy.checkpoints import load_policy
from asd_policy.checkpoints.lerobot.folder import DiffusionConfig
from asd_policy.checkpoints.onnx import writing
from asd_policy.checkpoints.onnx.graph import FORM, read_onnx
from asd_policy.checkpoints.onnx.writing import export_policy
from asd_policy.errors import BackendError, CheckpointError
from asd_policy.networks.backends import onnx_export
from asd_policy.networks.backends.onnx_export import example
from asd_policy.networks.backends.onnx_lowering import MANY
from asd_policy.networks.backends.onnx_network import OnnxNetwork
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.policy import Policy
from support.small_checkpoints import save_random


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, small_config: DiffusionConfig) -> Policy:
    """With channels enough for fewer products to pay."""
    made = load_policy(save_random(tmp_path_factory.mktemp("policy"), small_config))
    network: Any = made.network
    torch.manual_seed(0)
    made.network = ConditionalUnet1d(replace(network.config, down_dims=(96, 96))).eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> Path:
    """Exported once; not to be changed."""
    path = tmp_path_factory.mktemp("file") / "policy.onnx"
    assert export_policy(policy, path, {}) < 1e-5
    return path


def forms(path: Path) -> int:
    denoiser = load_policy(path).denoiser
    assert isinstance(denoiser, OnnxNetwork)
    return len(denoiser.sessions)


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_calls_of_many_points_run_the_form_for_them(
    file: Path, policy: Policy, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_policy(file, device=device)
    denoiser: Any = loaded.denoiser
    assert isinstance(denoiser, OnnxNetwork) and len(denoiser.sessions) == 2
    ran: list[int] = []

    def noted(form: int) -> Callable[..., Any]:
        def run(*call: Any) -> Any:
            ran.append(form)
            return sessions[form].run(*call)

        return run

    sessions = denoiser.sessions
    monkeypatch.setattr(denoiser, "sessions", tuple(SimpleNamespace(run=noted(form)) for form in range(2)))
    for points in (1, MANY - 1, MANY, 40):
        x, timestep, cond = example(policy.job, points, torch.Generator().manual_seed(points))
        given = [each.numpy() if device == "numpy" else each for each in (x, timestep, cond)]
        found = torch.as_tensor(denoiser(*given))
        torch.testing.assert_close(found, policy.network(x, timestep, cond), atol=1e-5, rtol=0)
    assert ran == [0, 0, 1, 1]


def test_a_file_of_one_form_loads(file: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of earlier versions have, and those that have no room for another one."""
    size = file.stat().st_size
    for most in (size - 2**20, size // 4):  # without room for both; and where the other one is not even made
        monkeypatch.setattr(writing, "MAX_BYTES", most)
        monkeypatch.setattr(writing, "_check_size", lambda *_: None)
        path = tmp_path / f"{most}.onnx"
        assert export_policy(policy, path, {}) < 1e-5
        assert FORM not in read_onnx(path).parts and forms(path) == 1
    monkeypatch.setattr(writing, "MAX_BYTES", size)
    export_policy(policy, tmp_path / "both.onnx", {})
    assert forms(tmp_path / "both.onnx") == 2


def test_a_form_that_predicts_something_else_is_not_written(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> Any:
        first, second = onnx_export.export_for_cpu(*given)
        next(each for each in second.model.graph.node if each.op_type == "Sin").op_type = "Cos"
        return iter([first, second])

    monkeypatch.setattr(writing, "export_for_cpu", wrong)
    with pytest.raises(BackendError, match="differs from the policy's by .* with 7 points in a call"):
        export_policy(policy, tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


def test_a_form_is_checked_as_a_file_is(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    weight = next(each for each in model.graph.initializer if each.name == FORM)
    inner = onnx.ModelProto.FromString(weight.raw_data)
    inner.graph.node[0].domain = "com.microsoft"
    weight.raw_data = inner.SerializeToString()
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match="an operator of the domain 'com.microsoft'"):
        read_onnx(tmp_path / "x.onnx")
