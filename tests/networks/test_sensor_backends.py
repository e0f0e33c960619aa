"""Networks of sensors on every backend: the same features at every number of rows."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from asd_policy._common.arrays import NUMPY
from asd_policy.errors import BackendError, DenoiserError
from asd_policy.networks.backends import BACKENDS, Backend, make_backend
from asd_policy.networks.backends.base import Encode, SensorJob, Watching
from asd_policy.networks.backends.onnx import MAX_GRAPHS
from asd_policy.networks.backends.onnx_network import OnnxCudaNetwork, OnnxNetwork
from asd_policy.networks.backends.onnx_session import provider_options
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.backends.torch_options import TorchBackend
from asd_policy.networks.backends.torch_sensor import RecordedSensor, torch_sensor
from support.replays import Replays
from support.sensor_networks import Camera, Cloud, Patches

CPU = torch.device("cpu")
SPECS = {"torch-replicas": "torch-replicas:devices=cpu+cpu"}


def job(*shape: int, size: int) -> SensorJob:
    return SensorJob(shape, size, 64, CPU)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], SensorJob]] = {
    "group norm": (lambda: Camera(True), job(3, 15, 21, size=8)),
    "batch norm": (lambda: Camera(False), job(3, 15, 21, size=8)),
    "cloud": (Cloud, job(20, 3, size=5)),
    "patches": (Patches, job(3, 16, 16, size=16)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), job(4, size=6)),
    "nothing": (nn.Identity, job(4, size=4)),
}


def rows(job: SensorJob, count: int) -> Tensor:
    return torch.rand((count, *job.shape), generator=torch.Generator().manual_seed(count)) - 0.5


def assert_equal(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.abs().max()))


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the compiler's graphs as they were traced: its code takes a minute to make."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **options: graph.forward)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch-cuda-graph"])
def test_features_are_the_networks(backend: str, name: str) -> None:
    make, job = NETWORKS[name]
    network = make().eval()
    weights = copy.deepcopy(network.state_dict())
    encode = make_backend(SPECS.get(backend, backend)).prepare_sensor(network, job)
    with torch.inference_mode():
        for count in (1, 2, 3, 7, 20):
            seen = rows(job, count)
            found = encode(seen)
            assert found.dtype == torch.float32 and found.shape == (count, job.size)
            assert_equal(found, network(seen))
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("backend", ["torch-eager:dtype=bfloat16", "torch-replicas:dtype=bfloat16,devices=cpu+cpu"])
def test_a_dtype_is_that_of_the_network_alone(backend: str) -> None:
    make, job = NETWORKS["perceptron"]
    network = make().eval()
    found = make_backend(backend).prepare_sensor(network, job)(rows(job, 5))
    expected = network(rows(job, 5))
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert_equal(found, expected, 0.03)
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("backend", ["torch-eager", "torch-compile", "torch-replicas:devices=cpu+cpu"])
def test_weights_that_change_are_noticed(backend: str) -> None:
    """And statistics, which are no parameters of torch's own batch normalisation."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    job = SensorJob((3, 5, 5), 36, 8, CPU)
    encode = make_backend(backend).prepare_sensor(network, job)
    encode(rows(job, 2))
    statistics = network[1].running_mean
    assert isinstance(statistics, Tensor)
    statistics.add_(1)
    with pytest.raises(BackendError, match="weights were changed after it was prepared"):
        encode(rows(job, 2))
    network.to("meta")
    with pytest.raises(BackendError, match="moved from cpu to meta"):
        encode(rows(job, 2))


def test_what_cannot_be_prepared() -> None:
    _, job = NETWORKS["perceptron"]
    for backend in ("torch-eager", "torch-compile", "onnx"):
        with pytest.raises(BackendError, match="the network is a function|a function is no PyTorch module"):
            make_backend(backend).prepare_sensor(lambda seen: seen, job)
    with pytest.raises(BackendError, match="torch-eager runs on PyTorch's tensors, the policy plans on NumPy's"):
        make_backend("torch-eager").prepare_sensor(nn.Identity(), SensorJob((4,), 4, 8, NUMPY))
    with pytest.raises(BackendError, match="torch-cuda-graph needs a CUDA GPU, and the policy plans on cpu"):
        make_backend("torch-cuda-graph").prepare_sensor(nn.Identity(), job)
    with pytest.raises(BackendError, match=r"has the outputs features tensor\(float\) .*; the policy needs features"):
        make_backend("onnx").prepare_sensor(nn.Linear(4, 7), job)

    class OfThree(nn.Module):
        def forward(self, seen: Tensor) -> Tensor:
            return seen.reshape(len(seen), -1) if len(seen) == 3 else seen[:3]

    with pytest.raises(BackendError, match="cannot be exported to ONNX|the policy needs seen"):
        make_backend("onnx").prepare_sensor(OfThree(), job)

    class OfDenoisersAlone(TorchEager):
        prepare_sensor = Backend.prepare_sensor

    with pytest.raises(BackendError, match="torch-eager runs no networks of cameras"):
        OfDenoisersAlone().prepare_sensor(nn.Identity(), job)


