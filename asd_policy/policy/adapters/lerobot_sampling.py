"""What the adapters of LeRobot's policies share: the methods in the place of a policy's own sampling.

All its diffusion policies have one loop, in a method `conditional_sample` of the object that has the noise scheduler;
they differ in names, and in what they are conditioned on.
"""

import abc
import copy
import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device, Generator
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.backends.base import Job
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.adapters.base import (
    LAST_PLAN,
    LIVE,
    WARM_UP,
    Acceleration,
    LivePlanner,
    Patch,
    alone,
    read_chain,
)
from asd_policy.policy.adapters.chunking import Chunking
from asd_policy.policy.adapters.guard import AGAIN, OwnLoop, check_sampling
from asd_policy.policy.law import CHECKPOINT
from asd_policy.samplers.records import WarmUp

if TYPE_CHECKING:
    from asd_policy.policy.adapters.flow_matching import FlowLoop
    from asd_policy.policy.adapters.networks import LiveNetwork

TESTED_LEROBOT = ("0.4.4", "0.6.1")
"""The oldest and the newest lerobot that this package is tested with."""
_PLAIN = "default"  # torch.compile's mode that changes nothing
_log = logging.getLogger(__name__)


def tested_lerobot() -> str:
    """Say which lerobot is installed, and which are tested; for messages where its parts are not as they are known."""
    try:
        installed = f"{importlib.metadata.version('lerobot')} is installed"
    except importlib.metadata.PackageNotFoundError:
        installed = "of an unknown version is loaded"
    return f"lerobot {installed}, and {TESTED_LEROBOT[0]} to {TESTED_LEROBOT[1]} are tested"


