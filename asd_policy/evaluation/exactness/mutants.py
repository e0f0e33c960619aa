"""Mutants: the sampler `asd`, broken in one thing that exactness rests on. Tests of exactness must fail them.

The reference is broken by `mutated`, which then runs in the place of the compiled form; that one by `mutated_kernels`.
Of no use for planning; nothing else in the package imports this module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.samplers import compiled
from asd_policy.samplers.asd import draft, engine
from asd_policy.samplers.asd.couplings import VERIFIERS, Judge, Verdict, Verifier
from asd_policy.samplers.asd.draft import Follow, Window, follow_window, roll_out
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response

Numbers = npt.NDArray[Any]


@contextmanager
def mutated(mutant: str, size: float = 1.0, seed: int = 0) -> Iterator[None]:
    """Break the sampler `asd` in one way, a key of `MUTANTS`, for as long as the context lasts.

    Args:
        mutant: Its name.
        size: How much. Of a verdict, the share of rounds in which it is wrong; of the draft `peek`, how much of the
            noise gets through, in units of a tenth. The other drafts are wrong or not.
        seed: Of what is random about it.
    """
    if mutant in _VERDICTS:
        verifiers = {
            name: _broken(verifier.judge, _VERDICTS[mutant], size, seed) for name, verifier in VERIFIERS.items()
        }
        with mock.patch.dict(VERIFIERS, verifiers):
            yield
    else:
        broken = _peek(0.1 * size) if mutant == "peek" else {"smooth": _smooth, "leak": _leak}[mutant]
        with mock.patch.object(engine, "roll_out", broken):
            yield


def _broken(judge: Judge, change: Callable[..., Verdict], share: float, seed: int) -> Verifier:
    """Make a verifier that judges wrongly in a share of the rounds."""
    generator = torch.Generator().manual_seed(seed)

    def broken(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor, live: Tensor) -> Verdict:
        right = judge(gap, scale, noise, uniform, live)
        wrong = change(right, noise, uniform, live, generator)
        acts = torch.rand(len(live), generator=generator) < share
        parts = zip(wrong, right, strict=True)
        return Verdict(*(torch.where(acts.view(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in parts))

    return Verifier(broken, renews_noise=True)


def _accept_always(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Accept every draft: parallel sampling without verification."""
    return Verdict(live.sum(1) - 1, torch.zeros_like(right.rejected), noise, uniform)


def _redraw(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, generator: torch.Generator) -> Verdict:
    """Take a refused step with fresh noise: right at first sight, wrong because the refusal was selective."""
    fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
    return right._replace(noise=torch.where(_refused(right, live).unsqueeze(2), fresh, right.noise))


