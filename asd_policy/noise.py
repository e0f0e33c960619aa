"""The noise tape: every random number of a plan, drawn before it starts and indexed by step."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from asd_policy import arrays
from asd_policy.arrays import Array, Device, Generator

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
    ) -> "NoiseTape":
        """Draw a tape.

        Args:
            shape: The samples' shape (B, *event).
            steps: Number of steps K of the chain.
            generator: One for the whole batch, one per row (a row is then the same whatever the batch it is in),
                or None for the library's global one.
            device: Where the tape lives, `arrays.NUMPY` for NumPy's arrays; the numbers are drawn there.
            dtype: Of the tape; None for float32.

        Raises:
            ValueError: The number of generators is not the batch size.
        """
        batch, event = shape[0], tuple(shape[1:])
        if isinstance(generator, Sequence):
            if len(generator) != batch:
                raise ValueError(f"{len(generator)} generators for a batch of {batch}: give one, or one per row")
            rows = [cls.draw((1, *event), steps, one, device, dtype) for one in generator]
            return cls(
                *(
                    arrays.namespace(rows[0].initial).concatenate([getattr(row, field.name) for row in rows])
                    for field in fields(cls)
                )
            )
        normals = arrays.normals((batch, steps + 1, *event), generator, device, dtype)
        uniforms = 1 - arrays.uniforms((batch, steps), generator, device, dtype)
        return cls(normals[:, 0], normals[:, 1:], uniforms)
