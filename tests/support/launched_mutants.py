"""Mutants of the kernels' form of `asd`: what surrounds them is broken, as `exactness.mutants` breaks the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from asd_policy.evaluation.exactness.mutants import KERNEL_MUTANTS
from asd_policy.samplers.asd.launched.form import LaunchedRound

MUTANTS_LAUNCHED = KERNEL_MUTANTS


@contextmanager
def mutated_launches(mutant: str, seed: int = 0) -> Iterator[None]:
    """Break the form in one way, of `MUTANTS_LAUNCHED`, for as long as the context lasts.

    Args:
        mutant: Its name.
        seed: Of what is random about it.
    """
    own_draft, own_verify = LaunchedRound._draft, LaunchedRound._verify
    fresh = torch.Generator().manual_seed(seed)

    def draft(self: LaunchedRound) -> Any:
        path, response = self.path, self.reference.response
        if mutant != "peek":
            return own_draft(self)
        x0_pred, latest = path.x0_pred.clone(), path.latest.clone()
        own = path.normals[torch.arange(len(path.x)), path.cursor]
        path.x0_pred += 0.1 * (path.normals if response is None else response.turn(path.normals))
        path.latest += 0.1 * own
        drafted = own_draft(self)
        path.x0_pred.copy_(x0_pred)
        path.latest.copy_(latest)
        return drafted

    def verify(self: LaunchedRound, *given: Any) -> None:
        path, rows = self.path, torch.arange(len(self.path.x))
        normals, uniforms, cursor = path.normals.clone(), path.uniforms.clone(), path.cursor.clone()
        if mutant == "accept-always":
            path.uniforms.fill_(torch.finfo(uniforms.dtype).tiny)
        own_verify(self, *given)
        if mutant == "accept-always":
            path.uniforms.copy_(uniforms)
        if mutant == "keep-tape":
            after = torch.arange(normals.shape[1]) >= path.cursor[:, None]
            path.normals.copy_(torch.where(after[:, :, None], normals, path.normals))
        if mutant in ("redraw", "keep-noise"):
            step = (path.cursor - 1).clip(min=0)
            drawn = torch.randn(path.x.shape, generator=fresh, dtype=path.x.dtype)
            noise = drawn if mutant == "redraw" else normals[rows, step]
            sigma = self.reference.target.chain.tables(path.x.device, path.x.dtype).sigma
            wrong = (path.rejected & (path.cursor > cursor))[:, None]
            path.x.copy_(torch.where(wrong, path.x + sigma[step][:, None] * noise - path.innovation, path.x))

    with mock.patch.object(LaunchedRound, "_draft", draft), mock.patch.object(LaunchedRound, "_verify", verify):
        yield
