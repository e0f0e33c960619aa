"""The diffusion transformer of LeRobot's multi-task policy, against a second computation of the same formulas."""

import math

import pytest
import torch
from test_backends import spec_of
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.backends import BACKENDS, Job, make_backend
from asd_policy.networks.denoiser import EncodingDenoiser, encode
from asd_policy.networks.dit import Dit, DitConfig

CONFIGS = {
    "rope": DitConfig(3, 7, 10, 16, 2, 4, 8),
    "rope, another base": DitConfig(3, 7, 10, 16, 2, 2, 8, rope_base=100.0),
    "rope, positions": DitConfig(3, 7, 10, 16, 1, 4, 8, use_positional_encoding=True),
    "positions": DitConfig(3, 7, 10, 16, 2, 4, 8, use_positional_encoding=True, use_rope=False),
    "no positions": DitConfig(3, 7, 10, 16, 1, 1, 8, use_rope=False),
}


def recompute(w: dict[str, Tensor], config: DitConfig, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    """Predict by formulas that share no code with the module, in float64; rotations as complex numbers."""
    width, heads = config.hidden_dim, config.num_heads
    dims = width // heads

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}weight"].T + w[f"{name}bias"]

    def gelu(h: Tensor, tanh: bool) -> Tensor:
        if tanh:
            return h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh()) / 2
        return h * (1 + (h / math.sqrt(2)).erf()) / 2

    def norm(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def rotated(h: Tensor) -> Tensor:
        """Of one head [N, T, dims]: number pairs (j, j + dims / 2) times e^{i t base^{−2j / dims}}."""
        pairs = torch.complex(h[..., : dims // 2], h[..., dims // 2 :])
        rates = config.rope_base ** (-2 * torch.arange(dims // 2, dtype=torch.float64) / dims)
        angles = torch.arange(h.shape[1], dtype=torch.float64)[:, None] * rates
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    def attend(h: Tensor, name: str) -> Tensor:
        if config.use_rope:
            q, k, v = linear(h, f"{name}attn.qkv_proj.").chunk(3, -1)
        else:
            inside = h @ w[f"{name}multihead_attn.in_proj_weight"].T + w[f"{name}multihead_attn.in_proj_bias"]
            q, k, v = inside.chunk(3, -1)
        parts = []
        for head in range(heads):
            here = slice(head * dims, (head + 1) * dims)
            one, other = (rotated(each[..., here]) if config.use_rope else each[..., here] for each in (q, k))
            parts.append((one @ other.mT / math.sqrt(dims)).softmax(-1) @ v[..., here])
        return linear(torch.cat(parts, -1), f"{name}{'attn' if config.use_rope else 'multihead_attn'}.out_proj.")

    half = config.timestep_embed_dim // 2
    angles = timestep[:, None].double() * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    time = linear(torch.cat([angles.sin(), angles.cos()], -1), "time_mlp.1.")
    time = gelu(linear(gelu(time, False), "time_mlp.3."), False)
    told = torch.cat([time, cond], -1)
    told = told * told.sigmoid()
    hidden = linear(x, "input_proj.")
    if config.use_positional_encoding:
        hidden = hidden + w["pos_embedding"][:, : x.shape[1]]
    for index in range(config.num_layers):
        name = f"transformer_blocks.{index}."
        film = linear(told, f"{name}adaLN_modulation.1.")[:, None].split(width, -1)
        hidden = hidden + film[2] * attend(norm(hidden) * (1 + film[1]) + film[0], name)
        inner = linear(norm(hidden) * (1 + film[4]) + film[3], f"{name}mlp.0.")
        hidden = hidden + film[5] * linear(gelu(inner, True), f"{name}mlp.2.")
    return linear(hidden, "output_proj.")


def network(config: DitConfig) -> Dit:
    """With weights of which each counts."""
    torch.manual_seed(0)
    made = Dit(config).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs(config: DitConfig, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x, cond = torch.randn(3, steps, config.action_dim).double(), torch.randn(3, config.cond_dim).double()
    return x, torch.tensor([0, 7, 99]), cond


@pytest.mark.parametrize("steps", [10, 6])
@pytest.mark.parametrize("case", CONFIGS)
def test_equals_a_second_computation(case: str, steps: int) -> None:
    made = network(CONFIGS[case])
    given = inputs(made.config, steps)
    with torch.no_grad():
        expected = recompute(made.state_dict(), made.config, *given)
        # The embeddings' frequencies and the angles are of float32, by design.
        torch.testing.assert_close(made(*given), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CONFIGS)
def test_every_tensor_counts(case: str) -> None:
    made = network(CONFIGS[case])
    given = inputs(made.config, 10)
    with torch.no_grad():
        before = made(*given)
        for name, tensor in made.state_dict().items():
            if name.endswith(("qkv_proj.bias", "in_proj_bias")):
                continue  # a third of it, that of keys, moves no attention
            kept = tensor.clone()
            tensor.add_(torch.randn_like(tensor))
            assert not torch.allclose(made(*given), before, rtol=0, atol=1e-6), name
            tensor.copy_(kept)


def test_state_dict_has_the_public_names() -> None:
    """Those of `MultiTaskDiTPolicy.noise_predictor` with its default options."""
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in Dit(DitConfig(2, 100, 32)).state_dict().items()}
    assert len(shapes) == 8 + 6 * 10
    assert shapes["time_mlp.3.weight"] == (256, 512)
    assert shapes["transformer_blocks.5.attn.qkv_proj.weight"] == (1536, 512)
    assert shapes["transformer_blocks.0.adaLN_modulation.1.weight"] == (3072, 356)
    assert shapes["transformer_blocks.0.mlp.0.weight"] == (2048, 512)


def test_rows_are_independent() -> None:
    made = network(CONFIGS["rope"])
    x, timestep, cond = inputs(made.config, 10)
    with torch.no_grad():
        together = made(x, timestep, cond)
        for row in range(3):
            torch.testing.assert_close(together[row : row + 1], made(x[[row]], timestep[[row]], cond[[row]]))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (DitConfig(3, 7, 8, 16, 1, 4, 8), "horizon 9 is more than the network's, 8"),
        (DitConfig(3, 7, 9, 16, 1, 3, 8), "hidden_dim 16 is not a multiple of num_heads 3"),
        (DitConfig(3, 7, 9, 12, 1, 4, 8), "use_rope needs an even number of dimensions in each head, not 3"),
        (DitConfig(3, 7, 9, 16, 1, 4, 7), "timestep_embed_dim 7 is not even and at least 4"),
    ],
)
def test_impossible_networks_are_named(config: DitConfig, problem: str) -> None:
    assert config.problem(9) == problem


def test_possible_networks_have_no_problem() -> None:
    assert all(config.problem(10) is None for config in CONFIGS.values())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", ["rope, positions", "no positions"])
def test_backends_run_it(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes the network, its conditioning once per plan where it can."""
    if name == "torch-cuda-graph" and not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    # What the compiler makes of a graph takes it a minute; here graphs run as they were traced.
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **options: graph.forward)
    device = torch.device("cuda" if name == "torch-cuda-graph" else "cpu")
    made = network(CONFIGS[case]).float().to(device)
    config = made.config
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 100}, 100)
    job = Job(chain, (config.horizon, config.action_dim), config.cond_dim, device)
    denoiser = make_backend(spec_of(name)).prepare(made, job)
    assert isinstance(denoiser, EncodingDenoiser)
    for count in (1, 2, 9, 64):
        x = torch.randn((count, *job.event), device=device)
        cond, timestep = torch.randn((count, config.cond_dim), device=device), torch.arange(count, device=device)
        with torch.no_grad():
            expected, found = made(x, timestep, cond), denoiser(x, timestep, encode(denoiser, cond))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
