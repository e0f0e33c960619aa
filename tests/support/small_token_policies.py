"""Token policies with random weights, small enough for a test, on disk."""

from pathlib import Path

import torch

from asd_policy.checkpoints.token_folder import TokenPolicyConfig, save_tokens
from asd_policy.networks.token_transformer import TokenTransformer


def write_token_policy(
    folder: Path, order: str = "forward", horizon: int = 8, bins: int = 16, sharp: float = 1.0
) -> Path:
    """Write a policy for `asd/Avoid-v0`; the sharper, the more its tokens depend on each other."""
    torch.manual_seed(0)
    dims = {"observation.state": 4, "observation.environment_state": 3}
    config = TokenPolicyConfig(
        dims, 2, horizon=horizon, n_action_steps=4, bins=bins, order=order, n_layer=1, n_head=2, n_emb=16
    )
    network = TokenTransformer(config.network)
    with torch.no_grad():
        network.token_emb.mul_(sharp)
    statistics = {name: {"min": -torch.ones(dim), "max": torch.ones(dim)} for name, dim in dims.items()}
    statistics["action"] = {"min": torch.tensor([-0.3, -0.1]), "max": torch.tensor([0.3, 0.6])}
    save_tokens(folder, config, network.state_dict(), statistics, {"env": "asd/Avoid-v0"})
    return folder
