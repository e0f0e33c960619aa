"""Autospeculative decoding (arXiv 2505.03983): draft many steps, check them in one batched call, stay exact."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chain import GaussianChain, push, transition
from asd_policy.denoiser import Denoiser
from asd_policy.draft import DRAFTS, Draft
from asd_policy.errors import SpecError
from asd_policy.noise import NoiseTape
from asd_policy.samplers.base import Sampler, Samples, check_count, evaluate
from asd_policy.verify import accepts, reflect

VERIFIERS = ("reflection",)


@dataclass(frozen=True)
class Asd(Sampler):
    """Speculative sampling of a chain by its own predictions; the law is that of the sequential sampler.

    A round rolls the drafted chain out over a window of points, evaluates the network on all of them at once, and
    walks through them in order: each drafted step is accepted or, the first time it is not, reflected, which ends
    the round. The last point of the window needs no draft: its own prediction takes the step. Each row of a
    batch has a cursor of its own and leaves the batch when it is done.
    """

    window: int = 32
    """Points θ that one network call evaluates per row; 1 is the sequential sampler."""
    draft: str = "picard"
    """Name of the draft."""
    verify: str = "reflection"
    """Name of the coupling."""

    def __post_init__(self) -> None:
        """Check the options that need no chain.

        Raises:
            SpecError: One of them does not exist.
        """
        if self.draft not in DRAFTS:
            raise SpecError(f"draft={self.draft} is not one of {', '.join(DRAFTS)}")
        if self.verify not in VERIFIERS:
            raise SpecError(f"verify={self.verify} is not one of {', '.join(VERIFIERS)}")
        check_count(f"window={self.window}", self.window)

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        return f"asd:window={self.window},draft={self.draft},verify={self.verify}"

    @property
    def exact(self) -> bool:
        """True for every draft and verifier here."""
        return True

    def check(self, chain: GaussianChain) -> None:
        """Refuse a window longer than the chain."""
        check_count(f"window={self.window}", self.window, chain)

    def run(self, denoiser: Denoiser, chain: GaussianChain, tape: NoiseTape, cond: Tensor | None) -> Samples:
        """Do rounds until every row is at the end of the chain."""
        batch = len(tape.initial)
        state = _State(
            x=tape.initial.flatten(1).clone(),
            cursor=torch.zeros(batch, dtype=torch.int64, device=tape.initial.device),
            rounds=torch.zeros(batch, dtype=torch.int64),
            nfe=torch.zeros(batch, dtype=torch.int64),
        )
        draft = DRAFTS[self.draft](self.window, batch, len(chain), state.x)
        rows = torch.arange(batch, device=state.x.device)
        while len(rows):
            _advance(state, rows, draft, denoiser, chain, tape, cond)
            rows = (state.cursor < len(chain)).nonzero().squeeze(1)
        return Samples(state.x.view(tape.initial.shape), state.rounds.tolist(), state.nfe.tolist())


@dataclass
class _State:
    """Where a batch of plans stands."""

    x: Tensor
    """The last exact point of each row, flattened, [B, D]."""
    cursor: Tensor
    """The step that leaves it, 0 … K, [B]."""
    rounds: Tensor
    """Rounds so far [B]."""
    nfe: Tensor
    """Points evaluated so far [B]."""


def _advance(
    state: _State,
    rows: Tensor,
    draft: Draft,
    denoiser: Denoiser,
    chain: GaussianChain,
    tape: NoiseTape,
    cond: Tensor | None,
) -> None:
    """Do one round for `rows` [R], none of which is done: at least one step of each is committed."""
    tables = chain.tables(state.x.device, state.x.dtype)
    cursor = state.cursor[rows]
    count = torch.minimum(draft.points(rows), len(chain) - cursor)  # [R] points of each row
    slots = torch.arange(int(count.max()), device=rows.device)  # [n]
    live = slots < count.unsqueeze(1)  # [R, n]
    steps = (cursor.unsqueeze(1) + slots).clamp(max=len(chain) - 1)  # [R, n]
    at = (rows.unsqueeze(1), steps)

    # Draft: roll the chain out on guesses of x̂0, along the tape.
    guess = draft.propose(rows, steps)  # [R, n, D]
    noise = tape.normals[at].flatten(2)  # [R, n, D]
    a, b, sigma = (table[steps].unsqueeze(-1) for table in (tables.a, tables.b, tables.sigma))  # [R, n, 1]
    pushes = push(a, guess, sigma, noise)
    x = state.x[rows]
    points = [x]
    for slot in range(len(slots) - 1):
        x = pushes[:, slot] + b[:, slot] * x
        points.append(x)
    point = torch.stack(points, dim=1)  # [R, n, D]

    # Verify: the network on every live point, then the longest run of accepted drafts.
    clean = evaluate(denoiser, chain, point, steps, live, rows, cond, tape.initial.shape[1:])  # [R, n, D]
    gap = guess - clean
    accepted = accepts(gap, (a / sigma).squeeze(-1), noise, tape.uniforms[at])  # [R, n]
    # A step stands as drafted where its draft was accepted and there is a next point that was drafted from it.
    stands = accepted[:, :-1] & live[:, 1:]
    last = stands.long().cumprod(1).sum(1)  # [R] slot of the last step this round commits
    rejected = last + 1 < count

    # Commit: the last step is taken from the target, with its noise reflected if its draft was rejected.
    here = (torch.arange(len(rows), device=rows.device), last)
    own = noise[here]
    used = torch.where(rejected.unsqueeze(1), reflect(gap[here], own), own)
    state.x[rows] = transition(a[here], clean[here], sigma[here], used, b[here], point[here])
    state.cursor[rows] = cursor + last + 1
    draft.observe(rows, steps, live, clean, last, rejected)
    state.rounds[rows.cpu()] += 1
    state.nfe[rows.cpu()] += count.cpu()
