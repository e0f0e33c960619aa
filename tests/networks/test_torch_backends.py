"""PyTorch's backends: the conditioning's cache, dtypes, the compiler, replicas."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import BackendError, DenoiserError
from asd_policy.evaluation.exactness import law
from asd_policy.evaluation.states import random_conditioning
from asd_policy.networks.backends import Job, few_points, film, make_backend
from asd_policy.networks.backends.film import FilmNetwork
from asd_policy.networks.backends.precision import computable, full_float32
from asd_policy.networks.backends.torch_compiled import Compiled
from asd_policy.networks.denoiser import encode
from asd_policy.networks.dit import Dit, DitConfig
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from asd_policy.networks.unet import ConditionalUnet1d, SinusoidalEmbedding, UnetConfig
from asd_policy.samplers import make_sampler

CPU = torch.device("cpu")
TIMESTEPS = 100


def unet(cond_dim: int = 7, film_scale: bool = True, down_dims: tuple[int, ...] = (16, 32)) -> ConditionalUnet1d:
    torch.manual_seed(0)
    return ConditionalUnet1d(UnetConfig(3, cond_dim, down_dims, 5, 4, 32, film_scale)).eval()


def transformer() -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(TransformerConfig(3, 3, 16, 2, cond_dim=4, n_layer=2, n_head=2, n_emb=16))
    return network.eval()


def dit(use_rope: bool = True) -> Dit:
    """AdaLN-Zero begins at zero, where observations count for nothing: here they count."""
    torch.manual_seed(0)
    network = Dit(DitConfig(3, 7, 16, 16, 2, 2, 16, use_positional_encoding=not use_rope, use_rope=use_rope)).eval()
    for modulator in network.modulators:
        nn.init.normal_(modulator.weight, std=0.2)
    return network


class Tiny(nn.Module):
    """A network that compiles in seconds."""

    def __init__(self) -> None:
        """Make it, with random weights."""
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict from points and timesteps."""
        return self.layer(x).tanh() + timestep[:, None, None]


def points(count: int, cond_dim: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x, cond = (torch.randn((count, *event), generator=generator, dtype=dtype) for event in ((16, 3), (cond_dim,)))
    return x, torch.randint(TIMESTEPS, (count,), generator=generator), cond


def assert_equal(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.abs().max()))


# The U-Net with its conditioning computed where it changes.


@pytest.mark.parametrize("cond_dim", [7, 0])
@pytest.mark.parametrize("film_scale", [True, False])
@pytest.mark.parametrize("down_dims", [(16, 32), (8, 16, 32)])
@pytest.mark.parametrize("table", [True, False])
def test_cached_conditioning_is_exact(
    cond_dim: int, film_scale: bool, down_dims: tuple[int, ...], table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any row of the encoded conditioning, in any order and any batch, with a table or without."""
    if not table:
        monkeypatch.setattr(film, "TABLE_BYTES", 0)
    network = unet(cond_dim, film_scale, down_dims)
    check_cached(network, cond_dim, table)


@pytest.mark.parametrize("use_rope", [True, False])
@pytest.mark.parametrize("table", [True, False])
def test_cached_conditioning_of_a_dit_is_exact(use_rope: bool, table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the U-Net's."""
    if not table:
        monkeypatch.setattr(film, "TABLE_BYTES", 0)
    check_cached(dit(use_rope), 7, table)


def check_cached(network: ConditionalUnet1d | Dit, cond_dim: int, table: bool) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        network.to(dtype)
        cached = FilmNetwork(network, TIMESTEPS, dtype)
        assert (cached.table is not None) == table
        x, timestep, cond = points(12, cond_dim, dtype)
        encoded = cached.encode(cond)
        for rows in (torch.arange(12), torch.tensor([5, 5, 0]), torch.tensor([7])):
            expected = network(x[rows], timestep[rows], cond[rows])
            assert_equal(cached(x[rows], timestep[rows], encoded[rows]), expected, tolerance)


def test_without_observations_there_is_nothing_to_encode() -> None:
    network = unet(cond_dim=0)
    cached = FilmNetwork(network, TIMESTEPS, torch.float32)
    x, timestep, cond = points(3)
    assert cached.encode(cond).shape == (3, 0)
    assert_equal(cached(x, timestep, None), network(x, timestep, cond))


def test_weights_are_shared() -> None:
    network = unet()
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert own == {parameter.data_ptr() for parameter in FilmNetwork(network, TIMESTEPS, torch.float32).parameters()}


@pytest.mark.parametrize("timestep", [-1, TIMESTEPS])
def test_timesteps_out_of_the_schedule(timestep: int) -> None:
    denoiser = make_backend("torch-eager").prepare(unet(), job())
    x, _, cond = points(2)
    with pytest.raises(DenoiserError, match=f"no timesteps {timestep} … {timestep} in the network's noise schedule"):
        denoiser(x, torch.full((2,), timestep), denoiser.encode(cond))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("few", [few_points.FEW, None])
@pytest.mark.parametrize("count", range(1, few_points.FEW + 2))
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 5, 5, padding=2),
        nn.Conv1d(3, 5, 1),
        nn.Conv1d(3, 5, 3, 2, 1),
        nn.Conv1d(3, 5, 3, padding=1, bias=False),
        nn.ConvTranspose1d(3, 5, 4, 2, 1),
        nn.ConvTranspose1d(3, 5, 4, 2, 1, bias=False),
    ],
    ids=str,
)
def test_convolution_as_a_product(count: int, few: int | None, layer: nn.Module, calls: list[nn.Module]) -> None:
    x = torch.randn(count, 8, 3, generator=torch.Generator().manual_seed(0)).transpose(1, 2)  # as the network's input
    (fast,) = few_points.for_few_points(nn.Sequential(layer), few)
    made = fast(x)
    assert len(calls) == (few is not None and count > few)
    torch.testing.assert_close(made, layer(x), rtol=1e-5, atol=1e-6)


