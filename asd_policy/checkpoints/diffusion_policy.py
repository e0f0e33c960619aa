"""Checkpoints of real-stanford/diffusion_policy, low-dimensional policies: one `.ckpt` file of a training workspace.

The format is that of `BaseWorkspace.save_checkpoint`: `torch.save` of `{"cfg", "state_dicts", "pickles"}` with dill,
where `cfg` is the omegaconf configuration and `state_dicts` has the policies `model` and `ema_model`, their normaliser
inside. Lightning's files are read too, where `cfg` is among the hyper-parameters: they have one `state_dict`. Nothing
of diffusion_policy, hydra, omegaconf or dill is imported, and nothing in the file is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy._common.arrays import checked_float32
from asd_policy.checkpoints.base import Description, Format, pinned_steps
from asd_policy.checkpoints.schedule import schedule_of
from asd_policy.checkpoints.untrusted.archives import TorchArchive, count_stored, mentions
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import Value, load_weights, stripped_notes, unwrap_names
from asd_policy.errors import CheckpointError
from asd_policy.networks.transformer import DiffusionTransformer, TransformerConfig
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig, diffusion_policy_name
from asd_policy.policy.adapters.diffusion_policy import TRANSFORMER_ADAPTER, UNET_ADAPTER
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import OBS
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import SensorEncoder
from asd_policy.samplers import Sampler

ACTION = "action"
CONFIG, STATES, LIGHTNING = "cfg", "state_dicts", "pytorch-lightning_version"
MODULES = ("model.", "policy.")  # what a LightningModule may call its policy
MODEL_PREFIX = "model."
NORMALIZER_PREFIX = "normalizer.params_dict."
EMA = "ema_model"
STATISTICS = ("min", "max", "mean", "std")  # of the data that a normaliser was fitted to; it does not compute with them

_DUMMIES = ("_dummy_variable", "model._dummy_variable", "mask_generator._dummy_variable")  # empty tensors
_FIELDS = {
    *("_target_", "model", "noise_scheduler", "horizon", "obs_dim", "action_dim", "n_action_steps", "n_obs_steps"),
    *("num_inference_steps", "pred_action_steps_only", "eta"),
}  # of every policy; any other argument goes to the scheduler's step, as eta does

_OPTIONS = {
    "ConditionalUnet1D": {
        *("input_dim", "local_cond_dim", "global_cond_dim", "diffusion_step_embed_dim", "down_dims", "kernel_size"),
        *("n_groups", "cond_predict_scale"),
    },
    "TransformerForDiffusion": {
        *("input_dim", "output_dim", "horizon", "n_obs_steps", "cond_dim", "n_layer", "n_head", "n_emb", "p_drop_emb"),
        *("p_drop_attn", "causal_attn", "time_as_cond", "obs_as_cond", "n_cond_layers"),
    },
}
"""Arguments of each network; an unknown one may make the same weights compute something else."""


@dataclass(frozen=True)
class _Layout:
    """How a policy's plans are laid out, whichever its network."""

    obs_dim: int
    action_dim: int
    horizons: Horizons
    inpaints: bool

    @property
    def width(self) -> int:
        """Numbers in a step of a sample."""
        return self.action_dim + (self.obs_dim if self.inpaints else 0)


def is_diffusion_policy(path: Path) -> bool:
    """Tell whether a file looks like a workspace's checkpoint, or is a damaged zip file that might be one."""
    return mentions(path, STATES, LIGHTNING)


