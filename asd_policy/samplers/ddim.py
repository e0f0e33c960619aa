"""DDIM with few steps, through diffusers: the approximate peer that people use today."""

from dataclasses import dataclass
from typing import Any

from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.samplers.base import number
from asd_policy.samplers.fewsteps import FewSteps, configured


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

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """The options that a DDPM chain does not have."""
        names = "timestep_spacing", "steps_offset", "set_alpha_to_one"
        return {name: getattr(self, name) for name in names}

    @property
    def exact(self) -> bool:
        """Whether plans are those of the checkpoint's own sequential sampler: with its number of steps and η = 0."""
        return self.steps == self.own_steps and self.eta == 0

    def sequential_steps(self, chain: GaussianChain) -> int:
        """Count the calls of the checkpoint's own plan."""
        return self.own_steps
