"""Drafts: guesses of x̂0 for the steps ahead of each row's cursor.

Any guess leaves the law exact as long as the draft for step k is a function of what happened before step k. A
draft is therefore told the network's predictions of a round only after the round was judged, and the
prediction at a point x̃_k depends on the noise of steps before k alone.
"""

from typing import Protocol

import torch
from torch import Tensor


class Draft(Protocol):
    """The drafts of one batch of plans. Events are flattened to D numbers; rows index the batch."""

    def __init__(self, window: int, batch: int, steps: int, like: Tensor) -> None:
        """Begin a batch of plans.

        Args:
            window: Most points a round may evaluate per row, θ.
            batch: Number of rows B.
            steps: Length of the chain K.
            like: A tensor [B, D] whose device and dtype the drafts have.
        """
        ...

    def points(self, rows: Tensor) -> Tensor:
        """Return how many points, 1 … θ, the coming round evaluates for each of `rows` [R]; int64 [R]."""
        ...

    def propose(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Return the guesses of x̂0 at `steps` [R, n] of `rows` [R]; shape [R, n, D]."""
        ...

    def observe(self, rows: Tensor, steps: Tensor, live: Tensor, clean: Tensor, last: Tensor, rejected: Tensor) -> None:
        """Learn what a round found.

        Args:
            rows: [R].
            steps: Step indices of the round's points [R, n].
            live: Which of the points were evaluated [R, n].
            clean: x̂0 at the points [R, n, D]; meaningless where not live.
            last: The slot of the last step that was committed [R].
            rejected: Whether that step was reflected [R].
        """
        ...


class FrozenDraft:
    """The paper's draft (ASD, arXiv 2505.03983): x̂0 at the window's start, held over the window.

    When a draft was rejected, the next round evaluates the new point alone, which fixes the x̂0 to hold; when the
    whole window stood, its last evaluation already did.
    """

    def __init__(self, window: int, batch: int, steps: int, like: Tensor) -> None:
        """Begin a batch of plans, see `Draft`."""
        self._window = window
        self._held = torch.zeros_like(like)
        self._fresh = torch.zeros(batch, dtype=torch.bool, device=like.device)

    def points(self, rows: Tensor) -> Tensor:
        """Return 1 after a rejection and at the start, else θ."""
        return torch.where(self._fresh[rows], self._window, 1)

    def propose(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Return the held prediction for every step."""
        return self._held[rows].unsqueeze(1).expand(-1, steps.shape[1], -1)

    def observe(self, rows: Tensor, steps: Tensor, live: Tensor, clean: Tensor, last: Tensor, rejected: Tensor) -> None:
        """Hold the prediction at the last committed step."""
        self._held[rows] = clean[torch.arange(len(rows), device=rows.device), last]
        self._fresh[rows] = ~rejected


class PicardDraft:
    """Reuse of predictions: for a step seen before, its last x̂0; beyond the last step seen, the last one held.

    No round is spent on a draft alone. Without a rejection this is the sliding-window Picard iteration of
    ParaDiGMS (arXiv 2305.16317), with exact verification in the place of its tolerance.
    """

    def __init__(self, window: int, batch: int, steps: int, like: Tensor) -> None:
        """Begin a batch of plans, see `Draft`. The first guess, before any evaluation, is zero."""
        self._window = window
        self._clean = like.new_zeros((batch, steps, like.shape[1]))
        self._seen = torch.zeros(batch, dtype=torch.int64, device=like.device)

    def points(self, rows: Tensor) -> Tensor:
        """Return θ."""
        return torch.full_like(rows, self._window)

    def propose(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Return the latest prediction for each step."""
        known = torch.minimum(steps, self._seen[rows].unsqueeze(1))
        return self._clean[rows.unsqueeze(1), known]

    def observe(self, rows: Tensor, steps: Tensor, live: Tensor, clean: Tensor, last: Tensor, rejected: Tensor) -> None:
        """Keep every prediction of the round."""
        at = (rows.unsqueeze(1), steps)
        self._clean[at] = torch.where(live.unsqueeze(-1), clean, self._clean[at])
        self._seen[rows] = torch.where(live, steps, 0).amax(1)


DRAFTS: dict[str, type[Draft]] = {"frozen": FrozenDraft, "picard": PicardDraft}
"""Every draft by its name in a sampler spec."""
