"""Weights into a network, after they were found to fit: a hostile configuration allocates nothing."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from asd_policy.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)


def build(make: Callable[[], Network], weights: Mapping[str, Tensor], files: tuple[str, str], prefix: str) -> Network:
    """Make a network and load its weights.

    Args:
        make: Makes it with random weights; called on torch's meta device first, where tensors have shapes only.
        weights: What its state dict shall be, in any floating-point type.
        files: Where the weights and the sizes come from, for messages.
        prefix: What the weights' names begin with in their file, for messages.

    Returns:
        The network on the CPU in float32, in evaluation mode, without gradients.

    Raises:
        CheckpointError: There is no such network, or names, shapes or types of the weights are not its own, or one is
            not finite.
    """
    weights_file, config_file = files
    try:
        with torch.device("meta"):
            expected = make().state_dict()
    # The sizes are anything: beyond what a tensor can have, or such that some layer refuses them in its own way.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{config_file} describes no possible network: {reason}") from None
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    misfit = f"{weights_file} does not fit {config_file}"
    if missing or surplus:
        raise CheckpointError(
            f"{misfit}: {len(missing)} tensors missing, {len(surplus)} unknown, first {prefix}{(missing or surplus)[0]}"
        )
    for key, weight in weights.items():
        if weight.shape != expected[key].shape:
            raise CheckpointError(
                f"{misfit}: {prefix}{key} has shape {tuple(weight.shape)}, not {tuple(expected[key].shape)}"
            )
        if not weight.is_floating_point():
            raise CheckpointError(f"{weights_file}: {prefix}{key} is of type {weight.dtype}, not floating-point")
        if not bool(torch.isfinite(weight.float()).all()):
            raise CheckpointError(f"{weights_file}: {prefix}{key} holds NaN or infinity")
    network = make()
    network.load_state_dict(weights)  # copies into float32, whatever the stored dtype
    return network.eval().requires_grad_(False)
