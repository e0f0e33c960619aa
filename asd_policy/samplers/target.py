"""What a sampler samples: a network in a chain, with its conditioning and the coordinates that are given."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chain import GaussianChain
from asd_policy.clock import Stopwatch
from asd_policy.denoiser import Denoiser


@dataclass(frozen=True)
class Held:
    """Coordinates of the samples that are given, not sampled: inpainting.

    As in Diffusion Policy with `obs_as_global_cond=False` (arXiv 2303.04137): the network sees the given values at
    every step, noise-free, and the sample has them. The law is that of the other coordinates.
    """

    mask: Tensor
    """True where a coordinate is given, [B, *event]."""
    values: Tensor
    """The given values [B, *event]; elsewhere they are not looked at."""


@dataclass(frozen=True)
class Target:
    """The conditional law of a batch of samples. Points are shaped [N, *event], or flattened [N, D] alike."""

    denoiser: Denoiser
    chain: GaussianChain
    shape: tuple[int, ...]
    """(B, *event)."""
    cond: Tensor | None = None
    """Conditioning [B, …]."""
    held: Held | None = None
    stopwatch: Stopwatch | None = None
    """Told what the time goes to; None where nobody asks."""

    def mark(self, stage: str) -> str:
        """Say which of `clock.STAGES` begins; return the one that ends."""
        return "host" if self.stopwatch is None else self.stopwatch.mark(stage)

    def predict(self, x: Tensor, step: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return x̂0 by one network call.

        Args:
            x: Points [N, …].
            step: The step k that leaves each point [N].
            rows: The batch row of each point [N]; None for all rows in order.
        """
        timesteps = self.chain.tables(x.device, x.dtype).timesteps[step]
        clean = self.chain.predict(self.hold(x, rows), self.output(x, timesteps, rows), step)
        return self.hold(clean, rows)

    def predict_window(self, point: Tensor, steps: Tensor, rows: Tensor, live: Tensor | None) -> Tensor:
        """Return x̂0 [R, n, D] at the points of a window by one network call.

        Args:
            point: Points, flattened, [R, n, D].
            steps: The steps that leave them [R, n].
            rows: The batch rows that they belong to [R].
            live: Which of them to compute [R, n], the others being zero; None for all, in one shape whatever the data.
        """
        owners = rows.unsqueeze(1).expand_as(steps).flatten()
        flat, step = point.flatten(0, 1), steps.flatten()
        if live is None:
            return self.predict(flat, step, owners).view_as(point)
        which = live.flatten().nonzero().squeeze(1)
        clean = torch.zeros_like(flat)
        clean[which] = self.predict(flat[which], step[which], owners[which])
        return clean.view_as(point)

    def output(self, x: Tensor, timestep: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the network's output at points [N, …] and timesteps [N], in the shape of the points."""
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        seen = self.hold(x, rows).reshape(len(x), *self.shape[1:])
        before = self.mark("network")
        output = self.denoiser(seen, timestep, cond)
        self.mark(before)
        return output.reshape(x.shape)

    def hold(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return points [N, …] with the given values in their places."""
        if self.held is None:
            return x
        mask, values = (part if rows is None else part[rows] for part in (self.held.mask, self.held.values))
        return torch.where(mask.reshape(x.shape), values.reshape(x.shape), x)
