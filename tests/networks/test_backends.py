"""Backends: the same function on every engine, and a clear refusal where it cannot be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asd_policy
from asd_policy.errors import BackendError, DenoiserError, SpecError
from asd_policy.networks.backends import BACKENDS, Backend, Job, make_backend
from asd_policy.networks.backends.base import DTYPES
from asd_policy.networks.denoiser import EncodingDenoiser, encode
from asd_policy.policy.policy import Policy
from support import known_laws

SPECS = {"torch-replicas": "torch-replicas:devices=cpu+cpu"}
"""For backends whose defaults need what not every machine has."""

BATCHES = (1, 2, 3, 8, 64)


def spec_of(name: str) -> str:
    """Return a spec that can be prepared on any machine."""
    return SPECS.get(name, name)


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=BACKENDS)
def prepared(
    request: pytest.FixtureRequest, small_checkpoint: Path, module_patch: pytest.MonkeyPatch
) -> tuple[Policy, Policy]:
    """The same policy as it was loaded, and on a backend."""
    if request.param == "torch-cuda-graph" and not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU; tests/samplers/asd/test_recorded.py replays on a CPU what they capture")
    # What the compiler makes of a graph takes it a minute, so the graphs run as they were traced, and for the batches
    # here alone.
    module_patch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **options: graph.forward)
    module_patch.setattr("asd_policy.networks.backends.torch_compiled.SIZES", ())
    policy = asd_policy.load_policy(small_checkpoint)
    return policy, policy.with_backend(make_backend(spec_of(request.param)))


def points(policy: Policy, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, timesteps and observations of `count` rows, each row the same whatever the count."""
    generator = torch.Generator().manual_seed(3)
    dims = policy.horizons.n_obs_steps * sum(policy.observation_dims.values())
    x = torch.randn((64, *policy.event), generator=generator)
    cond = torch.randn((64, dims), generator=generator)
    return x[:count], torch.arange(count) % len(policy.chain), cond[:count]


def call(policy: Policy, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    return policy.denoiser(x, timestep, encode(policy.denoiser, cond))


@pytest.mark.parametrize("count", BATCHES)
def test_equals_the_network(count: int, prepared: tuple[Policy, Policy]) -> None:
    policy, other = prepared
    x, timestep, cond = points(policy, count)
    expected = policy.network(x, timestep, cond).detach()
    found = call(other, x, timestep, cond)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_rows_are_independent(prepared: tuple[Policy, Policy]) -> None:
    """Each row is what it is alone, up to rounding, and wherever in the batch it stands."""
    _, other = prepared
    x, timestep, cond = points(other, 6)
    together = call(other, x, timestep, cond)
    order = torch.tensor([4, 0, 5, 5, 1])
    moved = other.denoiser(x[order], timestep[order], encode(other.denoiser, cond)[order])
    torch.testing.assert_close(moved, together[order], rtol=0, atol=2e-6)
    for row in range(6):
        one = slice(row, row + 1)
        torch.testing.assert_close(call(other, x[one], timestep[one], cond[one]), together[one], rtol=0, atol=2e-6)


def test_plans_are_the_networks(prepared: tuple[Policy, Policy]) -> None:
    policy, other = prepared
    history = {name: torch.ones(2, 2, dim) for name, dim in policy.observation_dims.items()}
    plans = [each.plan(history, torch.Generator().manual_seed(0)).sample for each in prepared]
    torch.testing.assert_close(plans[0], plans[1], rtol=0, atol=1e-4)
    fast = asd_policy.accelerate(other, "asd:window=4")
    generator = torch.Generator().manual_seed(0)
    assert fast.plan(history, generator).stats.algorithmic_speedup > 1


def test_the_loaded_network_stays(prepared: tuple[Policy, Policy], small_checkpoint: Path) -> None:
    policy, other = prepared
    assert other.network is policy.network
    assert isinstance(policy.network, nn.Module)
    fresh = asd_policy.load_policy(small_checkpoint).network
    assert isinstance(fresh, nn.Module)
    for name, value in fresh.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], value)


