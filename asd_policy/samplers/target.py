"""What a sampler samples: a network in a chain, with its conditioning and the coordinates that are given."""

from dataclasses import dataclass

from asd_policy import arrays
from asd_policy.arrays import Array
from asd_policy.chain import GaussianChain
from asd_policy.clock import Stopwatch
from asd_policy.denoiser import Denoiser, MeteredDenoiser
from asd_policy.samplers.launcher import Launcher


@dataclass(frozen=True)
class Held:
    """Coordinates of the samples that are given, not sampled: inpainting.

    As in Diffusion Policy with `obs_as_global_cond=False` (arXiv 2303.04137): the network sees the given values at
    every step, noise-free, and the sample has them. The law is that of the other coordinates.
    """

    mask: Array
    """True where a coordinate is given, [B, *event]."""
    values: Array
    """The given values [B, *event]; elsewhere they are not looked at."""


@dataclass(frozen=True)
class Target:
    """The conditional law of a batch of samples. Points are shaped [N, *event], or flattened [N, D] alike."""

    denoiser: Denoiser
    chain: GaussianChain
    shape: tuple[int, ...]
    """(B, *event)."""
    cond: Array | None = None
    """Conditioning [B, …]."""
    held: Held | None = None
    launcher: Launcher | None = None
    """Records the network's calls; None where they are made one by one."""
    stopwatch: Stopwatch | None = None
    """Told what the time goes to; None where nobody asks. Recordings tell nothing."""

    def mark(self, stage: str) -> str:
        """Say which of `clock.STAGES` begins; return the one that ends."""
        return "host" if self.stopwatch is None else self.stopwatch.mark(stage)

    def recordable(self, cond: Array | None, held: Held | None) -> "Target":
        """Return this target with other conditioning and given values, and a network that is not metered."""
        denoiser = self.denoiser.unmetered if isinstance(self.denoiser, MeteredDenoiser) else self.denoiser
        return Target(denoiser, self.chain, self.shape, cond, held)

    def predict(self, x: Array, step: Array, rows: Array | None = None) -> Array:
        """Return x̂0 by one network call.

        Args:
            x: Points [N, …].
            step: The step k that leaves each point [N].
            rows: The batch row of each point [N]; None for all rows in order.
        """
        timesteps = self.chain.tables(arrays.device_of(x), x.dtype).timesteps[step]
        clean = self.chain.predict(self.hold(x, rows), self.output(x, timesteps, rows), step)
        return self.hold(clean, rows)

    def predict_window(self, point: Array, steps: Array, rows: Array, live: Array | None) -> Array:
        """Return x̂0 [R, n, D] at the points of a window by one network call.

        Args:
            point: Points, flattened, [R, n, D].
            steps: The steps that leave them [R, n].
            rows: The batch rows that they belong to [R].
            live: Which of them to compute [R, n], the others being zero; None for all, in one shape whatever the data.
        """
        xp = arrays.namespace(point)
        owners = xp.broadcast_to(rows[:, None], steps.shape).reshape(-1)
        flat, step = point.reshape(-1, point.shape[-1]), steps.reshape(-1)
        if live is None:
            return self.predict(flat, step, owners).reshape(point.shape)
        which = arrays.where_true(live.reshape(-1))
        clean = xp.zeros_like(flat)
        clean[which] = self.predict(flat[which], step[which], owners[which])
        return clean.reshape(point.shape)

    def output(self, x: Array, timestep: Array, rows: Array | None = None) -> Array:
        """Return the network's output at points [N, …] and timesteps [N], in the shape of the points."""
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        seen = self.hold(x, rows).reshape(len(x), *self.shape[1:])
        before = self.mark("network")
        output = self.denoiser(seen, timestep, cond)
        self.mark(before)
        return output.reshape(x.shape)

    def hold(self, x: Array, rows: Array | None = None) -> Array:
        """Return points [N, …] with the given values in their places."""
        if self.held is None:
            return x
        mask, values = (part if rows is None else part[rows] for part in (self.held.mask, self.held.values))
        return arrays.namespace(x).where(mask.reshape(x.shape), values.reshape(x.shape), x)
