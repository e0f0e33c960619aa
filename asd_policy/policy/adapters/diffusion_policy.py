"""The policies of real-stanford/diffusion_policy and YanjieZe/3D-Diffusion-Policy, live.

`conditional_sample` is the one place where each samples, in one loop in all of them
(`diffusion_policy/policy/diffusion_*_policy.py`, `diffusion_policy_3d/policy/dp3.py`): the network's input has the
known coordinates written into it, then `noise_scheduler.step`. Normalisers and encoders of observations are outside it,
and stay as they are; encoders run once per plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Generator
from asd_policy.errors import ObservationError, SpecError
from asd_policy.networks.backends.base import Job
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
    qualified,
    read_chain,
)
from asd_policy.policy.adapters.guard import OwnLoop
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import OBS, as_floats, is_frame
from asd_policy.policy.plan import Horizons
from asd_policy.policy.sensors import ObservationEncoder, SensorEncoder
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import WarmUp

if TYPE_CHECKING:
    from asd_policy.policy.adapters.networks import LiveNetwork

ACTION = "action"
_LOOP = ("conditional_sample",)  # the methods that sample
_UNETS = {
    "unet_lowdim": "UnetLowdim",
    "unet_image": "UnetImage",
    "unet_hybrid_image": "UnetHybridImage",
    "unet_video": "UnetVideo",
}
_TRANSFORMERS = {"transformer_lowdim": "TransformerLowdim", "transformer_hybrid_image": "TransformerHybridImage"}


@dataclass(frozen=True, eq=False)
class _Sampling:
    """The methods that take the place of the policy's own; bound, so that a copied policy has copies of its own."""

    policy: Any
    planner: LivePlanner
    loop: OwnLoop
    """The policy's own."""
    own_reset: Callable[[], None]
    own_predict: Callable[..., Any]
    """The policy's own methods."""
    network: "LiveNetwork"
    """What runs the policy's network."""

    @arrays.uncompiled
    def sample(
        self,
        data: Array,
        mask: Array,
        conditions: Mapping[str, Array | None],
        generator: Generator | None,
        options: Mapping[str, Any],
    ) -> Array:
        """Sample trajectories.

        Args:
            data: Known coordinates [B, T, D].
            mask: Where they are known [B, T, D].
            conditions: The network's conditioning by the names of its arguments, one of them at most.
            generator: Source of the noise; None for torch's global one.
            options: Of the scheduler's step.

        Returns:
            Trajectories [B, T, D] in the dtype of `data`.

        Raises:
            BackendError: The backend cannot run the network, or it was changed since it was prepared.
            ChainError: The policy's noise scheduler or its options have been changed.
            SpecError: The method that samples was replaced in its class, or one of the scheduler's.
            DenoiserError: See `LivePlanner.sample`.
            ObservationError: There are two kinds of conditioning.
        """
        policy = self.policy
        self.loop.check(policy, options)
        given = {name: value for name, value in conditions.items() if value is not None}
        if len(given) > 1:
            raise ObservationError(f"the network is told {' and '.join(given)}; one of them is supported")
        name = next(iter(given), None)

        held = Inpainting(mask, data.float()) if bool(mask.any()) else None
        cond = None if name is None else given[name]
        shape, planner = tuple(data.shape), self.planner
        prepared = self.network.prepare(policy.model, Job(planner.chain, shape[1:], _numbers(cond), data.device), name)

        def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
            return policy.model(x.to(data.dtype), timestep, **({} if name is None else {name: cond}))

        if prepared is not None:
            cond = data.new_zeros((len(data), 0)) if cond is None else cond.flatten(1)
        if self.network.is_another:
            planner.look_again()
        planner.runs = LIVE if prepared is None else self.network.spec
        executed, denoiser = policy.n_action_steps, prepared or denoise
        plans = planner.sample(denoiser, shape, executed, data.device, cond, generator, inpainting=held)
        setattr(policy, LAST_PLAN, planner.last_plan)
        return plans.to(data.dtype)

    def of_unet(
        self,
        condition_data: Array,
        condition_mask: Array,
        local_cond: Array | None = None,
        global_cond: Array | None = None,
        generator: Generator | None = None,
        **kwargs: Any,
    ) -> Array:
        """Take the place of a U-Net policy's `conditional_sample`; see `sample`."""
        conditions = {"local_cond": local_cond, "global_cond": global_cond}
        return self.sample(condition_data, condition_mask, conditions, generator, kwargs)

    def of_transformer(
        self,
        condition_data: Array,
        condition_mask: Array,
        cond: Array | None = None,
        generator: Generator | None = None,
        **kwargs: Any,
    ) -> Array:
        """Take the place of a transformer policy's `conditional_sample`; see `sample`."""
        return self.sample(condition_data, condition_mask, {"cond": cond}, generator, kwargs)

    def of_dp3(
        self,
        condition_data: Array,
        condition_mask: Array,
        condition_data_pc: Any = None,
        condition_mask_pc: Any = None,
        local_cond: Array | None = None,
        global_cond: Array | None = None,
        generator: Generator | None = None,
        **kwargs: Any,
    ) -> Array:
        """Take the place of DP3's `conditional_sample`, which looks at neither the generator nor what comes after."""
        conditions = {"local_cond": local_cond, "global_cond": global_cond}
        return self.sample(condition_data, condition_mask, conditions, None, {})

    def predict_action(self, *given: Any, **options: Any) -> Any:
        """Take the place of the policy's `predict_action` where plans have a deadline, which counts from here."""
        self.planner.begin_plan()
        return self.own_predict(*given, **options)

    def warm_up(self, observation: Any) -> WarmUp:
        """Plan for an observation as `predict_action` takes it; see `adapters.warm_up`.

        Raises:
            DenoiserError: See `LivePlanner.sample`.
            SpecError: The policy is in training mode.
        """
        with alone(self.policy, next(self.policy.parameters()).device):
            return self.planner.warm_up(lambda: self.policy.predict_action(observation))

    def reset(self) -> None:
        """Begin an episode."""
        self.own_reset()
        self.planner.begin_episode()
        setattr(self.policy, LAST_PLAN, None)


