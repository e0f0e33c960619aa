"""Coordinates of the samples that are given: inpainting, replacement, and soft guidance."""

from dataclasses import dataclass

from asd_policy._common import arrays
from asd_policy._common.arrays import Array
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape


@dataclass(frozen=True)
class Inpainting:
    """Coordinates of the samples that are given, not sampled. The law is that of the other coordinates.

    Without `noisy_values` as in Diffusion Policy with `obs_as_global_cond=False` (arXiv 2303.04137): the network sees
    the given values at every step, noise-free, because it was trained so. With them it sees them as noisy as all the
    rest, which is for networks that were not (replacement, Song et al., arXiv 2011.13456, section 5). Either way the
    sample has them.
    """

    mask: Array
    """True where a coordinate is given, [B, *event]."""
    values: Array
    """The given values [B, *event]; elsewhere only `guidance` looks at them."""
    noisy_values: Array | None = None
    """What the network sees in the given places at each step k, [B, K, *event]; None for the values themselves."""
    guidance: Array | None = None
    """How far the prediction of each other coordinate is moved to its value, 0 … 1, [B, *event]: soft guidance, which
    makes the law another one than the network's. None for not at all."""

    @classmethod
    def noised(
        cls, mask: Array, values: Array, chain: GaussianChain, tape: NoiseTape, guidance: Array | None = None
    ) -> "Inpainting":
        """Give values that follow the chain like a sample that will come out as them.

        Args:
            mask: As the attribute.
            values: As the attribute.
            chain: The chain that will be sampled.
            tape: The noise that it will be sampled with.
            guidance: As the attribute.
        """
        x = tape.initial
        tables = chain.tables(arrays.device_of(x), x.dtype)
        noisy = []
        for k in range(len(chain)):
            noisy.append(x)
            x = transition(tables.a[k], values, tables.sigma[k], tape.normals[:, k], tables.b[k], x)
        return cls(mask, values, arrays.namespace(x).stack(noisy, axis=1), guidance)

    @property
    def guided(self) -> tuple[bool, ...]:
        """Which rows are guided, so that their law is not the network's."""
        if self.guidance is None:
            return (False,) * len(self.mask)
        return tuple(bool(row.any()) for row in arrays.to_numpy(self.guidance))

    def beside(self, other: "Inpainting") -> "Inpainting":
        """Give these coordinates, which have noisy values, and those of another inpainting, which has none."""
        assert self.noisy_values is not None
        xp = arrays.namespace(self.values)
        noisy = xp.where(other.mask[:, None], other.values[:, None], self.noisy_values)
        values = xp.where(other.mask, other.values, self.values)
        return Inpainting(self.mask | other.mask, values, noisy, self.guidance)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse parts of another shape than the samples', and a mask of numbers.

        Raises:
            ValueError: One does not fit.
        """
        if str(self.mask.dtype).removeprefix("torch.") != "bool":
            raise ValueError(f"the inpainting's mask is of {self.mask.dtype}, not bool")
        parts = {"mask": self.mask, "values": self.values, "guidance": self.guidance}
        for name, part in parts.items():
            if part is not None and tuple(part.shape) != shape:
                raise ValueError(f"the inpainting's {name} has shape {tuple(part.shape)}, the samples {shape}")

    def show(self, x: Array, step: Array, rows: Array | None = None) -> Array:
        """Put into points [N, …] of steps [N] what the network is to see in the given places."""
        if self.noisy_values is None:
            return self.fill(x, rows)
        rows = arrays.arange(len(x), x) if rows is None else rows
        return self._put(x, self.noisy_values[rows, step], rows)

    def fill(self, x: Array, rows: Array | None = None) -> Array:
        """Put the given values into points [N, …] of batch rows [N]; None for all rows in order."""
        return self._put(x, self.values if rows is None else self.values[rows], rows)

    def _put(self, x: Array, values: Array, rows: Array | None) -> Array:
        mask = self.mask if rows is None else self.mask[rows]
        return arrays.namespace(x).where(mask.reshape(x.shape), values.reshape(x.shape), x)

    def guide(self, x0_pred: Array, rows: Array | None = None) -> Array:
        """Move predictions x̂0 [N, …] of batch rows [N] to the values, as far as `guidance` says."""
        if self.guidance is None:
            return x0_pred
        guidance, values = (part if rows is None else part[rows] for part in (self.guidance, self.values))
        return x0_pred + guidance.reshape(x0_pred.shape) * (values.reshape(x0_pred.shape) - x0_pred)

    def guide_output(self, x: Array, output: Array, step: Array, chain: GaussianChain) -> Array:
        """Change network outputs [B, …] at points x of steps [B] so that their predictions are guided as by `guide`."""
        if self.guidance is None:
            return output
        tables = chain.tables(arrays.device_of(x), x.dtype)
        shape = (-1,) + (1,) * (x.ndim - 1)
        given = (self.values - tables.input_scale[step].reshape(shape) * x) / tables.output_scale[step].reshape(shape)
        return output + self.guidance * (given - output)
