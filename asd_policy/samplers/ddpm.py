"""The sequential sampler: the reference that every law and every speedup is measured against."""

from collections.abc import Hashable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import SpecError
from asd_policy.samplers.base import Sampler, Samples, Target
from asd_policy.samplers.compiled import (
    STEPS,
    LoopTables,
    load_kernels,
    loop_tables,
    loops_for,
    output_on_host,
)
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

    def prepare(self, device: Device) -> None:
        """Have the steps' loops compiled, or read from the disk, where plans are made in the host's memory."""
        if arrays.is_host(device):
            load_kernels(STEPS)

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk the chain once."""
        costs = sequential_costs([len(target.chain)] * len(tape.initial))
        if target.launcher is not None:
            if target.deadline is not None:
                raise SpecError("ddpm is one recording on this backend, which no deadline can cut; asd can be cut")
            return walk_recorded("ddpm", target, tape)
        reserve(target, tape)
        x, done = walk_called(target, tape)
        if done == len(target.chain):
            return Samples(x, costs)
        x = arrays.as_like(x, tape.initial)
        rows = arrays.arange(len(x), x)
        now = arrays.namespace(rows).full_like(rows, done)
        sample, calls = fall_back(target, lambda: target.jump(x, now, rows), rows, warm_start)
        return Samples(sample, sequential_costs((done + calls).tolist(), cut=True))


def walk_recorded(key: Hashable, target: Target, tape: NoiseTape) -> Samples:
    """Walk the chain of a target whose network's calls can be recorded, as one recording, kept by a key."""
    launcher = target.launcher
    assert launcher is not None  # it was asked for
    recorded = launcher.keep(
        (key, *shapes(target, tape)), lambda: WalkRecording(launcher, target, tape, lambda *own: walk(*own)[0])
    )
    costs = sequential_costs([len(target.chain)] * len(tape.initial))
    return Samples(recorded(target, tape), costs, recorded=True)


def walk_called(target: Target, tape: NoiseTape) -> tuple[Array, int]:
    """Walk the chain as `walk` does, by compiled steps where there are some: not to be recorded.

    Those give points in an array of NumPy's, whatever the tape's library.
    """
    loops = None if target.inpainting is not None else loops_for(STEPS, tape.initial)
    if loops is None:
        return walk(target, tape)
    tables = loop_tables(target.chain, arrays.on_host(tape.initial).dtype)
    return _walk_compiled(target, tape, loops, tables) if tables.predicts else walk(target, tape)


def _walk_compiled(target: Target, tape: NoiseTape, loops: ModuleType, tables: LoopTables) -> tuple[Array, int]:
    """Walk the chain as `walk` does, to the same bits, by compiled steps."""
    batch, steps = len(tape.initial), len(target.chain)
    like = target.like_its_points(tape.initial)
    cond = None if target.cond is None else arrays.as_like(target.cond, like)
    here: Any = np.array(arrays.on_host(tape.initial), order="C")
    flat = here.reshape(batch, -1)
    timesteps = arrays.from_host(np.repeat(tables.timesteps[:, None], batch, 1), like)
    normals = np.ascontiguousarray(arrays.on_host(tape.normals)).reshape(batch, tape.normals.shape[1], -1)
    step = loops.hold_steps(flat, normals, tables.rows)
    for k in range(steps):
        if not target.allows("step"):
            return here, k
        points = arrays.from_host(here.copy() if target.may_keep_inputs else here, like)
        step(k, output_on_host(target.call(points, timesteps[k], cond), points, flat.shape))
    return here, steps


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
