"""The standard normal distribution on NumPy's arrays, from Python's own special functions: machines may lack SciPy."""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_FAR = -20.0  # below, the first terms of the asymptotic series are as good as float64
_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_quantile = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])  # Wichura's algorithm AS 241


def log_cdf(x: Floats) -> Floats:
    """Compute ln Φ(x), elementwise, to float64's precision."""
    tail = 0.5 * _erfc(np.abs(x).clip(max=-_FAR) / math.sqrt(2))  # Φ(−|x|)
    near = np.where(x > 0, np.log1p(-tail), np.log(tail))
    far = np.minimum(x, _FAR)
    inverse = far**-2
    series = 1 - inverse * (1 - inverse * (3 - inverse * (15 - inverse * (105 - inverse * 945))))
    return np.where(x < _FAR, -0.5 * far**2 - np.log(-far * math.sqrt(2 * math.pi)) + np.log(series), near)


def quantile(p: Floats) -> Floats:
    """Compute the x of Φ(x) = p, elementwise; −∞ for 0 and ∞ for 1."""
    inside = (p > 0) & (p < 1)
    x = _quantile(np.where(inside, p, 0.5))
    return np.where(inside, x, np.where(p > 0, np.inf, -np.inf))
