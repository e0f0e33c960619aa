"""The U-Net against a second, straightforward computation from the state dict by LeRobot's key names."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig


def recompute(w: dict[str, Tensor], config: UnetConfig, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    """Evaluate the network from its weights alone, as the Diffusion Policy paper describes it."""

    def mish(h: Tensor) -> Tensor:
        return h * torch.tanh(torch.log1p(torch.exp(h)))

    def conv_block(h: Tensor, name: str, groups: int) -> Tensor:
        kernel = w[f"{name}.block.0.weight"]
        h = F.conv1d(h, kernel, w[f"{name}.block.0.bias"], padding=kernel.shape[-1] // 2)
        grouped = h.reshape(len(h), groups, -1)
        spread = grouped.var(-1, unbiased=False, keepdim=True)
        h = ((grouped - grouped.mean(-1, keepdim=True)) / torch.sqrt(spread + 1e-5)).view_as(h)
        return mish(h * w[f"{name}.block.1.weight"][:, None] + w[f"{name}.block.1.bias"][:, None])

    def residual(h: Tensor, name: str) -> Tensor:
        out = conv_block(h, f"{name}.conv1", config.n_groups)
        film = mish(features) @ w[f"{name}.cond_encoder.1.weight"].T + w[f"{name}.cond_encoder.1.bias"]
        channels = out.shape[1]
        if config.use_film_scale_modulation:
            out = film[:, :channels, None] * out + film[:, channels:, None]
        else:
            out = out + film[:, :, None]
        out = conv_block(out, f"{name}.conv2", config.n_groups)
        if f"{name}.residual_conv.weight" in w:
            h = F.conv1d(h, w[f"{name}.residual_conv.weight"], w[f"{name}.residual_conv.bias"])
        return out + h

    half = config.diffusion_step_embed_dim // 2
    angles = timestep[:, None] * torch.tensor([10000.0 ** (-i / (half - 1)) for i in range(half)], dtype=x.dtype)
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    name = "diffusion_step_encoder"
    embedding = mish(embedding @ w[f"{name}.1.weight"].T + w[f"{name}.1.bias"])
    features = torch.cat([embedding @ w[f"{name}.3.weight"].T + w[f"{name}.3.bias"], cond], dim=1)
    h, skips, levels = x.transpose(1, 2), [], len(config.down_dims)
    for level in range(levels):
        h = residual(residual(h, f"down_modules.{level}.0"), f"down_modules.{level}.1")
        skips.append(h)
        if level < levels - 1:
            name = f"down_modules.{level}.2"
            h = F.conv1d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    h = residual(residual(h, "mid_modules.0"), "mid_modules.1")
    for level in range(levels - 1):
        h = torch.cat([h, skips[levels - 1 - level]], dim=1)
        h = residual(residual(h, f"up_modules.{level}.0"), f"up_modules.{level}.1")
        name = f"up_modules.{level}.2"
        h = F.conv_transpose1d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    h = conv_block(h, "final_conv.0", 8)
    return F.conv1d(h, w["final_conv.1.weight"], w["final_conv.1.bias"]).transpose(1, 2)


@pytest.mark.parametrize("film_scale", [True, False])
@pytest.mark.parametrize("down_dims", [(16, 32), (8, 16, 32)])
def test_equals_a_second_computation(film_scale: bool, down_dims: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = UnetConfig(3, 7, down_dims, 5, 4, 32, film_scale)
    network = ConditionalUnet1d(config).double()
    x, cond = torch.randn(5, 16, 3).double(), torch.randn(5, 7).double()
    timestep = torch.tensor([0, 1, 17, 50, 99])
    expected = recompute(dict(network.state_dict()), config, x, timestep, cond)
    torch.testing.assert_close(network(x, timestep, cond), expected, rtol=1e-6, atol=1e-6)


def test_state_dict_has_the_public_names() -> None:
    """No key beyond those that the second computation reads, and the sizes of LeRobot's default network."""
    with torch.device("meta"):
        network = ConditionalUnet1d(UnetConfig(action_dim=2, cond_dim=132))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["down_modules.0.0.conv1.block.0.weight"] == (512, 2, 5)
    assert shapes["down_modules.2.1.cond_encoder.1.weight"] == (4096, 260)
    assert shapes["mid_modules.1.conv2.block.1.bias"] == (2048,)
    assert shapes["up_modules.0.0.residual_conv.weight"] == (1024, 4096, 1)
    assert shapes["up_modules.1.2.weight"] == (512, 512, 4)
    assert shapes["final_conv.1.weight"] == (2, 512, 1)
    assert not any(key.endswith("frequencies") for key in shapes)


def test_rows_are_independent() -> None:
    """A row's prediction is that of the row alone, up to the rounding of another batch size."""
    torch.manual_seed(1)
    network = ConditionalUnet1d(UnetConfig(3, 7, (16, 32), 5, 4, 32)).eval()
    x, cond, timestep = torch.randn(9, 16, 3), torch.randn(9, 7), torch.arange(9) * 11
    together = network(x, timestep, cond)
    for row in range(9):
        one = slice(row, row + 1)
        alone = network(x[one], timestep[one], cond[one])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=2e-6)