@pytest.fixture
def calls() -> Iterator[list[nn.Module]]:
    """List the convolutions of PyTorch that are called."""
    called: list[nn.Module] = []

    def note(module: nn.Module, *_: object) -> None:
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            called.append(module)

    hook = nn.modules.module.register_module_forward_hook(note)
    yield called
    hook.remove()


# What the samplers, the tests of laws and the studies do with it.


def job(network_events: int = 3, cond_dim: int = 7) -> Job:
    chain = GaussianChain.from_scheduler({"num_train_timesteps": TIMESTEPS}, 10)
    return Job(chain, (16, network_events), cond_dim, CPU)


def test_a_recorded_path_survives_encoding(checkpoint: Path) -> None:
    """The row numbers that ride on the conditioning arrive, also where it is encoded in a dtype that counts to 256."""
    for spec in ("torch-eager", "torch-eager:dtype=bfloat16"):
        policy = asd_policy.load_policy(checkpoint, backend=spec)
        rows, dim = 300, policy.event[0] * policy.event[1]
        cond = random_conditioning(policy, rows, seed=0)
        recorder = law.PathRecorder(policy.denoiser, policy.chain, rows, dim)
        shape, generator = (rows, *policy.event), torch.Generator().manual_seed(0)
        sampled = make_sampler("ddim:10,eta=1").sample(recorder, policy.chain, shape, recorder.tag(cond), generator)
        plain = make_sampler("ddim:10,eta=1").sample(
            policy.denoiser, policy.chain, shape, cond, torch.Generator().manual_seed(0)
        )
        assert_equal(sampled.sample, plain.sample, 1e-5 if spec == "torch-eager" else 0.05)
        assert not torch.isnan(torch.as_tensor(recorder.points)).any()


@pytest.mark.parametrize("spec", ["torch-eager", "torch-replicas:devices=cpu+cpu"])
def test_autocast(spec: str, checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint, backend=spec)
    cond = random_conditioning(policy, 6, seed=0)
    x, timestep = torch.randn(6, *policy.event), torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = policy.network(x, timestep, cond).float()
        found = policy.denoiser(x, timestep, encode(policy.denoiser, cond))
        plan = make_sampler("asd:window=4").sample(policy.denoiser, policy.chain, (6, *policy.event), cond)
    full = policy.network(x, timestep, cond)
    assert plan.sample.dtype == torch.float32
    assert not torch.equal(found, full)  # it was bfloat16
    assert_equal(found.float(), expected, 0.03)


