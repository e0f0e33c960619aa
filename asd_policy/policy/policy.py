"""A diffusion policy in closed loop: observation history, normalisation, planning, action queue."""

import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.border import finite
from asd_policy._common.clock import Stopwatch
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import Chain
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.backends.base import Backend, Job
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.networks.denoiser import Denoiser, check_on_noise
from asd_policy.policy.continuity import CONTINUITIES, Prefix, overlay, prefix_of
from asd_policy.policy.episode_state import EpisodeState, conditioning, together
from asd_policy.policy.law import Law
from asd_policy.policy.normalisation import Affine
from asd_policy.policy.observation import Shapes, describe_shapes, given_by, read_observation
from asd_policy.policy.plan import Horizons, Plan, PlanRecord
from asd_policy.policy.sensors import ObservationEncoder, SensorEncoder, at_rest
from asd_policy.samplers import Sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.compiled import all_finite
from asd_policy.samplers.deadline import Budget, check_deadline
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import WarmUp
from asd_policy.samplers.warm_start import WarmStart, move_on


class Policy:
    """A diffusion policy and the sampler it plans with.

    `select_action` controls one robot, and keeps history and queue; `reset_batch`, `observe` and `act` do the same for
    several, planned for together. `plan` is stateless and batched.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        chain: Chain,
        sampler: Sampler,
        horizons: Horizons,
        observation: ObservationEncoder | Mapping[str, Affine],
        action: Affine,
        device: Device,
        backend: Backend | None = None,
    ) -> None:
        """Put a policy together; `load_policy` does it from a checkpoint.

        Args:
            denoiser: The network, on `device`.
            chain: Its noise schedule; or, for one that predicts tokens, these.
            sampler: How to plan.
            horizons: Of observation, plan and execution.
            observation: The encoder; or, for a network that is conditioned on states, the normalisation of each
                observation feature, in the order the network reads them.
            action: Normalisation of the action.
            device: Where to plan.
            backend: What runs the network; None for PyTorch, operation by operation.

        Raises:
            BackendError: The backend cannot run here, or not this network.
            SpecError: The sampler's options do not fit the chain.
        """
        sampler.fit(chain)
        sampler.prepare(device)
        self.network = denoiser
        """As loaded."""
        self.law = Law(chain)
        """Whose law plans have."""
        self.sampler = sampler
        self.horizons = horizons
        self.device = device
        self.deadline_ms: float | None = None
        """When plans have to be there, from their begin [ms]; None for no matter when."""
        self.fallback = "jump"
        """How plans are finished that are not at their end by then."""
        self.experience = Experience()
        """What this policy's plans have taught; the law of a plan does not depend on it, its cost does."""
        encoder = SensorEncoder(observation) if isinstance(observation, Mapping) else observation
        self.encoder = encoder.to(device)
        """Makes conditioning of observations."""
        self._action = action.to(device)
        self.generator = arrays.make_generator(device)
        """Source of the noise of `select_action`."""
        self._run_on(backend or TorchEager())
        self.reset()

    def __repr__(self) -> str:
        steps = self.horizons
        deadline = "" if self.deadline_ms is None else f", deadline {self.deadline_ms:g} ms by {self.fallback}"
        return (
            f"Policy({describe_shapes(self.observation_shapes)} → action ({self.action_dim},); n_obs_steps "
            f"{steps.n_obs_steps}, horizon {steps.horizon}, n_action_steps {steps.n_action_steps}; "
            f"{self.sampler.spec} of {self.steps} steps{deadline}; {self.backend.spec} on {self.device})"
        )

    @property
    def observation_dims(self) -> dict[str, int]:
        """Length of each observation feature that is a vector; cameras are in `observation_shapes` alone."""
        return {name: shape[0] for name, shape in self.observation_shapes.items() if len(shape) == 1}

    @property
    def observation_shapes(self) -> Shapes:
        """Shape of each observation feature: (n,) for a vector, (3, height, width) for a camera's frame."""
        return self.encoder.shapes

    @property
    def inpaints(self) -> bool:
        """Whether the network generates observations beside the actions; see `ObservationEncoder`."""
        return self.encoder.inpaints

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return self._action.origin.shape[0]

    @property
    def normalization(self) -> dict[str, Affine]:
        """The map of each observation feature by its name, of a camera for its colours; of the action as "action"."""
        return {**self.encoder.normalization, "action": self._action}

    @property
    def event(self) -> tuple[int, int]:
        """Shape of one sample: horizon and numbers for each of its steps."""
        dims = sum(self.encoder.sizes.values()) if self.inpaints else 0
        return self.horizons.horizon, self.action_dim + dims

    @property
    def job(self) -> Job:
        """What the network is called for."""
        tokens = self.law.tokens
        point = self.event if tokens is None else (len(tokens), tokens.alphabet)
        return Job(self.law.chain, point, self.cond_dim, self.device)

    @property
    def cond_dim(self) -> int:
        """Numbers of the conditioning of one plan."""
        return self.encoder.cond_dim(self.horizons.n_obs_steps)

    def inpainting(self, cond: Array) -> Inpainting | None:
        """Give the coordinates of samples that observations [B, n_obs_steps · feature dims], normalised, determine."""
        if not self.inpaints:
            return None
        known = cond.reshape(len(cond), self.horizons.n_obs_steps, -1)
        values = arrays.zeros((len(cond), *self.event), cond)
        values[:, : self.horizons.n_obs_steps, self.action_dim :] = known
        mask = arrays.zeros(values.shape, values, bool)
        mask[:, : self.horizons.n_obs_steps, self.action_dim :] = True
        return Inpainting(mask, values)

    def with_sampler(self, sampler: Sampler) -> "Policy":
        """Make a policy with the same network and another sampler; history, noise and experience are its own.

        Raises:
            SpecError: The sampler's options do not fit the chain, or the policy runs a scheduler that adds no noise and
                the sampler is not `ddim`.
        """
        sampler = self.law.fitted(sampler)
        sampler.prepare(self.device)
        other = copy.copy(self)
        other.sampler = sampler
        other.experience = self.experience.copy()
        other.generator = arrays.make_generator(self.device)
        other._prepare_recordings()
        other.reset()
        return other

    def with_law(self, law: Law) -> "Policy":
        """Make a policy that knows the plan of its checkpoint's own scheduler, where that is DDIM without noise.

        It still plans with the same sampler; `with_chain` turns to one of the law's two.
        """
        other = copy.copy(self)
        other.law = law
        return other

    def with_chain(self, chain: str, sampler: Sampler | None = None) -> "Policy":
        """Make a policy of the same network with one of the two laws, see `CHAINS`; the rest is as by `with_sampler`.

        Args:
            chain: One of `CHAINS`.
            sampler: How to plan; None for the law's `reference`.

        Raises:
            SpecError: There is no such chain, or as `with_sampler`.
        """
        other = copy.copy(self)
        other.law = self.law.turned(chain)
        return other.with_sampler(sampler or other.reference)

    @property
    def chain(self) -> GaussianChain:
        """The chain of the network's noise schedule.

        Raises:
            SpecError: It has none: it samples tokens, whose chain is `law.tokens`.
        """
        return self.law.gaussian("this")

    @property
    def reference(self) -> Sampler:
        """The sequential sampler of the law that runs, which speedups are against."""
        return self.law.reference

    @property
    def steps(self) -> int:
        """Network calls of `reference` in a plan."""
        return self.law.steps

    def with_backend(self, backend: Backend) -> "Policy":
        """Make a policy whose networks run on another backend; history, noise and experience are its own.

        Raises:
            BackendError: It cannot run here, or not these networks.
        """
        other = self.with_sampler(self.sampler)
        other._run_on(backend)
        return other

    def with_deadline(self, milliseconds: float | None, fallback: str = "jump") -> "Policy":
        """Make a policy whose plans are to be there after so long: anytime planning, see `Budget`.

        Args:
            milliseconds: From a plan's begin [ms]; None for no matter how long.
            fallback: How a plan is finished that is not at its end in time, "jump" or "last_plan". Such a plan is not
                exact, and its `stats.cut` says so.

        Raises:
            SpecError: There is no such fallback, or the time is not a positive number.
        """
        check_deadline(milliseconds, fallback)
        other = self.with_sampler(self.sampler)
        other.deadline_ms, other.fallback = milliseconds, fallback
        return other

    def _run_on(self, backend: Backend) -> None:
        self.backend = backend
        """What runs the networks."""
        self.encoder = self.encoder.on(backend, self.device)
        self.denoiser = backend.prepare(self.network, self.job)
        """The network as the backend runs it."""
        self._prepare_recordings()
        self.experience = self.experience.without_times()

    def _prepare_recordings(self) -> None:
        if self.law.tokens is None:
            self.sampler.prepare_recordings(self.denoiser, self.chain, self.event)

    def warm_up(self, robots: int = 1, continuity: str = CONTINUITIES[0]) -> WarmUp:
        """Do what a first plan would wait for: look at the network, time it, choose, compile, record.

        It plans for robots that rest in the middle of what the normalisation knows, and learns nothing of that.
        Episodes, noise and experience stay as they are, but for the times that were measured.

        Args:
            robots: How many will be planned for together.
            continuity: What plans will do with the actions taken meanwhile, one of `continuity.CONTINUITIES`.

        Raises:
            DenoiserError: The network is not one that can be sampled from, see `check`.
            SpecError: As `plan`.
        """
        start = time.perf_counter()
        calls, points = self.check()
        xp, steps = arrays.namespace(self._action.origin), (robots, self.horizons.n_obs_steps)
        rest = at_rest(self.encoder)
        # As many observations as a later plan may find unseen; the plan below encodes all of them.
        for new in range(1, steps[1] if self.encoder.keeps else 1):
            seen = {name: xp.broadcast_to(values, (robots * new, *values.shape)) for name, values in rest.items()}
            self.encoder.look(seen, self.device)
        history = {name: xp.broadcast_to(values, (*steps, *values.shape)) for name, values in rest.items()}
        generators = [arrays.make_generator(self.device, seed) for seed in range(robots)]
        action = arrays.to_numpy(self._action.unnormalize(0 * self._action.origin))
        prefixes = [prefix_of(np.tile(action, (self.horizons.n_action_steps, 1)), [1], continuity)] * robots
        plans: list[Plan] = []
        with self.experience.paused():
            while self.experience.lacks([plan.stats for plan in plans]):
                plans.append(self.plan(history, generators, prefixes=prefixes))
        calls += sum(plan.stats.all_calls for plan in plans)
        points += sum(plan.stats.all_points for plan in plans)
        return WarmUp(calls, points, time.perf_counter() - start, plans[-1].seconds, plans[-1].stats.spec)

    def check(self) -> tuple[int, int]:
        """Call the network a few times, on noise, to see whether it is one that can be sampled from.

        Returns:
            How many calls that took, and points.

        Raises:
            DenoiserError: Its output is misshapen, not finite, random, or depends on the other rows of a batch.
        """
        cond = np.random.default_rng(1).uniform(-1, 1, (3, self.cond_dim)).astype(np.float32)
        denoiser, device = self.denoiser, self.device
        job = self.job
        return check_on_noise(denoiser, job.chain.timesteps, job.event, arrays.asarray(cond, device), device)

    def reset(self, seed: SupportsIndex | None = None) -> None:
        """Begin an episode: forget observations, queued actions and plans.

        Args:
            seed: Fixes the planning noise of the episode, 0 … 2⁶⁴ − 1; None goes on with the noise stream.

        Raises:
            SpecError: The seed is not one.
        """
        if seed is not None:
            self.generator = arrays.make_generator(self.device, seed)
        self.robots = [self._episode(self.generator)]

    def reset_batch(self, seeds: Sequence[SupportsIndex]) -> None:
        """Begin an episode of several robots at once, to be controlled by `observe` and `act`.

        Args:
            seeds: For each robot what fixes the planning noise of its episode.

        Raises:
            SpecError: One is not in 0 … 2⁶⁴ − 1.
        """
        self.robots = [self.new_episode(seed) for seed in seeds]

    def new_episode(self, seed: SupportsIndex | None = None) -> EpisodeState:
        """Begin the episode of one robot more, for `robots`.

        Args:
            seed: What fixes the planning noise of its episode; None for one that the system makes up.

        Raises:
            SpecError: The seed is not in 0 … 2⁶⁴ − 1.
        """
        return self._episode(arrays.make_generator(self.device, seed))

    def _episode(self, generator: Any) -> EpisodeState:
        return EpisodeState(generator, deque(maxlen=self.horizons.n_obs_steps))

    @property
    def plans(self) -> list[Plan]:
        """The latest plans since the last reset, at most `episode_state.PLANS_KEPT`, for the first robot."""
        return self.robots[0].plans

    @property
    def last_plan(self) -> PlanRecord | None:
        """What the latest plan since the last reset cost, for the first robot; None before the first."""
        return self.robots[0].last_plan

    def select_action(self, observation: Any) -> npt.NDArray[np.float32]:
        """Choose the next action, planning when the queue is empty.

        Args:
            observation: A mapping with the policy's features, by LeRobot's names or the environment's (`agent_pos`,
                `environment_state`, `pixels`): vectors [feature_dim]; frames [height, width, 3] in uint8 or [3, height,
                width] in 0 … 1. Or one array with all of them in a row, where they are vectors. It is copied; what else
                a mapping has is not looked at.

        Returns:
            The action [action_dim], float32, in the environment's units.

        Raises:
            ObservationError: A key is missing, a shape or a dtype is wrong, or a value is no finite real number.
            DenoiserError: The network failed.
        """
        self.observe(0, observation)
        robot = self.robots[0]
        if not robot.queue:
            (rest,) = self._keep([robot], self.plan(**together([robot])))
            robot.queue.extend(rest[: self.horizons.n_action_steps])
        return robot.next_action()

    def observe(self, row: int, observation: Any) -> None:
        """Take note of what a robot sees, before `act`.

        Args:
            row: Which of the robots.
            observation: As for `select_action`.

        Raises:
            ObservationError: A key is missing, a shape or a dtype is wrong, or a value is no finite real number.
        """
        with given_by(f"robot {row}") if len(self.robots) > 1 else nullcontext():
            self.robots[row].observe(read_observation(observation, self.observation_shapes, self.device))

    def act(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Choose the next action of some robots, with one batched plan for those whose queue is empty.

        Args:
            rows: The robots, all of which have observed.

        Returns:
            Actions [action_dim] in the order of `rows`, float32, in the environment's units.

        Raises:
            DenoiserError: The network failed.
        """
        due = [row for row in rows if not self.robots[row].queue]
        if due:
            for row, rest in zip(due, self.plan_for(due), strict=True):
                self.robots[row].queue.extend(rest[: self.horizons.n_action_steps])
        return [self.robots[row].next_action() for row in rows]

    def plan_for(
        self, rows: Sequence[int], prefixes: Sequence[Prefix | None] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Plan for some robots from what they see now, as one batch; what they have queued stays as it is.

        Args:
            rows: The robots, all of which have observed.
            prefixes: What each of them does meanwhile, see `plan`.

        Returns:
            For each robot the rest of its plan [n, action_dim], float32, in the environment's units, from the action
            for its latest observation (`Horizons.executed`) to the plan's end; `act` takes the first `n_action_steps`.

        Raises:
            DenoiserError: The network failed.
        """
        robots = [self.robots[row] for row in rows]
        return self._keep(robots, self.plan(**together(robots), prefixes=prefixes))

    def _keep(self, robots: Sequence[EpisodeState], plan: Plan) -> list[npt.NDArray[np.float32]]:
        """Keep a plan and its cost with the robots that it is for; return its rest for each, as `plan_for`."""
        for row, robot in enumerate(robots):
            robot.note(plan.row(row), plan.record(row, robot.steps))
        # Copies: what is done to an action is not done to a plan.
        return [chunk[self.horizons.executed.start :].copy() for chunk in arrays.to_numpy(plan.chunk)]

    def move_on(self, sample: Array) -> Array:
        """Move samples [B, *event] on by `n_action_steps`, their last step repeated."""
        return move_on(sample, self.horizons.n_action_steps)

    @arrays.uncompiled
    def plan(
        self,
        history: Mapping[str, Any],
        generator: Any = None,
        last_plan: Array | None = None,
        stopwatch: Stopwatch | None = None,
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> Plan:
        """Sample a batch of action chunks.

        Args:
            history: Each feature's last observations [B, n_obs_steps, …], oldest first, in any array; see
                `sensors.encode_history`.
            generator: Source of the noise, see `Sampler.sample`.
            last_plan: Each row's `Plan.sample` of the cycle before, moved on by `move_on`; zeros for a row that begins
                an episode. It makes the plan cheaper, not another one.
            stopwatch: Told where the time goes.
            prefixes: What each robot goes on to do while it is planned for, None for one that waits: the plan is made
                up to go with that, and its first actions are those.

        Raises:
            DenoiserError: The network failed, or an action is not finite in the environment's units.
            ObservationError: A feature is missing, a shape is wrong, or a value is no finite real number.
            SpecError: The deadline is shorter than one network call, or no deadline can cut the sampler here.
        """
        start = time.perf_counter()
        if stopwatch is not None:
            stopwatch.mark("encode")
        cond, encoding = conditioning(self.encoder, history, self.horizons.n_obs_steps, self.device)
        shape = (len(cond), *self.event)
        inpainting, noise = self.inpainting(cond), generator
        if prefixes is not None and any(each is not None and each.delay + each.soft for each in prefixes):
            noise = NoiseTape.draw(shape, len(self.law.gaussian("a prefix")), generator, self.device)
            inpainting = self._inpaint(inpainting, prefixes, noise)
        warm_start = WarmStart(last_plan, self.experience)
        budget = Budget(self.deadline_ms, self.fallback, start, stopwatch)
        result = self.sampler.sample(
            self.denoiser,
            self.law.chain,
            shape,
            cond,
            noise,
            inpainting=inpainting,
            warm_start=warm_start,
            budget=budget,
        )
        sample = result.sample
        chunk = self._action.unnormalize(arrays.in_numpy(sample)[..., : self.action_dim])
        if not all_finite(chunk):
            finite(arrays.to_numpy(chunk), "the plan, in the environment's units,", DenoiserError)
        actions = chunk[:, self.horizons.executed]
        chunk, actions = arrays.as_like(chunk, sample), arrays.as_like(actions, sample)
        return Plan(chunk, actions, result.stats, time.perf_counter() - start, cond, sample, encoding)

    def _inpaint(self, given: Inpainting | None, prefixes: Sequence[Prefix | None], tape: NoiseTape) -> Inpainting:
        """Give committed actions along a tape, beside what was given before."""
        for actions in (each.actions for each in prefixes if each is not None):
            if actions.shape[1:] != (self.action_dim,):
                raise SpecError(f"committed actions have shape {actions.shape}, not (n, {self.action_dim})")
        laid = overlay(prefixes, self.horizons.executed.start, (self.horizons.horizon, self.action_dim))
        actions, shares = (arrays.asarray(each, self.device) for each in laid)
        values, guidance = (arrays.zeros(tape.initial.shape, tape.initial) for _ in range(2))
        values[..., : self.action_dim], guidance[..., : self.action_dim] = self._action.normalize(actions), shares
        mask = guidance == 1
        soft = (guidance * ~mask) if any(each is not None and each.soft for each in prefixes) else None
        own = Inpainting.noised(mask, values, self.chain, tape, soft)
        return own if given is None else own.beside(given)
