"""Policies that are accelerated: this package's own, and live objects of other libraries, in place."""

import inspect
from typing import Any, TypeVar, overload

from asd_policy.errors import SpecError
from asd_policy.networks.backends import make_backend
from asd_policy.policy.adapters import diffusion_policy, lerobot, multi_task_dit
from asd_policy.policy.adapters.base import WARM_UP, Acceleration, Adapter, Patch, qualified
from asd_policy.policy.law import CHECKPOINT, check_chain
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.deadline import JUMP, check_deadline
from asd_policy.samplers.records import WarmUp

P = TypeVar("P")

ADAPTERS: dict[str, Adapter] = {
    "LeRobot's DiffusionPolicy": lerobot.ADAPTER,
    "LeRobot's MultiTaskDiTPolicy": multi_task_dit.ADAPTER,
    "diffusion_policy's U-Net policies": diffusion_policy.UNET_ADAPTER,
    "diffusion_policy's transformer policies": diffusion_policy.TRANSFORMER_ADAPTER,
    "DP3's policies": diffusion_policy.DP3_ADAPTER,
}
"""Every adapter by the name of its policies in messages."""

_UNDO = "_asd_undo"  # on an accelerated object: its patches, each with the one that brings back what was there before
_ABSENT = ...  # the value of an attribute to remove; the same object after a copy or a pickle


@overload
def accelerate(
    policy: Policy,
    spec: str | Sampler = "asd",
    backend: str | None = None,
    deadline_ms: float | None = None,
    chain: str | None = None,
) -> Policy: ...
@overload
def accelerate(
    policy: P,
    spec: str | Sampler = "asd",
    backend: str | None = None,
    deadline_ms: float | None = None,
    chain: str | None = None,
) -> P: ...
def accelerate(
    policy: Any,
    spec: str | Sampler = "asd",
    backend: str | None = None,
    deadline_ms: float | None = None,
    chain: str | None = None,
) -> Any:
    """Make a policy plan with another sampler.

    A live network of an architecture that this package knows is run by the package's code, on the network's own
    weights: its conditioning is then encoded once per plan, and every backend can run it. So far these are LeRobot's
    U-Net and DiT, and the U-Net without local conditioning and the transformer of diffusion_policy. Any other network
    runs through its own forward. Weights that change later are followed on torch-eager; elsewhere the next plan says in
    one line that the policy has to be accelerated again.

    Args:
        policy: A `Policy` from `load_policy`, or a live object of a class in `ADAPTERS`.
        spec: A sampler spec such as `asd:window=16`, or a sampler.
        backend: Spec of what runs the network, such as `torch-compile` or `onnx:provider=cpu`. None for torch-eager,
            of a `Policy` for the one that it has.
        deadline_ms: When plans have to be there, from their begin [ms], encoding included; those that would not be at
            their end jump, as by `Policy.with_deadline`. None for no matter when, of a `Policy` for its own deadline.
        chain: "checkpoint" for the law of the policy's own scheduler, "trained" for that of the DDPM chain of all steps
            that its network was trained for, where its scheduler is another one, such as DDIM. None for the first, of
            a `Policy` for its own.

    Returns:
        Of a `Policy` another one; the one given stays as it is. Of a live object the same, changed in place, with
        its plans' cost in `asd_stats`, until `restore`; one that is accelerated already begins anew. `warm_up` does
        what its first plan would wait for.

    Raises:
        BackendError: The backend cannot run here, or not this network.
        DenoiserError: The network is not one that can be sampled from, see `Policy.check`; a live object, which first
            has to see an observation, raises it when it makes its first plan.
        ChainError: The policy's noise scheduler has no exact acceleration.
        SpecError: The spec does not exist or does not fit the policy's chain, the object is no policy known here, or
            the method that samples is not its library's own.
    """
    sampler, runs = make_sampler(spec), None if backend is None else make_backend(backend)
    check_deadline(deadline_ms, JUMP)
    check_chain(chain or CHECKPOINT)
    if isinstance(policy, Policy):
        accelerated = policy.with_sampler(sampler) if chain is None else policy.with_chain(chain, sampler)
        if runs is not None:
            accelerated = accelerated.with_backend(runs)
        if deadline_ms is not None:
            accelerated = accelerated.with_deadline(deadline_ms)
        accelerated.check()
        return accelerated
    adapter = find_adapter(policy)
    if is_accelerated(policy):
        restore(policy)
    patches = adapter.patches(policy, Acceleration(sampler, runs, deadline_ms, chain or CHECKPOINT))
    setattr(policy, _UNDO, [(patch, _apply(patch)) for patch in patches])
    return policy