# CUDA graphs, without a GPU.


@pytest.fixture
def recorded() -> Iterator[tuple[nn.Module, Encode, Replays]]:
    make, job = NETWORKS["group norm"]
    network, launcher = make().eval(), Replays()
    backend = make_backend("torch-eager")
    assert isinstance(backend, TorchBackend)
    yield network, RecordedSensor(torch_sensor(network, job, backend), launcher), launcher


def test_each_number_of_rows_is_recorded_once_and_replayed(recorded: tuple[nn.Module, Encode, Replays]) -> None:
    network, encode, launcher = recorded
    job = NETWORKS["group norm"][1]
    kept = []
    for round_ in range(3):
        for count in (1, 2, 3):
            seen = rows(job, count) + round_
            with torch.inference_mode(round_ != 1):
                kept.append((encode(seen), network(seen)))
    assert launcher.log.count("record") == 3
    assert launcher.log.count("replay") == launcher.log.count("settle") == 9
    for found, expected in kept:  # what was returned is no memory of the recording's
        assert_equal(found, expected)


def test_a_replay_notices_weights_that_change(recorded: tuple[nn.Module, Encode, Replays]) -> None:
    network, encode, launcher = recorded
    encode(rows(NETWORKS["group norm"][1], 2))
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    with pytest.raises(BackendError, match="weights were changed"):
        encode(rows(NETWORKS["group norm"][1], 2))
    assert isinstance(encode, Watching)
    with pytest.raises(BackendError, match="weights were changed"):
        encode.check()
    assert launcher.log.count("replay") == 1


def test_no_room_for_a_recording(recorded: tuple[nn.Module, Encode, Replays]) -> None:
    _, encode, launcher = recorded
    launcher.room = -1
    with pytest.raises(BackendError, match="no memory for encoding 2 observations at once"):
        encode(rows(NETWORKS["group norm"][1], 2))


class Cropping(nn.Module):
    """Looks at a random part of what it sees, as in training."""

    def forward(self, seen: Tensor) -> Tensor:
        """Map [N, 4] to [N, 2]."""
        first = int(torch.randint(3, ()))
        return seen[:, first : first + 2]


def test_random_crops_are_drawn_anew_and_not_recorded() -> None:
    """A replay would repeat the crop of the recording."""
    launcher, job = Replays(), SensorJob((4,), 2, 8, CPU)
    backend = make_backend("torch-eager")
    assert isinstance(backend, TorchBackend)
    encode = RecordedSensor(torch_sensor(Cropping(), job, backend), launcher)
    seen = torch.arange(4.0).expand(3, 4)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="runs without CUDA graphs, which is slower: it draws random numbers") as said:
        found = [encode(seen) for _ in range(40)]
    assert len(said) == 1
    assert launcher.log == []
    assert {float(each[0, 0]) for each in found} == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("count", [1, 3])
def test_a_network_that_cannot_be_captured_is_called_as_it_is(
    recorded: tuple[nn.Module, Encode, Replays], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, encode, launcher = recorded
    tries: list[int] = []

    def fail(work: Callable[[], object]) -> Callable[[], None]:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be …")

    monkeypatch.setattr(launcher, "record", fail)
    job = NETWORKS["group norm"][1]
    with pytest.warns(UserWarning, match="slower: operation not permitted when stream is capturing$") as said:
        for _ in range(3):
            with torch.inference_mode():
                assert_equal(encode(rows(job, count)), network(rows(job, count)))
    assert len(said) == len(tries) == 1  # nor is it tried again
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    with pytest.raises(BackendError, match="weights were changed"):
        encode(rows(job, count))


def test_no_rows(recorded: tuple[nn.Module, Encode, Replays]) -> None:
    _, encode, launcher = recorded
    assert encode(rows(NETWORKS["group norm"][1], 0)).shape == (0, 8)
    assert launcher.log == []


# ONNX Runtime on a GPU, without one.


class Stream:
    """Counts who waited for it."""

    waits = 0

    def wait_stream(self, other: "Stream") -> None:
        """Count."""
        self.waits += 1


def test_a_gpus_fixed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    _, job = NETWORKS["cloud"]
    plain = make_backend("onnx").prepare_sensor(Cloud().eval(), job)
    assert isinstance(plain, OnnxNetwork)
    fixed = OnnxCudaNetwork(plain.sessions[0], ("cpu", 0), Stream(), most_points=30, most_graphs=MAX_GRAPHS)
    for count in (1, 2, 1, 30, 70):
        assert torch.equal(fixed(rows(job, count)), plain(rows(job, count)))
    with pytest.raises(DenoiserError, match="seen has shape"):
        fixed(rows(job, 3)[:, 1:])
    shapes = provider_options("tensorrt", 0, job, 4096)[0][1]
    assert shapes["trt_profile_max_shapes"] == f"seen:{'x'.join(map(str, (job.most, *job.shape)))}"
    assert math.prod(job.shape) == 60
