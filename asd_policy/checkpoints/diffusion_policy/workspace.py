"""Checkpoints of real-stanford/diffusion_policy, UMI and DP3: one `.ckpt` file of a training workspace.

The format is that of `BaseWorkspace.save_checkpoint`: `torch.save` of `{"cfg", "state_dicts", "pickles"}` with dill,
where `cfg` is the omegaconf configuration and `state_dicts` has the policies `model` and `ema_model`, their normaliser
inside. Lightning's files are read too, where `cfg` is among the hyper-parameters: they have one `state_dict`. Nothing
of diffusion_policy, hydra, omegaconf or dill is imported, and nothing in the file is run.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.checkpoints.base import Description, Format, pinned_steps
from asd_policy.checkpoints.diffusion_policy.denoisers import PREFIX as MODEL_PREFIX
from asd_policy.checkpoints.diffusion_policy.denoisers import Task
from asd_policy.checkpoints.diffusion_policy.families import FAMILIES, check_fields
from asd_policy.checkpoints.diffusion_policy.normalizer import ACTION, Normalizer
from asd_policy.checkpoints.diffusion_policy.normalizer import PREFIX as NORMALIZER_PREFIX
from asd_policy.checkpoints.diffusion_policy.observed import PREFIX as ENCODER_PREFIX
from asd_policy.checkpoints.diffusion_policy.observed import Observed
from asd_policy.checkpoints.schedule import schedule_of
from asd_policy.checkpoints.untrusted.archives import TorchArchive, count_stored, mentions
from asd_policy.checkpoints.untrusted.pickles import StoredTensor
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import Value, stripped_notes, unwrap_names, without_doubles
from asd_policy.errors import CheckpointError
from asd_policy.policy.adapters.diffusion_policy import DP3_ADAPTER, TRANSFORMER_ADAPTER, UNET_ADAPTER
from asd_policy.policy.observation import OBS
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler

CONFIG, STATES, LIGHTNING = "cfg", "state_dicts", "pytorch-lightning_version"
MODULES = ("model.", "policy.")  # what a LightningModule may call its policy
EMA = "ema_model"

_DUMMIES = tuple(
    f"{owner}_dummy_variable" for owner in ("", MODEL_PREFIX, "mask_generator.", ENCODER_PREFIX)
)  # empty tensors


@dataclass(frozen=True)
class _Tensors:
    """The tensors of a policy, sorted."""

    network: Mapping[str, Tensor]
    encoder: Mapping[str, Tensor]
    normalizer: Normalizer


def is_diffusion_policy(path: Path) -> bool:
    """Tell whether a file looks like a workspace's checkpoint, or is a damaged zip file that might be one."""
    return mentions(path, STATES, LIGHTNING)


def load_diffusion_policy(path: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a policy, with its averaged weights where the training kept them.

    Args:
        path: A `.ckpt` file of one of the policies in `FAMILIES`.
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
        if kind not in FAMILIES:
            raise CheckpointError(
                f"{source} holds a {kind[:80]}; only {', '.join(FAMILIES)} can be loaded here{_live(target)}"
            )
        family = FAMILIES[kind]
        task = Task(family.layout(policy, config, source), family.observed(policy, source))
        check_fields(family, policy)
        read = archive.state_dict(_state(payload, config, source), task.observed.first_name)
    tensors = _split(_plain_names(read, LIGHTNING in payload)[0], task.observed, source)
    network = family.network(policy, task, tensors.network, source)
    schedule = schedule_of(
        _scheduler(policy.section("noise_scheduler")),
        policy.count("num_inference_steps", None),
        policy.plain().get("eta"),
    )
    observation = task.observed.load(tensors.encoder, tensors.normalizer)
    return Policy(
        denoiser=network.to(device),
        chain=schedule.chain,
        sampler=sampler,
        horizons=task.layout.horizons,
        observation=replace(observation, inpaints=task.layout.inpaints),
        action=tensors.normalizer.affine(ACTION, task.layout.action_dim),
        device=device,
    ).with_law(schedule.law)


def describe_diffusion_policy(path: Path) -> Description:
    """Describe a workspace's checkpoint, even one that cannot be loaded here.

    Raises:
        CheckpointError: The file is damaged or hostile, or has no policy.
    """
    with TorchArchive(path) as archive:
        payload = Settings(archive.payload(), "", str(path))
    config = _configuration(payload, str(path))
    policy = config.find("policy")
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
        horizons=_horizons(policy, config),
        scheduler=scheduler,
        num_inference_steps=steps,
        eta=values.get("eta"),
        normalization={name: "x · scale + offset" for name in (*observed, ACTION)},
        notes=(*pinned_steps(scheduler, steps), *_encoder_notes(policy, tensors), *stripped_notes(stripped)),
    )


FORMAT = Format(is_diffusion_policy, load_diffusion_policy, describe_diffusion_policy)


def _horizons(policy: Settings, config: Settings) -> dict[str, Any]:
    """Read the horizons; where they do not make sense, as they are stored."""
    names = ("n_obs_steps", "horizon", "n_action_steps")
    family = FAMILIES.get(_class_name(policy))
    if family is not None:
        with suppress(CheckpointError):
            horizons = family.layout(policy, config, "").horizons
            return {name: getattr(horizons, name) for name in names}
    values = policy.plain()
    return {name: values.get(name) for name in names}


def _encoder_notes(policy: Settings, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """Write notes on what encodes cameras or clouds, where that is known."""
    family = FAMILIES.get(_class_name(policy))
    if family is None:
        return ()
    with suppress(CheckpointError):
        observed = family.observed(policy, "")
        if observed.encoder:
            count = count_stored(value for name, value in tensors.items() if name.startswith(ENCODER_PREFIX))
            random = () if observed.random_crop is None else (observed.random_crop,)
            return (f"{count:,} numbers in its encoder of observations; {observed.encoder}", *random)
    return ()


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
    if any(target in adapter.classes for adapter in (UNET_ADAPTER, TRANSFORMER_ADAPTER, DP3_ADAPTER)):
        return ": load it with its own library and pass the live policy to asd_policy.accelerate"
    return ", and asd_policy.accelerate does not know its class either"


def _scheduler(scheduler: Settings) -> dict[str, Any]:
    """Translate the noise scheduler's configuration to diffusers' names."""
    options = {key: value for key, value in scheduler.plain().items() if key != "_target_"}
    return {"_class_name": _class_name(scheduler)} | options


def _split(read: Mapping[str, Tensor], observed: Observed, source: str) -> _Tensors:
    """Sort the tensors, each once; refuse those that belong nowhere."""
    network, encoder, normalizer = {}, {}, {}
    for key, tensor in without_doubles(read, observed.first_name, source).items():
        if key in _DUMMIES and tensor.numel() == 0:
            continue
        if key.startswith(MODEL_PREFIX):
            network[key] = tensor
        elif key.startswith(ENCODER_PREFIX) and observed.encoder:
            encoder[key] = tensor
        elif key.startswith(NORMALIZER_PREFIX):
            normalizer[key.removeprefix(NORMALIZER_PREFIX)] = tensor
        else:
            raise CheckpointError(f"{source}: {key} belongs to neither the network nor the normaliser")
    maps = Normalizer(normalizer, source)
    maps.check(observed.fields)
    return _Tensors(network, encoder, maps)
