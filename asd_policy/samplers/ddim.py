"""DDIM with few steps: the approximate peer that people use today.

Its steps are those of diffusers' scheduler, to the bit. Where they are to be recorded, or diffusers is not installed,
they are the chain's own arithmetic, which is the same up to the rounding of float32.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

from asd_policy._common.arrays import NUMPY, Array, device_of
from asd_policy._common.extras import install, needed
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import Chain
from asd_policy.errors import ChainError, SpecError
from asd_policy.samplers.base import Sampler, Samples, Target, check_count, number
from asd_policy.samplers.ddpm import walk_called, walk_recorded
from asd_policy.samplers.fewsteps import EXTRA, FewSteps, check_diffusion, configured
from asd_policy.samplers.records import sequential_costs
from asd_policy.samplers.warm_start import WarmStart


@dataclass(frozen=True)
class Ddim(FewSteps):
    """Fewer, larger steps (Song et al., arXiv 2010.02502, eq. 12)."""

    eta: float = 0.0
    """0 is deterministic, 1 adds as much noise as DDPM."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise SpecError(f"eta={number(self.eta)} is not in 0 … 1")

    def check(self, chain: GaussianChain) -> None:
        """Refuse more steps than the chain has, and noise schedules that DDIM has no numbers for."""
        if has_diffusers():
            super().check(chain)
        else:
            check_count(self._steps, self.steps, chain)
            check_diffusion(self.spec, chain)
            with needed(self.spec, EXTRA, SpecError):
                shortened(self, chain)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk the shortened chain once."""
        plain = target.inpainting is None and target.deadline is None and device_of(tape.initial) != NUMPY
        if plain and (target.launcher is not None or not has_diffusers()):
            return self._walk(replace(target, chain=shortened(self, target.chain)), tape)
        if not has_diffusers():
            raise SpecError(
                f"{self.spec} with given coordinates, with a deadline or on NumPy's arrays runs through diffusers, "
                f"which is not installed: {install(EXTRA)}; ddpm and asd need no other package"
            )
        return super().run(target, tape, warm_start)

    def _walk(self, target: Target, tape: NoiseTape) -> Samples:
        """Walk a chain of few steps, as one recording where the network's calls can be recorded."""
        if target.launcher is None:
            return Samples(walk_called(target, tape)[0], sequential_costs([self.steps] * len(tape.initial)))
        return walk_recorded(self, target, tape)

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """Options of the scheduler beside those of the chain's configuration."""
        return {}

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"ddim:{self.steps}" + (f",eta={number(self.eta)}" if self.eta else "")

    def scheduler(self, chain: GaussianChain) -> Any:
        """Make a `DDIMScheduler`."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return configured(DDIMScheduler, chain, **self.scheduler_options)

    def step_options(self, noise: Array) -> dict[str, Any]:
        """Give η and the noise that goes with it."""
        return {"eta": self.eta, "variance_noise": noise if self.eta else None}


@dataclass(frozen=True)
class OwnDdim(Ddim):
    """DDIM as the scheduler of a checkpoint has it, on the DDPM chain that the network was trained for.

    A `Policy` makes it of `ddim:n`; no spec names it.
    """

    own_steps: int = 10
    """Number of steps in the checkpoint."""
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    family: ClassVar[type[Sampler]] = Ddim
    """The sampler of which this is one with the checkpoint's options."""
    what: ClassVar[str] = "DDIM without noise"
    """What the checkpoint's own plan is made by, for messages."""

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """The options that a DDPM chain does not have."""
        names = "timestep_spacing", "steps_offset", "set_alpha_to_one"
        return {name: getattr(self, name) for name in names}

    @property
    def exact(self) -> bool:
        """Whether plans are those of the checkpoint's own sequential sampler: with its number of steps and η = 0."""
        return self.steps == self.own_steps and self.eta == 0

    def sequential_steps(self, chain: Chain) -> int:
        """Count the calls of the checkpoint's own plan."""
        return self.own_steps

    def walked(self, chain: GaussianChain) -> GaussianChain:
        """Make the chain that plans walk; errors are those of `shortened`."""
        return shortened(self, chain)

    def like(self, sampler: Sampler) -> "OwnDdim":
        """Make the one with the options of another of the family."""
        assert isinstance(sampler, Ddim)
        return replace(self, steps=sampler.steps, eta=sampler.eta)


def has_diffusers() -> bool:
    """Tell whether diffusers is installed."""
    return find_spec("diffusers") is not None


@lru_cache(maxsize=16)
def shortened(sampler: Ddim, chain: GaussianChain) -> GaussianChain:
    """Make the chain of a sampler's few steps over a chain's noise schedule, with σ = 0 for η = 0; made once.

    Raises:
        SpecError: It has no such steps, or they are not finite.
    """
    from asd_policy.chain.scheduler_steps import read_ddim  # here, because it needs PyTorch

    check_diffusion(sampler.spec, chain)
    config = {**chain.config, **sampler.scheduler_options}
    try:
        coefficients = read_ddim(config, sampler.steps, sampler.eta)
    except ChainError as error:
        raise SpecError(f"{sampler.spec}: {error}") from None
    if not all(later < earlier for earlier, later in pairwise(coefficients["timesteps"].tolist())):
        raise SpecError(f"{sampler.spec} has no {sampler.steps} timesteps in this noise schedule")
    return GaussianChain(config=config, **coefficients)