def restore(policy: P) -> P:
    """Give an accelerated live object its own sampling back, and return it.

    Raises:
        SpecError: It is not accelerated, or somebody has put another method in the place of the sampler's since.
    """
    if not is_accelerated(policy):
        raise SpecError(
            f"this {type(policy).__name__} is not accelerated"
            + ("; accelerate returned another Policy and left it as it is" if isinstance(policy, Policy) else "")
        )
    patches: list[tuple[Patch, Patch]] = getattr(policy, _UNDO)
    for patch, _ in patches:
        if callable(patch.value) and vars(patch.owner).get(patch.name) != patch.value:
            raise SpecError(
                f"{patch.name} of this {type(patch.owner).__name__} was changed after accelerate, and what it is now "
                "would be lost: take that back first"
            )
    for _, before in patches:
        _apply(before)
    delattr(policy, _UNDO)
    return policy


def warm_up(
    policy: Any,
    robots: int | None = None,
    observation: Any = None,
    learn: int | None = None,
    compare: bool | None = None,
) -> WarmUp:
    """Do before the first observation what the first plan would wait for: look at the network, time it, compile.

    Nothing is learned, if it is not asked for, and no plan that follows is another one for it, but for the setting that
    measured times choose. Those of a live object are kept in the user's cache, and found there by its weights.

    Args:
        policy: A `Policy`, or a live object that is accelerated.
        robots: How many it will plan for together; None for one.
        observation: For policies of diffusion_policy, in the place of a number of robots: what their `predict_action`
            takes, zeros for example. The others know what they observe.
        learn: For policies of LeRobot: learn from so many plans at random observations, with a noise that no other plan
            meets, for ten seconds at most, and keep in the user's cache what they teach. None for 0.
        compare: For policies of LeRobot: also time its own loop, see `WarmUp.loop_seconds`.

    Raises:
        DenoiserError: The network is not one that can be sampled from.
        SpecError: The object is not accelerated, or is in training mode; or an observation is given to one that needs
            none, or none to one that does.
    """
    if not isinstance(policy, Policy) and not is_accelerated(policy):
        raise SpecError(f"this {type(policy).__name__} is not accelerated: it has nothing to warm up")
    method = policy.warm_up if isinstance(policy, Policy) else getattr(policy, WARM_UP)
    given = {"robots": robots, "observation": observation, "learn": learn, "compare": compare}
    named = {name: value for name, value in given.items() if value is not None}
    wanted = inspect.signature(method)
    try:
        wanted.bind(**named)
    except TypeError:
        takes, not_ = ", ".join(wanted.parameters), ", ".join(named) or "nothing"
        raise SpecError(f"the warm-up of a {type(policy).__name__} takes {takes}, not {not_}") from None
    return method(**named)


def is_accelerated(policy: Any) -> bool:
    """Tell whether a live object plans with a sampler of this package."""
    return hasattr(policy, _UNDO)


def _apply(patch: Patch) -> Patch:
    """Set an instance's attribute, or remove it; return the patch that undoes this."""
    before = vars(patch.owner).get(patch.name, _ABSENT)
    if patch.value is _ABSENT:
        delattr(patch.owner, patch.name)
    else:
        setattr(patch.owner, patch.name, patch.value)
    return Patch(patch.owner, patch.name, before)


def find_adapter(policy: Any, wish: str = "accelerate") -> Adapter:
    """Find the adapter of a live object by its class.

    Args:
        policy: The object.
        wish: What cannot be done without, for the message.

    Raises:
        SpecError: There is none.
    """
    names = [qualified(cls) for cls in type(policy).__mro__]
    for adapter in ADAPTERS.values():
        if any(name in adapter.classes for name in names):
            return adapter
    raise SpecError(
        f"cannot {wish} a {type(policy).__name__}; what can be accelerated: a Policy (from load_policy), "
        f"{', '.join(ADAPTERS)}"
    )
