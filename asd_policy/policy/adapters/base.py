"""What every adapter shares: patches that can be undone, and the planner that stands in for a policy's own loop."""

import copy
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import Generators, NoiseTape
from asd_policy.chain.scheduler_options import configuration, trained_configuration
from asd_policy.errors import ChainError, ObservationError, SpecError
from asd_policy.networks.backends.base import Backend
from asd_policy.networks.denoiser import Denoiser, check_on_noise
from asd_policy.policy.adapters.memory import Memory
from asd_policy.policy.law import CHECKPOINT, TRAINED, stochastic_of
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.plan import Horizons, PlanRecord, record_of
from asd_policy.policy.sensors import ObservationEncoder
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.deadline import JUMP, Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import SpeculationStats, WarmUp
from asd_policy.samplers.warm_start import WarmStart, move_on

WARM_UP = "asd_warm_up"
"""On an accelerated object: its method that does what a first plan would wait for."""
LAST_PLAN = "last_plan"
"""On an accelerated object: what its latest plan cost, as of a `Policy`."""
SCHEDULERS = (
    "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
)
STEP_METHODS = ("step", "set_timesteps", "_get_variance", "_threshold_sample")
"""Methods of a noise scheduler that a loop calls, and those that they call. Another one is `previous_timestep`, which
differs between versions, in whole timesteps: `check_step` sees that."""
LIVE = "live"
"""In the place of a backend's spec, where a library runs its network itself."""
_LATEST = 4096
_LEARNING_SECONDS = 10.0
_WARM_UP_SEED = 0x6E6F6973655F6F77  # of plans for nobody; a seed that no user is likely to give
_TOLERANCE = 0.01  # older versions of diffusers round the last steps' coefficients otherwise, by one in a thousand


@dataclass(frozen=True, eq=False)
class Patch:
    """An attribute to set on an instance; its class is left alone."""

    owner: Any
    name: str
    value: Any


def check_own(owner: Any, known: Sequence[str], methods: Sequence[str], patched: Sequence[str] = ()) -> None:
    """Refuse an object whose methods are not those of a known class: what they do would be lost without a word.

    Args:
        owner: The object whose methods a sampler takes the place of, or is reached by.
        known: Qualified names of classes.
        methods: Names of their methods; what a class does not have is not looked at.
        patched: Those that the object itself has, because a sampler is in their place.

    Raises:
        SpecError: The object is of none of the classes, or one of the methods is another one: an attribute of the
            object, of a subclass, or of the class itself, put there by somebody else.
    """
    cls = next((each for each in type(owner).__mro__ if qualified(each) in known), None)
    if cls is None:
        raise SpecError(f"cannot accelerate a {qualified(type(owner))}, which is no {' or '.join(known)}")
    for name in methods:
        if not hasattr(cls, name):
            continue
        defining = next(each for each in type(owner).__mro__ if name in vars(each))
        if name in vars(owner) and name not in patched:
            how = "the object has an attribute of that name"
        elif getattr(type(owner), name) is not getattr(cls, name):
            how = f"{qualified(defining)} overrides it"
        elif by := _replaced_by(vars(defining)[name], defining.__module__):
            how = f"it was replaced in the class, by {by}"
        else:
            continue
        raise SpecError(
            f"{name} of this {type(owner).__name__} is not {qualified(cls)}'s own: {how}, and a sampler in its place "
            "would not do what it does"
        )


def _replaced_by(function: Any, module: str) -> str | None:
    """Name what is in the place of a function that a module wrote; None where that is the function itself.

    A decorator may have given it the function's own name, but not the function's globals. PyTorch's decorators, such as
    `no_grad`, stay with what they decorate.
    """
    if function.__module__ != module:
        return qualified(function)
    while module in sys.modules and isinstance(function, FunctionType):  # played by a stand-in where it is not
        written = function.__globals__.get("__name__", "")
        if written != module and not (written.startswith("torch.") and hasattr(function, "__wrapped__")):
            return f"{written}.{function.__code__.co_qualname}"
        function = getattr(function, "__wrapped__", None)
    return None