def _numbers(cond: Array | None) -> int:
    """Count the numbers of the conditioning of one plan [B, …]."""
    return 0 if cond is None else cond.flatten(1).shape[1]


def _patches(policy: Any, wanted: Acceleration, method: str) -> list[Patch]:
    from asd_policy.policy.adapters.networks import LiveNetwork

    check_own(policy, _KNOWN, _LOOP)
    options = _step_options(policy)
    chain = read_chain(policy.noise_scheduler, policy.num_inference_steps, options, wanted.chain)
    loop = OwnLoop(policy, _KNOWN, _LOOP, options)
    planner = LivePlanner(wanted.sampler, chain, policy, wanted.deadline_ms)
    network = LiveNetwork(wanted.backend)
    network.prepare_ahead(policy.model, chain, _horizon(policy))
    sampling = _Sampling(policy, planner, loop, policy.reset, policy.predict_action, network)
    timed = [] if wanted.deadline_ms is None else [Patch(policy, "predict_action", sampling.predict_action)]
    return [
        Patch(policy, "conditional_sample", getattr(sampling, method)),
        Patch(policy, "reset", sampling.reset),
        Patch(policy, "asd_stats", planner.stats),
        Patch(policy, LAST_PLAN, None),
        Patch(policy, WARM_UP, sampling.warm_up),
        *timed,
    ]


def _step_options(policy: Any) -> dict[str, Any]:
    """List what a policy gives its scheduler's step; DP3 gives it nothing, and a generator is the loop's."""
    return {} if _is_dp3(policy) else {name: each for name, each in policy.kwargs.items() if name != "generator"}


def _is_dp3(policy: Any) -> bool:
    return any(qualified(cls) in DP3_ADAPTER.classes for cls in type(policy).__mro__)


def _horizon(policy: Any) -> int:
    """Count the steps of what a policy samples."""
    return policy.n_action_steps if getattr(policy, "pred_action_steps_only", False) else policy.horizon


def _parts(policy: Any, processors: Any) -> LiveParts:
    """Take a policy apart; what its own encoder and normaliser make is compared with what was read of them."""
    from asd_policy.policy.adapters.networks import denoiser_of

    if processors is not None:
        raise SpecError("processors are LeRobot's; the policies of diffusion_policy have their normaliser inside")
    check_own(policy, _KNOWN, ("conditional_sample", "predict_action"))
    n_obs_steps, horizon = policy.n_obs_steps, _horizon(policy)
    told = _conditioning(policy)
    if hasattr(policy, "obs_encoder"):
        encoder, first = _encoder(policy, told is None), n_obs_steps - 1
    elif hasattr(policy, "obs_dim"):
        shapes = {OBS: (policy.obs_dim,)}
        encoder = SensorEncoder(_maps(policy, shapes), inpaints=told is None)
        current = getattr(policy, "oa_step_convention", not hasattr(policy, "obs_as_global_cond"))
        first = n_obs_steps - 1 if current else n_obs_steps
    else:
        raise SpecError(
            f"this {type(policy).__name__} encodes its last observations together, and a Policy encodes each by "
            "itself; asd_policy.accelerate takes it as it is"
        )
    in_a_row = told != "global_cond" or "cross_attention" in getattr(policy, "condition_type", "")
    if horizon != policy.horizon:  # pred_action_steps_only
        first = 0
    return LiveParts(
        denoiser_of(policy.model, told, n_obs_steps if in_a_row else 0, horizon),
        encoder,
        _maps(policy, {ACTION: (policy.action_dim,)})[ACTION],
        Horizons(n_obs_steps, horizon, policy.n_action_steps, first),
        policy.noise_scheduler,
        policy.num_inference_steps,
        _step_options(policy),
    )


