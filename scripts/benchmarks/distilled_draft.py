"""Measure how much of what the draft misses a small network could know: a bound for a distilled draft network.

    python scripts/benchmarks/distilled_draft.py --policy checkpoints/metaworld-pick-place \
        --env asd/MetaWorld-pick-place-v0

A multilayer perceptron learns, from plans of some episodes, what the one-step draft with the response misses of x̂0. It
sees all that is known when a step is drafted: the point, the prediction and the noise of the step before, the
conditioning (for a camera policy the features of its encoder), and the step. Of its epochs the one that is best on
plans of other episodes is reported, which flatters it.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.states import States
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from study_common import ROLL_OUT, Subject, count, load, markdown_table, provenance

BATCH = 512
"""Steps of a plan in one gradient step."""


@dataclass(frozen=True)
class Options:
    """Measure how much of what the draft misses a small network could know."""

    policy: Path
    """The checkpoint."""
    env: str
    """Its environment."""
    states: int = 100
    """States of the plans that it is judged by."""
    calibration: int = 400
    """States of other episodes, whose plans it learns from."""
    tapes: int = 4
    """Plans of each of these states."""
    width: int = 1024
    """Of its two hidden layers."""
    epochs: int = 24
    """Times that it sees each plan."""
    seed: int = 0
    """Of episodes, tapes and weights."""
    threads: int = 1
    """Of torch."""


class Kept(Experience):
    """An experience that keeps the committed paths."""

    def __init__(self) -> None:
        super().__init__(learning=True)
        self.points: list[Tensor] = []
        self.x0_pred: list[Tensor] = []

    def learn(
        self, committed: CommittedPaths, chain: GaussianChain, pair: tuple[str, str], horizon: int | None
    ) -> None:
        """Keep the paths of a batch of plans."""
        self.points.append(committed.points.clone())
        self.x0_pred.append(committed.x0_pred.clone())


@dataclass(frozen=True)
class Steps:
    """Steps 1 … K − 2 of plans: what is known when each is drafted, and what the draft misses."""

    known: Tensor
    """[N, K − 2, F]."""
    missed: Tensor
    """In units of the step's noise, [N, K − 2, D]: its mean square over N, summed over D, is that of ‖v‖."""


def collect(subject: Subject, states: States, seed: int) -> Steps:
    """Plan at states, and take the plans apart; all of it in the basis of the response."""
    policy, kept = subject.policy, Kept()
    chain = policy.chain
    count(policy.denoiser, chain, make_sampler(ROLL_OUT), states, kept, seed)
    x, x0_pred = torch.cat(kept.points), torch.cat(kept.x0_pred)
    response, tables = subject.experience.response(x.device, x.dtype), chain.tables(x.device, x.dtype)
    assert response is not None
    noise = x[:, 1:] - (tables.a[:-1, None] * x0_pred[:, :-1] + tables.b[:-1, None] * x[:, :-1])
    missed = x0_pred.diff(dim=1) - response.gain[1:] * noise
    scale = (tables.a / tables.sigma)[1:-1, None]  # the last step has no noise, and no draft to refuse
    place = torch.arange(1, len(chain) - 1)[:, None] * torch.pi / len(chain) * 2.0 ** torch.arange(8)
    inputs = [x[:, 1:-1], x0_pred[:, :-2], noise[:, :-1] / tables.sigma[:-2, None]]
    inputs.append(states.cond[:, None].expand(-1, len(chain) - 2, -1))
    inputs.append(torch.cat([place.sin(), place.cos()], 1).expand(len(x), -1, -1).to(x.dtype))
    return Steps(torch.cat(inputs, 2), scale * missed[:, :-1])


def unexplained(learned_from: Steps, judged_by: Steps, options: Options) -> Tensor:
    """Train the network; return the share of ‖v‖² that it leaves, by step [K − 2], in its best epoch."""
    torch.manual_seed(options.seed)
    size, outputs = learned_from.known.shape[2], learned_from.missed.shape[2]
    last = nn.Linear(options.width, outputs)
    for part in last.parameters():
        nn.init.zeros_(part)  # it begins at what the draft does
    network = nn.Sequential(
        *(nn.Linear(size, options.width), nn.SiLU(), nn.Linear(options.width, options.width), nn.SiLU(), last)
    )
    known, spread = learned_from.known.flatten(0, 1), learned_from.missed.square().mean((0, 2)).sqrt()[:, None]
    centre, width = known.mean(0), known.std(0).clamp(min=1e-3)
    wanted = (learned_from.missed / spread).flatten(0, 1)  # so that every step counts alike
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.05)
    steps = options.epochs * (len(known) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = torch.ones(len(spread))
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(known)).split(BATCH)[: len(known) // BATCH]:
            loss = (network((known[rows] - centre) / width) - wanted[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            left = judged_by.missed - spread * network((judged_by.known - centre) / width)
        share = left.square().sum(2).mean(0) / judged_by.missed.square().sum(2).mean(0)
        best = share if share.mean() < best.mean() else best
        print(f"epoch {epoch + 1} of {options.epochs}: leaves {share.mean():.3f}", file=sys.stderr, flush=True)
    return best


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    subject = load(options.policy, options.env, options.states, options.calibration, options.seed)
    parts = [collect(subject, subject.calibration, options.seed + tape * 10_000 + 1) for tape in range(options.tapes)]
    learned_from = Steps(torch.cat([each.known for each in parts]), torch.cat([each.missed for each in parts]))
    judged_by = collect(subject, subject.states, options.seed)
    left = unexplained(learned_from, judged_by, options)
    before = judged_by.missed.square().sum(2).mean(0)
    steps = [step for step in (1, 3, 5, 10, 30, 50, 70, 80, 90, 93, 95, 97, 98) if step <= len(left)]
    rows = [
        ["‖v‖ with the response", *(f"{before[step - 1] ** 0.5:.2f}" for step in steps)],
        ["‖v‖ with the network, too", *(f"{(left * before)[step - 1] ** 0.5:.2f}" for step in steps)],
        ["of ‖v‖² explained", *(f"{100 * (1 - left[step - 1]):.0f} %" for step in steps)],
    ]
    print(markdown_table(["step", *map(str, steps)], rows))
    episodes = len(np.unique(subject.states.episode))
    print(
        f"n = {len(subject.states)} plans of {episodes} episodes, learned from {len(learned_from.known)} plans. "
        f"{provenance(shlex.join(['python', *sys.argv]), options.seed)}"
    )


if __name__ == "__main__":
    main()
