"""Folders of token policies: config.json and model.safetensors, read and written.

The configuration names features as LeRobot does. The weights hold the network's, `network.…`, and the range of each
feature, `range.<feature>.min` and `.max`; nothing but JSON and safetensors is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asd_policy._common.files import atomic_folder, write_json
from asd_policy.chain.tokens import ORDERS, TokenChain, order_of
from asd_policy.checkpoints.base import Description, Format
from asd_policy.checkpoints.untrusted.reading import count_numbers, find_json, read_json, read_shapes, read_tensors
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights
from asd_policy.errors import CheckpointError
from asd_policy.networks.token_transformer import TokenTransformer, TokenTransformerConfig
from asd_policy.policy.normalisation import Affine, make_affine
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler

TYPE = "asd_tokens"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
NETWORK, RANGE = "network.", "range."
ACTION = "action"
MOST_TOKENS, MOST_BINS, MOST_LAYERS = 4096, 65536, 64


@dataclass(frozen=True)
class TokenPolicyConfig:
    """What decides what a token policy computes."""

    input_dims: dict[str, int]
    """Length of each observation feature, in the order the network reads them."""
    action_dim: int
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    bins: int = 256
    """Values that a token can have: bins of equal width over the range of the actions."""
    order: str = ORDERS[0]
    """One of `ORDERS`."""
    n_layer: int = 4
    n_head: int = 4
    n_emb: int = 128

    @property
    def chain(self) -> TokenChain:
        """The law of the plans."""
        event = (self.horizon, self.action_dim)
        return TokenChain(event, self.bins, order_of(self.order, event))

    @property
    def network(self) -> TokenTransformerConfig:
        """The sizes of the network."""
        return TokenTransformerConfig(
            length=self.horizon * self.action_dim,
            alphabet=self.bins,
            cond_dim=self.n_obs_steps * sum(self.input_dims.values()),
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_emb=self.n_emb,
        )


_PLAIN = [each.name for each in fields(TokenPolicyConfig) if each.name not in ("input_dims", "action_dim")]


def is_token_folder(folder: Path) -> bool:
    """Tell whether a folder holds a token policy."""
    return find_json(folder, CONFIG).get("type") == TYPE


def read_config(folder: Path) -> TokenPolicyConfig:
    """Read and check the configuration.

    Raises:
        CheckpointError: It cannot be read, or a value is missing, of the wrong type or out of range.
    """
    raw = Settings(read_json(folder, CONFIG), "", CONFIG)
    raw.only(("type", "input_features", "action_dim", *_PLAIN))
    inputs = raw.section("input_features")
    order = raw.text("order")
    if order not in ORDERS:
        raise CheckpointError(f"{CONFIG}: order {order!r} is not one of {', '.join(ORDERS)}")
    config = TokenPolicyConfig(
        input_dims={name: inputs.count(name) for name in inputs},
        action_dim=raw.count("action_dim"),
        n_obs_steps=raw.count("n_obs_steps"),
        horizon=raw.count("horizon"),
        n_action_steps=raw.count("n_action_steps"),
        bins=raw.count("bins", least=2, most=MOST_BINS),
        order=order,
        n_layer=raw.count("n_layer", most=MOST_LAYERS),
        n_head=raw.count("n_head"),
        n_emb=raw.count("n_emb", least=2),
    )
    if not config.input_dims:
        raise CheckpointError(f"{CONFIG}: input_features is empty: a policy observes something")
    if config.horizon * config.action_dim > MOST_TOKENS:
        raise CheckpointError(
            f"{CONFIG}: a plan of {config.horizon} × {config.action_dim} tokens; {MOST_TOKENS} are the most"
        )
    longest = config.horizon - config.n_obs_steps + 1
    if config.n_action_steps > longest:
        raise CheckpointError(f"{CONFIG}: n_action_steps {config.n_action_steps} is not in 1 … {longest}")
    if problem := config.network.problem():
        raise CheckpointError(f"{CONFIG}: {problem}")
    return config


def describe_tokens(folder: Path) -> Description:
    """Describe a token policy.

    Raises:
        CheckpointError: config.json or model.safetensors cannot be read.
    """
    config, shapes = read_config(folder), read_shapes(folder, WEIGHTS)
    return Description(
        network="TokenTransformer",
        parameters=count_numbers({key: shape for key, shape in shapes.items() if key.startswith(NETWORK)}),
        observation={name: [dim] for name, dim in config.input_dims.items()},
        action={ACTION: [config.action_dim]},
        horizons={name: getattr(config, name) for name in ("n_obs_steps", "horizon", "n_action_steps")},
        scheduler={**config.chain.config, "order": config.order},
        normalization=dict.fromkeys([*config.input_dims, ACTION], "MIN_MAX"),
        notes=(
            f"a plan is {len(config.chain)} tokens of {config.bins} bins, sampled in the order {config.order!r}; an "
            "action is the middle of its bin",
        ),
    )


def load_tokens(folder: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a token policy.

    Args:
        folder: As `save_tokens` writes it.
        sampler: How to plan.
        device: Where to plan.

    Raises:
        CheckpointError: A file is missing or malformed, or the tensors do not fit the configuration.
        SpecError: The sampler does not sample tokens.
    """
    config, tensors = read_config(folder), read_tensors(folder, WEIGHTS)
    maps = {name: _range(name, dim, tensors) for name, dim in (config.input_dims | {ACTION: config.action_dim}).items()}
    network = load_weights(
        lambda: TokenTransformer(config.network), tensors, lambda key: NETWORK + key, WEIGHTS, CONFIG
    )
    action = maps.pop(ACTION)
    return Policy(
        denoiser=network.to(device),
        chain=config.chain,
        sampler=sampler,
        horizons=Horizons(config.n_obs_steps, config.horizon, config.n_action_steps),
        observation=maps,
        action=action,
        device=device,
    )


def _range(name: str, dim: int, tensors: dict[str, Tensor]) -> Affine:
    """Take the range of a feature out of the stored tensors, as its normalisation."""
    keys = {bound: f"{RANGE}{name}.{bound}" for bound in ("min", "max")}
    missing = [key for key in keys.values() if key not in tensors]
    if missing:
        raise CheckpointError(f"{WEIGHTS} has no {missing[0]}")
    return make_affine("MIN_MAX", {bound: tensors.pop(key) for bound, key in keys.items()}, name, dim)


def save_tokens(
    folder: Path,
    config: TokenPolicyConfig,
    network: Mapping[str, Tensor],
    statistics: Mapping[str, Mapping[str, Tensor]],
    notes: Mapping[str, Any],
) -> None:
    """Write a token policy, atomically.

    Args:
        folder: Where; an older folder there is replaced when the new one is complete.
        config: The policy's configuration.
        network: State dict of `TokenTransformer`, stored in the dtype it has.
        statistics: `min` and `max` of every feature, and of the action.
        notes: Contents of training.json (command, seed, data …).
    """
    weights = {NETWORK + key: value.contiguous() for key, value in network.items()}
    for name in [*config.input_dims, ACTION]:
        weights |= {f"{RANGE}{name}.{bound}": statistics[name][bound].contiguous() for bound in ("min", "max")}
    plain = {name: getattr(config, name) for name in _PLAIN}
    with atomic_folder(folder) as temporary:
        values = {"type": TYPE, "input_features": config.input_dims, "action_dim": config.action_dim, **plain}
        write_json(temporary / CONFIG, values)
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / "training.json", dict(notes))


FORMAT = Format(is_token_folder, load_tokens, describe_tokens, (CONFIG, WEIGHTS), "tokens")
