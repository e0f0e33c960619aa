"""What every sampler shares: the call, the target it samples, the counting."""

import abc
import math
import time
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Unpack, cast

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.clock import Stopwatch
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import Generators, NoiseTape
from asd_policy.chain.tokens import Chain, gaussian
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.denoiser import Denoiser, Meter, check_form, encode
from asd_policy.networks.recording import Launcher, launcher_of
from asd_policy.samplers.compiled import all_finite
from asd_policy.samplers.deadline import Budget, Deadline
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.old_keywords import OldKeywords, in_new_keywords
from asd_policy.samplers.pace import pace_of
from asd_policy.samplers.records import PlanCost, SampleResult, SpeculationStats
from asd_policy.samplers.warm_start import WarmStart

NETWORK_FAILED = "the network returned NaN or infinity"
GRADIENT_FAILED = "the energy's gradient is not finite, or the step sizes are too large for it"


@dataclass(frozen=True)
class Target:
    """The conditional law of a batch of samples. Points are shaped [N, *event], or flattened [N, D] alike."""

    denoiser: Denoiser
    chain: GaussianChain
    shape: tuple[int, ...]
    """(B, *event)."""
    cond: Array | None = None
    """Conditioning [B, …], encoded where the network encodes it."""
    inpainting: Inpainting | None = None
    launcher: Launcher | None = None
    """Records the network's calls; None where they are made one by one."""
    deadline: Deadline | None = None
    """When the samples have to be there; None for no matter when."""
    stopwatch: Stopwatch | None = None
    """Gets a mark where each stage begins; None where nobody asks."""
    meter: Meter = field(default_factory=Meter)
    """Counts the network's calls."""
    timed: bool = True
    """Whether the meter times them, too: not in a recording, which must not wait."""
    autocast: AbstractContextManager[Any] | None = None
    """The caller's autocast, if one is on: it is for the network, not for the chain's arithmetic."""

    def mark(self, stage: str) -> str:
        """Begin one of `clock.STAGES`; return the one that ends."""
        return "host" if self.stopwatch is None else self.stopwatch.mark(stage)

    def allows(self, work: Hashable) -> bool:
        """Tell whether the deadline, if there is one, leaves time for a piece of work; see `Deadline.allows`."""
        return self.deadline is None or self.deadline.allows(work)

    def recordable(self, cond: Array | None, inpainting: Inpainting | None) -> "Target":
        """Copy the target for a recording, with conditioning and given values in the recording's own memory."""
        return replace(
            self, cond=cond, inpainting=inpainting, timed=False, launcher=None, deadline=None, stopwatch=None
        )

    def jump(self, x: Array, steps: Array, rows: Array) -> Array:
        """Predict the sample that a plan ends with which a deadline cuts; arguments as for `predict`."""
        return self.predict(x, steps, rows, effective=False)

    def predict(
        self, x: Array, steps: Array, rows: Array | None = None, live: Array | None = None, effective: bool = True
    ) -> Array:
        """Predict x̂0 by one network call.

        Args:
            x: Points, one for each row [N, …], or windows of them, flattened, [R, n, D].
            steps: The step k that leaves each point, [N] or [R, n].
            rows: The batch row of each point [N], or of each window [R]; None for all rows in order.
            live: Which points of windows to predict [R, n], zeros taking the place of the others; None for all, in one
                shape whatever the data.
            effective: As for `GaussianChain.predict`.
        """
        xp, points, k = arrays.namespace(x), x, steps
        if steps.ndim == 2 and rows is not None:
            points, k = x.reshape(-1, x.shape[-1]), steps.reshape(-1)
            rows = xp.broadcast_to(rows[:, None], steps.shape).reshape(-1)
        whole, chosen = points, None if live is None or bool(live.all()) else xp.nonzero(live.reshape(-1))[0]
        if chosen is not None and rows is not None:
            points, k, rows = points[chosen], k[chosen], rows[chosen]
        seen = points if self.inpainting is None else self.inpainting.show(points, k, rows)
        timesteps = self.chain.tables(arrays.device_of(x), x.dtype).timesteps[k]
        x0_pred = self.chain.predict(seen, self.output(seen, timesteps, rows), k, effective)
        if self.inpainting is not None:
            x0_pred = self.inpainting.fill(self.inpainting.guide(x0_pred, rows), rows)
        if chosen is not None:
            whole = xp.zeros_like(whole)
            whole[chosen] = x0_pred
            x0_pred = whole
        return x0_pred.reshape(x.shape)

    def output(self, seen: Array, timestep: Array, rows: Array | None = None) -> Array:
        """Call the network at points [N, …], as the inpainting shows them, and timesteps [N].

        Returns:
            Its output in the points' shape and dtype.

        Raises:
            DenoiserError: As `call`.
        """
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        output = self.call(seen, timestep, cond)
        if output.dtype != seen.dtype:
            output = arrays.namespace(output).astype(output, seen.dtype)
        return output.reshape(seen.shape)

    def like_its_points(self, x: Array) -> Array:
        """Look at points in the host's memory as an array of the library that the network is best called with.

        Where it takes NumPy's, as ONNX Runtime does, tensors around them would cost each call a dozen operations.
        """
        known = self.cond is None or str(self.cond.dtype) != "torch.bfloat16"  # which NumPy does not have
        return arrays.on_host(x) if known and not self.may_keep_inputs else x

    @property
    def may_keep_inputs(self) -> bool:
        """Whether the network may keep what it is called on, so that each call needs memory of its own."""
        return not getattr(self.denoiser, "takes_numpy", False)

    def call(self, seen: Array, timestep: Array, cond: Array | None) -> Array:
        """Call the network at points [N, …] and timesteps [N], with the conditioning of each [N, …].

        Returns:
            Its output [N, *event] as it is.

        Raises:
            DenoiserError: Its output is no array of floating-point numbers in the shape of its input.
        """
        points = seen if seen.ndim == len(self.shape) else seen.reshape(len(seen), *self.shape[1:])
        before = self.mark("network")
        self.meter.count(1, len(points))
        start = self.meter.start() if self.timed else None
        if self.autocast is None:
            output = self.denoiser(points, timestep, cond)
        else:
            with self.autocast:
                output = self.denoiser(points, timestep, cond)
        if start is not None:
            self.meter.stop(start)
        if self.deadline is not None:  # which goes by the host's clock
            arrays.synchronize(self.meter.device)
        check_form(output, points)
        self.mark(before)
        return output


