"""The noise tape: every random number of a plan, drawn before it starts and indexed by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class NoiseTape:
    """The randomness of a batch of plans.

    Step k of a row may use `normals[:, k]` and `uniforms[:, k]` and nothing of later steps: that is what makes a
    draft for step k, which sees steps before k only, independent of the noise that judges it.
    """

    initial: Tensor
    """The chain's start x_0 ~ N(0, I), shape [B, *event]."""
    normals: Tensor
    """ξ_k ~ N(0, I), shape [B, K, *event]."""
    uniforms: Tensor
    """u_k ~ U(0, 1], shape [B, K]; never 0, whose logarithm would accept any draft."""

    @classmethod
    def draw(
        cls,
        shape: Sequence[int],
        steps: int,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "NoiseTape":
        """Draw a tape.

        Args:
            shape: The samples' shape (B, *event).
            steps: Number of steps K of the chain.
            generator: One for the whole batch, one per row (a row is then the same whatever the batch it is in),
                or None for torch's global one.
            device: Where the tape lives; the numbers are drawn there.
            dtype: Of the tape.

        Raises:
            ValueError: The number of generators is not the batch size.
        """
        batch, event = shape[0], tuple(shape[1:])
        if isinstance(generator, Sequence):
            if len(generator) != batch:
                raise ValueError(f"{len(generator)} generators for a batch of {batch}: give one, or one per row")
            rows = [cls.draw((1, *event), steps, one, device, dtype) for one in generator]
            return cls(
                torch.cat([row.initial for row in rows]),
                torch.cat([row.normals for row in rows]),
                torch.cat([row.uniforms for row in rows]),
            )
        normals = torch.randn((batch, steps + 1, *event), generator=generator, device=device, dtype=dtype)
        uniforms = 1 - torch.rand((batch, steps), generator=generator, device=device, dtype=dtype)
        return cls(normals[:, 0], normals[:, 1:], uniforms)
