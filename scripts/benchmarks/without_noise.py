"""How many rounds do plans without noise take in parallel, and how far off are they? Table for docs/results.

    python scripts/benchmarks/without_noise.py --policies checkpoints/avoid checkpoints/pusht

Every row plans the same states of closed-loop episodes from the same noise: DDIM with η = 0 of a few numbers of steps
on the noise schedule of a diffusion, Euler's steps along a flow. The sequential plan is the one to compare with.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro

from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.states import States
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.ddim import Ddim, shortened
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.euler import euler_chain
from asd_policy.samplers.warm_start import WarmStart
from study_common import CHUNK, ROOT, clustered_error, load, markdown_table, provenance


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policies: tuple[Path, ...] = (ROOT / "checkpoints/avoid", ROOT / "checkpoints/pusht")
    """Checkpoints of the manifest, or any with an `--env` for each."""
    env: tuple[str, ...] = ()
    """Environments, one for each policy; none for those of the manifest."""
    steps: tuple[int, ...] = (10, 16, 50)
    """Steps of the chains without noise."""
    flow_steps: tuple[int, ...] = ()
    """Steps of Euler along a flow in closed form, whose data are narrow modes around smooth paths; none for no flow."""
    window: int = 16
    """Points θ of a round, at most as many as steps."""
    settings: tuple[str, ...] = (
        "paradigms:tol=0.1",
        "paradigms:tol=0.3",
        "parallel:tol=0.03,draft=frozen",
        "parallel:tol=0.03,draft=picard",
        "parallel:tol=0.03",
        "parallel:tol=0.01",
    )
    """Samplers of each row, without their window."""
    states: int = 200
    """States to plan from."""
    seed: int = 0
    """Of episodes and noise."""


@dataclass(frozen=True)
class Sampled:
    """N plans and what they cost."""

    plans: torch.Tensor
    rounds: npt.NDArray[np.int64]
    nfe: npt.NDArray[np.int64]


def walked(chain: GaussianChain, steps: int) -> tuple[str, GaussianChain]:
    """Name and make a chain without noise of so many steps."""
    if is_flow(chain.config):
        return f"Euler-{steps}", euler_chain(steps, chain)
    return f"DDIM-{steps}", shortened(Ddim(steps), chain)


def sample(denoiser: Denoiser, states: States, chain: GaussianChain, sampler: Sampler, seed: int) -> Sampled:
    """Plan once at each state; state i has the same noise whatever the sampler."""
    plans, rounds, nfe = list[torch.Tensor](), list[int](), list[int]()
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        last = states.last_plan[rows]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(last))]
        result = sampler.sample(denoiser, chain, last.shape, states.cond[rows], generators, warm_start=WarmStart(last))
        plans.append(result.sample)
        rounds += result.stats.rounds
        nfe += result.stats.nfe
    return Sampled(torch.cat(plans), np.asarray(rounds), np.asarray(nfe))


def row(names: list[str], states: States, steps: int, found: Sampled, own: Sampled) -> list[str]:
    """Format what plans cost, and how far they are from the sequential ones."""
    mean = float(found.rounds.mean())
    _, reach = clustered_error(found.rounds, states.episode)
    off = (found.plans - own.plans).abs().flatten(1).amax(1)
    quantiles = " / ".join(f"{float(off.quantile(level)):.3g}" for level in (0.5, 0.95))
    return [*names, f"{mean:.2f} ± {reach:.2f}", f"{steps / mean:.1f}", f"{found.nfe.mean() / steps:.2f}", quantiles]


class MixtureVelocity:
    """The velocity ε − x0 of a perfect flow network, for data of eight modes around smooth paths of 16 × 2 numbers."""

    def __init__(self, seed: int, modes: int = 8, scale: float = 0.05) -> None:
        steps = torch.randn((modes, 16, 2), generator=torch.Generator().manual_seed(seed))
        self._means = (steps.cumsum(1) / 4).flatten(1)  # [M, D]
        self._variance = scale**2

    def __call__(self, x: torch.Tensor, time: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        """Compute it at points [N, 16, 2] and times [N], 1 at the noise."""
        t = time[:, None, None]
        variance = (1 - t) ** 2 * self._variance + t**2  # of a point, in each mode [N, 1, 1]
        off = x.flatten(1)[:, None] - (1 - t) * self._means  # [N, M, D]
        share = (-0.5 * off.square() / variance).sum(2).softmax(1)[..., None]
        clean = (share * (self._means + (1 - t) * self._variance / variance * off)).sum(1)
        return (x - clean.view_as(x)) / t.clamp(min=1e-6)


def measure(
    name: str, denoiser: Denoiser, states: States, chains: Mapping[str, GaussianChain], options: Options
) -> list[list[str]]:
    """Measure all settings on chains without noise."""
    rows = []
    for title, chain in chains.items():
        own, steps = sample(denoiser, states, chain, Ddpm(), options.seed), len(chain)
        for setting in options.settings:
            spec = f"{setting},window={min(options.window, steps)}"
            found = sample(denoiser, states, chain, make_sampler(spec), options.seed)
            assert found.rounds.max() <= steps
            rows.append(row([f"`{name}` {title}", f"`{spec}`"], states, steps, found, own))
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    entries: list[dict[str, Any]] = json.loads((ROOT / "checkpoints/manifest.json").read_text())
    known = {(ROOT / entry["path"]).resolve(): entry["env"] for entry in entries}
    rows, episodes = [], list[int]()
    envs = options.env or tuple(known[path.resolve()] for path in options.policies)
    for path, env in zip(options.policies, envs, strict=True):
        subject = load(path, env, options.states, 8, options.seed)
        policy = subject.policy
        chains = dict(walked(policy.chain, steps) for steps in options.steps)
        rows += measure(subject.name, policy.denoiser, subject.states, chains, options)
        episodes.append(len(np.unique(subject.states.episode)))
    if options.flow_steps:
        chains = {f"Euler-{steps}": GaussianChain.from_flow(steps, eta=0) for steps in options.flow_steps}
        states = States.none(options.states, (16, 2))
        rows += measure("a mixture's flow", MixtureVelocity(options.seed), states, chains, options)
    header = ["chain", "sampler", "rounds", "steps / rounds", "evaluations / steps", "off, median / p95"]
    print(markdown_table(header, rows))
    where = f"of checkpoints from {' and '.join(map(str, episodes))} episodes; " if episodes else ""
    print(f"n = {options.states} plans of each row; {where}± is the reach of the 95 % interval, by episodes.")
    print(provenance(shlex.join(["python", *sys.argv]), options.seed))


if __name__ == "__main__":
    main()