def test_timesteps_between_those_of_the_chain(prepared: tuple[Policy, Policy]) -> None:
    """Few-step samplers ask for timesteps of the noise schedule that a shorter chain does not visit."""
    policy, other = prepared
    x, _, cond = points(policy, 3)
    for timestep in range(policy.chain.config["num_train_timesteps"]):
        every = torch.full((3,), timestep)
        torch.testing.assert_close(call(other, x, every, cond), policy.network(x, every, cond), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_specs_read_back(name: str) -> None:
    backend = make_backend(spec_of(name))
    assert isinstance(backend, Backend)
    assert make_backend(backend.spec) == backend
    assert backend.dtype in DTYPES
    assert backend.spec.startswith(name)


@pytest.mark.parametrize(
    "spec",
    [
        *(f"{name}:dtype={dtype}" for name in ("torch-eager", "torch-compile") for dtype in DTYPES[1:]),
        "torch-replicas:dtype=bfloat16,devices=cuda:0+cuda:1",
    ],
)
def test_specs_with_options_read_back(spec: str) -> None:
    assert make_backend(spec).spec == spec
    assert make_backend(make_backend(spec).spec) == make_backend(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "abacus",
            f"no backend 'abacus' in 'abacus'; there are {', '.join(BACKENDS)}",
        ),
        ("torch-eager:speed=9", "no option 'speed' in 'torch-eager:speed=9'; torch-eager has dtype"),
        ("torch-eager:dtype=int8", "dtype=int8 is none of float32, bfloat16, float16"),
        ("torch-replicas:devices=cpu+", "devices=cpu+ is not a list of devices such as cuda:0+cuda:1"),
    ],
)
def test_specs_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        make_backend(spec)
    assert message in str(error.value)


def test_encoding_is_once_per_plan_and_network_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = asd_policy.load_policy(checkpoint)
    encoding = policy.denoiser
    assert isinstance(encoding, EncodingDenoiser)
    calls: list[str] = []

    class Spy:
        def encode(self, cond: Tensor) -> Tensor:
            calls.append("encode")
            return encoding.encode(cond)

        def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            calls.append("call")
            return encoding(x, timestep, cond)

    clock = iter(range(1000))
    monkeypatch.setattr("asd_policy.networks.denoiser.time.perf_counter", lambda: float(next(clock)))
    policy.denoiser = Spy()
    history = {name: torch.zeros(1, 2, dim) for name, dim in policy.observation_dims.items()}
    plan = policy.plan(history)
    assert calls == ["encode"] + ["call"] * len(policy.chain)
    assert plan.stats.network_seconds == 1 + len(policy.chain)  # one tick each


def test_encoding_that_is_none(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    encoding: Any = policy.denoiser

    class Broken:
        def encode(self, cond: Tensor) -> Any:
            return cond[:1]

        def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            return encoding(x, timestep, cond)

    policy.denoiser = Broken()
    history = {name: torch.zeros(2, 2, dim) for name, dim in policy.observation_dims.items()}
    with pytest.raises(DenoiserError, match=r"encoded the conditioning of 2 samples as \(1, 14\)"):
        policy.plan(history)
    with pytest.raises(DenoiserError, match=r"the conditioning has shape \(1, 14\), not that of `encode`"):
        encoding(torch.zeros(1, *policy.event), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 14))


def test_no_module_runs_as_it_is() -> None:
    chain = known_laws.short_chain()
    network = known_laws.mixture_denoiser()
    job = Job(chain, known_laws.EVENT, 0, torch.device("cpu"))
    assert make_backend("torch-eager").prepare(network, job) is network
    for spec in ("torch-eager:dtype=bfloat16", "torch-compile", "torch-replicas:devices=cpu+cpu"):
        with pytest.raises(BackendError, match="runs modules of PyTorch, and the network is a MixtureDenoiser"):
            make_backend(spec).prepare(network, job)


def test_cuda_graphs_need_a_gpu(small_checkpoint: Path) -> None:
    """And say so, where another backend could be taken in silence."""
    with pytest.raises(BackendError, match="torch-cuda-graph needs a CUDA GPU, and the policy plans on cpu"):
        asd_policy.load_policy(small_checkpoint, backend="torch-cuda-graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4", "asd"])
def test_captured_plans_are_the_plans(spec: str, small_checkpoint: Path) -> None:
    plans = []
    for backend in ("torch-eager", "torch-cuda-graph"):
        policy = asd_policy.load_policy(small_checkpoint, spec, "cuda", backend)
        policy.reset(seed=0)
        plans.append([policy.select_action(torch.zeros(7)) for _ in range(3 * policy.horizons.n_action_steps)])
    for eager, captured in zip(*plans, strict=True):
        torch.testing.assert_close(torch.as_tensor(captured), torch.as_tensor(eager), rtol=0, atol=1e-4)
