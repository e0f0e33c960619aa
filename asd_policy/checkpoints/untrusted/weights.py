"""Load untrusted weights into a network: every tensor finds its place, or an error names it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from asd_policy._common.arrays import checked_float32
from asd_policy.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value")
_COUNTED = ".num_batches_tracked"


WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to the names of a network's tensors."""


def unwrap_names(
    tensors: Mapping[str, Value], stems: Sequence[str], wrappers: Sequence[str] = WRAPPERS
) -> tuple[dict[str, Value], list[str]]:
    """Strip the prefixes of a network's wrappers, where all of its names have them.

    Args:
        tensors: By the file's names.
        stems: Where a wrapper may stand: "" before the whole policy, "model." before its part of that name.
        wrappers: Their prefixes.

    Returns:
        The tensors by their plain names, and what was stripped.
    """
    plain, stripped = dict(tensors), []
    prefixes = [(stem, stem + wrapper) for stem in stems for wrapper in wrappers]
    for stem, prefix in prefixes * len(wrappers):  # one may be inside another
        names = [name for name in plain if name.startswith(stem)]
        if names and all(name.startswith(prefix) for name in names):
            plain = {
                stem + name.removeprefix(prefix) if name.startswith(stem) else name: tensor
                for name, tensor in plain.items()
            }
            stripped.append(prefix)
    return plain, stripped


def stripped_notes(stripped: Sequence[str]) -> tuple[str, ...]:
    """Write a note on what `unwrap_names` has stripped."""
    return tuple(f"all its names have the prefix {prefix!r}, which is left out here" for prefix in stripped)


def without_doubles(tensors: Mapping[str, Tensor], first_name: Callable[[str], str], source: str) -> dict[str, Tensor]:
    """Leave out the tensors that a library lists once more; see `TorchArchive.state_dict`.

    Raises:
        CheckpointError: One is not what it is under its first name.
    """
    single = {}
    for name, tensor in tensors.items():
        first = first_name(name)
        if first == name or first not in tensors:
            single[name] = tensor
        elif tensor.shape != tensors[first].shape or not torch.equal(tensor, tensors[first]):
            raise CheckpointError(f"{source}: {name} is not the same as {first}, which is one tensor in its library")
    return single


def without_counts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out how many batches statistics come from: nothing is computed of it."""
    return {
        name: tensor for name, tensor in tensors.items()
        if not (name.endswith(_COUNTED) and name.removesuffix(_COUNTED) + ".running_mean" in tensors)
    }  # fmt: skip


def load_weights(
    build: Callable[[], Network],
    tensors: Mapping[str, Tensor],
    name_of: Callable[[str], str],
    source: str,
    settings: str,
) -> Network:
    """Build a network after a check that the tensors fit, so that a hostile configuration allocates nothing.

    Args:
        build: Builds the network that the configuration describes.
        tensors: By the file's names. Those of buffers are constants, and have to be those of the network.
        name_of: The network's key → the file's name.
        source: The file with the tensors, for messages.
        settings: What describes the network, for messages.

    Returns:
        The network with these weights in float32, for inference.

    Raises:
        CheckpointError: There is no such network, or a tensor is missing, unknown, misshapen or not finite, or a
            variance negative.
    """
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    # The sizes may be anything: too large for a tensor, or refused by some layer with an error of its own.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{settings} describes no possible network: {reason}") from None
    names = {key: name_of(key) for key in expected}
    missing, surplus = sorted(set(names.values()) - tensors.keys()), sorted(tensors.keys() - set(names.values()))
    if missing or surplus:
        raise CheckpointError(
            f"{source} does not fit {settings}: {len(missing)} tensors missing, {len(surplus)} unknown, "
            f"first {(missing or surplus)[0]}"
        )
    for key, name in names.items():
        if tensors[name].shape != expected[key].shape:
            raise CheckpointError(
                f"{source} does not fit {settings}: {name} has shape {tuple(tensors[name].shape)}, "
                f"not {tuple(expected[key].shape)}"
            )
    with torch.device("cpu"):
        network = build().float()  # the user's default dtype may be another
    constants = dict(network.named_buffers())
    weights: dict[str, Tensor] = {}
    for key, name in names.items():
        if key not in constants:
            weights[key] = checked_float32(tensors[name], f"{source}: {name}")
            if key.endswith(".running_var") and not bool((weights[key] >= 0).all()):
                raise CheckpointError(f"{source}: a variance of {name.removesuffix('.running_var')} is negative")
        elif torch.equal(tensors[name].float(), constants[key]):
            weights[key] = constants[key]
        else:
            raise CheckpointError(f"{source}: {name} is not what {settings} makes it")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
