"""The sequential sampler: the reference that every law and every speedup is measured against."""

from dataclasses import dataclass

from asd_policy import arrays
from asd_policy.arrays import Array
from asd_policy.chain import GaussianChain, transition
from asd_policy.noise import NoiseTape
from asd_policy.samplers.base import Past, Sampler, Samples
from asd_policy.samplers.static import StaticWalk, shapes
from asd_policy.samplers.target import Target


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

    def run(self, target: Target, tape: NoiseTape, past: Past) -> Samples:
        """Walk the chain once."""
        launcher, steps = target.launcher, [len(target.chain)] * len(tape.initial)
        if launcher is None:
            return Samples(walk(target, tape), steps, steps)
        recorded = launcher.keep(("ddpm", *shapes(target, tape)), lambda: StaticWalk(launcher, target, tape, walk))
        return Samples(recorded(target, tape), steps, steps, recorded=True)


def walk(target: Target, tape: NoiseTape) -> Array:
    """Return samples [B, *event]: the chain, step by step."""
    x, chain = tape.initial, target.chain
    tables = chain.tables(arrays.device_of(x), x.dtype)
    steps = arrays.arange(len(chain), x)
    for k in range(len(chain)):
        clean = target.predict(x, arrays.namespace(x).broadcast_to(steps[k], (len(x),)))
        x = transition(tables.a[k], clean, tables.sigma[k], tape.normals[:, k], tables.b[k], x)
    return x
