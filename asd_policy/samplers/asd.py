"""Autospeculative decoding (arXiv 2505.03983): draft many steps, check them in one batched call, stay exact."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chain import GaussianChain, transition
from asd_policy.draft import DRAFTS, Draft, Path, roll_out
from asd_policy.errors import SpecError
from asd_policy.experience import Experience, Response
from asd_policy.noise import NoiseTape
from asd_policy.samplers.base import Past, Sampler, Samples, check_count
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.target import Target
from asd_policy.samplers.window import choose_window
from asd_policy.verify import VERIFIERS, Verifier


@dataclass(frozen=True)
class Asd(Sampler):
    """Speculative sampling of a chain by its own predictions; the law is that of the sequential sampler.

    A round rolls the drafted chain out over a window of points, evaluates the network on all of them at once, and
    keeps the longest run of drafted steps that the verifier lets stand, and one step more: the first that does not
    stand, drawn from its target, or the last of the window, which needs no draft. Each row of a batch has a cursor of
    its own.
    """

    window: int | None = None
    """Points θ that one network call evaluates per row; 1 is the sequential sampler, None (auto) the best here."""
    draft: str = "response"
    """Name of the draft."""
    verify: str = "block"
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
        if self.window is not None:
            check_count(f"window={self.window}", self.window)

    @property
    def spec(self) -> str:
        """The full spec of this sampler."""
        window = "auto" if self.window is None else self.window
        return f"asd:window={window},draft={self.draft},verify={self.verify}"

    @property
    def exact(self) -> bool:
        """True for every draft and verifier here."""
        return True

    @property
    def learns(self) -> bool:
        """Whether the draft responds to the noise or the window is to be chosen."""
        return self.window is None or DRAFTS[self.draft].responds

    def check(self, chain: GaussianChain) -> None:
        """Refuse a window longer than the chain."""
        if self.window is not None:
            check_count(f"window={self.window}", self.window, chain)

    def run(self, target: Target, tape: NoiseTape, past: Past) -> Samples:
        """Do rounds until every row is at the end of the chain."""
        draft = DRAFTS[self.draft]
        window = self.window
        if window is None:
            window = choose_window(target, tape.initial, past.experience, draft)
        if window == 1:  # the same numbers to the bit, without the engine
            return Ddpm().run(target, tape, past)
        path = begin(target, tape, past.last_plan if draft.starts_from_last_plan else None)
        response = None
        if draft.responds and past.experience is not None:
            response = past.experience.response(path.x.device, path.x.dtype)
        round_ = Round(target, draft, VERIFIERS[self.verify], response, window)
        # A GPU computes all rows in every round, in shapes that never change; a CPU leaves out what is done.
        compact = path.x.device.type == "cpu"
        rows = torch.arange(len(path.x), device=path.x.device)
        going = path.cursor < len(target.chain)
        while bool(going.any()):
            round_(path, going.nonzero().squeeze(1) if compact else rows, compact)
            going = path.cursor < len(target.chain)
        if past.experience is not None:
            learn(past.experience, path, target)
        return Samples(path.x.view(target.shape), path.rounds.tolist(), path.nfe.tolist(), window)


def begin(target: Target, tape: NoiseTape, last_plan: Tensor | None) -> Path:
    """Return a batch of plans at the start of the chain."""
    x = tape.initial.flatten(1)
    batch, steps = tape.uniforms.shape
    normals = tape.normals.flatten(2)
    none = torch.zeros((batch, steps + 1), dtype=torch.bool, device=x.device)
    count = torch.zeros(batch, dtype=torch.int64, device=x.device)
    return Path(
        x=x.clone(),
        cursor=count.clone(),
        normals=torch.cat([normals, normals[:, :1]], dim=1),
        uniforms=torch.cat([tape.uniforms, tape.uniforms[:, :1]], dim=1),
        points=x.new_zeros((batch, steps + 1, x.shape[1])),
        clean=x.new_zeros((batch, steps + 1, x.shape[1])),
        seen=none.clone(),
        shift=x.new_zeros((batch, steps + 1, x.shape[1])),
        change=x.new_zeros((batch, steps + 1, x.shape[1])),
        latest=torch.zeros_like(x) if last_plan is None else last_plan.flatten(1).to(x, copy=True),  # not the caller's
        innovation=torch.zeros_like(x),
        rejected=torch.ones(batch, dtype=torch.bool, device=x.device),
        refused=none.clone(),
        judged=none.clone(),
        rounds=count.clone(),
        nfe=count.clone(),
    )


def learn(experience: Experience, path: Path, target: Target) -> None:
    """Add the committed paths of finished plans to the experience of their policy."""
    free = None if target.held is None else ~target.held.mask.flatten(1)
    steps = len(target.chain)
    paths = (path.points[:, :steps], path.clean[:, :steps])
    experience.learn(*paths, free, path.judged[:, :steps], path.refused[:, :steps], target.chain)


@dataclass(frozen=True)
class Round:
    """One round: a function of the path's tensors to the path's tensors."""

    target: Target
    draft: Draft
    verifier: Verifier
    response: Response | None
    window: int

    def __call__(self, path: Path, rows: Tensor, compact: bool) -> None:
        """Commit at least one step of every row that is not done.

        Args:
            path: Of the batch; changed in place.
            rows: The rows to advance [R].
            compact: Leave out the points that no row has use for. Otherwise shapes depend on nothing but
                R, θ and the draft, and nothing waits for the device, so that a CUDA graph can hold the round; rows
                that are done are computed and stay as they are.
        """
        chain = self.target.chain
        end, cursor = len(chain), path.cursor[rows]
        quota = torch.minimum(self.draft.quota(path, rows, self.window), end - cursor)  # [R] points; 0 of rows done
        width = int(quota.max()) if compact else self.window
        slots = torch.arange(width, device=rows.device)  # [n]
        live = slots < quota.unsqueeze(1)  # [R, n]
        steps = (cursor.unsqueeze(1) + slots).clamp(max=end - 1)  # [R, n]

        # Draft.
        self.target.mark("draft")
        known = self.draft.known(path, rows, steps)
        point, guess = roll_out(path, rows, steps, known, chain, self.response)  # [R, n, D]

        # Verify.
        clean = self.target.predict_window(point, steps, rows, live if compact else None)  # [R, n, D]
        self.target.mark("verify")
        tables = chain.tables(point.device, point.dtype)
        of = (rows.unsqueeze(1), steps)
        noise, uniform = path.normals[of], path.uniforms[of]
        if self.target.held is not None:  # given coordinates are no part of the law
            owners = rows.unsqueeze(1).expand_as(steps).flatten()
            guess = self.target.hold(guess.flatten(0, 1), owners).view_as(guess)
        verdict = self.verifier.judge(guess - clean, (tables.a / tables.sigma)[steps], noise, uniform, live)
        last, rejected = verdict.last, verdict.rejected

        # Commit.
        self.target.mark("commit")
        going = quota > 0  # a row that is done has no live point, and must not change
        here = (torch.arange(len(rows), device=rows.device), last)
        last_steps = steps[here]
        a, b, sigma = (table[last_steps].unsqueeze(1) for table in (tables.a, tables.b, tables.sigma))
        own = verdict.noise[here]
        moved = transition(a, clean[here], sigma, own, b, point[here])
        keep = going.unsqueeze(1)
        path.x[rows] = torch.where(keep, moved, path.x[rows])
        path.latest[rows] = torch.where(keep, clean[here], path.latest[rows])
        path.innovation[rows] = torch.where(keep, sigma * own, path.innovation[rows])
        path.cursor[rows] = torch.where(going, cursor + last + 1, cursor)
        path.rejected[rows] = torch.where(going, rejected, path.rejected[rows])
        path.refused[rows, last_steps] |= rejected & going
        drafted = live & ((slots < last.unsqueeze(1)) | ((slots == last.unsqueeze(1)) & rejected.unsqueeze(1)))
        path.judged[rows.unsqueeze(1), torch.where(drafted, steps, end)] = True
        at = (rows.unsqueeze(1), torch.where(live, steps, end))  # what has no place of its own goes behind the end
        if self.draft.responds:
            again = path.seen[at].unsqueeze(-1)
            path.shift[at] = torch.where(again, point - path.points[at], 0)
            path.change[at] = torch.where(again, clean - path.clean[at], 0)
        path.points[at], path.clean[at], path.seen[at] = point, clean, live
        if self.verifier.renews_noise:
            path.normals[at], path.uniforms[at] = verdict.noise, verdict.uniform
        path.rounds[rows] += going.long()
        path.nfe[rows] += quota if compact else width
        self.target.mark("host")
