"""Euler's steps along a flow: how policies of flow matching plan in their own libraries."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.tokens import Chain
from asd_policy.errors import ChainError, SpecError
from asd_policy.samplers.base import Sampler, Samples, Target, check_count
from asd_policy.samplers.ddpm import Ddpm, walk_recorded
from asd_policy.samplers.warm_start import WarmStart


@dataclass(frozen=True)
class Euler(Sampler):
    """Equal steps along a flow's velocity, without noise (Lipman et al., arXiv 2210.02747, section 3)."""

    steps: int = 10
    """Number of network calls."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them is out of range.
        """
        check_count(f"euler steps {self.steps}", self.steps)

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"euler:{self.steps}"

    @property
    def exact(self) -> bool:
        """False: another law than that of a chain with noise."""
        return False

    def check(self, chain: GaussianChain) -> None:
        """Refuse a chain that is no flow's, and more steps than it has."""
        check_count(f"euler steps {self.steps}", self.steps, chain)
        euler_chain(self.steps, chain)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk Euler's steps once."""
        chain = euler_chain(self.steps, target.chain)
        given = target.inpainting
        if (
            given is not None
            and given.noisy_values is not None
            and not np.array_equal(chain.timesteps, target.chain.timesteps)
        ):
            raise SpecError(
                f"{self.spec} has other timesteps than the chain of {len(target.chain)} steps: what is given along the "
                "chain is not known there"
            )
        target = replace(target, chain=chain)
        if target.launcher is not None and target.deadline is None:
            return walk_recorded(self.spec, target, tape)
        return Ddpm().run(target, tape, warm_start)


@dataclass(frozen=True)
class OwnEuler(Euler):
    """Euler's steps as the checkpoint of a flow takes them. A `Policy` makes it of `euler:n`; no spec names it."""

    own_steps: int = 10
    """Number of steps in the checkpoint."""

    family: ClassVar[type[Sampler]] = Euler
    """The sampler of which this is one with the checkpoint's options."""
    what: ClassVar[str] = "Euler's steps along a flow, without noise"
    """What the checkpoint's own plan is made by, for messages."""

    @property
    def exact(self) -> bool:
        """Whether plans are those of the checkpoint's own sequential sampler: with its number of steps."""
        return self.steps == self.own_steps

    def sequential_steps(self, chain: Chain) -> int:
        """Count the calls of the checkpoint's own plan."""
        return self.own_steps

    def walked(self, chain: GaussianChain) -> GaussianChain:
        """Make the chain that plans walk; errors are those of `euler_chain`."""
        return euler_chain(self.steps, chain)

    def like(self, sampler: Sampler) -> "OwnEuler":
        """Make the one with the options of another of the family."""
        assert isinstance(sampler, Euler)
        return replace(self, steps=sampler.steps)


@lru_cache(maxsize=16)
def euler_chain(steps: int, chain: GaussianChain) -> GaussianChain:
    """Make the chain of Euler's steps, σ = 0, of a flow whose chain is given; made once.

    Raises:
        SpecError: It is no flow's, or has no so many steps.
    """
    if not is_flow(chain.config):
        raise SpecError(
            f"euler:{steps} follows a flow, and this chain is that of a {chain.config['_class_name']}: ddim:{steps} "
            "takes few steps of it"
        )
    try:
        return flow_with_eta(chain, 0.0, steps)
    except ChainError as error:
        raise SpecError(f"euler:{steps}: {error}") from None


def flow_with_eta(chain: GaussianChain, eta: float, steps: int | None = None) -> GaussianChain:
    """Make the chain of the same flow with another share of noise, and as many steps if no others are given.

    Raises:
        ChainError: There is no such one.
    """
    names = "convention", "sigma_min", "num_train_timesteps"
    return GaussianChain.from_flow(steps or len(chain), eta, **{name: chain.config[name] for name in names})
