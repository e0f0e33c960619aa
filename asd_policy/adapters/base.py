"""What every adapter shares: patches that can be undone, and the planner that stands in for a policy's own loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asd_policy import arrays
from asd_policy.arrays import Array, Device
from asd_policy.chain import GaussianChain
from asd_policy.denoiser import Denoiser, check_on_noise
from asd_policy.errors import ObservationError
from asd_policy.experience import Experience
from asd_policy.noise import Generators, NoiseTape
from asd_policy.samplers import Sampler
from asd_policy.samplers.base import Past, move_on
from asd_policy.samplers.target import Held
from asd_policy.types import SpeculationStats


@dataclass(frozen=True, eq=False)
class Patch:
    """An attribute to set on an instance; its class is left alone."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True)
class Adapter:
    """A library's policies that can be accelerated in place."""

    classes: tuple[str, ...]
    """Their qualified names, `module.Class`; subclasses are known too. Nothing is imported to find out."""
    patches: Callable[[Any, Sampler], list[Patch]]
    """Returns what makes a policy plan with a sampler, changing nothing; `asd_stats` is one of the names.

    Raises ChainError or SpecError where policy and sampler do not fit.
    """


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


class Planner:
    """A sampler, and what it remembers from plan to plan of one policy."""

    def __init__(self, sampler: Sampler, chain: GaussianChain) -> None:
        """Put a sampler in the place of the loop over a chain.

        Raises:
            SpecError: The sampler's options do not fit the chain.
        """
        sampler.check(chain)
        self.sampler = sampler
        self.chain = chain
        self.experience = Experience()
        self.stats = AsdStats()
        self._last: Array | None = None  # the last batch of plans, moved on to the time of the next
        self._checked = False

    def begin_episode(self) -> None:
        """Forget the last plans; experience and statistics stay."""
        self._last = None

    def sample(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        executed: int,
        device: Device,
        cond: Array | None = None,
        generator: Generators = None,
        noise: Array | None = None,
        held: Held | None = None,
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
            held: Coordinates that are given, not sampled.

        Returns:
            Plans of `shape`, float32.

        Raises:
            DenoiserError: The network is random, depends on the other rows of a batch, or its output is not finite.
            ObservationError: The noise is not of `shape`.
        """
        if not self._checked:
            check_on_noise(denoiser, self.chain.timesteps, shape[1:], cond, device)
            self._checked = True
        if noise is not None:
            if tuple(noise.shape) != shape:
                raise ObservationError(f"the noise has shape {tuple(noise.shape)}, the plans {shape}")
            noise = arrays.asarray(noise, device, "float32")
        tape = NoiseTape.draw(shape, len(self.chain), generator, device, initial=noise)
        if self._last is not None and tuple(self._last.shape) != shape:
            self._last = None  # another number of robots: these are not their plans
        past = Past(self._last, self.experience)
        result = self.sampler.sample(denoiser, self.chain, shape, cond, tape=tape, held=held, past=past)
        self._last = move_on(result.sample, executed)
        self.stats.add(result.stats)
        return result.sample
