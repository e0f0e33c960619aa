"""The diffusion transformer of Diffusion Policy, with the parameter names of diffusion_policy's checkpoints."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asd_policy.networks.unet import SinusoidalEmbedding


@dataclass(frozen=True)
class TransformerConfig:
    """The options of the network; the names are those of diffusion_policy's `TransformerForDiffusion`."""

    input_dim: int
    """Numbers in a step of the plan."""
    output_dim: int
    horizon: int
    """Most steps a plan can have."""
    n_obs_steps: int
    """Number of observations in its conditioning."""
    cond_dim: int = 0
    """Length of an observation; 0 for a network without conditioning."""
    n_layer: int = 12
    n_head: int = 12
    n_emb: int = 768
    causal_attn: bool = False
    """Whether a step attends to no later one, and to no observation after it."""
    time_as_cond: bool = True
    """Whether the timestep is a token of the conditioning, or the first token of an encoder without decoder."""
    n_cond_layers: int = 0
    """Layers of the encoder of its conditioning; 0 for a perceptron."""

    def problem(self, horizon: int) -> str | None:
        """Explain why this is no network for plans of `horizon` steps; None if it is one."""
        if horizon > self.horizon:
            return f"horizon {horizon} is more than the network's, {self.horizon}"
        if self.n_emb % 2 or self.n_emb < 4 or self.n_emb % self.n_head:
            return f"n_emb {self.n_emb} is not even, at least 4 and a multiple of n_head {self.n_head}"
        if self.cond_dim and not self.time_as_cond:
            return "time_as_cond false is for networks without conditioning"
        return None


class DiffusionTransformer(nn.Module):
    """Noise prediction network of Diffusion Policy (Chi et al., arXiv 2303.04137, section III-A, time-series variant).

    State-dict keys and numerics are those of `TransformerForDiffusion` in real-stanford/diffusion_policy
    (`model/diffusion/transformer_for_diffusion.py`), without the empty `_dummy_variable`. The network is for inference:
    it has no dropout.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(self, config: TransformerConfig) -> None:
        """Build the network with random weights.

        Args:
            config: Sizes. `n_emb` is even and a multiple of `n_head`; with a `cond_dim`, `time_as_cond` is True.
        """
        super().__init__()
        self.config = config
        width = config.n_emb
        cond_tokens = (1 if config.time_as_cond else 0) + (config.n_obs_steps if config.cond_dim else 0)
        tokens = config.horizon + (0 if config.time_as_cond else 1)
        layer = {
            "d_model": width,
            "nhead": config.n_head,
            "dim_feedforward": 4 * width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }

        def encoder(layers: int) -> nn.Module:
            return nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), layers, enable_nested_tensor=False)

        self.input_emb = nn.Linear(config.input_dim, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, width))
        self.time_emb = SinusoidalEmbedding(width)
        if config.cond_dim:
            self.cond_obs_emb = nn.Linear(config.cond_dim, width)
        if config.time_as_cond:
            self.cond_pos_emb = nn.Parameter(torch.zeros(1, cond_tokens, width))
            self.encoder = (
                encoder(config.n_cond_layers)
                if config.n_cond_layers
                else nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
            )
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), config.n_layer)
        else:
            self.encoder = encoder(config.n_layer)
        # Additive masks over tokens × tokens and tokens × conditioning: −∞ where attention is not allowed. The
        # conditioning begins with the timestep, which every step attends to, so observation s is in column s + 1.
        steps = torch.arange(tokens).unsqueeze(1)
        self.register_buffer("mask", _additive(torch.arange(tokens) <= steps) if config.causal_attn else None)
        sees = torch.arange(cond_tokens) <= steps + 1
        self.register_buffer("memory_mask", _additive(sees) if config.causal_attn and config.cond_dim else None)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.output_dim)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Predict noise (or the sample, whatever the network was trained for).

        Args:
            x: Noisy plans [N, steps, input_dim], of `horizon` steps or fewer.
            timestep: Diffusion timesteps [N].
            cond: Normalised, flattened observation histories [N, n_obs_steps · cond_dim]; ignored where cond_dim is 0.

        Returns:
            Predictions [N, steps, output_dim].
        """
        tokens = self.input_emb(x)
        conditioning = self.time_emb(timestep).unsqueeze(1)
        if self.config.cond_dim:
            history = cond.unflatten(1, (self.config.n_obs_steps, self.config.cond_dim))
            conditioning = torch.cat([conditioning, self.cond_obs_emb(history)], dim=1)
        if self.config.time_as_cond:
            steps = tokens.shape[1]
            # Left to itself, PyTorch reads the mask to see whether it is causal: no graph, captured or exported, can.
            hidden = self.decoder(
                tokens + self.pos_emb[:, :steps],
                self.encoder(conditioning + self.cond_pos_emb),
                tgt_mask=None if self.mask is None else self.mask[:steps, :steps],
                tgt_is_causal=False,
                memory_mask=None if self.memory_mask is None else self.memory_mask[:steps],
            )
        else:
            tokens = torch.cat([conditioning, tokens], dim=1)
            steps = tokens.shape[1]
            mask = None if self.mask is None else self.mask[:steps, :steps]
            hidden = self.encoder(tokens + self.pos_emb[:, :steps], mask=mask, is_causal=False)[:, 1:]
        return self.head(self.ln_f(hidden))


def _additive(visible: Tensor) -> Tensor:
    """Convert a mask to 0 where it is True and −∞ elsewhere."""
    return torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