def _keep_noise(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Let a refused step leave its target with the noise that led to the refusal."""
    return right._replace(noise=torch.where(_refused(right, live).unsqueeze(2), noise, right.noise))


def _keep_tape(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Leave the noise after a refused step as it was, seen by the verdict."""
    after = torch.arange(live.shape[1]) > right.last.unsqueeze(1)
    return right._replace(noise=torch.where(after.unsqueeze(2), noise, right.noise))


def _refused(verdict: Verdict, live: Tensor) -> Tensor:
    """Mark the slots [R, n] that hold a refused step."""
    return (torch.arange(live.shape[1]) == verdict.last.unsqueeze(1)) & verdict.rejected.unsqueeze(1)


Drafted = tuple[Tensor, Tensor, Tensor]
"""What `roll_out` returns."""


def _peek(size: float) -> Callable[..., Drafted]:
    """Draft with guesses that contain a little of the noise of the very step they are for."""

    def broken(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
        own = path.normals[torch.arange(len(path.x)), path.cursor]
        normals = path.normals if response is None else response.turn(path.normals)
        seen = replace(path, x0_pred=path.x0_pred + size * normals, latest=path.latest + size * own)
        return roll_out(seen, window, known, chain, response)

    return broken


@dataclass(frozen=True)
class _Smoothed:
    """A `Follow` whose guesses are averaged with what was seen at the next step."""

    follow: Follow
    after: Tensor
    """That, in the response's basis, [R, S, D]."""
    both: Tensor
    """For which steps there is such [R, S, 1]."""

    @property
    def drift(self) -> Sequence[Tensor]:
        """As it was."""
        return self.follow.drift

    def __call__(self, slot: int, *known: Tensor) -> Tensor:
        return _halfway(self.follow(slot, *known), self.after[:, slot], self.both[:, slot])


def _halfway(values: Tensor, others: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, (values + others) / 2, values)


def _smooth(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
    """Draft with guesses that are averaged with what this plan saw at the next step."""
    rows = window.rows.unsqueeze(1)
    at, after = (rows, window.steps), (rows, window.steps + 1)
    both = (path.seen[at] & path.seen[after]).unsqueeze(2)
    if response is None:
        x0_pred = path.x0_pred.clone()
        x0_pred[at] = _halfway(x0_pred[at], x0_pred[after], both)
        return roll_out(replace(path, x0_pred=x0_pred), window, known, chain, None)
    seen = path.x0_pred[after]

    def follow(*arguments: Any) -> Any:
        return _Smoothed(follow_window(*arguments), seen, both)

    with mock.patch.object(draft, "follow_window", follow):
        return roll_out(path, window, known, chain, response)


@dataclass(frozen=True)
class _LeakyGain:
    """A response of each plan's own, in the place of one learned from plans before it."""

    table: Tensor
    rows: Tensor

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Look up the gains at `steps` [R, S] of the rows: [R, S, 1]."""
        return self.table[self.rows.unsqueeze(1), steps].unsqueeze(2)


def _leak(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
    """Draft with J_k fitted to how this plan's own prediction changed from x_k to x_{k+1}, which has ξ_k in it."""
    dx, dy = path.points.diff(dim=1), path.x0_pred.diff(dim=1)
    gain = (dx * dy).sum(2) / dx.square().sum(2).clamp(min=1e-12)
    gain = torch.where(path.seen[:, :-1] & path.seen[:, 1:], gain, 0).clamp(0, 2)
    leaky: Any = _LeakyGain(gain, window.rows)
    basis = torch.eye(path.x.shape[1], dtype=path.x.dtype) if response is None else response.basis
    return roll_out(path, window, known, chain, Response(basis, leaky))


_VERDICTS: dict[str, Callable[..., Verdict]] = {
    "accept-always": _accept_always,
    "redraw": _redraw,
    "keep-noise": _keep_noise,
    "keep-tape": _keep_tape,
}
MUTANTS = (*_VERDICTS, "peek", "smooth", "leak")


@contextmanager
def mutated_kernels(mutant: str, seed: int = 0) -> Iterator[None]:
    """Break the compiled form of `asd` in one way, of `KERNEL_MUTANTS`, for as long as the context lasts.

    Args:
        mutant: Its name.
        seed: Of what is random about it.

    Raises:
        RuntimeError: The loops are not compiled here.
    """
    load = compiled.load_kernels
    kernels = load(compiled.ROUNDS)
    if kernels is None:
        raise RuntimeError("there are no compiled loops to break")
    draft_rows, commit_rows = kernels.draft_rows, kernels.commit_rows
    drafted, committed = kernels.DRAFTED, kernels.COMMITTED
    fresh = np.random.default_rng(seed)

    def draft(window: int, path: tuple[Numbers, ...], *others: Any) -> int:
        if mutant == "peek":
            seen = dict(zip(drafted, path, strict=True))
            own = seen["normals"][np.arange(len(seen["cursor"])), seen["cursor"]]
            peeked = {"x0_pred": seen["x0_pred"] + 0.1 * seen["normals"], "latest": seen["latest"] + 0.1 * own}
            path = tuple((seen | peeked).values())
        return draft_rows(window, path, *others)

    def commit(quota: Numbers, path: tuple[Numbers, ...], *others: Any) -> None:
        named = dict(zip(committed, path, strict=True))
        normals, uniforms = named["normals"].copy(), named["uniforms"].copy()
        if mutant == "accept-always":
            named["uniforms"][:] = np.finfo(uniforms.dtype).tiny
        commit_rows(quota, path, *others)
        if mutant == "accept-always":
            named["uniforms"][:] = uniforms
        sigma = others[0][2]
        for row in np.flatnonzero(quota):
            step = named["cursor"][row] - 1
            if mutant == "keep-tape":
                named["normals"][row, step + 1 :] = normals[row, step + 1 :]
            elif mutant in ("redraw", "keep-noise") and named["rejected"][row]:
                noise = normals[row, step] if mutant == "keep-noise" else fresh.standard_normal(normals.shape[2])
                named["x"][row] += sigma[step] * noise - named["innovation"][row]

    # Uncompiled, `advance_rows` calls what stands in the module in the place of the two; bound to arrays themselves.
    broken = SimpleNamespace(how_of=kernels.how_of, hold_rows=partial(partial, kernels.advance_rows.py_func))
    with (
        mock.patch.multiple(kernels, draft_rows=draft, commit_rows=commit),
        mock.patch.object(compiled, "load_kernels", lambda name: broken if name == compiled.ROUNDS else load(name)),
    ):
        yield


KERNEL_MUTANTS = (*_VERDICTS, "peek")
