"""The target law: a noise scheduler's configuration as a chain of Gaussian transitions, and the noise of a plan."""

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape

__all__ = ["GaussianChain", "NoiseTape"]
