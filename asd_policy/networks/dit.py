"""The diffusion transformer of LeRobot's multi-task policy, with the parameter names of its checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.networks.modulated import ModulatedNetwork
from asd_policy.networks.unet import SinusoidalEmbedding


@dataclass(frozen=True)
class DitConfig:
    """The options of the network; the names are those of LeRobot's `MultiTaskDiTConfig`."""

    action_dim: int
    """Channels in and out."""
    cond_dim: int
    """Length of the conditioning vector: features of all observations, in a row."""
    horizon: int
    """Most steps a plan can have."""
    hidden_dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    timestep_embed_dim: int = 256
    use_positional_encoding: bool = False
    """Whether a learned vector is added to each step."""
    use_rope: bool = True
    """Whether attention rotates queries and keys by their step; else it is plain multi-head attention."""
    rope_base: float = 10000.0

    def problem(self, horizon: int) -> str | None:
        """Explain why this is no network for plans of `horizon` steps; None if it is one."""
        if horizon > self.horizon:
            return f"horizon {horizon} is more than the network's, {self.horizon}"
        if self.hidden_dim % self.num_heads:
            return f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}"
        if self.use_rope and self.hidden_dim // self.num_heads % 2:
            return f"use_rope needs an even number of dimensions in each head, not {self.hidden_dim // self.num_heads}"
        if self.timestep_embed_dim % 2 or self.timestep_embed_dim < 4:
            return f"timestep_embed_dim {self.timestep_embed_dim} is not even and at least 4"
        return None


class RotaryAttention(nn.Module):
    """Self-attention over the steps of a plan, with rotary position embedding (arXiv 2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DitConfig) -> None:
        """Build the layers, and the angle of each step and pair of dimensions."""
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        dims = config.hidden_dim // config.num_heads
        frequencies = 1.0 / config.rope_base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
        angles = torch.outer(torch.arange(config.horizon, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate queries or keys [N, heads, T, dims] by their step; the two halves of dims are the pairs."""
        steps, (first, second) = x.shape[2], x.chunk(2, dim=-1)
        return x * self.cos[:steps] + torch.cat((-second, first), dim=-1) * self.sin[:steps]

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, T, hidden_dim] to the same shape."""
        query, key, value = self.qkv_proj(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(self.rotate(query), self.rotate(key), value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normalised values."""
    return x * (1 + scale) + shift


class DitBlock(nn.Module):
    """Attention and perceptron, each with adaptive layer normalisation and a gate (AdaLN-Zero, arXiv 2212.09748)."""

    def __init__(self, config: DitConfig) -> None:
        """Build the block."""
        super().__init__()
        width = config.hidden_dim
        if config.use_rope:
            self.attn = RotaryAttention(config)
        else:
            self.multihead_attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.use_rope = config.use_rope
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.timestep_embed_dim + config.cond_dim, 6 * width)
        )

    @property
    def modulator(self) -> nn.Linear:
        """The linear layer of `adaLN_modulation`."""
        layer = self.adaLN_modulation[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map x [N, T, hidden_dim], modulation [N, 6 hidden_dim] by `modulator`, to [N, T, hidden_dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self._attend(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))

    def _attend(self, x: Tensor) -> Tensor:
        if self.use_rope:
            return self.attn(x)
        return self.multihead_attn(x, x, x, need_weights=False)[0]


class Dit(ModulatedNetwork):
    """Noise prediction network of LeRobot's `MultiTaskDiTPolicy`, a diffusion transformer on action chunks.

    State-dict keys and numerics are those of `noise_predictor` in its checkpoints: of the class `DiffusionTransformer`
    in lerobot 0.6.1 (`policies/multi_task_dit/modeling_multi_task_dit.py`), after arXiv 2507.05331. The network is for
    inference: it has no dropout.
    """

    def __init__(self, config: DitConfig) -> None:
        """Build the network with random weights.

        Args:
            config: Sizes, of which `problem` finds nothing.
        """
        super().__init__()
        self.config = config
        step_dim, width = config.timestep_embed_dim, config.hidden_dim
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(step_dim),
            nn.Linear(step_dim, 2 * step_dim),
            nn.GELU(),
            nn.Linear(2 * step_dim, step_dim),
            nn.GELU(),
        )
        self.input_proj = nn.Linear(config.action_dim, width)
        positions = torch.zeros(1, config.horizon, width)
        self.pos_embedding = nn.Parameter(positions) if config.use_positional_encoding else None
        self.transformer_blocks = nn.ModuleList(DitBlock(config) for _ in range(config.num_layers))
        self.output_proj = nn.Linear(width, config.action_dim)

    @property
    def blocks(self) -> list[DitBlock]:
        """The blocks in the order in which they are run."""
        return [block for block in self.transformer_blocks if isinstance(block, DitBlock)]

    @property
    def modulators(self) -> list[nn.Linear]:
        """The layers that modulate each block."""
        return [block.modulator for block in self.blocks]

    def embed(self, timestep: Tensor) -> Tensor:
        """Embed timesteps [N] as [N, timestep_embed_dim]."""
        return self.time_mlp(timestep)

    def activate(self, embedding: Tensor) -> Tensor:
        """Apply SiLU to each number."""
        return functional.silu(embedding)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Predict noise (or the sample, whatever the network was trained for).

        Args:
            x: Noisy action chunks [N, T, action_dim], of `horizon` steps or fewer.
            timestep: Diffusion timesteps [N].
            cond: Features of the observations [N, cond_dim].

        Returns:
            Predictions [N, T, action_dim].
        """
        features = self.activate(torch.cat((self.embed(timestep), cond), dim=-1))
        return self.modulated(x, [layer(features) for layer in self.modulators])

    def modulated(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Predict with given modulations of the blocks, by timestep and observations.

        Args:
            x: Noisy action chunks [N, T, action_dim].
            modulations: For each block what its `modulator` returns [N, 6 hidden_dim].

        Returns:
            Predictions [N, T, action_dim].
        """
        hidden = self.input_proj(x)
        if self.pos_embedding is not None:
            hidden = hidden + self.pos_embedding[:, : x.shape[1]]
        for block, modulation in zip(self.blocks, modulations, strict=True):
            hidden = block(hidden, modulation)
        return self.output_proj(hidden)
