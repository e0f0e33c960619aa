"""How many rounds does an energy-based policy's Langevin chain take? An example that trains, and the table of it.

    python scripts/benchmarks/energy_policy.py

The policy has the form of Implicit Behavioral Cloning (arXiv 2109.00137): an energy E(observation, actions) that is low
where the expert acts so, and Langevin dynamics on the actions. It learns from the expert of a task of this repository,
by telling the expert's actions from the same with noise added, in pairs (conditional noise-contrastive estimation,
arXiv 1806.03664).
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import Progress
from torch import Tensor, nn

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.energy import EnergyGradient
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.warm_start import WarmStart
from study_common import clustered_error, console, markdown_table, provenance

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.recording import demonstrate  # noqa: E402  # a script's module, found by the line above

ENV, OBSERVED, ACTION_DIM = "asd/Avoid-v0", ("agent_pos", "environment_state"), 2


@dataclass(frozen=True)
class Options:
    """What to train and to measure."""

    demonstrations: int = 100
    """Episodes of the expert to learn from."""
    noise: float = 0.03
    """As of scripts/train.py."""
    updates: int = 4000
    """Of the energy."""
    horizon: int = 8
    """Actions of a plan."""
    steps: tuple[int, ...] = (50, 100, 200)
    """Numbers of steps K of the chains."""
    smooth: float = 0.1
    """Standard deviation of the noise in what the energy is the density of, in −1 … 1 of the actions."""
    largest: float = 3e-3
    """First step size; it falls to a tenth."""
    settings: tuple[str, ...] = (
        "asd:window=16,draft=frozen,verify=reflection",
        "asd:window=16,draft=picard,verify=reflection",
        "asd:window=16,draft=picard,verify=block",
        "asd:window=16,draft=response,verify=block",
        "asd:window=32,draft=response,verify=block",
    )
    """Samplers of the table."""
    plans: int = 200
    """Plans of each row, from observations of episodes that were not learned from."""
    seed: int = 0
    """Of all of it."""


class Energy(nn.Module):
    """E(actions, observation), an MLP of both."""

    def __init__(self, observed: int, numbers: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(observed + numbers, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, actions: Tensor, cond: Tensor | None) -> Tensor:
        """Compute it for actions [N, horizon, dim] and observations [N, C]: [N]."""
        assert cond is not None
        return self.layers(torch.cat([actions.flatten(1), cond], 1))[:, 0]


def _to_unit(values: Tensor, seen: Tensor) -> Tensor:
    """Map vectors to −1 … 1 by the range of what was seen [N, D]."""
    low = seen.amin(0)
    return 2 * (values - low) / (seen.amax(0) - low).clamp(min=1e-4) - 1


@dataclass(frozen=True)
class Data:
    """Observations and the expert's chunks of actions, scaled."""

    observed: Tensor
    chunks: Tensor
    episode: Any


def record(options: Options) -> Data:
    """Let the expert act."""
    with Progress(console=console) as progress:
        found = demonstrate(ENV, options.demonstrations, options.noise, options.seed, progress)
    observed, chunks, episode = [], [], []
    for number, each in enumerate(found):
        actions = torch.from_numpy(each["action"])
        rows = torch.arange(len(actions))[:, None] + torch.arange(options.horizon)
        chunks.append(actions[rows.clamp(max=len(actions) - 1)])
        observed.append(torch.cat([torch.from_numpy(each[name]) for name in OBSERVED], 1))
        episode += [number] * len(actions)
    seen, acted = torch.cat(observed).float(), torch.cat(chunks).float()
    return Data(_to_unit(seen, seen), _to_unit(acted, acted.flatten(0, 1)), np.asarray(episode))


