"""The noise tape: every random number of a plan, drawn before it starts and indexed by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device, Generator

Generators = Generator | Sequence[Generator] | None


@dataclass(frozen=True)
class NoiseTape:
    """The randomness of a batch of plans.

    Step k of a row may use `normals[:, k]` and `uniforms[:, k]` and nothing of later steps: that is what makes a
    draft for step k, which sees steps before k only, independent of the noise that judges it.
    """

    initial: Array
    """The chain's start x_0 ~ N(0, I), shape [B, *event]."""
    normals: Array
    """ξ_k ~ N(0, I), shape [B, K, *event]."""
    uniforms: Array
    """u_k ~ U(0, 1], shape [B, K]; never 0, whose logarithm would accept any draft."""

    @classmethod
    def draw(
        cls,
        shape: Sequence[int],
        steps: int,
        generator: Generators = None,
        device: Device | str = "cpu",
        dtype: Any = None,
        initial: Array | None = None,
    ) -> "NoiseTape":
        """Draw a tape.

        Of one generator the numbers come in the order in which the loops of diffusers, LeRobot and Diffusion Policy
        draw them: the start, then each step's noise, for the whole batch at once. The uniforms come last, so that the
        sequential sampler, which needs none, makes the same plan as such a loop with the same seed.

        Args:
            shape: The samples' shape (B, *event).
            steps: Number of steps K of the chain.
            generator: One for the whole batch, one per row (a row is then the same whatever the batch it is in),
                or None for the library's global one.
            device: Where the tape lives, `arrays.NUMPY` for NumPy's arrays; the numbers are drawn there.
            dtype: Of the tape; None for float32.
            initial: The start of the chain, of `shape` and `dtype`, for which then nothing is drawn.

        Raises:
            ValueError: The number of generators is not the batch size.
        """
        batch, event = shape[0], tuple(shape[1:])
        drawn = steps + (initial is None)
        if isinstance(generator, Sequence):
            if len(generator) != batch:
                raise ValueError(f"{len(generator)} generators for a batch of {batch}: give one, or one per row")
            # All of a row at once: for robots with generators of their own, a draw for each step would take too long.
            rows = [arrays.normals((1, drawn, *event), one, device, dtype) for one in generator]
            levels = [arrays.uniforms((1, steps), one, device, dtype) for one in generator]
            normals, uniforms = (
                each[0] if batch == 1 else arrays.namespace(each[0]).concatenate(each) for each in (rows, levels)
            )
        else:
            whole = arrays.normals_in_turn(drawn, (batch, *event), generator, device, dtype)
            normals = (
                whole.reshape(batch, drawn, *event) if batch == 1 else arrays.in_memory_order(whole.swapaxes(0, 1))
            )
            uniforms = arrays.uniforms((batch, steps), generator, device, dtype)
        noise, levels = arrays.in_numpy(normals), arrays.in_numpy(uniforms)
        start, noise = (noise[:, 0], noise[:, 1:]) if initial is None else (initial, noise)
        return cls(*(arrays.as_like(each, uniforms) for each in (start, noise, 1 - levels)))
