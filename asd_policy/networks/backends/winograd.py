"""Short filters over time with fewer products than one for each tap (Winograd 1980; Lavin and Gray, arXiv 1509.09308).

A filter of r taps makes m outputs of m + r − 1 inputs x by y = A·((G w) ∘ (B x)). Its m + r − 1 products, each of them
a matrix product where x and w have channels, take the place of m·r; A and B know no channels. The matrices are those
of Toom and Cook, for a polynomial's values at m + r − 2 points and at infinity. With the points below, the rounding of
float32 makes 2.2 times (3 taps) and 3.5 times (5 taps) the error that it makes in a plain sum; in the predictions of
a whole U-Net, a fifth more than plain products (docs/results/onnx.md).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.floating[Any]]
OUTPUTS = 4
"""Outputs m that are made together: 8 products instead of 20 for five taps, 6 instead of 12 for three."""
POINTS = {3: (0.0, 1.0, -1.0, 0.5, -2.0), 5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
"""Points by the number of taps. Halves and doubles are exact in float32."""
ONE = 1
"""Which of the points is 1: what is added to its product is added to each output."""


@dataclass(frozen=True)
class Filter:
    """A convolution of some steps in three: products of its parts, P of them."""

    before: Floats
    """Sums of the inputs [P, tiles, steps in]."""
    weights: Floats
    """What each of them is multiplied by [P, channels in, channels out]."""
    after: Floats
    """Sums of the products [steps out, P, tiles]."""


def make_filter(kernel: Floats, inputs: int, outputs: int, first: int) -> Filter:
    """Take a convolution of stride 1 apart.

    Args:
        kernel: Its weights [channels out, channels in, taps], of as many taps as `POINTS` knows.
        inputs: Steps that it reads; beyond them are zeros.
        outputs: Steps that it makes.
        first: The input that the first tap of the first output is at, below zero where it is padded.
    """
    taps = kernel.shape[2]
    a, g, b = _matrices(taps)
    products, tiles = len(g), -(-outputs // OUTPUTS)
    before = np.zeros((products, tiles, inputs))
    after = np.zeros((outputs, products, tiles))
    for tile in range(tiles):
        start = OUTPUTS * tile
        for tap in range(products):
            if 0 <= start + tap + first < inputs:
                before[:, tile, start + tap + first] = b[:, tap]
        made = min(OUTPUTS, outputs - start)
        after[start : start + made, :, tile] = a[:made]
    doubles = kernel.astype(np.float64)
    weights = np.empty((products, kernel.shape[1], kernel.shape[0]), np.float32)
    for product, row in enumerate(g):
        weights[product] = (doubles @ row).T
    return Filter(before.astype(np.float32), weights, after.astype(np.float32))


@cache
def _matrices(taps: int) -> tuple[Doubles, Doubles, Doubles]:
    """Compute A [m, m + r − 1], G [m + r − 1, r] and B [m + r − 1, m + r − 1], the last for the infinite point."""
    points = np.array(POINTS[taps])

    def values(terms: int) -> Doubles:
        """The values of the powers 0 … terms − 1 at each point."""
        return np.vstack([points[:, None] ** np.arange(terms, dtype=np.float64), np.eye(terms)[-1]])

    return values(OUTPUTS).T, values(taps), np.linalg.inv(values(OUTPUTS + taps - 1)).T
