"""Checkpoints of ARISE-Initiative/robomimic, algorithm `diffusion_policy`: a `.pth` file.

The format is that of `save_model` in `robomimic/utils/train_utils.py` (robomimic 0.5): `torch.save` of plain values,
with the configuration as a JSON string and the state dicts `nets` and `ema` under `model`. Nothing of robomimic is
imported, and nothing in the file is run.
"""

from collections.abc import Mapping
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy._common.names import unknown_names
from asd_policy.checkpoints.base import Description, Format, pinned_steps
from asd_policy.checkpoints.robomimic.cameras import PREFIX as ENCODER_PREFIX
from asd_policy.checkpoints.robomimic.cameras import Observations, read_observations
from asd_policy.checkpoints.robomimic.visual_core import first_name
from asd_policy.checkpoints.schedule import schedule_of
from asd_policy.checkpoints.untrusted.archives import MAX_PICKLE, TorchArchive, count_stored, mentions
from asd_policy.checkpoints.untrusted.pickles import StoredTensor
from asd_policy.checkpoints.untrusted.reading import decode_json
from asd_policy.checkpoints.untrusted.settings import Settings
from asd_policy.checkpoints.untrusted.weights import load_weights, stripped_notes, unwrap_names, without_doubles
from asd_policy.errors import CheckpointError
from asd_policy.networks.unet import ConditionalUnet1d, UnetConfig, diffusion_policy_name
from asd_policy.policy.normalisation import Affine, make_affine
from asd_policy.policy.plan import Horizons
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler

ACTION = "action"
PREFIX = "policy.noise_pred_net."
STEMS = ("", "policy.", PREFIX)
_UNET = ("enabled", "diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups")
GROUPS = 8  # robomimic builds its network with this default and ignores algo.unet


def is_robomimic(path: Path) -> bool:
    """Tell whether a file looks like a robomimic checkpoint."""
    return mentions(path, "shape_metadata")


