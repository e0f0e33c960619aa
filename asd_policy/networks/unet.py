"""The conditional 1-D U-Net of Diffusion Policy, with the parameter names of LeRobot's `DiffusionPolicy`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.networks.modulated import ModulatedNetwork


@dataclass(frozen=True)
class UnetConfig:
    """The options that fix the network's parameters; the names are those of LeRobot's `DiffusionConfig`."""

    action_dim: int
    """Channels in and out."""
    cond_dim: int
    """Length of the flattened observation history; 0 for a network without conditioning."""
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    """Channels of each resolution; the horizon is halved between two of them."""
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    use_film_scale_modulation: bool = True

    def problem(self, horizon: int) -> str | None:
        """Explain why this is no network for plans of `horizon` steps; None if it is one."""
        levels = len(self.down_dims)
        factor = 2 ** min(levels - 1, horizon.bit_length())  # beyond that no horizon is a multiple
        if horizon % factor:
            return f"horizon {horizon} is not a multiple of {factor}, as {levels} down_dims need"
        if any(channels % self.n_groups for channels in self.down_dims):
            return f"down_dims {list(self.down_dims)} are not multiples of n_groups {self.n_groups}"
        if self.kernel_size % 2 == 0:
            return f"kernel_size {self.kernel_size} is not odd"
        if self.diffusion_step_embed_dim % 2 or self.diffusion_step_embed_dim < 4:
            return f"diffusion_step_embed_dim {self.diffusion_step_embed_dim} is not even and at least 4"
        return None


def diffusion_policy_name(key: str) -> str:
    """Find the name of a tensor in diffusion_policy's `ConditionalUnet1D` (`model/diffusion/conditional_unet1d.py`)."""
    key = key.replace(".conv1.", ".blocks.0.").replace(".conv2.", ".blocks.1.")
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", key)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the timestep at geometric frequencies from 1 to 1e-4 (arXiv 1706.03762)."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        """Precompute the frequencies; `dim` is the even length of the embedding."""
        super().__init__()
        self.register_buffer("frequencies", _geometric(dim // 2), persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed timesteps [N] as [N, dim], in the network's precision."""
        frequencies = self.frequencies
        if frequencies.itemsize < 4:
            # Half precision has too few digits for the frequencies and for timesteps of some hundreds.
            frequencies = _geometric(len(frequencies), frequencies.device)
        angles = timestep[:, None].to(frequencies.dtype) * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.frequencies.dtype)


def _geometric(count: int, device: torch.device | None = None) -> Tensor:
    """Compute frequencies from 1 to 1e-4, [count] in float32."""
    exponents = torch.arange(count, dtype=torch.float32, device=device) * -(math.log(10000.0) / (count - 1))
    return torch.exp(exponents)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, n_groups: int) -> None:
        """Build the three layers; the convolution keeps the length."""
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, channels_out),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, T] to [N, channels_out, T]."""
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks with FiLM conditioning (arXiv 1709.07871) between them, and a residual path."""

    def __init__(self, channels_in: int, channels_out: int, film_dim: int, config: UnetConfig) -> None:
        """Build the block; `film_dim` is the length of the conditioning vector."""
        super().__init__()
        self.film_scale = config.use_film_scale_modulation
        self.conv1 = ConvBlock(channels_in, channels_out, config.kernel_size, config.n_groups)
        film_channels = channels_out * (2 if self.film_scale else 1)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(film_dim, film_channels))
        self.conv2 = ConvBlock(channels_out, channels_out, config.kernel_size, config.n_groups)
        self.residual_conv = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    @property
    def film_layer(self) -> nn.Linear:
        """The linear layer of `cond_encoder`."""
        layer = self.cond_encoder[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map x [N, channels_in, T], modulation [N, film_channels] by `cond_encoder`, to [N, channels_out, T]."""
        hidden = self.conv1(x)
        modulation = modulation.unsqueeze(-1)
        if self.film_scale:
            scale, bias = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(bias, scale, hidden)
        else:
            hidden = hidden + modulation
        return self.conv2(hidden) + self.residual_conv(x)


class ConditionalUnet1d(ModulatedNetwork):
    """Noise prediction network of Diffusion Policy (Chi et al., arXiv 2303.04137), FiLM on the observation.

    State-dict keys and numerics are those of `diffusion.unet` in a LeRobot diffusion checkpoint. `ConditionalUnet1D` of
    diffusion_policy and of robomimic is the same function of the same tensors, under other keys
    (`diffusion_policy_name`).
    """

    def __init__(self, config: UnetConfig) -> None:
        """Build the network with random weights.

        Args:
            config: Sizes. The horizon it can be called with is a multiple of 2 ** (len(down_dims) - 1).
        """
        super().__init__()
        self.config = config
        step_dim = config.diffusion_step_embed_dim
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(step_dim),
            nn.Linear(step_dim, step_dim * 4),
            nn.Mish(),
            nn.Linear(step_dim * 4, step_dim),
        )
        film_dim = step_dim + config.cond_dim
        dims = config.down_dims
        last = len(dims) - 1

        def block(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, film_dim, config)

        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    block(channels_in, channels),
                    block(channels, channels),
                    nn.Conv1d(channels, channels, 3, 2, 1) if level < last else nn.Identity(),
                ]
            )
            for level, (channels_in, channels) in enumerate(zip((config.action_dim, *dims[:-1]), dims, strict=True))
        )
        self.mid_modules = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        # Each way up takes its skip connection beside it, hence the double width, and doubles the length.
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    block(2 * channels_in, channels),
                    block(channels, channels),
                    nn.ConvTranspose1d(channels, channels, 4, 2, 1),
                ]
            )
            for channels_in, channels in zip(dims[:0:-1], dims[-2::-1], strict=True)
        )
        self.final_conv = nn.Sequential(
            ConvBlock(dims[0], dims[0], config.kernel_size, n_groups=8),  # LeRobot fixes 8 groups here
            nn.Conv1d(dims[0], config.action_dim, 1),
        )

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Predict noise (or the sample, whatever the network was trained for).

        Args:
            x: Noisy action chunks [N, horizon, action_dim].
            timestep: Diffusion timesteps [N].
            cond: Normalised, flattened observation histories [N, cond_dim]; ignored where cond_dim is 0.

        Returns:
            Predictions [N, horizon, action_dim].
        """
        film = self.embed(timestep)
        if self.config.cond_dim:
            film = torch.cat([film, cond], dim=-1)
        return self.modulated(x, [block.cond_encoder(film) for block in self.blocks])

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks in the order in which they are run."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    @property
    def modulators(self) -> list[nn.Linear]:
        """The layers that modulate each of `blocks`."""
        return [block.film_layer for block in self.blocks]

    def embed(self, timestep: Tensor) -> Tensor:
        """Embed timesteps [N] as [N, diffusion_step_embed_dim]."""
        return self.diffusion_step_encoder(timestep)

    def activate(self, embedding: Tensor) -> Tensor:
        """Apply Mish to each number."""
        return functional.mish(embedding)

    def modulated(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Predict with given modulations of the residual blocks, by timestep and observations.

        Args:
            x: Noisy action chunks [N, horizon, action_dim].
            modulations: For each of `blocks` what its `cond_encoder` returns [N, film_channels].

        Returns:
            Predictions [N, horizon, action_dim].
        """
        modulation = iter(modulations)
        hidden = x.transpose(1, 2)
        skips: list[Tensor] = []
        # A ModuleList of ModuleLists is annotated as holding plain modules, which cannot be unpacked.
        for first, second, downsample in self.down_modules:  # pyright: ignore[reportGeneralTypeIssues]
            hidden = second(first(hidden, next(modulation)), next(modulation))
            skips.append(hidden)
            hidden = downsample(hidden)
        for middle in self.mid_modules:
            hidden = middle(hidden, next(modulation))
        # As above.
        for first, second, upsample in self.up_modules:  # pyright: ignore[reportGeneralTypeIssues]
            hidden = torch.cat((hidden, skips.pop()), dim=1)
            hidden = upsample(second(first(hidden, next(modulation)), next(modulation)))
        return self.final_conv(hidden).transpose(1, 2)
