"""What every sampler shares: the call, the tape, the counting."""

import abc
import time
from collections.abc import Sequence
from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy._common.clock import Stopwatch
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import Generators, NoiseTape
from asd_policy.errors import SpecError
from asd_policy.networks.denoiser import Denoiser, MeteredDenoiser, check_finite
from asd_policy.networks.recording import launcher_of
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.deadline import Deadline
from asd_policy.samplers.pace import pace_of
from asd_policy.samplers.target import Held, Target
from asd_policy.samplers.types import SampleResult, SpeculationStats


@dataclass(frozen=True)
class Samples:
    """What a sampler's own loop returns to `Sampler.sample`."""

    sample: Array
    """Shape [B, *event]."""
    rounds: list[int]
    """Sequential network calls of each row."""
    nfe: list[int]
    """Network evaluations of each row."""
    window: int = 1
    """Most points that a call evaluated per row."""
    spec: str | None = None
    """Of the sampler with what it chose; None where it had nothing to choose."""
    recorded: bool = False
    """Whether recordings ran, which nobody can look into for the network's share of the time."""
    refused: tuple[tuple[int, ...], ...] | None = None
    """The steps of each row whose draft was refused; None for a sampler without drafts."""
    unjudged: tuple[tuple[int, ...], ...] | None = None
    """The steps of each row without a draft to judge; None for a sampler without drafts."""
    cut: tuple[int, ...] = ()
    """The rows that the deadline's fallback has finished."""


@dataclass(frozen=True)
class Past:
    """What earlier plans may tell a draft; no sampler's law depends on it."""

    last_plan: Array | None = None
    """For each row the sample before this one, moved on to the present, [B, *event]; zeros where there is none."""
    experience: Experience | None = None
    """Learned from the plans of a policy; a sampler that can learn adds its own."""

    @property
    def lacking(self) -> Array:
        """Which rows have no last plan, for zeros stand for none [B]; only where there is a `last_plan`."""
        assert self.last_plan is not None
        return (self.last_plan == 0).reshape(len(self.last_plan), -1).all(1)


