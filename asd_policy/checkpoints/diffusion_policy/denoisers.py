"""The networks of Diffusion Policy's policies, from what the configuration says and the weights there are."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asd_policy.checkpoints.diffusion_policy.layouts import Layout
from asd_policy.checkpoints.diffusion_policy.observed import Observed
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights
from asd_policy.errors import CheckpointError
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig, diffusion_policy_name

PREFIX = "model."
UNET_FIELDS = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups")
"""Options of a U-Net, of the network's section or, with cameras, of the policy's own."""
TRANSFORMER_FIELDS = (
    *("n_layer", "n_cond_layers", "n_head", "n_emb", "p_drop_emb", "p_drop_attn", "causal_attn", "time_as_cond"),
    "obs_as_cond",
)
"""Likewise of a transformer."""
CONDITIONS = ("condition_type", "use_down_condition", "use_mid_condition", "use_up_condition")
"""What DP3's U-Net can do otherwise."""
_LOW_DIM_OPTIONS = {
    "ConditionalUnet1D": {"input_dim", "local_cond_dim", "global_cond_dim", "cond_predict_scale", *UNET_FIELDS},
    "TransformerForDiffusion": {
        *("input_dim", "output_dim", "horizon", "n_obs_steps", "cond_dim", "obs_as_cond"),
        *TRANSFORMER_FIELDS,
    },
}
"""Arguments of each network; an unknown one may make the same weights compute something else."""


@dataclass(frozen=True)
class Task:
    """What a network is for."""

    layout: Layout
    observed: Observed

    @property
    def width(self) -> int:
        """Numbers in a step of a sample."""
        return self.layout.action_dim + (self.observed.dim if self.layout.inpaints else 0)

    @property
    def cond_dim(self) -> int:
        """Numbers of the conditioning of one plan."""
        return 0 if self.layout.inpaints else self.observed.cond_dim(self.layout.horizons.n_obs_steps)


def load_low_dim_unet(policy: Settings, task: Task, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build a low-dimensional policy's `ConditionalUnet1D`; defaults are those of its constructor.

    Raises:
        CheckpointError: A value is of the wrong kind, or the weights do not fit; so do all functions here.
    """
    model = _network_section(policy, "ConditionalUnet1D", source)
    film = model.flag("cond_predict_scale", False)
    return _unet(model, (256, 3, film), task, weights, source)


def load_image_unet(policy: Settings, task: Task, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the `ConditionalUnet1D` of a policy with cameras; defaults are those of the policy's constructor."""
    return _unet(policy, (256, 5, policy.flag("cond_predict_scale", True)), task, weights, source)


def load_dp3_unet(policy: Settings, task: Task, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build DP3's `ConditionalUnet1D`, where it is the one of Diffusion Policy."""
    kind = policy.text("condition_type", "film")
    if kind != "film" or not all(policy.flag(name, True) for name in CONDITIONS[1:]):
        raise CheckpointError(
            f"{source}: condition_type {kind[:80]!r} with {', '.join(CONDITIONS[1:])} is not known; 'film' with all "
            "three true is"
        )
    return _unet(policy, (256, 5, True), task, weights, source)


def _unet(
    options: Settings,
    defaults: tuple[int, int, bool],
    task: Task,
    weights: Mapping[str, Tensor],
    source: str,
) -> nn.Module:
    """Build a `ConditionalUnet1D` of a section with `UNET_FIELDS`.

    Args:
        options: The section.
        defaults: Length of the embedding of timesteps, kernel size, and whether FiLM scales.
        task: What it is for.
        weights: By the file's names.
        source: The file, for messages.
    """
    step_dim, kernel_size, film = defaults
    config = UnetConfig(
        action_dim=task.width,
        cond_dim=task.cond_dim,
        down_dims=options.counts("down_dims", (256, 512, 1024), most=len(weights)),
        kernel_size=options.count("kernel_size", kernel_size),
        n_groups=options.count("n_groups", 8),
        diffusion_step_embed_dim=options.count("diffusion_step_embed_dim", step_dim),
        use_film_scale_modulation=film,
    )
    problem = config.problem(task.layout.horizons.horizon)
    if problem:
        raise CheckpointError(f"{source}: {problem}")
    return load_weights(
        lambda: ConditionalUnet1d(config),
        weights,
        lambda key: PREFIX + diffusion_policy_name(key),
        source,
        "its configuration",
    )


def load_low_dim_transformer(policy: Settings, task: Task, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build a low-dimensional policy's `TransformerForDiffusion`; defaults are those of its constructor."""
    model = _network_section(policy, "TransformerForDiffusion", source)
    return _transformer(model, (12, 12, 768, False), task, weights, source)


def load_image_transformer(policy: Settings, task: Task, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the `TransformerForDiffusion` of a policy with cameras; defaults are those of the policy's constructor."""
    return _transformer(policy, (8, 4, 256, True), task, weights, source)


def _transformer(
    options: Settings,
    defaults: tuple[int, int, int, bool],
    task: Task,
    weights: Mapping[str, Tensor],
    source: str,
) -> nn.Module:
    """Build a `TransformerForDiffusion` of a section with `TRANSFORMER_FIELDS`.

    Args:
        options: The section.
        defaults: Layers, heads, width, and whether attention is causal.
        task: What it is for.
        weights: By the file's names.
        source: The file, for messages.
    """
    n_layer, n_head, n_emb, causal = defaults
    config = TransformerConfig(
        input_dim=task.width,
        output_dim=task.width,
        horizon=options.count("horizon"),
        n_obs_steps=task.layout.horizons.n_obs_steps,
        cond_dim=0 if task.layout.inpaints else task.observed.dim,
        n_layer=options.count("n_layer", n_layer, most=len(weights)),
        n_head=options.count("n_head", n_head),
        n_emb=options.count("n_emb", n_emb),
        causal_attn=options.flag("causal_attn", causal),
        time_as_cond=options.flag("time_as_cond", True),
        n_cond_layers=options.count("n_cond_layers", 0, least=0, most=len(weights)),
    )
    problem = config.problem(task.layout.horizons.horizon)
    if problem:
        raise CheckpointError(f"{source}: {problem}")
    return load_weights(
        lambda: DiffusionTransformer(config), weights, lambda key: PREFIX + key, source, "its configuration"
    )


def _network_section(policy: Settings, name: str, source: str) -> Settings:
    """Open the section of a network; refuse another than the policy's own, and options that are not its own."""
    model = policy.section("model")
    kind = model.text("_target_").rpartition(".")[2]
    if kind != name:
        raise CheckpointError(f"{source}: cfg.policy.model._target_ is a {kind}; only {name} is known for this policy")
    known: Collection[str] = _LOW_DIM_OPTIONS[name]
    model.only({*known, "_target_"})
    return model