def load_diffusion_policy(path: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a low-dimensional policy, with its averaged weights where the training kept them.

    Args:
        path: A `.ckpt` file of a `DiffusionUnetLowdimPolicy` or a `DiffusionTransformerLowdimPolicy`.
        sampler: How to plan.
        device: Where to plan.

    Raises:
        CheckpointError: The file is damaged or hostile, of another policy, or its weights do not fit its configuration.
        ChainError: The noise scheduler is not one that can be sampled here.
        SpecError: The sampler's options do not fit the chain.
    """
    source = str(path)
    with TorchArchive(path) as archive:
        payload = Settings(archive.payload(), "", source)
        config = _configuration(payload, source)
        policy = config.section("policy")
        target = policy.text("_target_")
        kind = target.rpartition(".")[2]
        if kind not in _NETWORKS:
            raise CheckpointError(
                f"{source} holds a {kind}; only {' and '.join(_NETWORKS)} can be loaded here{_live(target)}"
            )
        tensors = archive.state_dict(_state(payload, config, source))
    weights, normalizer = _split(_plain_names(tensors, LIGHTNING in payload)[0], source)
    layout = _LAYOUTS[kind](policy, source)
    network = _NETWORKS[kind](policy.section("model"), layout, weights, source)
    schedule = schedule_of(
        _scheduler(policy.section("noise_scheduler")),
        policy.count("num_inference_steps", None),
        policy.plain().get("eta"),
    )
    return Policy(
        denoiser=network.to(device),
        chain=schedule.chain,
        sampler=sampler,
        horizons=layout.horizons,
        observation=SensorEncoder({OBS: _affine(normalizer, OBS, layout.obs_dim, source)}, layout.inpaints),
        action=_affine(normalizer, ACTION, layout.action_dim, source),
        device=device,
    ).with_own_plan(schedule.own)


def describe_diffusion_policy(path: Path) -> Description:
    """Describe a workspace's checkpoint, even one of an image policy.

    Raises:
        CheckpointError: The file is damaged or hostile, or has no policy.
    """
    with TorchArchive(path) as archive:
        payload = Settings(archive.payload(), "", str(path))
    policy = _configuration(payload, str(path)).find("policy")
    values = policy.plain()
    if "shape_meta" in values:  # of an image policy
        meta = policy.find("shape_meta")
        observed = {name: _shape(meta.find("obs"), name) for name in meta.find("obs")}
        action = {ACTION: _shape(meta, ACTION)}
    else:
        observed, action = {OBS: [values.get("obs_dim")]}, {ACTION: [values.get("action_dim")]}
    states = payload.find(STATES)
    state = payload.find("state_dict") if LIGHTNING in payload else states.find("model" if "model" in states else EMA)
    tensors, stripped = _plain_names(state.stored_tensors(), LIGHTNING in payload)
    scheduler, steps = _scheduler(policy.find("noise_scheduler")), values.get("num_inference_steps")
    return Description(
        network=_class_name(policy.find("model")) or _class_name(policy) or "not said",
        parameters=count_stored(tensors.values()),
        network_parameters=count_stored(value for name, value in tensors.items() if name.startswith(MODEL_PREFIX)),
        observation=observed,
        action=action,
        horizons={name: values.get(name) for name in ("n_obs_steps", "horizon", "n_action_steps")},
        scheduler=scheduler,
        num_inference_steps=steps,
        eta=values.get("eta"),
        normalization={name: "x · scale + offset" for name in (*observed, ACTION)},
        notes=(*pinned_steps(scheduler, steps), *stripped_notes(stripped)),
    )


FORMAT = Format(is_diffusion_policy, load_diffusion_policy, describe_diffusion_policy)


def _shape(features: Settings, name: str) -> Any:
    return features.find(name).plain().get("shape")


def _class_name(section: Settings) -> str:
    """Read the last part of a section's `_target_`; empty where it has none."""
    return section.text("_target_", "").rpartition(".")[2]


def _configuration(payload: Settings, source: str) -> Settings:
    """Read the workspace's configuration; in a file of Lightning it is among the hyper-parameters."""
    if LIGHTNING not in payload or CONFIG in payload:
        return payload.whole(CONFIG)
    given = payload.find("hyper_parameters")
    if CONFIG not in given:
        raise CheckpointError(
            f"{source} is a file of Lightning without the workspace's configuration; keep it as {CONFIG!r} among the "
            "hyper-parameters: self.save_hyperparameters({'cfg': cfg})"
        )
    return given.whole(CONFIG)


def _state(payload: Settings, config: Settings, source: str) -> Settings:
    """Read the state dict to run: the averaged one, where the training kept one."""
    training = config.find("training")
    if LIGHTNING in payload:
        if training.flag("use_ema", False):
            raise CheckpointError(
                f"{source}: cfg.training.use_ema says that averaged weights were kept, and Lightning's state_dict does "
                "not say whether it has them; set use_ema to false in the file to run the weights that it has"
            )
        return payload.section("state_dict")
    states = payload.section(STATES)
    if "use_ema" not in training:
        raise CheckpointError(
            f"{source} has no cfg.training.use_ema, which tells whether averaged weights were kept, beside the "
            f"state_dicts {_some(states)}; add it to the cfg, true for {EMA}, false for model"
        )
    name = EMA if training.flag("use_ema") else "model"
    if name not in states:
        raise CheckpointError(
            f"{source} has no state_dicts.{name}, asked for by training.use_ema {name == EMA}; it has {_some(states)}"
        )
    return states.section(name)


def _some(names: Settings) -> str:
    return ", ".join(list(names)[:3]) or "none"


def _plain_names(tensors: Mapping[str, Value], lightning: bool) -> tuple[dict[str, Value], list[str]]:
    """Rename tensors to the names that a policy gives them; return also the prefixes that wrappers had added."""
    plain, outer = unwrap_names(tensors, ("",), MODULES if lightning else ())
    plain, inner = unwrap_names(plain, ("", MODEL_PREFIX))
    return plain, outer + inner


def _live(target: str) -> str:
    """Explain how a policy that cannot be loaded can still be accelerated, if it can."""
    if any(target in adapter.classes for adapter in (UNET_ADAPTER, TRANSFORMER_ADAPTER)):
        return ": load it with diffusion_policy itself and pass the live policy to asd_policy.accelerate"
    return ", and asd_policy.accelerate does not know its class either"


def _unet_layout(policy: Settings, source: str) -> _Layout:
    if policy.flag("obs_as_local_cond", False):
        raise CheckpointError(
            f"{source}: obs_as_local_cond, observations as a second input sequence, is not supported; "
            "obs_as_global_cond and inpainting (neither of the two) are"
        )
    policy.only(_FIELDS | {"obs_as_local_cond", "obs_as_global_cond", "oa_step_convention"})
    current = policy.flag("oa_step_convention", False)
    return _layout(policy, policy.flag("obs_as_global_cond", False), current, source)


def _transformer_layout(policy: Settings, source: str) -> _Layout:
    policy.only(_FIELDS | {"obs_as_cond"})
    return _layout(policy, policy.flag("obs_as_cond", False), True, source)


def _layout(policy: Settings, conditioned: bool, current: bool, source: str) -> _Layout:
    """Read the layout of plans.

    Args:
        policy: Its configuration.
        conditioned: Whether the observations condition the network; otherwise it inpaints.
        current: Whether execution begins with the action for the latest observation, or with the one after it.
        source: The file, for messages.
    """
    n_obs_steps, n_action_steps = policy.count("n_obs_steps"), policy.count("n_action_steps")
    if policy.flag("pred_action_steps_only", False):
        if not conditioned:
            raise CheckpointError(f"{source}: pred_action_steps_only leaves no room for the observations to inpaint")
        horizons = Horizons(n_obs_steps, n_action_steps, n_action_steps, first_action=0)
    else:
        first = n_obs_steps - 1 if current else n_obs_steps
        horizons = Horizons(n_obs_steps, policy.count("horizon"), n_action_steps, first)
    if horizons.executed.stop > horizons.horizon:
        raise CheckpointError(
            f"{source}: n_action_steps {n_action_steps} from action {horizons.executed.start} on are more than the "
            f"horizon {horizons.horizon} has"
        )
    return _Layout(policy.count("obs_dim"), policy.count("action_dim"), horizons, inpaints=not conditioned)


def _unet(model: Settings, layout: _Layout, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the `ConditionalUnet1D`; defaults are those of its constructor."""
    _check_network(model, "ConditionalUnet1D", source)
    config = UnetConfig(
        action_dim=layout.width,
        cond_dim=0 if layout.inpaints else layout.horizons.n_obs_steps * layout.obs_dim,
        down_dims=model.counts("down_dims", (256, 512, 1024), most=len(weights)),
        kernel_size=model.count("kernel_size", 3),
        n_groups=model.count("n_groups", 8),
        diffusion_step_embed_dim=model.count("diffusion_step_embed_dim", 256),
        use_film_scale_modulation=model.flag("cond_predict_scale", False),
    )
    problem = config.problem(layout.horizons.horizon)
    if problem:
        raise CheckpointError(f"{source}: {problem}")
    return load_weights(
        lambda: ConditionalUnet1d(config),
        weights,
        lambda key: MODEL_PREFIX + diffusion_policy_name(key),
        source,
        "its configuration",
    )


def _transformer(model: Settings, layout: _Layout, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the `TransformerForDiffusion`; defaults are those of its constructor."""
    _check_network(model, "TransformerForDiffusion", source)
    config = TransformerConfig(
        input_dim=layout.width,
        output_dim=layout.width,
        horizon=model.count("horizon"),
        n_obs_steps=layout.horizons.n_obs_steps,
        cond_dim=0 if layout.inpaints else layout.obs_dim,
        n_layer=model.count("n_layer", 12, most=len(weights)),
        n_head=model.count("n_head", 12),
        n_emb=model.count("n_emb", 768),
        causal_attn=model.flag("causal_attn", False),
        time_as_cond=model.flag("time_as_cond", True),
        n_cond_layers=model.count("n_cond_layers", 0, least=0, most=len(weights)),
    )
    problem = config.problem(layout.horizons.horizon)
    if problem:
        raise CheckpointError(f"{source}: {problem}")
    return load_weights(
        lambda: DiffusionTransformer(config), weights, lambda key: MODEL_PREFIX + key, source, "its configuration"
    )


def _check_network(model: Settings, name: str, source: str) -> None:
    """Refuse another network than the policy's own, and options that are not its own."""
    kind = model.text("_target_").rpartition(".")[2]
    if kind != name:
        raise CheckpointError(f"{source}: cfg.policy.model._target_ is a {kind}; only {name} is known for this policy")
    model.only(_OPTIONS[name] | {"_target_"})


_LAYOUTS = {"DiffusionUnetLowdimPolicy": _unet_layout, "DiffusionTransformerLowdimPolicy": _transformer_layout}
_NETWORKS = {"DiffusionUnetLowdimPolicy": _unet, "DiffusionTransformerLowdimPolicy": _transformer}


def _scheduler(scheduler: Settings) -> dict[str, Any]:
    """Translate the noise scheduler's configuration to diffusers' names."""
    options = {key: value for key, value in scheduler.plain().items() if key != "_target_"}
    return {"_class_name": _class_name(scheduler)} | options


def _split(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors into the network's, and the normaliser's by the rest of their names; refuse all others."""
    weights, normalizer = {}, {}
    for key, tensor in tensors.items():
        if key in _DUMMIES and tensor.numel() == 0:
            continue
        if key.startswith(MODEL_PREFIX):
            weights[key] = tensor
        elif key.startswith(NORMALIZER_PREFIX):
            normalizer[key.removeprefix(NORMALIZER_PREFIX)] = tensor
        else:
            raise CheckpointError(f"{source}: {key} belongs to neither the network nor the normaliser")
    for key in normalizer:
        field, _, name = key.partition(".")
        if field not in (OBS, ACTION) or name not in ("scale", "offset", *(f"input_stats.{s}" for s in STATISTICS)):
            raise CheckpointError(f"{source}: the normaliser has {key!r}; only {OBS!r} and {ACTION!r} are known")
    return weights, normalizer


def _affine(normalizer: Mapping[str, Tensor], field: str, dim: int, source: str) -> Affine:
    """Read the map of a field of a `LinearNormalizer` (`model/common/normalizer.py`), x · scale + offset."""
    parts = {}
    for name in ("scale", "offset"):
        key = f"{field}.{name}"
        if key not in normalizer:
            raise CheckpointError(f"{source}: the normaliser has no {key}; was the policy saved before its training?")
        value = checked_float32(normalizer[key], f"{source}: {NORMALIZER_PREFIX}{key}")
        if tuple(value.shape) not in ((dim,), (1,)):
            raise CheckpointError(f"{source}: {NORMALIZER_PREFIX}{key} has shape {tuple(value.shape)}, not ({dim},)")
        if name == "scale" and not bool(torch.isfinite(1 / value).all()):
            raise CheckpointError(f"{source}: {NORMALIZER_PREFIX}{key} holds a scale of 0, or one next to it")
        parts[name] = value.expand(dim).clone()
    return Affine(torch.zeros_like(parts["offset"]), parts["scale"], parts["offset"])
