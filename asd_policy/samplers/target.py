"""What a sampler samples: a network in a chain, with its conditioning and the coordinates that are given."""

from collections.abc import Hashable
from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy._common.clock import Stopwatch
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.denoiser import Denoiser, MeteredDenoiser
from asd_policy.networks.recording import Launcher
from asd_policy.samplers.deadline import Deadline


@dataclass(frozen=True)
class Held:
    """Coordinates of the samples that are given, not sampled: inpainting. The law is that of the other coordinates.

    Without a course as in Diffusion Policy with `obs_as_global_cond=False` (arXiv 2303.04137): the network sees the
    given values at every step, noise-free, because it was trained so. With one it sees them as noisy as all the rest,
    which is for networks that were not (replacement, Song et al., arXiv 2011.13456, section 5). Either way the sample
    has them.
    """

    mask: Array
    """True where a coordinate is given, [B, *event]."""
    values: Array
    """The given values [B, *event]; elsewhere they are not looked at, but for what `pull` says."""
    course: Array | None = None
    """What the network sees in the given places at each step k, [B, K, *event]; None for the values themselves."""
    pull: Array | None = None
    """How far the prediction of each other coordinate is drawn to its value, 0 … 1, [B, *event]: guidance, which makes
    the law another one than the network's. None for not at all."""

    @classmethod
    def noised(
        cls, mask: Array, values: Array, chain: GaussianChain, tape: NoiseTape, pull: Array | None = None
    ) -> "Held":
        """Hold values that follow the chain like a sample that will come out as them.

        Args:
            mask: As the attribute.
            values: As the attribute.
            chain: That will be sampled.
            tape: The noise that it will be sampled with.
            pull: As the attribute.
        """
        x = tape.initial
        tables = chain.tables(arrays.device_of(x), x.dtype)
        course = []
        for k in range(len(chain)):
            course.append(x)
            x = transition(tables.a[k], values, tables.sigma[k], tape.normals[:, k], tables.b[k], x)
        return cls(mask, values, arrays.namespace(x).stack(course, axis=1), pull)

    @property
    def drawn(self) -> tuple[bool, ...]:
        """Which rows are drawn to a value, so that their law is not the network's."""
        if self.pull is None:
            return (False,) * len(self.mask)
        return tuple(bool(row.any()) for row in arrays.to_numpy(self.pull))

    def beside(self, other: "Held") -> "Held":
        """Return these coordinates, that have a course, and those of another that has none."""
        assert self.course is not None
        xp = arrays.namespace(self.values)
        course = xp.where(other.mask[:, None], other.values[:, None], self.course)
        return Held(self.mask | other.mask, xp.where(other.mask, other.values, self.values), course, self.pull)


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
    deadline: Deadline | None = None
    """When the samples have to be there; None for no matter when."""

    def mark(self, stage: str) -> str:
        """Say which of `clock.STAGES` begins; return the one that ends."""
        return "host" if self.stopwatch is None else self.stopwatch.mark(stage)

    def allows(self, work: Hashable) -> bool:
        """Return whether the deadline, if there is one, leaves time for a piece of work, see `Deadline.allows`."""
        return self.deadline is None or self.deadline.allows(work)

    def count(self, calls: int, points: int) -> None:
        """Count network calls that ran as a recording and are none of the algorithm's, where somebody counts."""
        if isinstance(self.denoiser, MeteredDenoiser):
            self.denoiser.count(calls, points)

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
        seen = self.show(x, step, rows)
        clean = self.pull(self.chain.predict(seen, self.output(seen, timesteps, rows), step), rows)
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
        if live is None or bool(live.all()):
            return self.predict(flat, step, owners).reshape(point.shape)
        which = xp.nonzero(live.reshape(-1))[0]
        clean = xp.zeros_like(flat)
        clean[which] = self.predict(flat[which], step[which], owners[which])
        return clean.reshape(point.shape)

    def output(self, seen: Array, timestep: Array, rows: Array | None = None) -> Array:
        """Return the network's output at points [N, …] as `show` shows them and timesteps [N], in their shape."""
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        before = self.mark("network")
        output = self.denoiser(seen.reshape(len(seen), *self.shape[1:]), timestep, cond)
        self.mark(before)
        return output.reshape(seen.shape)

    def show(self, x: Array, step: Array, rows: Array | None = None) -> Array:
        """Return points [N, …] of steps [N] with what the network is to see in the given places."""
        if self.held is None or self.held.course is None:
            return self.hold(x, rows)
        rows = arrays.arange(len(x), x) if rows is None else rows
        return self._put(x, self.held.course[rows, step], rows)

    def hold(self, x: Array, rows: Array | None = None) -> Array:
        """Return points [N, …] with the given values in their places."""
        if self.held is None:
            return x
        return self._put(x, self.held.values if rows is None else self.held.values[rows], rows)

    def _put(self, x: Array, values: Array, rows: Array | None) -> Array:
        assert self.held is not None
        mask = self.held.mask if rows is None else self.held.mask[rows]
        return arrays.namespace(x).where(mask.reshape(x.shape), values.reshape(x.shape), x)

    def pull(self, clean: Array, rows: Array | None = None) -> Array:
        """Return predictions x̂0 [N, …] drawn to the given values as far as `Held.pull` says."""
        if self.held is None or self.held.pull is None:
            return clean
        pull, values = (part if rows is None else part[rows] for part in (self.held.pull, self.held.values))
        return clean + pull.reshape(clean.shape) * (values.reshape(clean.shape) - clean)

    def pull_output(self, x: Array, output: Array, step: Array) -> Array:
        """Return outputs [B, …] at points x of steps [B] as if the network's predictions were drawn like `pull`."""
        if self.held is None or self.held.pull is None:
            return output
        tables = self.chain.tables(arrays.device_of(x), x.dtype)
        shape = (-1,) + (1,) * (x.ndim - 1)
        given = (self.held.values - tables.input_scale[step].reshape(shape) * x) / tables.output_scale[step].reshape(
            shape
        )
        return output + self.held.pull * (given - output)
