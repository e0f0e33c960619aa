"""The transformer against a second, straightforward computation from the state dict by its public key names."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig

TOLD = TransformerConfig(3, 3, 6, 2, cond_dim=4, n_layer=2, n_head=2, n_emb=8, causal_attn=True)
CONFIGS = {
    "told": TOLD,
    "told, not causal": replace(TOLD, causal_attn=False),
    "told, with an encoder": replace(TOLD, n_cond_layers=2),
    "not told": replace(TOLD, cond_dim=0),
    "one encoder for all": replace(TOLD, cond_dim=0, time_as_cond=False),
    "one encoder for all, not causal": replace(TOLD, cond_dim=0, time_as_cond=False, causal_attn=False),
    "another width out": replace(TOLD, output_dim=5),
}


def recompute(w: dict[str, Tensor], config: TransformerConfig, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    """Evaluate the network from its weights alone: pre-norm transformers (arXiv 2002.04745) over tokens of steps."""

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(h: Tensor, name: str) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(h: Tensor, to: Tensor, name: str, visible: Tensor) -> Tensor:
        weight, bias = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
        query, key, value = (a @ part.T + b for a, part, b in zip((h, to, to), weight, bias, strict=True))
        size = config.n_emb // config.n_head
        heads = []
        for head in range(config.n_head):
            part = slice(head * size, (head + 1) * size)
            score = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
            score = torch.where(visible, score, -torch.inf)
            heads.append(score.softmax(-1) @ value[..., part])
        return linear(torch.cat(heads, dim=-1), f"{name}.out_proj")

    def forward(h: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(h, f"{name}.linear1")), f"{name}.linear2")

    def encode(h: Tensor, layers: int, visible: Tensor) -> Tensor:
        for layer in range(layers):
            name = f"encoder.layers.{layer}"
            normed = norm(h, f"{name}.norm1")
            h = h + attend(normed, normed, f"{name}.self_attn", visible)
            h = h + forward(norm(h, f"{name}.norm2"), name)
        return h

    half = config.n_emb // 2
    angles = timestep[:, None] * torch.tensor([10000.0 ** (-i / (half - 1)) for i in range(half)], dtype=x.dtype)
    told = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)[:, None]
    tokens = linear(x, "input_emb")
    if not config.time_as_cond:
        tokens = torch.cat([told, tokens], dim=1)
        length = tokens.shape[1]
        place = torch.arange(length)
        visible = place[None] <= place[:, None] if config.causal_attn else torch.ones(length, length, dtype=torch.bool)
        h = encode(tokens + w["pos_emb"][:, :length], config.n_layer, visible)[:, 1:]
        return linear(norm(h, "ln_f"), "head")
    if config.cond_dim:
        told = torch.cat([told, linear(cond.view(len(x), config.n_obs_steps, -1), "cond_obs_emb")], dim=1)
    told = told + w["cond_pos_emb"]
    everything = torch.ones(told.shape[1], told.shape[1], dtype=torch.bool)
    if config.n_cond_layers:
        told = encode(told, config.n_cond_layers, everything)
    else:
        hidden = linear(told, "encoder.0")
        told = linear(hidden * torch.tanh(torch.log1p(torch.exp(hidden))), "encoder.2")
    length = tokens.shape[1]
    step, seen = torch.arange(length)[:, None], torch.arange(told.shape[1])[None]
    past = torch.ones(length, length, dtype=torch.bool)
    known = torch.ones(length, told.shape[1], dtype=torch.bool)
    if config.causal_attn:
        past = torch.arange(length)[None] <= step
        known = seen - 1 <= step if config.cond_dim else known  # the first told is the timestep
    h = tokens + w["pos_emb"][:, :length]
    for layer in range(config.n_layer):
        name = f"decoder.layers.{layer}"
        normed = norm(h, f"{name}.norm1")
        h = h + attend(normed, normed, f"{name}.self_attn", past)
        h = h + attend(norm(h, f"{name}.norm2"), told, f"{name}.multihead_attn", known)
        h = h + forward(norm(h, f"{name}.norm3"), name)
    return linear(norm(h, "ln_f"), "head")


def network(config: TransformerConfig) -> DiffusionTransformer:
    torch.manual_seed(0)
    made = DiffusionTransformer(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


@pytest.mark.parametrize("steps", [6, 4])
@pytest.mark.parametrize("case", CONFIGS)
def test_equals_a_second_computation(case: str, steps: int) -> None:
    """Also for plans that are shorter than the longest."""
    config = CONFIGS[case]
    made = network(config).double()
    x, cond = torch.randn(5, steps, 3).double(), torch.randn(5, 8).double()
    timestep = torch.tensor([0, 1, 17, 50, 99])
    expected = recompute(dict(made.state_dict()), config, x, timestep, cond)
    torch.testing.assert_close(made(x, timestep, cond), expected, rtol=1e-6, atol=1e-6)


def test_every_tensor_counts() -> None:
    """The output changes with each tensor of the state dict, so none is carried along unused.

    Not so in "not told", where attention over the timestep alone has nothing to choose from.
    """
    for config in (config for case, config in CONFIGS.items() if case != "not told"):
        made = network(config)
        x, cond, timestep = torch.randn(2, 6, 3), torch.randn(2, 8), torch.tensor([3, 70])
        before = made(x, timestep, cond)
        for name, parameter in made.named_parameters():
            kept = parameter.clone()
            parameter += 0.5 * torch.randn_like(parameter)
            assert not torch.allclose(made(x, timestep, cond), before), name
            parameter.copy_(kept)


def test_rows_are_independent() -> None:
    """A row's prediction is that of the row alone, up to the rounding of another batch size."""
    made = network(TOLD)
    x, cond, timestep = torch.randn(9, 6, 3), torch.randn(9, 8), torch.arange(9) * 11
    together = made(x, timestep, cond)
    for row in range(9):
        one = slice(row, row + 1)
        torch.testing.assert_close(made(x[one], timestep[one], cond[one])[0], together[row], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (replace(TOLD, horizon=5), "horizon 6 is more than the network's, 5"),
        (replace(TOLD, n_emb=2), "n_emb 2 is not even, at least 4"),
        (replace(TOLD, n_emb=9, n_head=3), "n_emb 9 is not even"),
        (replace(TOLD, n_head=3), "a multiple of n_head 3"),
        (replace(TOLD, time_as_cond=False), "time_as_cond false is for networks without conditioning"),
    ],
)
def test_impossible_networks_are_named(config: TransformerConfig, problem: str) -> None:
    assert TOLD.problem(6) is None
    assert problem in str(config.problem(6))
