"""The vision transformer (arXiv 2010.11929) with timm's parameter names, CLIP's (arXiv 2103.00020) included."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class VitConfig:
    """The options of the network."""

    side: int
    """Height and width of a frame [pixels]."""
    width: int
    """Length of a token."""
    depth: int
    """Blocks."""
    heads: int
    clip: bool
    """Whether tokens are normalised before the first block, patches have no bias, and ε is 1e-5, not 1e-6."""
    patch: int = 16
    """Height and width of a patch [pixels]."""


VITS = {
    "vit_base_patch16_clip_224": VitConfig(224, 768, 12, 12, clip=True),
    "vit_xsmall_patch16_clip_224": VitConfig(224, 256, 10, 4, clip=True),
    "vit_tiny_patch16_224": VitConfig(224, 192, 12, 3, clip=False),
    "vit_small_patch16_224": VitConfig(224, 384, 12, 6, clip=False),
    "vit_base_patch16_224": VitConfig(224, 768, 12, 12, clip=False),
    "vit_large_patch16_224": VitConfig(224, 1024, 24, 16, clip=False),
}
"""Vision transformers by timm's names."""


class VisionTransformer(nn.Module):
    """Turns frames [N, 3, side, side] into the last state of the class token [N, width]."""

    def __init__(self, config: VitConfig) -> None:
        """Build a network with random weights."""
        super().__init__()
        epsilon = 1e-5 if config.clip else 1e-6
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.side // config.patch) ** 2 + 1, config.width))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, config.width, config.patch, config.patch, bias=not config.clip)}
        )
        self.norm_pre = nn.LayerNorm(config.width, eps=epsilon) if config.clip else nn.Identity()
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads, epsilon) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=epsilon)

    def forward(self, frames: Tensor) -> Tensor:
        """Attend from the class token to the patches."""
        patches = self.patch_embed["proj"](frames).flatten(2).transpose(1, 2)
        rows = patches.shape[0]  # len() would fix the number when the network is exported
        tokens = torch.cat([self.cls_token.expand(rows, -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(self.norm_pre(tokens))[:, 0])


class _Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.attn = _Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(tokens))))


class _Attention(nn.Module):
    """Attention of all tokens to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
