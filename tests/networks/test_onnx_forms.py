"""On a CPU, ONNX Runtime gets a network in two forms: one for calls of any number of points, and one for many."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.backends import Job, make_backend
from asd_policy.networks.backends import onnx_export as exporting
from asd_policy.networks.backends.onnx_export import example, export_for_cpu
from asd_policy.networks.backends.onnx_lowering import MANY
from asd_policy.networks.backends.onnx_network import OnnxNetwork
from asd_policy.networks.backends.onnx_session import open_session, provider_options
from asd_policy.networks.denoiser import encode
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig


class Convolutions(nn.Module):
    """Convolutions of stride 1, with three taps and with five, and with a shift and without."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, 5, padding=2),
            nn.Mish(),
            nn.Conv1d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Map [N, T, channels], [N] and [N, 1] to [N, T, channels]."""
        return self.layers(x.transpose(1, 2)).transpose(1, 2) + 0 * (cond + timestep[:, None])[:, None]


def make(chain: GaussianChain, steps: int, channels: int) -> tuple[nn.Module, Job]:
    torch.manual_seed(0)
    return Convolutions(channels).eval().requires_grad_(False), Job(chain, (steps, channels), 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("steps", "channels", "filtered"),
    [
        (16, 64, [0, 2]),
        (4, 96, [0, 2]),
        (32, 48, [0, 2]),  # in two blocks
        (6, 80, [0, 2]),  # not in whole tiles
        (16, 128, [2]),  # already for one point
        (16, 16, [0]),  # too few channels
        (20, 64, [0]),  # not in whole blocks
    ],
)
def test_forms_compute_the_same(chain: GaussianChain, steps: int, channels: int, filtered: list[int]) -> None:
    network, job = make(chain, steps, channels)
    splits = [[node.op_type for node in form.graph.node].count("Split") for form in export_for_cpu(network, job)]
    assert splits == filtered
    found = make_backend("onnx").prepare(network, job)
    for points in (1, MANY - 1, MANY, 17):
        inputs = example(job, points, torch.Generator().manual_seed(points))
        torch.testing.assert_close(found(*inputs), network(*inputs), atol=3e-6, rtol=0)


def test_calls_of_many_points_run_the_form_for_them(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network, job = make(chain, 16, 64)
    found: Any = make_backend("onnx").prepare(network, job)
    assert isinstance(found, OnnxNetwork) and len(found.sessions) == 2
    ran: list[tuple[int, int]] = []

    class Session:
        def __init__(self, form: int) -> None:
            self.form, self.run_it = form, found.sessions[form].run

        def run(self, names: None, feed: dict[str, Any]) -> Any:
            ran.append((len(feed["x"]), self.form))
            return self.run_it(names, feed)

    monkeypatch.setattr(found, "sessions", tuple(Session(form) for form in range(2)))
    for points in (1, MANY - 1, MANY, MANY + 1):
        found(*example(job, points, torch.Generator()))
    assert ran == [(1, 0), (MANY - 1, 0), (MANY, 1), (MANY + 1, 1)]


def test_one_form_where_the_other_is_too_large(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network, job = make(chain, 16, 64)
    few, many = (form.ByteSize() for form in export_for_cpu(network, job))
    monkeypatch.setattr(exporting, "MAX_BYTES", (few + many) // 2)
    assert [form.ByteSize() for form in export_for_cpu(network, job)] == [few]


def test_no_more_weights_where_one_form_is_too_large(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network, job = make(chain, 16, 128)
    (form,) = export_for_cpu(network, job)
    size = sum(each.numel() * each.itemsize for each in network.parameters())
    monkeypatch.setattr(exporting, "MAX_BYTES", (form.ByteSize() + size) // 2)
    for form in export_for_cpu(network, job):
        assert "Split" not in [node.op_type for node in form.graph.node] and form.ByteSize() < exporting.MAX_BYTES


def test_a_session_does_not_keep_what_it_was_opened_on(chain: GaussianChain) -> None:
    """That would double the memory of the weights."""
    network, job = make(chain, 16, 16)
    (form,) = export_for_cpu(network, job)
    content = form.SerializeToString()
    before = sys.getrefcount(content)
    session = open_session(content, "layers", provider_options("cpu", 0, job, 0), 1)
    assert sys.getrefcount(content) == before and session.get_inputs()


def test_a_network_that_reads_no_observation(chain: GaussianChain) -> None:
    """What is told beside it, coordinates that are given along the chain, is none of its own."""
    torch.manual_seed(0)
    network = ConditionalUnet1d(UnetConfig(2, 0, (8, 16), 3, 4, 16)).eval().requires_grad_(False)
    job = Job(chain, (8, 2), 5, torch.device("cpu"))
    found = make_backend("onnx").prepare(network, job)
    for points in (1, MANY):
        x, timestep, cond = example(job, points, torch.Generator().manual_seed(0))
        expected = network(x, timestep, cond)
        torch.testing.assert_close(found(x, timestep, encode(found, cond)), expected, atol=3e-6, rtol=0)