def train(data: Data, learned: Tensor, options: Options) -> Energy:
    """Train an energy on the rows `learned`."""
    torch.manual_seed(options.seed)
    energy = Energy(data.observed.shape[1], data.chunks[0].numel())
    optimizer = torch.optim.AdamW(energy.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.updates)
    for update in range(options.updates):
        rows = learned[torch.randint(len(learned), (512,))]
        cond, right = data.observed[rows], data.chunks[rows]
        size = torch.exp(torch.empty(512, 1, 1).uniform_(np.log(options.smooth), 0))
        # Smooth in itself: what is learned is the density of actions with a little noise, whose gradient is tame.
        right = right + options.smooth * torch.randn_like(right)
        wrong = right + size * torch.randn_like(right)
        loss = nn.functional.softplus(energy(right, cond) - energy(wrong, cond)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if update % 1000 == 0:
            console.print(f"update {update}: loss {loss:.3f}")
    return energy.requires_grad_(False)


def chain_of(options: Options, steps: int) -> GaussianChain:
    """Make a chain whose step sizes fall to a tenth."""
    return GaussianChain.langevin(np.geomspace(options.largest, options.largest / 10, steps))


def tape_of(count: int, event: tuple[int, int], steps: int, seed: int) -> NoiseTape:
    """Draw noise, and a start that is uniform over the actions, as Implicit Behavioral Cloning has it."""
    generator = torch.Generator().manual_seed(seed)
    start = 2 * torch.rand((count, *event), generator=generator) - 1
    return NoiseTape.draw((count, *event), steps, generator, initial=start)


def sample(
    gradient: EnergyGradient, options: Options, sampler: Sampler, steps: int, cond: Tensor, seed: int, past: WarmStart
) -> Any:
    """Plan for observations [B, C]."""
    tape = tape_of(len(cond), (options.horizon, ACTION_DIM), steps, seed)
    return sampler.sample(gradient, chain_of(options, steps), tape.initial.shape, cond, tape, warm_start=past)


def table(gradient: EnergyGradient, options: Options, data: Data, held_out: Tensor) -> str:
    """Measure the rounds of all settings and numbers of steps."""
    rows = []
    picked = held_out[torch.linspace(0, len(held_out) - 1, options.plans).long()]
    for steps in options.steps:
        for setting in options.settings:
            experience, sampler = Experience(), make_sampler(setting)
            for seed in range(4):  # what a response learns from
                others = data.observed[
                    torch.randint(len(data.observed), (16,), generator=torch.Generator().manual_seed(seed))
                ]
                sample(gradient, options, sampler, steps, others, 10_000 + seed, WarmStart(None, experience))
            experience.freeze()
            found = sample(gradient, options, sampler, steps, data.observed[picked], 1, WarmStart(None, experience))
            rounds = np.asarray(found.stats.rounds)
            _, reach = clustered_error(rounds, data.episode[picked])
            cells = [f"{rounds.mean():.1f} ± {reach:.1f}", f"{steps / rounds.mean():.1f}"]
            cells.append(f"{np.mean(found.stats.nfe) / steps:.2f}")
            rows.append([str(steps), f"`{setting}`", *cells])
            print(*rows[-1], file=sys.stderr, flush=True)
    return markdown_table(["steps K", "sampler", "rounds", "K / rounds", "evaluations / K"], rows)


def near(gradient: EnergyGradient, options: Options, data: Data, held_out: Tensor, spec: str) -> float:
    """Measure how far the first action of plans is from the expert's: the median over plans, in −1 … 1."""
    picked = held_out[torch.linspace(0, len(held_out) - 1, options.plans).long()]
    found = sample(gradient, options, make_sampler(spec), options.steps[-1], data.observed[picked], 2, WarmStart())
    return float((found.sample[:, 0] - data.chunks[picked, 0]).square().sum(1).sqrt().median())


def main() -> None:
    """Train, measure, and print."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    data = record(options)
    held_out = torch.from_numpy(data.episode >= 0.8 * options.demonstrations)
    energy = train(data, (~held_out).nonzero()[:, 0], options)
    gradient = EnergyGradient(energy)
    print(table(gradient, options, data, held_out.nonzero()[:, 0]))
    far = ", ".join(
        f"`{spec}` {near(gradient, options, data, held_out.nonzero()[:, 0], spec):.2f}"
        for spec in ("ddpm", options.settings[-1])
    )
    print(f"First actions after {options.steps[-1]} steps are off the expert's by a median of {far} (of a range of 2)")
    print(f"n = {options.plans} plans of each row; ± is the reach of the 95 % interval, by episodes of the expert.")
    print(provenance(shlex.join(["python", *sys.argv]), options.seed))


if __name__ == "__main__":
    main()
