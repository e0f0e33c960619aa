"""How many rounds do plans without noise take in parallel, and how far off are they? Table for docs/results.

    python scripts/benchmarks/without_noise.py --policies checkpoints/avoid checkpoints/pusht

Every row plans the same states of closed-loop episodes from the same noise: DDIM with η = 0 of a few numbers of steps
on the noise schedule of a diffusion, Euler's steps along a flow. The sequential plan is the one to compare with.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro

from asd_policy.chain.flow import is_flow
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.ddim import Ddim, shortened
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.euler import euler_chain
from asd_policy.samplers.warm_start import WarmStart
from study_common import CHUNK, ROOT, Subject, clustered_error, load, markdown_table, provenance


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policies: tuple[Path, ...] = (ROOT / "checkpoints/avoid", ROOT / "checkpoints/pusht")
    """Checkpoints of the manifest, or any with an `--env` for each."""
    env: tuple[str, ...] = ()
    """Environments, one for each policy; none for those of the manifest."""
    steps: tuple[int, ...] = (10, 16, 50)
    """Steps of the chains without noise."""
    window: int = 16
    """Points θ of a round, at most as many as steps."""
    settings: tuple[str, ...] = (
        "paradigms:tol=0.1",
        "paradigms:tol=0.3",
        "parallel:tol=0.03,draft=frozen",
        "parallel:tol=0.03,draft=picard",
        "parallel:tol=0.01",
        "parallel:tol=0.03",
        "parallel:tol=0.1",
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


def sample(subject: Subject, chain: GaussianChain, sampler: Sampler, seed: int) -> Sampled:
    """Plan once at each state; state i has the same noise whatever the sampler."""
    states, plans, rounds, nfe = subject.states, list[torch.Tensor](), list[int](), list[int]()
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        last = states.last_plan[rows]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(last))]
        result = sampler.sample(
            subject.policy.denoiser, chain, last.shape, states.cond[rows], generators, warm_start=WarmStart(last)
        )
        plans.append(result.sample)
        rounds += result.stats.rounds
        nfe += result.stats.nfe
    return Sampled(torch.cat(plans), np.asarray(rounds), np.asarray(nfe))


def row(subject: Subject, name: str, steps: int, spec: str, found: Sampled, own: Sampled) -> list[str]:
    """Format what plans cost, and how far they are from the sequential ones."""
    mean = float(found.rounds.mean())
    _, reach = clustered_error(found.rounds, subject.states.episode)
    off = (found.plans - own.plans).abs().flatten(1).amax(1)
    quantiles = (f"{float(off.quantile(level)):.3g}" for level in (0.5, 0.95))
    return [
        f"`{subject.name}` {name}",
        f"`{spec}`",
        f"{mean:.2f} ± {reach:.2f}",
        f"{steps / mean:.1f}",
        f"{found.nfe.mean() / steps:.2f}",
        " / ".join(quantiles),
    ]


def measure(subject: Subject, options: Options) -> list[list[str]]:
    """Measure all settings on all chains of a checkpoint."""
    rows = []
    for steps in options.steps:
        name, chain = walked(subject.policy.chain, steps)
        own = sample(subject, chain, Ddpm(), options.seed)
        for setting in options.settings:
            window = min(options.window, steps)
            sampler = make_sampler(f"{setting},window={window}")
            found = sample(subject, chain, sampler, options.seed)
            assert found.rounds.max() <= steps
            rows.append(row(subject, name, steps, f"{setting},window={window}", found, own))
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
        rows += measure(subject, options)
        episodes.append(len(np.unique(subject.states.episode)))
    header = ["chain", "sampler", "rounds", "steps / rounds", "evaluations / steps", "off, median / p95"]
    print(markdown_table(header, rows))
    print(
        f"n = {options.states} plans of each row, from {' and '.join(map(str, episodes))} episodes; ± is the reach of "
        f"the 95 % interval, by episodes. {provenance(shlex.join(['python', *sys.argv]), options.seed)}"
    )


if __name__ == "__main__":
    main()