def _conditioning(policy: Any) -> str | None:
    """Find by which argument the network is given the observations; None where it inpaints."""
    for flag, argument in (("local", "local_cond"), ("global", "global_cond")):
        if getattr(policy, f"obs_as_{flag}_cond", False):
            return argument
    return "cond" if getattr(policy, "obs_as_cond", False) else None


def _encoder(policy: Any, inpaints: bool) -> ObservationEncoder:
    """Put the policy's own encoder behind the seam."""
    from asd_policy.policy.adapters.encoders import (
        LiveEncoder,
        PointsAlone,
        by_sensors,
        check_same,
        normalized,
        random_observations,
    )

    own = policy.obs_encoder
    if hasattr(own, "obs_shapes"):  # robomimic's
        shapes = {name: tuple(shape) for name, shape in own.obs_shapes.items()}
    elif hasattr(own, "point_cloud_shape"):  # DP3's
        shapes = {own.point_cloud_key: own.point_cloud_shape, own.state_key: own.state_shape}
        if own.use_imagined_robot:
            shapes[own.imagination_key] = own.imagination_shape
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        own = own if policy.use_pc_color else PointsAlone(own, own.point_cloud_key)
    elif hasattr(own, "shape_meta"):
        shapes = {name: tuple(each["shape"]) for name, each in own.shape_meta["obs"].items()}
        order = [*getattr(own, "rgb_keys", ()), *getattr(own, "low_dim_keys", ())]
        shapes = {name: shapes[name] for name in (order if sorted(order) == sorted(shapes) else shapes)}
    else:
        raise SpecError(
            f"the encoder {qualified(type(own))} does not say what it observes: no obs_shapes, no shape_meta"
        )
    device = next(policy.parameters()).device
    maps = {name: each.to(device) for name, each in _maps(policy, shapes).items()}
    encoder = LiveEncoder.around(own, shapes, maps, device, inpaints)
    seen = random_observations(shapes, 2)
    frames = {name: as_floats(values) if is_frame(shapes[name]) else values for name, values in seen.items()}
    theirs = policy.normalizer.normalize({name: values.to(device) for name, values in frames.items()})
    for name, values in normalized(seen, maps, device).items():
        check_same(values, theirs[name], f"the normalised values of {name!r}")
    return by_sensors(encoder)


def _maps(policy: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Affine]:
    """Read the maps of features from the policy's normaliser, x · scale + offset."""
    import torch  # whose policy this is

    params, maps = policy.normalizer.params_dict, {}
    for name, shape in shapes.items():
        if name not in params:
            there = ", ".join(map(repr, params)) or "nothing"
            raise SpecError(f"the normaliser knows no {name!r}, only {there}: call policy.set_normalizer first")
        parts = [params[name][key].detach() for key in ("scale", "offset")]
        if any(tuple(each.shape) not in ((1,), (shape[-1] if len(shape) == 2 else shape[0],)) for each in parts):
            raise SpecError(f"the normaliser's scale of {name!r} has shape {tuple(parts[0].shape)}, not 1 or {shape}")
        if not all(bool(torch.isfinite(each).all()) for each in (1 / parts[0], parts[1])):
            raise SpecError(f"the normaliser of {name!r} has a scale of 0, or numbers that are not finite")
        count = shape[-1] if len(shape) == 2 else shape[0]
        scale, offset = (each.float().expand(count).clone() for each in parts)
        maps[name] = Affine(torch.zeros_like(offset), scale, offset)
    return maps


def _classes(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"diffusion_policy.policy.diffusion_{file}_policy.Diffusion{name}Policy" for file, name in names.items()
    )


UNET_ADAPTER = Adapter(_classes(_UNETS), lambda policy, wanted: _patches(policy, wanted, "of_unet"), _parts)
TRANSFORMER_ADAPTER = Adapter(
    _classes(_TRANSFORMERS), lambda policy, wanted: _patches(policy, wanted, "of_transformer"), _parts
)
DP3_ADAPTER = Adapter(
    tuple(f"diffusion_policy_3d.policy.{name}" for name in ("dp3.DP3", "simple_dp3.SimpleDP3")),
    lambda policy, wanted: _patches(policy, wanted, "of_dp3"),
    _parts,
)
_KNOWN = (*UNET_ADAPTER.classes, *TRANSFORMER_ADAPTER.classes, *DP3_ADAPTER.classes)
