"""How predictions follow the points of a chain: the mean Jacobian J_k = ∂x̂0/∂x of each step, in few numbers.

By Tweedie's formula J_k = √ᾱ_k/(1 − ᾱ_k) · Cov(x_0 | x_k) (Efron 2011). What an observation leaves open of an action
chunk is smooth in time and grows from its beginning, like a random walk, whose covariance the sines below diagonalise;
and one action says little about another's noise. So they nearly diagonalise J_k, for each action by itself: a step has
D gains, and turning a vector takes D · horizon products. docs/results/response.md has what that costs in rounds
against the full matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy._common import arrays
from asd_policy._common.arrays import Array, Device

_SMOOTHING = 2  # steps to each side whose statistics are pooled: J changes slowly along the chain


@dataclass(frozen=True)
class Response:
    """The average Jacobian of x̂0 by x, J_k = (U ⊗ I) diag(g_k) (U ⊗ I)ᵀ, I over the actions."""

    basis: Array
    """U, orthonormal columns over time [horizon, horizon]."""
    gain: Array
    """g [K, D], flattened from [K, horizon, action_dim]."""

    @classmethod
    def none(cls, x: Array, steps: int) -> "Response":
        """Make the response before the first plan, J = 0, for points x [B, horizon, …] and a chain of K `steps`."""
        flat = x.reshape(len(x), -1)
        return cls(sines(x.shape[1], arrays.device_of(x), x.dtype), arrays.zeros((steps, flat.shape[1]), x))

    def turn(self, values: Array) -> Array:
        """Turn vectors [..., D] into the basis."""
        return turn(self.basis.T, values)

    def turn_back(self, values: Array) -> Array:
        """Turn vectors [..., D] in the basis back."""
        return turn(self.basis, values)


def sines(horizon: int, device: Device, dtype: Any) -> Array:
    """Make the orthonormal sine transform (DST-IV; a random walk's Karhunen–Loève), [horizon, horizon]."""
    half = np.arange(horizon) + 0.5
    return arrays.asarray(np.sqrt(2 / horizon) * np.sin(np.pi / horizon * np.outer(half, half)), device, dtype)


def turn(matrix: Array, values: Array) -> Array:
    """Multiply the time axis of vectors [..., D], flattened from [..., horizon, …], by a matrix [horizon, horizon]."""
    return (matrix @ values.reshape(*values.shape[:-1], len(matrix), -1)).reshape(values.shape)


def moments(noise: Array, change: Array, squares: tuple[Array, Array], free: Array, horizon: int) -> dict[str, Array]:
    """Sum up what a batch of B plans says of the response.

    Args:
        noise: σξ of all steps but the last, in the basis, [B, K − 1, D], zero where it does not count.
        change: Of the prediction in the step after it, in the basis, [B, K − 1, D], zero alike.
        squares: Mean squares of noise and change over a step's coordinates, each [B, K − 1].
        free: Coordinates that are sampled, not given, [B, D] as numbers.
        horizon: Length of the plans' time axis.

    Returns:
        Sums by name: "cross" of Δx̂0·σξ along each direction of the basis [K, horizon, D/horizon]; "noise" and "change"
        of the squares [K]; "free" of the share of each direction that is free [horizon, D/horizon]. Step 0 has no step
        before it, and zeros.
    """
    xp = arrays.namespace(noise)
    squared = sines(horizon, arrays.device_of(noise), noise.dtype).T ** 2
    cross = (change * noise).sum(0).reshape(noise.shape[1], horizon, -1)
    by_step = {"cross": cross, "noise": squares[0].sum(0), "change": squares[1].sum(0)}
    found = {name: xp.concatenate([xp.zeros_like(sums[:1]), sums]) for name, sums in by_step.items()}
    return found | {"free": squared @ free.sum(0).reshape(horizon, -1)}


def fit(sums: Mapping[str, Array], device: Device, dtype: Any, of_force: bool = False) -> Response:
    """Fit the gains to sums of `moments` over many plans.

    The noise that enters a step is independent of what was there, so its regression coefficient is the average
    Jacobian, not one confounded by what moves point and prediction alike. Gains that the data do not tell from zero
    are shrunk to it (James and Stein 1961, positive part), which makes few plans harmless.

    Args:
        sums: Of `moments`.
        device: Where the response is wanted.
        dtype: Of it.
        of_force: Whether predictions are forces, as Langevin's, whose gains are below 0. Those of samples are above, by
            Tweedie's formula; a network that is not trained to the end has others, far from the end of the chain,
            and plans of it took fewer rounds without these.
    """
    cross, noise, change, free = (
        arrays.to_numpy(sums[name]).astype(np.float64) for name in ("cross", "noise", "change", "free")
    )
    steps, horizon, _ = cross.shape
    noise = _pool(noise).clip(min=1e-30)[:, None, None]
    # Its mean square is over all coordinates; a direction has of it what of the direction is free.
    gain = _pool(cross) / (noise * free / free.mean().clip(min=1e-30)).clip(min=1e-30)
    # A slope's variance: that of the response over that of the noise, by the number of pairs.
    uncertainty = _pool(change)[:, None, None] / noise / (free * (2 * _SMOOTHING + 1)).clip(min=1e-30)
    sign = -1.0 if of_force else 1.0
    gain = sign * (sign * gain).clip(min=0) * (1 - uncertainty / (gain**2).clip(min=1e-30)).clip(min=0)
    return Response(sines(horizon, device, dtype), arrays.asarray(gain.reshape(steps, -1), device, dtype))


def _pool(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up sums [K, …] over neighbouring steps."""
    pooled = sums.copy()
    for shift in range(1, min(_SMOOTHING, len(sums) - 1) + 1):
        pooled[shift:] += sums[:-shift]
        pooled[:-shift] += sums[shift:]
    return pooled
