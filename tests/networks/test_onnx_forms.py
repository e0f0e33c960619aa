"""On a CPU, ONNX Runtime gets a network in two forms: one for calls of any number of points, and one for many."""

import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import BackendError
from asd_policy.networks.backends import Job, make_backend
from asd_policy.networks.backends import onnx_export as exporting
from asd_policy.networks.backends.onnx_export import example, export_for_cpu, export_network
from asd_policy.networks.backends.onnx_exported import ExportedModel
from asd_policy.networks.backends.onnx_lowering import MANY
from asd_policy.networks.backends.onnx_network import OnnxNetwork
from asd_policy.networks.backends.onnx_session import INPUTS, import_onnxruntime, open_session, provider_options
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
    splits = [[node.op_type for node in form.model.graph.node].count("Split") for form in export_for_cpu(network, job)]
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
    few, many = (form.size for form in export_for_cpu(network, job))
    monkeypatch.setattr(exporting, "MAX_BYTES", (few + many) // 2)
    assert [form.size for form in export_for_cpu(network, job)] == [few]


def test_no_more_weights_where_one_form_is_too_large(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network, job = make(chain, 16, 128)
    (form,) = export_for_cpu(network, job)
    size = sum(each.numel() * each.itemsize for each in network.parameters())
    monkeypatch.setattr(exporting, "MAX_BYTES", (form.size + size) // 2)
    for form in export_for_cpu(network, job):
        assert "Split" not in [node.op_type for node in form.model.graph.node] and form.size < exporting.MAX_BYTES


def test_a_session_does_not_keep_what_it_was_opened_on(chain: GaussianChain) -> None:
    """That would double the memory of the weights."""
    network, job = make(chain, 16, 16)
    (form,) = export_for_cpu(network, job)
    content, options = form.whole().SerializeToString(), provider_options("cpu", 0, job, 0)
    before = sys.getrefcount(content)
    sessions = [open_session(content, "layers", options, 1), open_session(form, "layers", options, 1)]
    assert sys.getrefcount(content) == before
    kept = [weakref.ref(each) for each in form.weights.values() if each.nbytes > 1024]
    del form
    assert len(kept) == 2 and not any(each() is not None for each in kept)
    feed = dict(zip(INPUTS, (each.numpy() for each in example(job, 3, torch.Generator())), strict=True))
    first, second = (session.run(None, feed)[0] for session in sessions)
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_an_onnxruntime_that_opens_files_alone_is_named(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        intra_op_num_threads = inter_op_num_threads = log_severity_level = 0

        def add_session_config_entry(self, key: str, value: str) -> None:
            pass

    onnxruntime = import_onnxruntime()
    monkeypatch.setattr(onnxruntime, "SessionOptions", Older)
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(BackendError, match=r"takes onnxruntime 1\.24 or newer, and this is 1\.23\.2"):
        make_backend("onnx").prepare(*make(chain, 16, 16))


def test_weights_are_there_until_a_session_has_read_them(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime has their addresses alone, and some are copies: those that are not in the order of their axes."""
    network, job = make(chain, 16, 64)
    exported = export_network(network, job)
    turned = {name: np.asfortranarray(each) for name, each in exported.weights.items()}
    given: list[weakref.ref[Any]] = []

    class Options(import_onnxruntime().SessionOptions):
        def add_external_initializers_from_files_in_memory(self, names: Any, files: Any, lengths: Any) -> None:
            given.extend(map(weakref.ref, files))
            super().add_external_initializers_from_files_in_memory(names, files, lengths)

    class Session(import_onnxruntime().InferenceSession):
        def __init__(self, *args: Any, **options: Any) -> None:
            assert given and all(each() is not None for each in given)
            super().__init__(*args, **options)

    monkeypatch.setattr(import_onnxruntime(), "SessionOptions", Options)
    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", Session)
    options = provider_options("cpu", 0, job, 0)
    session = open_session(ExportedModel(exported.model, turned), "layers", options, 1)
    assert not any(each() is not None for each in given)
    inputs = example(job, 3, torch.Generator().manual_seed(0))
    found: Any = session.run(None, dict(zip(INPUTS, (each.numpy() for each in inputs), strict=True)))[0]
    torch.testing.assert_close(torch.from_numpy(found), network(*inputs), atol=3e-6, rtol=0)


def test_a_network_that_no_file_can_have_runs(chain: GaussianChain, monkeypatch: pytest.MonkeyPatch) -> None:
    network, job = make(chain, 16, 64)
    monkeypatch.setattr(exporting, "MAX_BYTES", 1000)
    (form,) = export_for_cpu(network, job)
    kinds = [node.op_type for node in form.model.graph.node]
    assert "Gemm" in kinds and "Conv" not in kinds and "Split" not in kinds
    inputs = example(job, 7, torch.Generator().manual_seed(0))
    found = make_backend("onnx").prepare(network, job)
    torch.testing.assert_close(found(*inputs), network(*inputs), atol=3e-6, rtol=0)


def test_weights_that_stay_are_the_networks_own(chain: GaussianChain) -> None:
    """They may have gigabytes."""
    network, job = make(chain, 16, 64)
    addresses = {each.data_ptr() for each in network.parameters() if each.nbytes > 1024}
    exported = export_network(network, job)
    assert addresses == {each.ctypes.data for each in exported.weights.values() if each.nbytes > 1024}


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