@dataclass(frozen=True, eq=False)
class LeRobotSampling(abc.ABC):
    """The methods that take the place of a policy's own; bound, so that a copied policy has copies of its own."""

    policy: Any
    planner: LivePlanner
    owner: Any
    """What `loop_of` found when a sampler took its place."""
    loop: "OwnLoop | FlowLoop"
    """Its own loop at that time."""
    own_reset: Callable[[], None]
    """The policy's own method."""
    network: "LiveNetwork"
    """What runs the policy's network."""

    known: ClassVar[tuple[str, ...]]
    """Qualified names of the policy's classes."""
    loops: ClassVar[tuple[str, ...]]
    """Those of the classes that `loop_of` finds an object of."""
    needed: ClassVar[tuple[str, ...]] = ("noise_scheduler", "num_inference_steps")
    """What that object has."""
    conditional_sample: ClassVar[Callable[..., Array]]
    """Takes the place of the method of `loop_of`, and has its arguments."""

    @staticmethod
    @abc.abstractmethod
    def loop_of(policy: Any) -> Any:
        """Find the object with `conditional_sample`, the noise scheduler and the inference steps."""

    @staticmethod
    @abc.abstractmethod
    def denoiser_of(policy: Any) -> Any:
        """Find the network that is sampled from."""

    @staticmethod
    @abc.abstractmethod
    def planning_of(policy: Any) -> tuple[Any, str]:
        """Find the object and the name of its method that encodes a batch of observations and samples plans."""

    @staticmethod
    @abc.abstractmethod
    def run_loop(policy: Any, network: Any, cond: Array) -> Array:
        """Sample by the policy's own loop, of a network in the place of its own, given conditioning [B, cond_dim]."""

    @classmethod
    def chain_and_loop(cls, policy: Any, law: str) -> "tuple[GaussianChain, OwnLoop | FlowLoop]":
        """Read the chain of a law, and look at the loop whose place a sampler is to take.

        Raises:
            ChainError, DenoiserError, SpecError: As `sampling_patches`.
        """
        owner, denoiser = cls.loop_of(policy), cls.denoiser_of(policy)
        chain = read_chain(owner.noise_scheduler, owner.num_inference_steps, {}, law)
        loop = OwnLoop(owner, cls.loops, ("conditional_sample",))
        check_float32(denoiser)
        if law == CHECKPOINT:
            _check_loop(policy, cls, chain, next(denoiser.parameters()).device)
        return chain, loop

    @arrays.uncompiled
    def sample(
        self,
        network: Any,
        shape: tuple[int, ...],
        told: str,
        cond: Array | None,
        generator: Generator | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Sample plans.

        Args:
            network: The policy's, called as `network(x, timestep, told=cond)`.
            shape: (B, horizon, action_dim).
            told: The argument by which the network is given its conditioning.
            cond: Conditioning [B, cond_dim], or None.
            generator: Source of the noise; None for torch's global one.
            noise: The start of the chain, of `shape`, in the place of a drawn one.

        Raises:
            BackendError: The backend cannot run the network, or it was changed since it was prepared.
            ChainError: The policy's noise scheduler has been changed.
            DenoiserError: Its weights are not float32; and see `LivePlanner.sample`.
            ObservationError: The noise does not fit.
            SpecError: A method that samples was replaced, or the object that has it.
        """
        self._check_owner()
        self.loop.check(self.owner)
        planner = self.planner
        check_float32(network)
        device = next(network.parameters()).device
        dims = 0 if cond is None else cond.shape[1]
        given = None if cond is None else told
        prepared = self.network.prepare(network, Job(planner.chain, shape[1:], dims, device), given)

        def denoise(x: Array, timestep: Array, cond: Array | None) -> Array:
            return network(x, timestep, **{told: cond})

        if self.network.is_another:
            planner.look_again()
        planner.runs = LIVE if prepared is None else self.network.spec
        executed = self.policy.config.n_action_steps
        plans = planner.sample(prepared or denoise, shape, executed, device, cond, generator, noise)
        setattr(self.policy, LAST_PLAN, planner.last_plan)
        return plans

    def _check_owner(self) -> None:
        """Refuse a policy whose object with the loop was replaced: what is there now has no sampler."""
        now = self.loop_of(self.policy)
        if now is not self.owner:
            raise SpecError(
                f"the {type(self.owner).__name__} of this {type(self.policy).__name__} was replaced after accelerate, "
                f"and the {type(now).__name__} there has no sampler; {AGAIN}"
            )

    def plan(self, *given: Any, **options: Any) -> Array:
        """Take the place of `planning_of` where plans have a deadline, which counts from here."""
        self.planner.begin_plan()
        owner, name = self.planning_of(self.policy)
        return getattr(type(owner), name)(owner, *given, **options)

    def plan_chunk(self, batch: dict[str, Array]) -> Array:
        """Plan for observations [B, n_obs_steps, …], as the policy's `predict_action_chunk` stacks them."""
        owner, name = self.planning_of(self.policy)
        return getattr(owner, name)(batch)

    def observe_nothing(self, robots: int) -> dict[str, Array]:
        """Make the batch that `planning_of` takes, of robots whose observations are zero."""
        config = self.policy.config
        shapes = {"observation.state": config.robot_state_feature.shape}
        if config.env_state_feature:
            shapes["observation.environment_state"] = config.env_state_feature.shape
        if config.image_features:
            images = list(config.image_features.values())
            shapes["observation.images"] = (len(images), *images[0].shape)
        like = next(self.denoiser_of(self.policy).parameters())
        return {name: like.new_zeros((robots, config.n_obs_steps, *shape)) for name, shape in shapes.items()}

    def warm_up(self, robots: int = 1, learn: int = 0, compare: bool = False) -> WarmUp:
        """Plan for robots whose observations are zero, encoders included; see `adapters.warm_up`.

        Raises:
            DenoiserError: See `LivePlanner.sample`.
            SpecError: The policy is in training mode, or the object with its loop was replaced.
        """
        from asd_policy.policy.adapters.networks import is_compiled

        self._check_owner()
        start, stats = time.perf_counter(), self.planner.stats
        calls, points = stats.trial_calls, stats.trial_points
        batch = self.observe_nothing(robots)
        device = batch["observation.state"].device
        with alone(self.policy, device):
            warm = self.planner.warm_up(lambda: self.plan_chunk(batch))
            learned = self.planner.learn(lambda: self.plan_chunk(_at_random(batch)), learn)
            if learned is not None:
                warm = replace(warm, plan_seconds=learned.seconds, spec=learned.spec)
            # A compiled network would be compiled for it, which takes minutes and is not the loop's time.
            compare = compare and not is_compiled(self.denoiser_of(self.policy))
            loop_seconds = self.time_own_loop(batch, device) if compare else None
        return replace(
            warm,
            calls=stats.trial_calls - calls,
            points=stats.trial_points - points,
            seconds=time.perf_counter() - start,
            loop_seconds=loop_seconds,
        )

    def time_own_loop(self, batch: dict[str, Array], device: Device) -> float:
        """Sample once in the policy's own loop, for a batch that `planning_of` takes; return its time [s]."""
        loop, seconds = self.loop_of(self.policy), list[float]()

        def own_loop(*given: Any, **options: Any) -> Array:
            arrays.synchronize(device)
            start = time.perf_counter()
            plans = type(loop).conditional_sample(loop, *given, **options)
            arrays.synchronize(device)
            seconds.append(time.perf_counter() - start)
            return plans

        replaced = vars(loop)["conditional_sample"]
        loop.conditional_sample = own_loop
        try:
            self.plan_chunk(batch)
        finally:
            loop.conditional_sample = replaced
        self.planner.stats.try_out(self.loop.steps, self.loop.steps * len(batch["observation.state"]))
        return seconds[0]

    def reset(self) -> None:
        """Begin an episode.

        Raises:
            SpecError: The object with the policy's loop was replaced.
        """
        self._check_owner()
        self.own_reset()
        self.planner.begin_episode()
        setattr(self.policy, LAST_PLAN, None)


def sampling_patches(policy: Any, wanted: Acceleration, kind: type[LeRobotSampling], module: Any) -> list[Patch]:
    """List what makes a policy of LeRobot's plan with a sampler, as `Adapter.patches`; its methods are checked already.

    Args:
        policy: The live one.
        wanted: How it is to plan.
        kind: The methods that take the place of its own.
        module: By whose weights measured times are kept.

    Raises:
        BackendError: The backend cannot run its network.
        ChainError: Its noise scheduler has no exact acceleration, or does not do what its configuration says.
        DenoiserError: Its network's weights are not float32.
        SpecError: The sampler's options do not fit the chain, or somebody has overridden a step of the scheduler's.
    """
    from asd_policy.policy.adapters.networks import LiveNetwork

    owner, denoiser = parts_of(policy, kind)
    chain, loop = kind.chain_and_loop(policy, wanted.chain)
    planner = LivePlanner(wanted.sampler, chain, module, wanted.deadline_ms)
    network = LiveNetwork(wanted.backend)
    network.prepare_ahead(denoiser, chain, policy.config.horizon)
    mode = getattr(policy.config, "compile_mode", _PLAIN)
    if mode != _PLAIN and network.compiles(denoiser):
        _log.info(
            "the compiled network of this %s policy is compiled anew, for calls of any size and without mode=%r, which "
            "is for calls of one size",
            policy.name, mode,
        )  # fmt: skip
    sampling = kind(policy, planner, owner, loop, policy.reset, network)
    timed = [] if wanted.deadline_ms is None else [Patch(*kind.planning_of(policy), sampling.plan)]
    return [
        Patch(owner, "conditional_sample", sampling.conditional_sample),
        Patch(policy, "reset", sampling.reset),
        Patch(policy, "asd_stats", planner.stats),
        Patch(policy, LAST_PLAN, None),
        Patch(policy, WARM_UP, sampling.warm_up),
        *Chunking.patches(policy, kind.known, planner, sampling.plan_chunk, sampling.observe_nothing),
        *timed,
    ]


def parts_of(policy: Any, kind: type[LeRobotSampling]) -> tuple[Any, Any]:
    """Find the object with a policy's loop, and its network.

    Raises:
        SpecError: The policy's parts are not those of the versions that are known.
    """
    try:
        owner, denoiser = kind.loop_of(policy), kind.denoiser_of(policy)
        missing = [name for name in kind.needed if not hasattr(owner, name)]
    except AttributeError as error:
        raise SpecError(f"cannot accelerate this {type(policy).__name__}: {error}; {tested_lerobot()}") from None
    if missing:
        raise SpecError(
            f"cannot accelerate this {type(policy).__name__}: its {type(owner).__name__} has no "
            f"{' and no '.join(missing)}; {tested_lerobot()}"
        )
    return owner, denoiser


def _check_loop(policy: Any, kind: type[LeRobotSampling], chain: GaussianChain, device: Device) -> None:
    """Refuse a policy whose loop is not the one that is known, as another version's may be.

    Raises:
        SpecError: Of a known network it makes another plan.
    """
    import torch  # whose policy this is

    def own(denoise: Denoiser, cond: Array) -> Array:
        with torch.autocast(device.type, enabled=False):
            return kind.run_loop(policy, known_network(denoise, device), cond)

    config = policy.config
    shape = (2, config.horizon, config.action_feature.shape[0])
    check_sampling(own, chain, shape, device, who_of(policy))


def who_of(policy: Any) -> str:
    """Begin a message on a policy whose loop is not the known one."""
    return f"cannot accelerate a {type(policy).__name__} ({tested_lerobot()})"


def known_network(denoise: Denoiser, device: Device) -> Any:
    """Make a module of a denoiser that is known, to be called in the place of a policy's network."""
    import torch  # whose policy this is

    class Known(torch.nn.Module):
        """A known network."""

        def __init__(self) -> None:
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(1, device=device), requires_grad=False)

        def forward(self, x: Array, timestep: Array, global_cond: Any = None, conditioning_vec: Any = None) -> Array:
            """Predict."""
            return denoise(x, timestep, conditioning_vec if global_cond is None else global_cond)

    return Known()


def twin_of(owner: Any, **parts: Any) -> Any:
    """Make a module that has another's attributes and methods, a copy of its noise scheduler, and given parts."""
    twin = object.__new__(type(owner))
    vars(twin).update(vars(owner), _modules=parts)
    vars(twin)["noise_scheduler"] = copy.deepcopy(owner.noise_scheduler)
    return twin


def _at_random(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Make a batch of one robot like another, whose observations are uniform in [-1, 1]; what are no floats stays."""
    import torch  # whose policy this is

    return {
        name: 2 * torch.rand_like(values[:1]) - 1 if torch.is_floating_point(values) else values[:1]
        for name, values in batch.items()
    }


def check_float32(network: Any) -> None:
    """Refuse a network in whose precision LeRobot rounds the chain itself, which then is no chain of Gaussian steps."""
    dtypes = {str(each.dtype).removeprefix("torch.") for each in network.parameters()}
    if dtypes != {"float32"}:
        raise DenoiserError(
            f"the weights of the policy's {type(network).__name__} are {' and '.join(sorted(dtypes)) or 'none'}, and "
            "LeRobot rounds each step of its plans to that; a sampler computes them in float32: call .float() on the "
            "policy, and autocast for speed"
        )
