"""DDIM with few steps, through diffusers: the approximate peer that people use today."""

from dataclasses import dataclass

from asd_policy.chain import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.noise import NoiseTape
from asd_policy.samplers.base import Past, Sampler, Samples
from asd_policy.samplers.target import Target


@dataclass(frozen=True)
class Ddim(Sampler):
    """Fewer, larger steps (Song et al., arXiv 2010.02502). Approximate: another law than the full chain's."""

    steps: int = 10
    """Number of network calls."""
    eta: float = 0.0
    """0 is deterministic, 1 adds as much noise as DDPM."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        if self.steps < 1:
            raise SpecError(f"ddim steps {self.steps} is not in 1 … num_train_timesteps")
        if not 0 <= self.eta <= 1:
            raise SpecError(f"eta={self.eta} is not in 0 … 1")

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"ddim:{self.steps}" + (f",eta={self.eta:g}" if self.eta else "")

    @property
    def exact(self) -> bool:
        """False."""
        return False

    def check(self, chain: GaussianChain) -> None:
        """Refuse more steps than the noise schedule or the tape has."""
        if self.steps > len(chain):
            raise SpecError(f"ddim steps {self.steps} is not in 1 … {len(chain)}, the number of steps of the chain")

    def run(self, target: Target, tape: NoiseTape, past: Past) -> Samples:
        """Walk the shortened chain once."""
        # Imported here: diffusers takes a second to import, and only this sampler needs it.
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        shared = {key: value for key, value in target.chain.config.items() if key not in ("_class_name", "variance_type")}
        scheduler = DDIMScheduler.from_config(shared)
        assert isinstance(scheduler, DDIMScheduler)  # from_config returns a pair only where it is asked to
        x = tape.initial
        scheduler.set_timesteps(self.steps, device=x.device)
        for k, timestep in enumerate(scheduler.timesteps):
            output = target.output(x, timestep.expand(len(x)))
            noise = tape.normals[:, k] if self.eta else None
            step = scheduler.step(output, int(timestep), target.hold(x), eta=self.eta, variance_noise=noise, return_dict=False)
            x = step[0]
        return Samples(x, rounds=[self.steps] * len(x), nfe=[self.steps] * len(x))
