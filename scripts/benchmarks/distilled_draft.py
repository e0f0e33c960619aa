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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.states import States
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd import draft as drafts
from asd_policy.samplers.asd import path as draft_path
from asd_policy.samplers.asd.draft import DRAFTS, Follow, ResponseDraft, follow_window
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.asd.sampler import Asd
from study_common import CHUNK, ROLL_OUT, Counts, Subject, clustered_error, count, load, markdown_table, provenance

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
    windows: tuple[int, ...] = (16, 32, 64)
    """Points θ of the rounds that are counted."""
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


def places(steps: int) -> Tensor:
    """Embed the steps of a chain, [K, 16]."""
    angle = torch.arange(steps)[:, None] * torch.pi / steps * 2.0 ** torch.arange(8)
    return torch.cat([angle.sin(), angle.cos()], 1)


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
    inputs = [x[:, 1:-1], x0_pred[:, :-2], noise[:, :-1] / tables.sigma[:-2, None]]
    inputs.append(states.cond[:, None].expand(-1, len(chain) - 2, -1))
    inputs.append(places(len(chain))[1:-1].expand(len(x), -1, -1))
    return Steps(torch.cat(inputs, 2), scale * missed[:, :-1])


class Distilled(nn.Module):
    """What the draft misses of x̂0, in units of the step's noise, from what is known."""

    def __init__(self, learned_from: Steps, width: int) -> None:
        super().__init__()
        size, outputs = learned_from.known.shape[2], learned_from.missed.shape[2]
        last = nn.Linear(width, outputs)
        for part in last.parameters():
            nn.init.zeros_(part)  # it begins at what the draft does
        self.layers = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)
        flat = learned_from.known.flatten(0, 1)
        self.centre, self.spread = flat.mean(0), flat.std(0).clamp(min=1e-3)
        self.scale = learned_from.missed.square().mean((0, 2)).sqrt()  # [K − 2], so that every step counts alike

    def forward(self, known: Tensor, step: Tensor) -> Tensor:
        """Map [..., F] and steps 1 … K − 2 [...] to [..., D]."""
        return self.scale[step - 1][..., None] * self.layers((known - self.centre) / self.spread)


def distil(learned_from: Steps, judged_by: Steps, options: Options) -> tuple[Distilled, Tensor]:
    """Train the network; return it as in its best epoch, and the share of ‖v‖² that it then leaves, by step [K − 2]."""
    torch.manual_seed(options.seed)
    network = Distilled(learned_from, options.width)
    steps = torch.arange(1, learned_from.known.shape[1] + 1)
    known, wanted = learned_from.known.flatten(0, 1), (learned_from.missed / network.scale[:, None]).flatten(0, 1)
    at = steps.repeat(len(learned_from.known))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    batches = len(known) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, options.epochs * batches)
    best, weights = torch.ones(len(steps)), {name: each.clone() for name, each in network.state_dict().items()}
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(known)).split(BATCH)[:batches]:
            error = network(known[rows], at[rows]) / network.scale[at[rows] - 1, None] - wanted[rows]
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            left = judged_by.missed - network(judged_by.known, steps)
        share = left.square().sum(2).mean(0) / judged_by.missed.square().sum(2).mean(0)
        if share.mean() < best.mean():
            best, weights = share, {name: each.clone() for name, each in network.state_dict().items()}
        print(f"epoch {epoch + 1} of {options.epochs}: leaves {share.mean():.3f}", file=sys.stderr, flush=True)
    network.load_state_dict(weights)
    return network.requires_grad_(False), best


class DistilledDraft(ResponseDraft):
    """The default draft, whose guesses that are carried on are corrected by a network, at the price of nothing."""


@dataclass(frozen=True)
class Corrected(Follow):
    """Guesses that are carried on with a network's correction."""

    correct: Callable[[int, Tensor, Tensor], Tensor]
    """Of a slot's guess, from its point and the guess before it, each [R, D]."""

    def __call__(self, slot: int, x0_pred: Tensor, x: Tensor, before: Tensor, usable: Tensor) -> Tensor:
        """Guess as `Follow` does."""
        return super().__call__(slot, x0_pred, x, before + self.correct(slot, x, before), usable)