def test_the_weights_that_were_prepared(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    network, history = policy.network, {name: torch.zeros(1, 2, dim) for name, dim in policy.observation_dims.items()}
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    with pytest.raises(BackendError, match=r"weights were changed .*; policy.with_backend\(policy.backend\) prepares"):
        policy.plan(history)
    policy = policy.with_backend(policy.backend)
    policy.plan(history)
    network.to("meta")
    with pytest.raises(BackendError, match="moved from cpu to meta after it was prepared; .* device='meta'"):
        policy.plan(history)
    with pytest.raises(BackendError, match="network is on meta, and the policy plans on cpu"):
        policy.with_backend(policy.backend)


def test_a_copy_has_weights_of_its_own(checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    twin = copy.deepcopy(policy)
    history = {name: torch.zeros(1, 2, dim) for name, dim in policy.observation_dims.items()}
    plans = [each.plan(history, torch.Generator().manual_seed(0)).sample for each in (policy, twin)]
    assert torch.equal(*plans)
    assert isinstance(policy.network, nn.Module)
    with torch.no_grad():
        next(policy.network.parameters()).mul_(2)
    twin.plan(history)
    with pytest.raises(BackendError, match="weights were changed"):
        copy.deepcopy(policy)


# Dtypes.


@pytest.mark.parametrize("network", [unet(), transformer(), dit()], ids=["unet", "transformer", "dit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_precision(network: nn.Module, dtype: str, tolerance: float) -> None:
    cond_dim = 7 if isinstance(network, ConditionalUnet1d | Dit) else 8
    denoiser = make_backend(f"torch-eager:dtype={dtype}").prepare(network, job(cond_dim=cond_dim))
    x, timestep, cond = points(9, cond_dim)
    found = denoiser(x, timestep, encode(denoiser, cond))
    expected = network(x, timestep, cond)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert_equal(found, expected, tolerance)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_timesteps_in_half_precision(dtype: torch.dtype) -> None:
    """Their angles are rounded last: 999 times a frequency has few right digits in these dtypes, or none."""
    timestep = torch.tensor([1, 257, 999])
    embedding = SinusoidalEmbedding(32)
    exact = embedding(timestep)
    found = embedding.to(dtype)(timestep)
    assert found.dtype == dtype
    assert_equal(found.float(), exact, 0.004)


class NoHalf(Tiny):
    """A network with an operation that there is in float32 alone."""

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Refuse half precision."""
        if x.dtype == torch.float16:
            raise RuntimeError("'this_kernel' not implemented for 'Half'\nand more")
        return super().forward(x, timestep, cond)


def test_a_dtype_that_the_device_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    conv1d = functional.conv1d

    def single_alone(x: Tensor, *rest: Any) -> Tensor:
        if x.dtype == torch.float16:
            raise RuntimeError("no")
        return conv1d(x, *rest)

    assert "float32" in computable(CPU)
    monkeypatch.setattr(functional, "conv1d", single_alone)
    assert "float16" not in computable(CPU)
    with pytest.raises(BackendError) as error:
        make_backend("torch-eager:dtype=float16").prepare(NoHalf(), job())
    assert str(error.value) == (
        "torch-eager:dtype=float16 cannot run on cpu: 'this_kernel' not implemented for 'Half'; "
        f"{', '.join(computable(CPU))} can be computed there"
    )


Setting = Callable[[], Any]


@pytest.mark.parametrize(
    "user",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    ],
    ids=["default", "medium", "matmul in TF32", "convolution in float32"],
)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_float32_is_float32(user: Setting, kind: str) -> None:
    """PyTorch's settings can be tried without the device that they are for."""

    def settings() -> list[Any]:
        found = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
        for place in (torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn):
            for part in (place, *(getattr(place, name, None) for name in ("matmul", "conv", "rnn"))):
                found.append(getattr(part, "fp32_precision", None))
        return found

    default = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        user()
        before = settings()
        with pytest.raises(KeyError), full_float32(torch.device(kind)):
            with full_float32(torch.device(kind)):
                pass
            assert torch.get_float32_matmul_precision() == "highest"
            if kind == "cuda":
                assert not torch.backends.cuda.matmul.allow_tf32
                assert not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision(default[0])
        torch.backends.cudnn.allow_tf32 = default[1]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has no such settings")
def test_float32_is_float32_by_the_new_settings() -> None:
    """Where they contradict the old ones PyTorch refuses to read those."""
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_float32(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # pyright: ignore[reportAttributeAccessIssue]  # made at import
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


# The compiler.


MORE_NETWORKS = torch._dynamo.config.recompile_limit // 2 + 1
"""Than PyTorch would compile for one piece of code, twice each."""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are to be compiled, and are run as they were traced."""
    found: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", note)
    return found


def test_compiles_for_any_number_of_points() -> None:
    """With the compiler itself."""
    network = Tiny()
    denoiser = make_backend("torch-compile").prepare(network, job())
    for count in (1, 2, 5, 17, 100):
        x, timestep, cond = points(count)
        assert_equal(denoiser(x, timestep, cond), network(x, timestep, cond))


def test_calls_do_not_compile_anew(graphs: list[torch.fx.GraphModule]) -> None:
    """Whatever the strides of what they are given, made in inference mode or not; and each network is for itself."""
    denoisers = [make_backend("torch-compile").prepare(Tiny(), job()) for _ in range(MORE_NETWORKS)]
    for count in (1, 7, 30):
        x, timestep, cond = points(2 * count)
        for denoiser in denoisers:
            denoiser(x[::2], timestep[:1].expand(count), cond[:count])
            with torch.inference_mode():
                denoiser(x.clone()[:count].transpose(1, 2).contiguous().transpose(1, 2), timestep[:count], cond[::2])
    assert len(graphs) == 2 * MORE_NETWORKS


def test_autocast_compiles_once_more(graphs: list[torch.fx.GraphModule]) -> None:
    denoiser = make_backend("torch-compile").prepare(Tiny(), job())
    x, timestep, cond = points(3)
    full = denoiser(x, timestep, cond)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert not torch.equal(denoiser(x, timestep, cond), full)
    assert len(graphs) == 3


def test_compiling_has_an_end(graphs: list[torch.fx.GraphModule]) -> None:
    run = Compiled(Tiny(), "torch-compile")
    limit = torch._dynamo.config.recompile_limit
    with pytest.raises(BackendError, match=f"has compiled the network {limit} times, and would have to do it again"):
        for axes in range(1, limit + 2):
            run(torch.zeros((1, *[1] * axes, 3)), torch.zeros(1), None)
    assert len(graphs) == limit


def compile_tiny() -> None:
    make_backend("torch-compile").prepare(Tiny(), job())


@pytest.mark.parametrize("suppress", [False, True])
def test_what_the_compiler_says_is_an_error(suppress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("no\nand more")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    with torch._dynamo.config.patch(suppress_errors=suppress):
        with pytest.raises(BackendError, match="^torch-compile cannot compile this network: no$"):
            compile_tiny()


class Unclear(Tiny):
    """A network that the compiler cannot follow."""

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Stop the compiler in the middle."""
        torch._dynamo.graph_break()
        return super().forward(x, timestep, cond)


def test_no_part_runs_uncompiled(graphs: list[torch.fx.GraphModule]) -> None:
    with pytest.raises(BackendError, match="torch-compile cannot compile this network"):
        make_backend("torch-compile").prepare(Unclear(), job())


def test_a_compiler_that_is_turned_off(graphs: list[torch.fx.GraphModule]) -> None:
    with torch.compiler.set_stance("force_eager"):
        with pytest.raises(BackendError, match="torch.compile is turned off here"):
            compile_tiny()


def test_without_a_c_compiler() -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        with pytest.raises(BackendError) as error:
            compile_tiny()
    assert str(error.value) == (
        "torch-compile cannot compile this network: it needs a C++ compiler and finds none that works; install g++ or "
        "clang, or name one in CXX"
    )


# Replicas.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("network", [unet(), transformer(), dit()], ids=["unet", "transformer", "dit"])
def test_replicas_are_one_network(count: int, network: nn.Module) -> None:
    """Batches smaller than the number of replicas too."""
    cond_dim = 7 if isinstance(network, ConditionalUnet1d | Dit) else 8
    denoiser = make_backend("torch-replicas:devices=cpu+cpu+cpu").prepare(network, job(cond_dim=cond_dim))
    x, timestep, cond = points(count, cond_dim)
    found = denoiser(x, timestep, encode(denoiser, cond))
    assert_equal(found, network(x, timestep, cond))


class Failing(Tiny):
    """A network that breaks at some points."""

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Break at timestep 7."""
        if (timestep == 7).any():
            raise ArithmeticError("seven")
        return super().forward(x, timestep, cond)


def test_a_replica_that_fails() -> None:
    denoiser = make_backend("torch-replicas:devices=cpu+cpu").prepare(Failing(), job())
    x, _, cond = points(4)
    with pytest.raises(ArithmeticError, match="seven"):
        denoiser(x, torch.tensor([1, 1, 1, 7]), cond)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cpu+cuda:99", "no device 'cuda:99' here for torch-replicas:devices=cpu+cuda:99; there are cpu"),
        ("cpu+abacus", "no device 'abacus' here"),
        ("meta+cpu", "torch-replicas:devices=meta+cpu begins with meta, and the policy is on cpu"),
    ],
)
def test_devices_that_do_not_fit(devices: str, message: str, checkpoint: Path) -> None:
    policy = asd_policy.load_policy(checkpoint)
    with pytest.raises(BackendError) as error:
        policy.with_backend(make_backend(f"torch-replicas:devices={devices}"))
    assert message in str(error.value)


def test_replicas_without_gpus(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BackendError, match="torch-replicas wants GPUs and there are none: name its devices"):
        asd_policy.load_policy(checkpoint, backend="torch-replicas")
