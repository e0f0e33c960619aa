"""LeRobot's `DiffusionPolicy`, live: `DiffusionModel.conditional_sample` is the one place where it samples.

The same in lerobot 0.4.4 and 0.6.1 (`lerobot/policies/diffusion/modeling_diffusion.py`). Observation queues, encoders
and processors are outside it, and stay as they are.
"""

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Generator
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.adapters.base import (
    LAST_PLAN,
    LIVE,
    WARM_UP,
    Acceleration,
    Adapter,
    LiveParts,
    LivePlanner,
    Patch,
    alone,
    check_own,
    read_chain,
)
from asd_policy.policy.adapters.guard import AGAIN, OwnLoop, check_plan
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from asd_policy.policy.plan import Horizons
from asd_policy.policy.sensors import Sensor, SensorEncoder
from asd_policy.samplers.records import WarmUp

if TYPE_CHECKING:
    from asd_policy.policy.adapters.networks import LiveNetwork

TESTED_LEROBOT = ("0.4.4", "0.6.1")
"""The oldest and the newest lerobot that this package is tested with."""
_MODULE = "lerobot.policies.diffusion.modeling_diffusion"
_MODEL = (f"{_MODULE}.DiffusionModel",)
_LOOP = ("conditional_sample", "generate_actions")  # the model's methods that sample
_PARTS = ("config", "generate_actions", "noise_scheduler", "num_inference_steps", "unet")  # what is read of a model


def tested_lerobot() -> str:
    """Say which lerobot is installed, and which are tested; for messages where its parts are not as they are known."""
    try:
        installed = f"{importlib.metadata.version('lerobot')} is installed"
    except importlib.metadata.PackageNotFoundError:
        installed = "of an unknown version is loaded"
    return f"lerobot {installed}, and {TESTED_LEROBOT[0]} to {TESTED_LEROBOT[1]} are tested"


@dataclass(frozen=True, eq=False)
class _Sampling:
    """The methods that take the place of the policy's own; bound, so that a copied policy has copies of its own."""

    policy: Any
    model: Any
    """The policy's `diffusion`, whose method is replaced."""
    planner: LivePlanner
    loop: OwnLoop
    """The model's own."""
    own_reset: Callable[[], None]
    """The policy's own method."""
    network: "LiveNetwork"
    """What runs the U-Net."""

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Array | None = None,
        generator: Generator | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Sample plans [batch_size, horizon, action_dim] given observations [batch_size, cond_dim].

        Raises:
            BackendError: The backend cannot run the network, or it was changed since it was prepared.
            ChainError: The policy's noise scheduler has been changed.
            DenoiserError: See `LivePlanner.sample`.
            ObservationError: The noise does not fit.
            SpecError: A method that samples was replaced, or the whole model.
        """
        self._check_model()
        model, config = self.model, self.model.config
        self.loop.check(model, model.num_inference_steps)
        shape, planner = (batch_size, config.horizon, config.action_feature.shape[0]), self.planner
        device = next(model.parameters()).device
        told, dims = (None, 0) if global_cond is None else ("global_cond", global_cond.shape[1])
        prepared = self.network.prepare(model.unet, Job(planner.chain, shape[1:], dims, device), told)

        def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
            return model.unet(x, timestep, global_cond=cond)

        if self.network.is_another:
            planner.look_again()
        planner.runs = LIVE if prepared is None else self.network.spec
        denoiser, executed = prepared or denoise, config.n_action_steps
        plans = planner.sample(denoiser, shape, executed, device, global_cond, generator, noise)
        setattr(self.policy, LAST_PLAN, planner.last_plan)
        return plans

    def generate_actions(self, *given: Any, **options: Any) -> Array:
        """Take the place of the model's `generate_actions` where plans have a deadline, which counts from here."""
        self.planner.begin_plan()
        return type(self.model).generate_actions(self.model, *given, **options)

    def _check_model(self) -> None:
        if self.policy.diffusion is not self.model:
            raise SpecError(f"diffusion of this {type(self.policy).__name__} was replaced after accelerate; {AGAIN}")

    def warm_up(self, robots: int = 1) -> WarmUp:
        """Plan for robots whose observations are zero, encoders included; see `adapters.warm_up`.

        Raises:
            DenoiserError: See `LivePlanner.sample`.
            SpecError: The policy is in training mode, or its `diffusion` was replaced.
        """
        self._check_model()
        model, config = self.model, self.model.config
        shapes = {"observation.state": config.robot_state_feature.shape}
        if config.env_state_feature:
            shapes["observation.environment_state"] = config.env_state_feature.shape
        if config.image_features:
            images = list(config.image_features.values())
            shapes["observation.images"] = (len(images), *images[0].shape)
        like = next(model.parameters())
        batch = {name: like.new_zeros((robots, config.n_obs_steps, *shape)) for name, shape in shapes.items()}
        with alone(self.policy, like.device):
            return self.planner.warm_up(lambda: model.generate_actions(batch))

    def reset(self) -> None:
        """Begin an episode.

        Raises:
            SpecError: The policy's `diffusion` was replaced, and what is there now would not be accelerated.
        """
        self._check_model()
        self.own_reset()
        self.planner.begin_episode()
        setattr(self.policy, LAST_PLAN, None)


