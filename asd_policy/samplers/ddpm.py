"""The sequential sampler: the reference that every law and every speedup is measured against."""

from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.samplers.base import Sampler, Samples, Target
from asd_policy.samplers.fallback import fall_back, reserve
from asd_policy.samplers.recorded import WalkRecording, shapes
from asd_policy.samplers.records import sequential_costs
from asd_policy.samplers.warm_start import WarmStart


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

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk the chain once."""
        launcher, costs = target.launcher, sequential_costs([len(target.chain)] * len(tape.initial))
        if launcher is not None:
            if target.deadline is not None:
                raise SpecError("ddpm is one recording on this backend, which no deadline can cut; asd can be cut")
            recorded = launcher.keep(
                ("ddpm", *shapes(target, tape)),
                lambda: WalkRecording(launcher, target, tape, lambda *own: walk(*own)[0]),
            )
            return Samples(recorded(target, tape), costs, recorded=True)
        reserve(target, tape)
        x, done = walk(target, tape)
        if done == len(target.chain):
            return Samples(x, costs)
        rows = arrays.arange(len(x), x)
        now = arrays.namespace(rows).full_like(rows, done)
        sample, calls = fall_back(target, lambda: target.predict(x, now, rows), rows, warm_start)
        return Samples(sample, sequential_costs((done + calls).tolist(), cut=True))


def walk(target: Target, tape: NoiseTape) -> tuple[Array, int]:
    """Walk the chain; return points [B, *event] and how many steps led to them: all, if no deadline forbids."""
    x, chain = tape.initial, target.chain
    tables = chain.tables(arrays.device_of(x), x.dtype)
    steps = arrays.arange(len(chain), x)
    for k in range(len(chain)):
        if not target.allows("step"):
            return x, k
        x0_pred = target.predict(x, arrays.namespace(x).broadcast_to(steps[k], (len(x),)))
        x = transition(tables.a[k], x0_pred, tables.sigma[k], tape.normals[:, k], tables.b[k], x)
    return x, len(chain)