def load_robomimic(path: Path, sampler: Sampler, device: torch.device) -> Policy:
    """Load a policy, with its averaged weights where the training kept them.

    Args:
        path: A `.pth` file of a `DiffusionPolicyUNet`.
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
        algo = config.section("algo")
        read, _ = unwrap_names(archive.state_dict(_state(payload, algo, source), first_name), STEMS)
    read = without_doubles(read, first_name, source)
    shapes = payload.section("shape_metadata")
    observed = read_observations(config, shapes.section("all_shapes"), source)
    cameras = {name: tensor for name, tensor in read.items() if observed.crops and name.startswith(ENCODER_PREFIX)}
    tensors = {name: tensor for name, tensor in read.items() if name not in cameras}
    unet = _unet(algo.section("unet"), tensors, source)
    horizon = algo.section("horizon")
    horizons = Horizons(
        horizon.count("observation_horizon"), horizon.count("prediction_horizon"), horizon.count("action_horizon")
    )
    if horizons.executed.stop > horizons.horizon:
        raise CheckpointError(
            f"{source}: action_horizon {horizons.n_action_steps} after observation_horizon {horizons.n_obs_steps} is "
            f"more than prediction_horizon {horizons.horizon} has"
        )
    problem = unet.problem(horizons.horizon) or _misfit(
        unet, action_dim=shapes.count("ac_dim"), cond_dim=horizons.n_obs_steps * observed.dim
    )
    if problem:
        raise CheckpointError(f"{source}: {problem}")
    schedule = schedule_of(*_scheduler(algo))
    return Policy(
        denoiser=load_weights(
            lambda: ConditionalUnet1d(unet),
            tensors,
            lambda key: PREFIX + diffusion_policy_name(key),
            source,
            "its configuration",
        ).to(device),
        chain=schedule.chain,
        sampler=sampler,
        horizons=horizons,
        observation=observed.load(_observation_maps(payload, config, observed, source), cameras, source),
        action=_action_map(payload, config, unet.action_dim, source),
        device=device,
    ).with_law(schedule.law)


def describe_robomimic(path: Path) -> Description:
    """Describe a robomimic checkpoint, even one of an image policy.

    Raises:
        CheckpointError: The file is damaged or hostile, or of another algorithm.
    """
    source = str(path)
    with TorchArchive(path) as archive:
        payload = Settings(archive.payload(), "", source)
    config = _configuration(payload, source)
    algo = config.find("algo")
    horizon = algo.find("horizon").plain()
    shapes = payload.find("shape_metadata")
    scheduler, steps = _scheduler(algo)
    groups = config.find("observation").find("modalities").find("obs")
    observed = [name for modality in groups for name in groups.names(modality)]
    tensors, stripped = unwrap_names(payload.find("model").find("nets").stored_tensors(), STEMS)
    maps = {
        feature: "none" if payload.plain().get(name) is None else "(x − offset) / scale"
        for name, features in (("obs_normalization_stats", observed), ("action_normalization_stats", [ACTION]))
        for feature in features
    }
    return Description(
        network="ConditionalUnet1D",
        parameters=count_stored(tensors.values()),
        network_parameters=count_stored(value for name, value in tensors.items() if name.startswith(PREFIX)),
        observation={name: shape for name, shape in shapes.find("all_shapes").plain().items() if name in observed},
        action={ACTION: [shapes.plain().get("ac_dim")]},
        horizons={
            "n_obs_steps": horizon.get("observation_horizon"),
            "horizon": horizon.get("prediction_horizon"),
            "n_action_steps": horizon.get("action_horizon"),
        },
        scheduler=scheduler,
        num_inference_steps=steps,
        normalization=maps,
        notes=(
            *pinned_steps(scheduler, steps),
            *_camera_notes(config, shapes.find("all_shapes"), tensors),
            *stripped_notes(stripped),
        ),
    )


FORMAT = Format(is_robomimic, load_robomimic, describe_robomimic)


def _camera_notes(config: Settings, shapes: Settings, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """Write a note on the cameras and their encoders, where these are known."""
    with suppress(CheckpointError):
        if encoder := read_observations(config, shapes, "").encoder:
            count = count_stored(value for name, value in tensors.items() if name.startswith(ENCODER_PREFIX))
            return (f"{count:,} numbers in its encoder of observations; {encoder}",)
    return ()


def _state(payload: Settings, algo: Settings, source: str) -> Settings:
    """Read the state dict to run: the averaged one, where the training kept one."""
    states = payload.section("model")
    if not algo.section("ema").flag("enabled"):
        return states.section("nets")
    if not states.find("ema").stored_tensors():
        raise CheckpointError(
            f"{source}: model.ema is {states.plain().get('ema')}, not a mapping of tensors, although algo.ema.enabled "
            "says that averaged weights were kept; set it to false in the file's config to run the last, model.nets"
        )
    return states.section("ema")


def _configuration(payload: Settings, source: str) -> Settings:
    """Read the configuration of a diffusion policy with a U-Net."""
    algorithm = payload.text("algo_name")
    if algorithm != "diffusion_policy":
        raise CheckpointError(f"{source} holds a policy of algorithm {algorithm!r}; only 'diffusion_policy' is known")
    try:
        raw = decode_json(payload.text("config", most=MAX_PICKLE))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: its configuration is not JSON: {error}") from None
    return Settings(raw, "", source)


def _unet(settings: Settings, tensors: Mapping[str, Tensor], source: str) -> UnetConfig:
    """Find the network's sizes from its weights: robomimic ignores those in algo.unet."""
    unknown_names(settings, _UNET, f"{source}: algo.unet", CheckpointError)
    if not settings.flag("enabled") or settings.count("n_groups", GROUPS) != GROUPS:
        raise CheckpointError(
            f"{source}: algo.unet is not enabled, or has n_groups other than {GROUPS}, which the weights do not show "
            "and robomimic does not use"
        )

    def shape(name: str, ndim: int) -> torch.Size:
        tensor = tensors.get(PREFIX + name)
        if tensor is None or tensor.ndim != ndim or not tensor.numel():
            raise CheckpointError(f"{source} has no network: {PREFIX}{name} is missing or misshapen")
        return tensor.shape

    first = "down_modules.{}.0.blocks.0.block.0.weight"
    levels = [first.format(i) for i in takewhile(lambda i: PREFIX + first.format(i) in tensors, count())]
    action_dim, kernel_size = shape(first.format(0), 3)[1:]
    step_dim = shape("diffusion_step_encoder.1.weight", 2)[1]
    film_dim = shape("mid_modules.0.cond_encoder.1.weight", 2)[1]
    return UnetConfig(
        action_dim=action_dim,
        cond_dim=film_dim - step_dim,
        down_dims=tuple(shape(level, 3)[0] for level in levels),
        kernel_size=kernel_size,
        n_groups=GROUPS,
        diffusion_step_embed_dim=step_dim,
    )