def read_chain(
    scheduler: Any, num_inference_steps: int, options: Mapping[str, Any], law: str = CHECKPOINT
) -> GaussianChain:
    """Read the chain of a live policy's scheduler, and see that it steps as its configuration says.

    Args:
        scheduler: The policy's own.
        num_inference_steps: The policy's.
        options: What its step is given by the policy, such as eta.
        law: One of `CHAINS`; `TRAINED` for the DDPM chain of all the steps that the network was trained for.

    Raises:
        ChainError: It has none, or does not step so.
        SpecError: Somebody has overridden its step.
    """
    if stochastic_of(law) is not None:
        raise ChainError(
            f"chain {law!r} is a flow's, and this policy has a {type(scheduler).__name__}: use checkpoint or trained"
        )
    check_own(scheduler, SCHEDULERS, STEP_METHODS)
    if law == TRAINED:
        config = configuration({"_class_name": type(scheduler).__name__, **scheduler.config})
        is_ddim = config["_class_name"] == "DDIMScheduler"
        return GaussianChain.from_scheduler(trained_configuration(config) if is_ddim else config)
    eta = options.get("eta")
    if type(scheduler).__name__ == "DDIMScheduler" and not eta:
        raise ChainError(
            "DDIMScheduler with eta=0 adds no noise, so a live policy with it has no exact acceleration in place; "
            "asd_policy.accelerate(policy, chain='trained') samples the DDPM chain that its network was trained for"
        )
    chain = GaussianChain.from_scheduler(scheduler, num_inference_steps, eta)
    check_step(scheduler, chain, options)
    return chain


