"""A bidirectional transformer over the tokens of a plan: each token's law given those that are known."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenTransformerConfig:
    """The sizes of the network."""

    length: int
    """Tokens of a plan, horizon · action_dim."""
    alphabet: int
    """Values that a token can have."""
    cond_dim: int
    """Numbers of the conditioning of one plan."""
    n_layer: int = 4
    n_head: int = 4
    n_emb: int = 128

    def problem(self) -> str | None:
        """Explain why there is no such network; None if there is one."""
        if self.n_emb % 2 or self.n_emb % self.n_head:
            return f"n_emb {self.n_emb} is not even and a multiple of n_head {self.n_head}"
        return None


class TokenTransformer(nn.Module):
    """Logits of every token given any set of known ones, called like a denoiser.

    A point of the chain is [length, alphabet]: a known token is a one-hot row, an unknown one a row of zeros, so that
    nothing of an unknown token can be seen. Attention has no mask: every token sees all others (as in masked language
    models, arXiv 1810.04805, and any-order autoregressive models, arXiv 2205.13554).
    """

    def __init__(self, config: TokenTransformerConfig) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.config = config
        width = config.n_emb
        # Values are ordered, as bins of a coordinate are: neighbours begin with nearly equal embeddings and logits.
        features = _fourier(config.alphabet, width)
        self.token_emb = nn.Parameter(0.1 * features)
        self.unknown_emb = nn.Parameter(0.02 * torch.randn(width))
        self.pos_emb = nn.Parameter(0.1 * torch.randn(config.length, width))
        self.cond_emb = nn.Sequential(nn.Linear(config.cond_dim, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        layer = nn.TransformerEncoderLayer(
            width, config.n_head, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.n_layer, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.alphabet)
        with torch.no_grad():
            self.head.weight.copy_(features / math.sqrt(width))
            self.head.bias.zero_()

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Predict the logits of each token.

        Args:
            x: Points [N, length, alphabet].
            timestep: How many tokens are known [N]; the points say so too, and it is not looked at.
            cond: Normalised, flattened observation histories [N, cond_dim].

        Returns:
            Logits [N, length, alphabet], those of unknown tokens given the known ones.
        """
        unknown = (1 - x.sum(-1, keepdim=True)) * self.unknown_emb
        tokens = x @ self.token_emb + unknown + self.pos_emb + self.cond_emb(cond).unsqueeze(1)
        return self.head(self.norm(self.encoder(tokens)))


def _fourier(alphabet: int, width: int) -> Tensor:
    """Compute smooth features of the values 0 … alphabet − 1 [alphabet, width], the slowest first."""
    place = (torch.arange(alphabet) + 0.5).unsqueeze(1) / alphabet
    frequency = torch.exp(torch.linspace(0, math.log(max(alphabet / 4, 1)), width // 2))
    angles = math.pi * place * frequency
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
