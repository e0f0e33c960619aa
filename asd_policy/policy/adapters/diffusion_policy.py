"""The policies of real-stanford/diffusion_policy, live: `conditional_sample` is the one place where each samples.

It is one loop in all of them (`diffusion_policy/policy/diffusion_*_policy.py`): the network's input has the known
coordinates written into it, then `noise_scheduler.step`. Normalisers and image encoders are outside it, and stay as
they are; encoders run once per plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asd_policy._common.arrays import Array, Generator
from asd_policy.errors import ChainError, ObservationError
from asd_policy.networks.backends.base import Job
from asd_policy.policy.adapters.base import (
    LAST_PLAN,
    WARM_UP,
    Acceleration,
    Adapter,
    LivePlanner,
    Patch,
    alone,
    check_own,
    check_step,
    read_chain,
)
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import WarmUp

if TYPE_CHECKING:
    from asd_policy.policy.adapters.networks import LiveNetwork

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
    scheduler: Any
    """The noise scheduler that the planner's chain was read from."""
    options: Mapping[str, Any]
    """Those of its step."""
    own_reset: Callable[[], None]
    own_predict: Callable[..., Any]
    """The policy's own methods."""
    network: "LiveNetwork"
    """What runs the policy's network."""

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
            DenoiserError: See `LivePlanner.sample`.
            ObservationError: There are two kinds of conditioning.
        """
        policy = self.policy
        same = policy.noise_scheduler is self.scheduler and policy.num_inference_steps == len(self.planner.chain)
        if not same or options != self.options:
            raise ChainError(
                f"the policy was accelerated with another noise scheduler, {len(self.planner.chain)} inference steps "
                f"or options of its step, which were {self.options}; accelerate it again"
            )
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
            cond = None if cond is None else cond.flatten(1)
            planner.runs = self.network.spec
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

    check_own(policy, (*UNET_ADAPTER.classes, *TRANSFORMER_ADAPTER.classes), ("conditional_sample",))
    scheduler = policy.noise_scheduler
    chain = read_chain(scheduler, policy.num_inference_steps, policy.kwargs.get("eta"))
    check_step(scheduler, chain, policy.kwargs)
    planner = LivePlanner(wanted.sampler, chain, policy, wanted.deadline_ms)
    network = LiveNetwork(wanted.backend)
    network.prepare_ahead(policy.model, chain, _horizon(policy))
    options = dict(policy.kwargs)
    sampling = _Sampling(policy, planner, scheduler, options, policy.reset, policy.predict_action, network)
    timed = [] if wanted.deadline_ms is None else [Patch(policy, "predict_action", sampling.predict_action)]
    return [
        Patch(policy, "conditional_sample", getattr(sampling, method)),
        Patch(policy, "reset", sampling.reset),
        Patch(policy, "asd_stats", planner.stats),
        Patch(policy, LAST_PLAN, None),
        Patch(policy, WARM_UP, sampling.warm_up),
        *timed,
    ]


def _horizon(policy: Any) -> int:
    """Count the steps of what a policy samples."""
    return policy.n_action_steps if getattr(policy, "pred_action_steps_only", False) else policy.horizon


def _classes(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"diffusion_policy.policy.diffusion_{file}_policy.Diffusion{name}Policy" for file, name in names.items()
    )


UNET_ADAPTER = Adapter(_classes(_UNETS), lambda policy, wanted: _patches(policy, wanted, "of_unet"))
TRANSFORMER_ADAPTER = Adapter(
    _classes(_TRANSFORMERS), lambda policy, wanted: _patches(policy, wanted, "of_transformer")
)