def check_step(scheduler: Any, chain: GaussianChain, options: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose own steps are not those of the chain that its configuration describes.

    diffusion_policy pins diffusers 0.11, whose DDPMScheduler steps to timestep t − 1 even where it leaves some out.

    Args:
        scheduler: The policy's.
        chain: Read from its configuration.
        options: What its step is given by the policy.

    Raises:
        ChainError: A step is another one.
        SpecError: Somebody has overridden it.
    """
    check_own(scheduler, SCHEDULERS, STEP_METHODS)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(len(chain))
    import torch  # whose policy this is

    cpu = torch.device("cpu")
    sizes = arrays.asarray([1.0, 30.0], cpu, "float32")[:, None, None]  # what clips shows at one of them
    x, output = sizes * arrays.normals((2, 1, 4, 2), arrays.make_generator(cpu, 0), cpu)
    tables = chain.tables(x.device, x.dtype)
    same = [int(timestep) for timestep in own.timesteps] == chain.timesteps.tolist()
    for k, timestep in enumerate(chain.timesteps.tolist() if same else []):
        expected = own.step(output, timestep, x, generator=arrays.make_generator(cpu, k), **options).prev_sample
        noise = arrays.normals(x.shape, arrays.make_generator(cpu, k), cpu)
        x0_pred = chain.predict(x, output, arrays.asarray([k, k], cpu))
        step = transition(tables.a[k], x0_pred, tables.sigma[k], noise, tables.b[k], x)
        same = same and bool(torch.allclose(step / sizes, expected / sizes, rtol=_TOLERANCE, atol=_TOLERANCE))
    if not same:
        raise ChainError(
            f"this {type(scheduler).__name__} does not step as its configuration says in {len(chain)} of "
            f"{chain.config['num_train_timesteps']} timesteps; use a newer diffusers, or as many inference steps as "
            "training timesteps"
        )


def qualified(named: Any) -> str:
    """Name a class `module.Class`, a function `module.Class.function`; what has no name by its type."""
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"


@contextmanager
def alone(policy: Any, device: Device) -> Iterator[None]:
    """Plan for nobody: without gradients, and with random numbers that the policy's own do not depend on.

    Raises:
        SpecError: The policy is in training mode, in which a plan leaves traces.
    """
    if policy.training:
        raise SpecError(f"this {type(policy).__name__} is in training mode: call .eval() before a warm-up")
    import torch  # whose policy this is

    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(_WARM_UP_SEED)
        yield


@dataclass(frozen=True)
class Acceleration:
    """How a live policy is to plan."""

    sampler: Sampler
    """What takes the place of its loop."""
    backend: Backend | None = None
    """What runs its network; None for torch-eager where the architecture is known, else the network's own forward."""
    deadline_ms: float | None = None
    """When plans have to be there, from their begin [ms]; None for no matter when."""
    chain: str = CHECKPOINT
    """Whose law plans have: one of `CHAINS`."""


@dataclass(frozen=True)
class LiveParts:
    """What a `Policy` of a live one is made of."""

    network: Denoiser
    """On the live network's own weights."""
    encoder: ObservationEncoder
    """The library's own, or what computes the same."""
    action: Affine
    """Normalisation of the action."""
    horizons: Horizons
    """Of observation, plan and execution."""
    scheduler: Any
    """The live noise scheduler."""
    steps: int
    """Its inference steps."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its step is given by the policy, such as eta."""


@dataclass(frozen=True)
class Adapter:
    """A library's policies that can be accelerated in place."""

    classes: tuple[str, ...]
    """Their qualified names, `module.Class`; subclasses are known too. Nothing is imported to find out."""
    patches: Callable[[Any, Acceleration], list[Patch]]
    """Returns what makes a policy plan so, changing nothing; `asd_stats`, `LAST_PLAN` and `WARM_UP` are of the names.

    Raises BackendError, ChainError or SpecError where the policy does not fit.
    """
    parts: Callable[[Any, Any], LiveParts] | None = None
    """Returns what a policy is made of, given LeRobot's processors or None. Raises SpecError where it is not known."""


@dataclass
class AsdStats:
    """What the plans of an accelerated policy cost; a batch of B rows is B plans."""

    last: SpeculationStats | None = None
    """Of the latest call: `rounds` and `nfe` of each row, `seconds`. The time is that of sampling the actions, encoding
    the observations is not in it."""
    plans: int = 0
    """Plans so far."""
    steps: int = 0
    """Steps of the sequential chain that they stand for."""
    rounds: int = 0
    """Sequential network calls that they waited for."""
    nfe: int = 0
    """Network evaluations (points) computed for them."""
    seconds: float = 0.0
    """Time spent sampling [s]; the rows of a batch share theirs."""
    latest: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_LATEST))
    """Rows and seconds of the latest calls, at most 4,096."""
    trial_calls: int = 0
    """Network calls for no plan that was executed: those of warm-ups, and those that look at the network, time it or
    record it during a plan where no warm-up has."""
    trial_points: int = 0
    """Points that these evaluated."""

    @property
    def algorithmic_speedup(self) -> float:
        """Steps over rounds."""
        return self.steps / self.rounds

    def add(self, stats: SpeculationStats) -> None:
        """Count one call."""
        self.last = stats
        self.plans += len(stats.rounds)
        self.steps += stats.steps * len(stats.rounds)
        self.rounds += sum(stats.rounds)
        self.nfe += sum(stats.nfe)
        self.seconds += stats.seconds
        self.latest.append((len(stats.rounds), stats.seconds))
        self.try_out(stats.trial_calls, stats.trial_points)

    def try_out(self, calls: int, points: int) -> None:
        """Count network calls that no plan needed, and their points."""
        self.trial_calls += calls
        self.trial_points += points


