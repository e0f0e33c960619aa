"""The coefficients of unadjusted Langevin dynamics on an energy: x_{k+1} = x_k − h_k ∇E(x_k) + √(2 h_k) ξ_k.

The chain of an energy-based policy (Implicit Behavioral Cloning, arXiv 2109.00137), and of Langevin dynamics in general
(Roberts and Tweedie 1996). It has the form of a `GaussianChain` with the force −∇E in the place of x̂0: a = h, b = 1,
σ = √(2h). Its law after K steps is its own, near that of the density exp(−E) for small steps and many of them; `asd` is
exact with respect to the unadjusted chain, discretisation included, not with respect to exp(−E).
"""

import math
import numbers
from collections.abc import Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from asd_policy.errors import ChainError

LANGEVIN = "Langevin"
"""The `_class_name` of Langevin dynamics in configurations; no class of diffusers."""
GRADIENT = "gradient"
"""The `prediction_type` of what returns an energy's gradient."""
MOST_STEPS = 10_000


def langevin_config(step_sizes: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Write the configuration of a chain of Langevin dynamics, with the options that every chain's has."""
    return {
        "_class_name": LANGEVIN,
        "prediction_type": GRADIENT,
        "step_sizes": step_sizes.tolist(),
        "clip_sample": False,
        "thresholding": False,
    }


def read_langevin(step_sizes: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Compute the coefficients of Langevin's steps, by the names of `GaussianChain`, from sizes h [K] as checked."""
    ones = np.ones(len(step_sizes))
    return {
        "timesteps": np.arange(len(step_sizes)),
        "a": step_sizes,
        "b": ones,
        "sigma": np.sqrt(2 * step_sizes),
        "output_scale": -ones,
        "input_scale": 0 * ones,
        "excess": None,
    }


def check_step_sizes(step_sizes: Any) -> npt.NDArray[np.float64]:
    """Refuse step sizes that no chain can have, or that lead nowhere.

    Returns:
        Them [K].

    Raises:
        ChainError: They are no list of 1 … 10,000 positive, finite numbers, or grow from each step to the next: such
            steps leave again what earlier ones have found.
    """
    if not isinstance(step_sizes, Sized):  # a generator, which may have no end
        raise ChainError(f"step_sizes {step_sizes!r:.60} is not a list of 1 … {MOST_STEPS} numbers")
    sizes = list(step_sizes)  # pyright: ignore[reportArgumentType]  # what has a length and no items is no list either
    if not 1 <= len(sizes) <= MOST_STEPS:
        raise ChainError(f"step_sizes has {len(sizes)} numbers, not 1 … {MOST_STEPS}")
    for step, size in enumerate(sizes):
        size = size.item() if hasattr(size, "item") and getattr(size, "ndim", 0) == 0 else size
        if isinstance(size, bool) or not isinstance(size, numbers.Real) or not 0 < float(size) < math.inf:
            raise ChainError(f"step size {size!r:.60} of step {step} is not a positive, finite number")
    found = np.array([float(size) for size in sizes])
    if len(found) > 1 and (np.diff(found) > 0).all():
        raise ChainError(
            f"step sizes grow from {found[0]:g} to {found[-1]:g} without end: sizes that stay the same, or fall, settle"
        )
    return found