def rounds_of(subject: Subject, network: Distilled, window: int, seed: int) -> tuple[Counts, Counts]:
    """Count the rounds of the default draft, and of that with the network, on the same states and tapes."""
    policy, chain = subject.policy, subject.policy.chain
    own = DRAFTS["response"], DistilledDraft()
    found: list[list[Counts]] = [[], []]
    for first in range(0, len(subject.states), CHUNK):
        states = subject.states.rows(slice(first, first + CHUNK))
        for draft, counts in zip(own, found, strict=True):
            follow = partial(corrected, network, chain, states.cond) if draft is own[1] else follow_window
            with patch.object(drafts, "follow_window", follow):
                sampler = Asd(window, draft)
                counts.append(count(policy.denoiser, chain, sampler, states, subject.experience, seed + first))
    plain, distilled = (
        Counts(np.concatenate([each.rounds for each in counts]), np.concatenate([each.nfe for each in counts]))
        for counts in found
    )
    return plain, distilled


def corrected(
    network: Distilled,
    chain: GaussianChain,
    cond: Tensor,
    path: draft_path.Path,
    window: drafts.Window,
    x0_pred: Tensor,
    noises: Tensor,
    sigma: Tensor,
    response: Response,
) -> Corrected:
    """Prepare how guesses follow the points of a window, as `follow_window` does, with the network's corrections."""
    tables = chain.tables(cond.device, cond.dtype)
    push = torch.cat([response.turn(path.innovation[window.rows])[:, None], noises[:, :-1]], 1)
    place = places(len(chain))

    def correct(slot: int, x: Tensor, before: Tensor) -> Tensor:
        step = window.steps[:, slot]
        inside = (step >= 1) & (step <= len(chain) - 2)  # else there is no step before, or no noise
        step = step.clamp(1, len(chain) - 2)
        noise = push[:, slot] / tables.sigma[step - 1, None]
        known = torch.cat([x, before, noise, cond[window.rows], place[step]], 1)
        return inside[:, None] * network(known, step) * (tables.sigma / tables.a)[step, None]

    return Corrected(**vars(follow_window(path, window, x0_pred, noises, sigma, response)), correct=correct)


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    subject = load(options.policy, options.env, options.states, options.calibration, options.seed)
    parts = [collect(subject, subject.calibration, options.seed + tape * 10_000 + 1) for tape in range(options.tapes)]
    learned_from = Steps(torch.cat([each.known for each in parts]), torch.cat([each.missed for each in parts]))
    judged_by = collect(subject, subject.states, options.seed)
    network, left = distil(learned_from, judged_by, options)
    before = judged_by.missed.square().sum(2).mean(0)
    steps = [step for step in (1, 3, 5, 10, 30, 50, 70, 80, 90, 93, 95, 97, 98) if step <= len(left)]
    rows = [
        ["‖v‖ with the response", *(f"{before[step - 1] ** 0.5:.2f}" for step in steps)],
        ["‖v‖ with the network, too", *(f"{(left * before)[step - 1] ** 0.5:.2f}" for step in steps)],
        ["of ‖v‖² explained", *(f"{100 * (1 - left[step - 1]):.0f} %" for step in steps)],
    ]
    print(markdown_table(["step", *map(str, steps)], rows))
    rows = []
    for window in options.windows:
        plain, distilled = rounds_of(subject, network, window, options.seed)
        change = distilled.rounds / plain.rounds.mean() - plain.rounds / plain.rounds.mean()
        _, reach = clustered_error(change, subject.states.episode)
        cells = (
            f"{each.rounds.mean():.2f} · {each.nfe.mean() / len(subject.policy.chain):.2f}"
            for each in (plain, distilled)
        )
        rows.append([str(window), *cells, f"{100 * change.mean():+.1f} ± {100 * reach:.1f} %"])
    print(markdown_table(["θ", "rounds · evaluations / K", "with the network", "rounds, difference [95 %]"], rows))
    episodes = len(np.unique(subject.states.episode))
    print(
        f"n = {len(subject.states)} plans of {episodes} episodes, learned from {len(learned_from.known)} plans. "
        f"{provenance(shlex.join(['python', *sys.argv]), options.seed)}"
    )


if __name__ == "__main__":
    main()
