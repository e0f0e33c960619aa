"""The gradient of an energy, for Langevin dynamics: an energy-based policy as something to sample from."""

from collections.abc import Callable

import torch
from torch import Tensor

from asd_policy.errors import DenoiserError


class EnergyGradient:
    """∇E by automatic differentiation, in the form of a `Denoiser` for `GaussianChain.langevin`."""

    def __init__(self, energy: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        """Take an energy.

        Args:
            energy: Computes E [N] of points [N, *event] and conditioning [N, …] or None; each row's of that row alone.
        """
        self._energy = energy

    def __call__(self, x: Tensor, step: Tensor, cond: Tensor | None) -> Tensor:
        """Compute ∇E at points x [N, *event]; every step has the same energy.

        Raises:
            DenoiserError: The energy is not one number for each point.
        """
        with torch.inference_mode(False), torch.enable_grad():
            points = x.clone().requires_grad_()
            energy = self._energy(points, None if cond is None else cond.clone())
            if energy.shape != (len(x),):
                raise DenoiserError(f"the energy of {len(x)} points has shape {tuple(energy.shape)}, not ({len(x)},)")
            return torch.autograd.grad(energy.sum(), points)[0]