@dataclass(frozen=True)
class Samples:
    """What a sampler's own loop returns to `Sampler.sample`."""

    sample: Array
    """Shape [B, *event]; in the host's memory it may be an array of NumPy's, whatever the tape's library."""
    costs: list[PlanCost]
    """Of each row; whether it is exact `Sampler.sample` knows."""
    spec: str | None = None
    """Of the sampler with what it chose; None where it had nothing to choose."""
    recorded: bool = False
    """Whether recordings ran, which nobody can look into for the network's share of the time."""


class Sampler(abc.ABC):
    """A way to sample a chain. Instances hold options only and can be shared."""

    @property
    @abc.abstractmethod
    def spec(self) -> str:
        """The full spec of this sampler, options included: `make_sampler(s.spec)` equals `s`."""

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether samples have exactly the law of the sequential sampler of the same chain."""

    @property
    def learns(self) -> bool:
        """Whether plans get cheaper with the experience of earlier ones."""
        return False

    @property
    def chooses(self) -> bool:
        """Whether something is left to it that it chooses by measured times."""
        return False

    def sequential_steps(self, chain: Chain) -> int:
        """Count the network calls of the sequential sampler, which speedups are against: K, the chain's length."""
        return len(chain)

    def fit(self, chain: Chain) -> None:
        """Refuse a chain of a kind that it does not sample, or that the options do not fit.

        Raises:
            SpecError: It is one.
        """
        self.check(chain if isinstance(chain, GaussianChain) else gaussian(self.spec, chain))  # each plan asks

    @abc.abstractmethod
    def check(self, chain: GaussianChain) -> None:
        """Refuse a chain that the options do not fit.

        Raises:
            SpecError: An option is out of range for this chain.
        """

    def prepare(self, device: Device) -> None:
        """Get ready for plans on a device, before the first of them: compile what is to be compiled, if anything."""
        return

    def prepare_recordings(self, denoiser: Denoiser, chain: GaussianChain, event: tuple[int, ...]) -> None:
        """Compile what recordings of a network's calls need, before the first; points are shaped `event`."""
        return

    @abc.abstractmethod
    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Sample along a tape; called by `sample`, which checks, draws and counts."""

    @arrays.uncompiled
    def sample(
        self,
        denoiser: Denoiser,
        chain: Chain,
        shape: Sequence[int],
        cond: Array | None = None,
        generator: Generators | NoiseTape = None,
        inpainting: Inpainting | None = None,
        warm_start: WarmStart | None = None,
        budget: Budget | None = None,
        **old: Unpack[OldKeywords],
    ) -> SampleResult:
        """Draw a batch of samples.

        Args:
            denoiser: The network.
            chain: The target law.
            shape: (B, *event), for a policy (B, horizon, action_dim).
            cond: Conditioning [B, …], or None.
            generator: Source of the noise: one for the batch, one per row, or None for torch's global one; or a
                `NoiseTape`, the noise itself. Samples are where the tape is, else where `cond` is, else on the CPU.
            inpainting: Coordinates that are given, not sampled.
            warm_start: What earlier plans tell.
            budget: A deadline, and a stopwatch for where the time goes.
            **old: Keywords of 0.1, for one release.

        Returns:
            Samples of `shape` and what they cost.

        Raises:
            SpecError: The sampler's options do not fit the chain, or the deadline is shorter than one network call.
            DenoiserError: The network's output is misshapen or not finite.
            ValueError: The tape, the conditioning, the inpainting or the last plan do not fit `shape`.
        """
        start, shape = time.perf_counter(), tuple(shape)
        if old:
            new = {"generator": generator, "inpainting": inpainting, "warm_start": warm_start, "budget": budget}
            return self.sample(denoiser, chain, shape, cond, **in_new_keywords(old, shape, chain.noise_steps, new))
        budget, warm_start = budget or Budget(), warm_start or WarmStart()
        if budget.stopwatch is not None:
            budget.stopwatch.mark("host")
        self.fit(chain)
        tape = _tape(generator, shape, chain.noise_steps, cond)
        _check_inputs(shape, chain, cond, tape, inpainting, warm_start)
        deadline = _deadline(budget, start, denoiser, shape[0], warm_start, chain)
        own = cast(GaussianChain, chain)  # or, where `run` is that of `tokens`, what `fit` has let pass
        place = arrays.device_of(tape.initial)
        autocast = arrays.ambient_autocast(place)
        # The chain's arithmetic has the samples' precision; autocast, where it is on, is for the network.
        with arrays.sampling(place):
            target = _target(denoiser, own, tape, cond, inpainting, budget.stopwatch, deadline, autocast)
            samples = self.run(target, tape, warm_start)
            sample = samples.sample
            if inpainting is not None:
                sample = inpainting.fill(arrays.as_like(sample, tape.initial))
        _check_finite(sample, chain)
        sample = arrays.ordinary(arrays.as_like(sample, tape.initial))
        if deadline is not None:
            deadline.stop()
        return SampleResult(sample, self._stats(samples, target, time.perf_counter() - start))

    def _stats(self, samples: Samples, target: Target, seconds: float) -> SpeculationStats:
        meter, costs = target.meter, samples.costs
        guided = (False,) * len(costs) if target.inpainting is None else target.inpainting.guided
        exact = [self.exact and not (cost.cut or soft) for cost, soft in zip(costs, guided, strict=True)]
        # Replays are not seen by the meter; of what it has seen, the algorithm's own calls are known.
        own_calls = 0 if samples.recorded else max(cost.rounds for cost in costs)
        own_points = 0 if samples.recorded else sum(cost.nfe for cost in costs)
        return SpeculationStats(
            plans=tuple(
                cost if cost.exact == law else replace(cost, exact=law) for cost, law in zip(costs, exact, strict=True)
            ),
            steps=self.sequential_steps(target.chain),
            seconds=seconds,
            network_seconds=None if samples.recorded else meter.seconds,
            spec=samples.spec or self.spec,
            trial_calls=meter.calls - own_calls,
            trial_points=meter.points - own_points,
        )


def _tape(generator: Generators | NoiseTape, shape: tuple[int, ...], steps: int, cond: Array | None) -> NoiseTape:
    """Take the tape that was given, or draw one where the conditioning is.

    Raises:
        ValueError: There is no plan to draw it for.
    """
    if not shape or shape[0] < 1:
        raise ValueError(f"a batch of {shape[0] if shape else 0} plans: 1 or more can be sampled")
    if isinstance(generator, NoiseTape):
        return generator
    return NoiseTape.draw(shape, steps, generator, "cpu" if cond is None else arrays.device_of(cond))


def _check_inputs(
    shape: tuple[int, ...],
    chain: Chain,
    cond: Array | None,
    tape: NoiseTape,
    inpainting: Inpainting | None,
    warm_start: WarmStart,
) -> None:
    """Refuse what does not fit the samples' shape.

    Raises:
        ValueError: It does not.
    """
    steps = chain.noise_steps
    wanted = (shape[0], steps, *shape[1:])
    if tape.normals.shape != wanted:
        raise ValueError(
            f"the tape has noise of shape {tuple(tape.normals.shape)}, but a batch {shape} of {steps} steps needs "
            f"{wanted}"
        )
    if not arrays.has_known_precision(tape.initial):
        raise ValueError(f"the tape is of {tape.initial.dtype}: couplings are computed in float32 or float64")
    if cond is not None and len(cond) != shape[0]:
        raise ValueError(f"conditioning for {len(cond)} rows, but a batch of {shape[0]}")
    if inpainting is not None:
        inpainting.check(shape)
        if not chain.predicts_sample and (inpainting.noisy_values is not None or inpainting.guidance is not None):
            raise ValueError("in Langevin dynamics values are given as they are: no noised ones, and no guidance")
    last = warm_start.last_plan
    if last is not None and tuple(last.shape) != shape:
        raise ValueError(f"the last plan has shape {tuple(last.shape)}, the samples {shape}")


def _target(
    denoiser: Denoiser,
    chain: GaussianChain,
    tape: NoiseTape,
    cond: Array | None,
    inpainting: Inpainting | None,
    stopwatch: Stopwatch | None,
    deadline: Deadline | None,
    autocast: AbstractContextManager[Any] | None,
) -> Target:
    """Put a target together where its tape is, conditioned as its network encodes it."""
    meter, encoded = Meter(arrays.device_of(tape.initial)), None
    if cond is not None:
        before, start = "" if stopwatch is None else stopwatch.mark("encode"), meter.start()
        with autocast or nullcontext():
            encoded = encode(denoiser, cond)
        meter.stop(start)
        if stopwatch is not None:
            stopwatch.mark(before)
    return Target(
        denoiser,
        chain,
        tuple(tape.initial.shape),
        encoded,
        inpainting,
        launcher_of(denoiser),
        deadline,
        stopwatch,
        meter,
        autocast=autocast,
    )


def _deadline(
    budget: Budget, start: float, denoiser: Denoiser, batch: int, warm_start: WarmStart, chain: Chain
) -> Deadline | None:
    """Set the deadline of a budget, if it has one.

    Raises:
        SpecError: Its fallback jumps, and the chain predicts no sample to jump to.
    """
    if budget.deadline_ms is None:
        return None
    pace = pace_of(denoiser) if warm_start.experience is None else warm_start.experience.pace
    jumps = budget.fallback != "last_plan" or warm_start.last_plan is None or bool(warm_start.lacking.any())
    if jumps and not chain.predicts_sample:
        raise SpecError(
            "a deadline's jump goes to the prediction of the sample, and a gradient is none: Langevin dynamics is cut "
            "by fallback='last_plan' alone, with a last plan"
        )
    began = start if budget.began is None else budget.began
    return Deadline(began, budget.deadline_ms, budget.fallback, pace, batch, jumps)


def _check_finite(sample: Array, chain: Chain) -> None:
    """Refuse a sample with NaN or infinities in it.

    One check at the end of a plan is enough: the samplers end whatever the network returns, and a value that is not
    finite stays so along the chain.

    Raises:
        DenoiserError: The sample is not finite.
    """
    if all_finite(sample):
        return
    bad = int((~arrays.namespace(sample).isfinite(sample)).sum())
    failure = NETWORK_FAILED if chain.predicts_sample else GRADIENT_FAILED
    raise DenoiserError(f"{failure}: {bad} of {math.prod(sample.shape)} sampled values")


def check_count(name: str, count: int, chain: Chain | None = None) -> None:
    """Refuse a number of points or steps that no chain, or this chain, has.

    Args:
        name: The option and its value, for the message.
        count: The value.
        chain: None before a chain is known.

    Raises:
        SpecError: It is not in 1 … K.
    """
    if isinstance(count, bool) or not isinstance(count, Integral):  # of NumPy's, too
        raise SpecError(f"{name} is not a whole number")
    if count < 1 or (chain is not None and count > len(chain)):
        most = "K" if chain is None else len(chain)
        raise SpecError(f"{name} is not in 1 … {most}, the number of steps of the chain")


def number(value: float) -> str:
    """Write an option's value for a spec: as short as it reads back to the same value, 1 and not 1.0."""
    return repr(value).removesuffix(".0")