def _misfit(unet: UnetConfig, action_dim: int, cond_dim: int) -> str | None:
    """Explain how the network differs from the rest of the file; None if it does not."""
    if (unet.action_dim, unet.cond_dim) == (action_dim, cond_dim):
        return None
    return (
        f"the network is for {unet.action_dim} action and {unet.cond_dim} observation numbers, the configuration says "
        f"{action_dim} and {cond_dim}"
    )


def _scheduler(algo: Settings) -> tuple[dict[str, Any], Any]:
    """Translate the noise scheduler's configuration to diffusers' names, with the number of steps."""
    name = "ddpm" if algo.find("ddpm").flag("enabled", False) else "ddim"  # robomimic asks in this order
    options = algo.find(name).plain()
    steps = options.pop("num_inference_timesteps", None)
    options.pop("enabled", None)
    return {"_class_name": f"{name.upper()}Scheduler"} | options, steps


def _observation_maps(payload: Settings, config: Settings, observed: Observations, source: str) -> dict[str, Affine]:
    """Read the normalisation of each vector; without statistics there is none."""
    statistics = _statistics(payload, "obs_normalization_stats", source)
    if statistics is None and config.section("train").flag("hdf5_normalize_obs", False):
        raise CheckpointError(f"{source}: train.hdf5_normalize_obs is set, but there are no obs_normalization_stats")
    if statistics is not None and observed.crops:
        raise CheckpointError(
            f"{source}: obs_normalization_stats normalise each pixel of a camera, which is not known; robomimic's "
            "image policies are trained with train.hdf5_normalize_obs false"
        )
    return {
        name: make_affine("IDENTITY", {}, name, dim) if statistics is None else _affine(statistics, name, dim)
        for name, dim in observed.vectors.items()
    }


def _action_map(payload: Settings, config: Settings, dim: int, source: str) -> Affine:
    """Read the normalisation of actions, the parts of `train.action_keys` side by side."""
    statistics = _statistics(payload, "action_normalization_stats", source)
    if statistics is None:
        return make_affine("IDENTITY", {}, ACTION, dim)
    train = config.section("train")
    names = train.names("action_keys")
    for name in names:
        if train.section("action_config").section(name).plain().get("format") == "rot_6d":
            raise CheckpointError(
                f"{source}: action {name!r} is a rotation that robomimic converts after planning (rot_6d), which is "
                "not done here"
            )
    parts = [_affine(statistics, name, None) for name in names]
    whole = Affine(*(torch.cat([getattr(part, field) for part in parts]) for field in ("origin", "gain", "shift")))
    if len(whole.origin) != dim:
        raise CheckpointError(f"{source}: action_normalization_stats are for {len(whole.origin)} numbers, not {dim}")
    return whole


def _statistics(payload: Settings, name: str, source: str) -> Settings | None:
    """Read statistics by feature; None where the file has none."""
    return None if payload.plain().get(name) is None else payload.section(name)


def _affine(statistics: Settings, feature: str, dim: int | None) -> Affine:
    """Make the map (x − offset) / scale (`normalize_dict` in `robomimic/utils/obs_utils.py`) of lists [1, dim]."""
    of_feature = statistics.section(feature)
    offset = of_feature.row("offset", dim)
    scale = of_feature.row("scale", len(offset), nonzero=True)
    return Affine(offset, 1 / scale, torch.zeros_like(offset))