def _patches(policy: Any, wanted: Acceleration) -> list[Patch]:
    from asd_policy.policy.adapters.networks import LiveNetwork

    model = _model_of(policy)
    check_own(model, _MODEL, _LOOP)
    chain = read_chain(model.noise_scheduler, model.num_inference_steps)
    loop = OwnLoop(model, _MODEL, _LOOP, chain)
    _check_loop(model, chain)
    planner = LivePlanner(wanted.sampler, chain, model, wanted.deadline_ms)
    network = LiveNetwork(wanted.backend)
    network.prepare_ahead(model.unet, chain, policy.config.horizon)
    sampling = _Sampling(policy, model, planner, loop, policy.reset, network)
    timed = [] if wanted.deadline_ms is None else [Patch(model, "generate_actions", sampling.generate_actions)]
    return [
        Patch(model, "conditional_sample", sampling.conditional_sample),
        Patch(policy, "reset", sampling.reset),
        Patch(policy, "asd_stats", planner.stats),
        Patch(policy, LAST_PLAN, None),
        Patch(policy, WARM_UP, sampling.warm_up),
        *timed,
    ]


def _model_of(policy: Any) -> Any:
    """Find the model of a policy.

    Raises:
        SpecError: Its parts are not those of the versions that are known.
    """
    model = getattr(policy, "diffusion", None)
    missing = [name for name in _PARTS if not hasattr(model, name)]
    if model is None or missing:
        what = f"its diffusion lacks {', '.join(missing)}" if model is not None else "it has no diffusion"
        raise SpecError(f"cannot accelerate this {type(policy).__name__}: {what}; {tested_lerobot()}")
    return model


def _check_loop(model: Any, chain: GaussianChain) -> None:
    """Refuse a model whose loop is not the one that is known, as another version's may be.

    Raises:
        SpecError: Of a known network it makes another plan.
    """
    import torch  # whose policy this is

    class Known(torch.nn.Module):
        """A known network in the place of the U-Net."""

        def __init__(self, denoise: Denoiser) -> None:
            super().__init__()
            self.denoise, self.place = denoise, torch.nn.Parameter(torch.zeros(1, device=device), requires_grad=False)

        def forward(self, x: Array, timestep: Array, global_cond: Array | None = None) -> Array:
            """Predict."""
            return self.denoise(x, timestep, global_cond)

    def own(denoise: Denoiser, cond: Array, generator: Generator) -> Array:
        twin = object.__new__(type(model))
        vars(twin).update(vars(model), _modules={"unet": Known(denoise)})
        vars(twin)["noise_scheduler"] = copy.deepcopy(model.noise_scheduler)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return twin.conditional_sample(len(cond), global_cond=cond, generator=generator)

    device = next(model.parameters()).device
    shape = (2, model.config.horizon, model.config.action_feature.shape[0])
    check_plan(own, chain, shape, device, f"cannot accelerate a {type(model).__name__} ({tested_lerobot()})")


def _parts(policy: Any, processors: Any) -> LiveParts:
    """Take a policy apart; its conditioning is compared with what LeRobot's own method makes."""
    from asd_policy.policy.adapters.encoders import check_encoder, check_same, normalized, random_observations
    from asd_policy.policy.adapters.networks import denoiser_of
    from asd_policy.policy.adapters.processors import ACTION, live_normalization

    model, config = _model_of(policy), policy.config
    check_own(policy, ADAPTER.classes, ("select_action", "predict_action_chunk"))
    check_own(model, _MODEL, (*_LOOP, "_prepare_global_conditioning"))
    cameras = {name: tuple(feature.shape) for name, feature in config.image_features.items()}
    shapes = {STATE: tuple(config.robot_state_feature.shape), **cameras}
    if config.env_state_feature:
        shapes[ENVIRONMENT_STATE] = tuple(config.env_state_feature.shape)
    action = tuple(config.action_feature.shape)
    device = next(model.parameters()).device
    maps = live_normalization(policy, processors, {**shapes, ACTION: action})
    maps = {name: each.to(device) for name, each in maps.items()}
    networks = [model.rgb_encoder] * len(cameras) if cameras else []
    if cameras and config.use_separate_rgb_encoder_per_camera:
        networks = list(model.rgb_encoder)
    features: dict[str, Affine | Sensor] = {name: maps[name] for name in shapes}
    for (name, shape), network in zip(cameras.items(), networks, strict=True):
        features[name] = Sensor(shape, maps[name], network, network.feature_dim)
    encoder = SensorEncoder(features)

    def own(seen: dict[str, Array]) -> Array:
        batch = {name: each[:, None] for name, each in seen.items()}
        if cameras:
            batch["observation.images"] = arrays.namespace(seen[STATE]).stack([batch[name] for name in cameras], -4)
        return model._prepare_global_conditioning(batch)

    seen = random_observations(shapes, 2)
    theirs = check_encoder(own, normalized(seen, {name: maps[name] for name in shapes}, device))
    check_same(encoder.look(seen, device), theirs, "the features")
    horizons = Horizons(config.n_obs_steps, config.horizon, config.n_action_steps)
    return LiveParts(
        denoiser_of(model.unet, "global_cond"),
        encoder,
        maps[ACTION],
        horizons,
        model.noise_scheduler,
        model.num_inference_steps,
    )


ADAPTER = Adapter((f"{_MODULE}.DiffusionPolicy",), _patches, _parts)
