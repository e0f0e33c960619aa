"""The sequential sampler: the reference that every law and every speedup is measured against."""

from dataclasses import dataclass

from torch import Tensor

from asd_policy.chain import GaussianChain, transition
from asd_policy.denoiser import Denoiser
from asd_policy.noise import NoiseTape
from asd_policy.samplers.base import Sampler, Samples


@dataclass(frozen=True)
class Ddpm(Sampler):
    """One network call per step (Ho et al., arXiv 2006.11239, algorithm 2)."""

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return "ddpm"

    @property
    def exact(self) -> bool:
        """True: it is the law."""
        return True

    def check(self, chain: GaussianChain) -> None:
        """Accept every chain."""

    def run(self, denoiser: Denoiser, chain: GaussianChain, tape: NoiseTape, cond: Tensor | None) -> Samples:
        """Walk the chain once."""
        x = tape.initial
        tables = chain.tables(x.device, x.dtype)
        for k in range(len(chain)):
            output = denoiser(x, tables.timesteps[k].expand(len(x)), cond)
            clean = chain.predict(x, output, k)
            x = transition(tables.a[k], clean, tables.sigma[k], tape.normals[:, k], tables.b[k], x)
        return Samples(x, rounds=[len(chain)] * len(x), nfe=[len(chain)] * len(x))
