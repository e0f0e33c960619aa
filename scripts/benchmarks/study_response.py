"""What does it cost in rounds to know the response along sines only, and not as a full matrix?

The full J_k, one basis for all steps fitted to sums of D × D numbers a step, exists here alone: no draft could know
more, and no plan of a common size could afford it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

import study_common
from asd_policy._common.arrays import Device
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from asd_policy.samplers.asd.response import Response, fit
from study_common import CALIBRATION_SEED, Results, Subject, console, count, markdown_table, summarize

BASES = {"full": "full matrix", "sines": "sines", "none": "none (J = 0)"}
_SHARE = 5  # the full basis is that of the last K/5 steps, where the response is strong


@dataclass(frozen=True)
class FullResponse(Response):
    """A response in a basis of all coordinates [D, D]."""

    def turn(self, values: Tensor) -> Tensor:
        """Turn vectors [..., D] into the basis."""
        return values @ self.basis

    def turn_back(self, values: Tensor) -> Tensor:
        """Turn vectors [..., D] in the basis back."""
        return values @ self.basis.T


class FullExperience(Experience):
    """An experience that also sums up full products Δx̂0 ⊗ σξ."""

    cross: Tensor | None = None
    """[K, D, D]."""

    def learn(
        self, committed: CommittedPaths, chain: GaussianChain, pair: tuple[str, str], horizon: int | None
    ) -> None:
        """Add the committed paths of a batch of plans."""
        super().learn(committed, chain, pair, horizon)
        points, clean = committed.points, committed.x0_pred
        tables = chain.tables(points.device, points.dtype)
        a, b = tables.a[:-1, None], tables.b[:-1, None]
        noise = points[:, 1:] - (a * clean[:, :-1] + b * points[:, :-1])
        cross = torch.einsum("bki,bkj->kij", clean.diff(dim=1), noise)
        cross = torch.cat([torch.zeros_like(cross[:1]), cross])
        self.cross = cross if self.cross is None else self.cross + cross

    def full(self, device: Device) -> FullResponse:
        """Fit a basis to the last steps' slopes, and the gains along it as they are along sines."""
        assert self.cross is not None
        cross = self.cross.double()
        late = slice(-max(1, len(cross) // _SHARE), None)
        slopes = (cross[late] / self.moments["noise"][late, None, None].clamp(min=1e-30)).sum(0)
        basis = torch.linalg.eigh(slopes + slopes.T).eigenvectors  # in that of the sines
        along = torch.einsum("di,kde,ei->ki", basis, cross, basis)
        fitted = fit({**self.moments, "cross": along.view_as(self.moments["cross"])}, device, torch.float32)
        return FullResponse(fitted.turn_back(basis.T.float()).T, fitted.gain)


def measure(subject: Subject, windows: Sequence[int], seed: int, results: Results) -> list[dict[str, Any]]:
    """Measure one record per window and basis, all on the same states, tapes and plans to learn from.

    Args:
        subject: The checkpoint and its states.
        windows: To try; those longer than the chain count as its length.
        seed: Of the tapes.
        results: Where records are kept.
    """
    policy = subject.policy
    windows = tuple(dict.fromkeys(min(window, len(policy.chain)) for window in windows))
    learned: list[FullExperience] = []

    def responses() -> dict[str, Response | None]:
        if not learned:
            experience = FullExperience()
            sampler = make_sampler(study_common.ROLL_OUT)
            count(policy.denoiser, policy.chain, sampler, subject.calibration, experience, seed + CALIBRATION_SEED)
            experience.freeze()
            learned.append(experience)
        sines = learned[0].response(policy.device, torch.float32)
        assert sines is not None
        none = Response(sines.basis, torch.zeros_like(sines.gain))
        return {"full": learned[0].full(policy.device), "sines": sines, "none": none}

    records = []
    for window, basis in track([(w, b) for w in windows for b in BASES], f"response, {subject.name}", console=console):

        def run(window: int = window, basis: str = basis) -> dict[str, Any]:
            known = _Given(responses()[basis])
            sampler = make_sampler(f"asd:window={window}")
            counts = count(policy.denoiser, policy.chain, sampler, subject.states, known, seed)
            return {
                "basis": basis,
                "window": window,
                "rounds": counts.rounds.tolist(),
                **summarize(counts, subject.states.episode, len(policy.chain)),
            }

        records.append(results.once(f"{subject.name} {window} {basis}", run))
    return records


def markdown(measured: Sequence[tuple[Subject, list[dict[str, Any]]]]) -> str:
    """Format the table of all checkpoints."""
    rows = []
    for subject, records in measured:
        for window in dict.fromkeys(record["window"] for record in records):
            by_basis = {record["basis"]: record for record in records if record["window"] == window}
            full, sines = (np.asarray(by_basis[basis]["rounds"]) for basis in ("full", "sines"))
            ratio, error = sines.mean() / full.mean(), (sines - full).std() / len(full) ** 0.5 / full.mean()
            cells = [f"{by_basis[b]['rounds_mean']:.2f} ± {by_basis[b]['rounds_standard_error']:.2f}" for b in BASES]
            size = subject.policy.event[0] * subject.policy.event[1]
            more = f"{100 * (ratio - 1):+.1f} ± {100 * error:.1f} %"
            rows.append([f"`{subject.name}`", str(size), str(window), *cells, more, str(full.size)])
    return markdown_table(["checkpoint", "D", "θ", *BASES.values(), "sines against full", "n"], rows)


class _Given(Experience):
    """An experience that knows one response, and learns nothing."""

    def __init__(self, response: Response | None) -> None:
        super().__init__(learning=False)
        self._response = response

    def response(self, device: torch.device, dtype: Any, of_force: bool = False) -> Response | None:
        """Give it."""
        return self._response