class LivePlanner:
    """A sampler, and what it remembers from plan to plan of one policy."""

    def __init__(
        self, sampler: Sampler, chain: GaussianChain, module: Any = None, deadline_ms: float | None = None
    ) -> None:
        """Put a sampler in the place of the loop over a chain.

        Args:
            sampler: How to plan.
            chain: The loop's.
            module: A module of PyTorch's by whose weights measured times are kept in the user's cache; None keeps none.
            deadline_ms: When plans have to be there, as `Budget.deadline_ms`; what is not at its end by then jumps.

        Raises:
            SpecError: The sampler's options do not fit the chain.
        """
        sampler.check(chain)
        first = None if module is None else next(module.parameters(), None)
        if first is not None:
            sampler.prepare(first.device)
        self.sampler = sampler
        self.chain = chain
        self.experience = Experience()
        self.stats = AsdStats()
        self.runs = LIVE
        """Spec of the backend that runs the network, or that its library does; measured times are of it."""
        self._module = module
        self._deadline_ms = deadline_ms
        self._began: float | None = None  # when the plan under way began, where that is before `sample`
        self.last_plan: PlanRecord | None = None
        """What the latest plan of the first row cost; None before the first of an episode."""
        self._step = 0  # control steps of the episode that its plans are for
        self.last_sample: Array | None = None
        """The last batch of plans [B, horizon, action_dim], as they were made; None before the first of an episode."""
        self._moved = 0  # control steps from the last plans to the next
        self._committed: tuple[Array, Array] | None = None  # mask and values of what the plan under way is given
        self._looked = False  # whether the network is known to be one that can be sampled from
        self._memory: Memory | None = None  # once the network was looked at
        self._warming: list[SpeculationStats] | None = None  # of the plans of a warm-up under way

    @arrays.uncompiled
    def begin_plan(self) -> None:
        """Count the time of the next plan from now on; else it begins with `sample`."""
        self._began = time.perf_counter()

    def look_again(self) -> None:
        """See at the next plan whether the network, which is another one, can be sampled from."""
        self._looked = False

    def begin_episode(self) -> None:
        """Forget the last plans; experience and statistics stay, and times that were measured since are kept."""
        self.last_sample = self.last_plan = None
        self._step = 0
        if self._memory is not None:
            self._memory.save(self.experience)

    @contextmanager
    def committed(self, mask: Array, values: Array, moved: int | None = None) -> Iterator[None]:
        """Give the plans made meanwhile coordinates that are committed; their law is that of the others, given them.

        Args:
            mask: Where they are, [B, horizon, action_dim].
            values: What they are, of the same shape.
            moved: Control steps since the last plan, where they are not as many as it was made for.
        """
        self._committed = (mask, values) if bool(mask.any()) else None
        self._moved = self._moved if moved is None else moved
        try:
            yield
        finally:
            self._committed = None

    def warm_up(self, plan: Callable[[], object]) -> WarmUp:
        """Do what a first plan would wait for; the plans made for it are none of the policy's, and teach nothing.

        Args:
            plan: Makes the library plan once, through `sample`, with a noise of its own.

        Raises:
            DenoiserError: As `sample`.
        """
        start, before = time.perf_counter(), (self.stats.trial_calls, self.stats.trial_points)
        with self._apart() as made, self.experience.paused():
            while self.experience.lacks(made):
                plan()
        self.begin_episode()
        stats = made[-1]
        calls, points = self.stats.trial_calls - before[0], self.stats.trial_points - before[1]
        return WarmUp(calls, points, time.perf_counter() - start, stats.seconds, stats.spec)

    def learn(self, plan: Callable[[], object], plans: int) -> SpeculationStats | None:
        """Learn from plans that are none of the policy's, choose by what they cost, and keep both.

        Only before the policy's first plan: what that has taught must not be kept, see `Memory`.

        Args:
            plan: Makes the library plan once, through `sample`, with a noise that no other plan meets.
            plans: How many teach enough, earlier ones included; 0 for none. There are fewer where they take longer
                than `_LEARNING_SECONDS`, and more while settings are tried.

        Returns:
            What a last plan cost, with what was chosen; None where there was nothing to learn.

        Raises:
            DenoiserError: As `sample`.
        """
        enough = self.experience.plans >= plans and not self.experience.undecided
        if not plans or not self.sampler.learns or self._memory is None or self.stats.plans or enough:
            return None
        began, experience, before = time.perf_counter(), self.experience, -1
        with self._apart() as made:
            # A plan of one point a round has nothing to teach.
            while (before < experience.plans < plans) or experience.undecided:
                before = experience.plans
                plan()
                if time.perf_counter() - began > _LEARNING_SECONDS:
                    break
            with experience.paused(trying=False):
                plan()
        self._memory.keep(experience)
        return made[-1]

    @contextmanager
    def _apart(self) -> Iterator[list[SpeculationStats]]:
        """Yield the list that takes what plans cost in a context: they are none of the policy's, nor follow on any."""
        last, self.last_sample = self.last_sample, None
        made = self._warming = list[SpeculationStats]()
        try:
            yield made
        finally:
            self.last_sample, self._warming = last, None

    @arrays.uncompiled
    def sample(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        executed: int,
        device: Device,
        cond: Array | None = None,
        generator: Generators = None,
        noise: Array | None = None,
        inpainting: Inpainting | None = None,
    ) -> Array:
        """Sample a batch of plans. The first call looks whether the network is one that can be sampled from.

        Args:
            denoiser: The policy's network.
            shape: (B, horizon, action_dim).
            executed: Actions that will be executed before the next plan.
            device: The policy's.
            cond: Conditioning [B, …], or None.
            generator: Source of the noise; None for torch's global one.
            noise: The start of the chain, of `shape`, in the place of a drawn one.
            inpainting: Coordinates that are given, not sampled.

        Returns:
            Plans of `shape`, float32.

        Raises:
            DenoiserError: The network is random, depends on the other rows of a batch, or its output is not finite.
            ObservationError: The noise is not of `shape`.
            SpecError: The deadline is shorter than one network call, or no deadline can cut the sampler here.
        """
        began, self._began = self._began or time.perf_counter(), None
        calls, points = self._look(denoiser, shape, cond, device)
        if noise is not None:
            if tuple(noise.shape) != shape:
                raise ObservationError(f"the noise has shape {tuple(noise.shape)}, the plans {shape}")
            noise = arrays.asarray(noise, device, "float32")
        tape = NoiseTape.draw(shape, len(self.chain), generator, device, initial=noise)
        if self._committed is not None:
            given = Inpainting.noised(*self._committed, self.chain, tape)
            inpainting = given if inpainting is None else given.beside(inpainting)
        last = self.last_sample
        if last is not None and tuple(last.shape) != shape:
            last = None  # another number of robots: these are not their plans
        options: dict[str, Any] = {
            "inpainting": inpainting,
            "warm_start": WarmStart(None if last is None else move_on(last, self._moved), self.experience),
            "budget": Budget(self._deadline_ms, JUMP, began),
        }
        result = self.sampler.sample(denoiser, self.chain, shape, cond, tape, **options)
        stats = result.stats.with_trials(calls, points)
        if self._warming is None:
            self.last_sample, self._moved = result.sample, executed
            self.last_plan = record_of(stats, 0, self._step, stats.seconds)
            self._step += executed
            self.stats.add(stats)
        else:
            self._warming.append(stats)
            self.stats.try_out(stats.all_calls, stats.all_points)
        return result.sample

    def _look(self, denoiser: Denoiser, shape: tuple[int, ...], cond: Array | None, device: Device) -> tuple[int, int]:
        """Look once whether the network can be sampled from, and recall it; return calls and points of that.

        A policy that was moved to another device is looked at anew: the times of the one say nothing of the other.
        """
        moved = self._memory is not None and self._memory.device != device
        if self._looked and not moved:
            return 0, 0
        if moved:
            self.experience = self.experience.without_times()
        calls, points = check_on_noise(denoiser, self.chain.timesteps, shape[1:], cond, device)
        self._looked = True
        if self._memory is None or moved:
            kept = self._module if self.sampler.learns else None
            self._memory = Memory.of(kept, self.chain, shape[1:], device, self.runs)
            self._memory.load(self.experience)
        return calls, points