def move_on(sample: Array, executed: int) -> Array:
    """Return samples [B, horizon, …] as seen `executed` control steps later, their last step held."""
    xp, executed = arrays.namespace(sample), min(executed, sample.shape[1])
    last = xp.broadcast_to(sample[:, -1:], (len(sample), executed, *sample.shape[2:]))
    return xp.concatenate([sample[:, executed:], last], axis=1)


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

    @abc.abstractmethod
    def check(self, chain: GaussianChain) -> None:
        """Refuse a chain that the options do not fit.

        Raises:
            SpecError: An option is out of range for this chain.
        """

    @abc.abstractmethod
    def run(self, target: Target, tape: NoiseTape, past: Past) -> Samples:
        """Sample along a tape; called by `sample`, which checks, draws and counts."""

    @arrays.uncompiled
    def sample(
        self,
        denoiser: Denoiser,
        chain: GaussianChain,
        shape: Sequence[int],
        cond: Array | None = None,
        generator: Generators = None,
        tape: NoiseTape | None = None,
        device: Device | str | None = None,
        held: Held | None = None,
        past: Past | None = None,
        stopwatch: Stopwatch | None = None,
        deadline_ms: float | None = None,
        fallback: str = "jump",
        began: float | None = None,
    ) -> SampleResult:
        """Draw a batch of samples.

        With a deadline this is anytime planning: rows whose chains will not be at their end in time, by the times of
        calls and rounds before, are finished by the fallback. The others are, to the bit, the samples without one.

        Args:
            denoiser: The network.
            chain: The target law.
            shape: (B, *event), for a policy (B, horizon, action_dim).
            cond: Conditioning [B, …], or None.
            generator: Source of the noise: one for the batch, one per row, or None for torch's global one.
            tape: The noise itself, in place of a generator.
            device: Where to sample; by default where `tape` or `cond` is, else the CPU.
            held: Coordinates that are given, not sampled.
            past: What earlier plans tell.
            stopwatch: Told where the time goes.
            deadline_ms: When the samples have to be there [ms]; None for no matter when. The times of before are those
                of `past`'s experience, or else of all calls with this denoiser. The first call for a batch size times
                the network first, counted apart, and can be late; so can one that the machine holds up.
            fallback: "jump", to the prediction x̂0 at the point that a row has come to; or "last_plan", to `past`'s
                last plan, where there is one.
            began: From when on, by `time.perf_counter` [s]; None for this call on.

        Returns:
            Samples of `shape` and what they cost.

        Raises:
            SpecError: The sampler's options do not fit the chain, or the deadline is shorter than one network call.
            DenoiserError: The network's output is misshapen or not finite.
            ValueError: The tape, the conditioning, the held values or the last plan do not fit `shape`.
        """
        start = time.perf_counter()
        if stopwatch is not None:
            stopwatch.mark("host")
        self.check(chain)
        if tape is None:
            where = device if device is not None else "cpu" if cond is None else arrays.device_of(cond)
            tape = NoiseTape.draw(shape, len(chain), generator, where)
        if tape.normals.shape != (shape[0], len(chain), *shape[1:]):
            raise ValueError(
                f"the tape has noise of shape {tuple(tape.normals.shape)}, but a batch {tuple(shape)} of "
                f"{len(chain)} steps needs {(shape[0], len(chain), *shape[1:])}"
            )
        if cond is not None and len(cond) != shape[0]:
            raise ValueError(f"conditioning for {len(cond)} rows, but a batch of {shape[0]}")
        past = past or Past()
        for name, tensor in (
            ("held mask", held and held.mask),
            ("held values", held and held.values),
            ("pull of the held values", held and held.pull),
            ("last plan", past.last_plan),
        ):
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"the {name} has shape {tuple(tensor.shape)}, the samples {tuple(shape)}")
        place = arrays.device_of(tape.initial)
        metered = MeteredDenoiser(denoiser, place)
        launcher, deadline = launcher_of(denoiser), None
        if deadline_ms is not None:
            pace = pace_of(denoiser) if past.experience is None else past.experience.pace
            jumps = fallback != "last_plan" or past.last_plan is None or bool(past.lacking.any())
            deadline = Deadline(start if began is None else began, deadline_ms, fallback, pace, shape[0], jumps)
        # The chain's arithmetic has the samples' precision; autocast, where it is on, is for the network.
        with arrays.sampling(place):
            if stopwatch is not None:
                stopwatch.mark("encode")
            target = Target(metered, chain, tuple(shape), metered.encode(cond), held, launcher, stopwatch, deadline)
            target.mark("host")
            samples = self.run(target, tape, past)
            sample = target.hold(samples.sample)
        check_finite(sample)
        sample = arrays.ordinary(sample)
        if deadline is not None:
            deadline.stop()
        seconds = time.perf_counter() - start
        cut = tuple(row in samples.cut for row in range(shape[0]))
        drawn = (False,) * shape[0] if held is None else held.drawn
        # Replays are not seen by the meter; of what it has seen, the algorithm's own calls are known.
        own = (0, 0) if samples.recorded else (max(samples.rounds), sum(samples.nfe))
        return SampleResult(
            sample,
            SpeculationStats(
                steps=len(chain),
                rounds=tuple(samples.rounds),
                nfe=tuple(samples.nfe),
                seconds=seconds,
                network_seconds=None if samples.recorded else metered.seconds,
                window=samples.window,
                spec=samples.spec or self.spec,
                refused=samples.refused,
                unjudged=samples.unjudged,
                cut=cut,
                exact=tuple(self.exact and not (gone or soft) for gone, soft in zip(cut, drawn, strict=True)),
                trial_calls=metered.calls - own[0],
                trial_points=metered.points - own[1],
            ),
        )


def check_count(name: str, count: int, chain: GaussianChain | None = None) -> None:
    """Refuse a number of points or steps that no chain, or this chain, has.

    Args:
        name: The option and its value, for the message.
        count: The value.
        chain: None before a chain is known.

    Raises:
        SpecError: It is not in 1 … K.
    """
    if count < 1 or (chain is not None and count > len(chain)):
        most = "K" if chain is None else len(chain)
        raise SpecError(f"{name} is not in 1 … {most}, the number of steps of the chain")


def number(value: float) -> str:
    """Write an option's value for a spec: as short as it reads back to the same value, 1 and not 1.0."""
    return repr(value).removesuffix(".0")
