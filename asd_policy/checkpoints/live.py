"""Make a `Policy` of a live policy of another library, on its own weights and with its own encoder."""

import copy
from collections.abc import Mapping
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.checkpoints.schedule import Schedule, schedule_of
from asd_policy.errors import ChainError, SpecError
from asd_policy.networks.backends import make_backend
from asd_policy.policy.adapters import find_adapter, is_accelerated
from asd_policy.policy.adapters.base import SCHEDULERS, LiveParts, check_own, check_step
from asd_policy.policy.law import check_chain
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.ddim import OwnDdim

_TOLERANCE = 1e-3  # of the largest number in a plan


def policy_of(
    live: Any, sampler: str | Sampler | None, device: str | None, backend: str | None, chain: str, processors: Any
) -> Policy:
    """Make a `Policy` of a live one.

    Nothing is copied: the policy plans with the live one's weights, and says so in one line where they were changed
    after it was made; on `onnx` alone it has an export of them, and goes on with that. What the live one has in the
    place of its class's own methods would be lost, and is refused. Its normaliser and scheduler are read once, here.

    Args:
        live: A policy of a class in `ADAPTERS`, in eval mode.
        sampler: As for `load_policy`, and so are the others.
        device: None, or where the live policy is.
        backend: Spec of what runs the network.
        chain: Whose law plans have.
        processors: LeRobot's preprocessor and postprocessor.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        ChainError: Its noise scheduler cannot be sampled here, or does not do what its configuration says.
        SpecError: As `load_policy`.
    """
    if isinstance(live, Policy):
        raise SpecError("this is a Policy already; with_sampler, with_backend and with_chain make others of it")
    adapter = find_adapter(live, "make a Policy of")
    wanted, planner = None if backend is None else make_backend(backend), make_sampler(sampler or "ddpm")
    check_chain(chain)
    own = _check_state(live, device)
    if adapter.parts is None:
        raise SpecError(f"no Policy can be made of a {type(live).__name__}; asd_policy.accelerate takes it in place")
    parts = adapter.parts(live, processors)
    schedule = _schedule(parts)
    policy = Policy(
        parts.network, schedule.chain, planner, parts.horizons, parts.encoder, parts.action, own, wanted
    ).with_law(schedule.law)
    return policy.with_chain(chain, None if sampler is None else planner)


def _check_state(live: Any, device: str | None) -> Any:
    """Refuse a policy that cannot be planned with as it is; return its device."""
    import torch  # whose policy this is

    kind = f"this {type(live).__name__}"
    if is_accelerated(live):
        raise SpecError(f"{kind} is accelerated in place: asd_policy.restore it before a Policy is made of it")
    modules = [each for each in live.named_modules() if not isinstance(each[1], torch.nn.ParameterDict)]
    training = [name or "the policy" for name, module in modules if module.training]
    if training:
        raise SpecError(f"{kind} is in training mode ({training[0]}): call .eval() before a Policy is made of it")
    found = {(each.device, each.dtype) for each in live.parameters() if each.numel()}
    devices, dtypes = ({pair[index] for pair in found} for index in (0, 1))
    if len(devices) != 1 or dtypes != {torch.float32}:
        there = ", ".join(sorted(f"{dtype} on {place}" for place, dtype in found)) or "none"
        raise SpecError(f"the weights of {kind} are {there}, not torch.float32 on one device")
    (own,) = devices
    if device is not None and arrays.find_device(device) != own:
        raise SpecError(f"{kind} is on {own}: leave device out, or move the policy to {device} first")
    return own


def _schedule(parts: LiveParts) -> Schedule:
    """Read the live scheduler, and see that it steps as its configuration says.

    Raises:
        ChainError: It does not, or cannot be sampled here.
        SpecError: Somebody has overridden its step.
    """
    scheduler, options = parts.scheduler, parts.options
    config = {"_class_name": type(scheduler).__name__, **scheduler.config}
    schedule = schedule_of(config, parts.steps, options.get("eta"))
    if schedule.own is None:
        check_step(scheduler, schedule.chain, options)
    elif isinstance(schedule.own, OwnDdim):  # no scheduler of diffusers is a flow's here
        _check_plan(scheduler, schedule.own, schedule.chain, options)
    return schedule


def _check_plan(scheduler: Any, own: OwnDdim, chain: GaussianChain, options: Mapping[str, Any]) -> None:
    """Refuse a DDIM scheduler whose plan of a known network is not that of its configuration.

    Raises:
        ChainError: It is not.
        SpecError: Somebody has overridden its step.
    """
    import torch  # whose policy this is

    check_own(scheduler, SCHEDULERS, ("step", "set_timesteps"))

    def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
        return 0.6 * x + 0.3 * torch.cos(timestep.float() / 7)[:, None, None]

    shape, cpu = (1, 4, 2), torch.device("cpu")
    tape = NoiseTape.draw(shape, len(chain), arrays.make_generator(cpu, 0), cpu)
    planned = own.sample(denoise, chain, shape, None, tape).sample
    theirs, x = copy.deepcopy(scheduler), tape.initial
    theirs.set_timesteps(own.steps)
    for timestep in theirs.timesteps:
        x = theirs.step(denoise(x, timestep[None], None), timestep, x, **options).prev_sample
    if not bool(torch.allclose(planned, x, rtol=0, atol=_TOLERANCE * float(x.abs().max()))):
        raise ChainError(
            f"this {type(scheduler).__name__} does not plan as its configuration says in {own.steps} steps; use a "
            "newer diffusers, or chain='trained' on a policy with its own scheduler untouched"
        )
