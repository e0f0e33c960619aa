"""The residual law against its definition in high precision."""

import math

import pytest
import torch
from mpmath import mp, mpf

from asd_policy.residual import CLOSEST, FARTHEST, crossing, log_mass, quantile

LOG_WEIGHTS = [0.0, -1e-9, *(math.log(p) for p in (0.999, 0.5, 1e-3, 1e-12))]
# The form changes at 1/16.
DELTAS = [1e-8, 1e-6, 1e-4, 1e-2, 0.0624, 0.0626, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, FARTHEST]
NORMALS = [-8.0, -5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0, 8.0]
# Relative error of S, and absolute error of the CDF at a quantile.
TOLERANCES = [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-10, 4e-6)]


def mass(y: float, delta: float, log_weight: float) -> mpf:
    """Return p·Φ(y) − Φ(y − δ) to some sixty digits, at y = b if y is beyond it."""
    top = mpf(delta) / 2 + mpf(log_weight) / mpf(delta)
    y_exact = min(mpf(y), top)
    return mp.exp(log_weight) * mp.ncdf(y_exact) - mp.ncdf(y_exact - delta)


@pytest.mark.parametrize(("dtype", "mass_error", "cdf_error"), TOLERANCES)
@pytest.mark.parametrize("log_weight", LOG_WEIGHTS)
def test_mass_and_quantile(log_weight: float, dtype: torch.dtype, mass_error: float, cdf_error: float) -> None:
    weight = torch.tensor(log_weight, dtype=dtype)
    normal = torch.tensor(NORMALS, dtype=dtype)
    with mp.workdps(80):
        for delta in torch.tensor(DELTAS, dtype=dtype):
            expected = mass(math.inf, delta.item(), weight.item())
            total = log_mass(crossing(delta, weight), delta, weight).exp().item()
            assert total == pytest.approx(float(expected), rel=mass_error, abs=1e-20)
            y = quantile(normal, delta.expand_as(normal), weight.expand_as(normal))
            assert torch.isfinite(y).all()
            if expected > 1e-13:  # the probability that anything is drawn from this law
                for normal_one, y_one in zip(normal.tolist(), y.tolist(), strict=True):
                    level = mass(y_one, delta.item(), weight.item()) / expected
                    assert float(level) == pytest.approx(float(mp.ncdf(normal_one)), abs=cdf_error)


def test_quantile_is_good_where_samples_are() -> None:
    """The few tail values that the fixed number of steps leaves unfinished do not show: 1e-8 within |z| < 3.5."""
    z, delta, weight = torch.meshgrid(
        torch.linspace(-3.5, 3.5, 141, dtype=torch.float64),
        torch.tensor([*DELTAS, 0.5, 2.0, 5.0], dtype=torch.float64),
        torch.tensor([*LOG_WEIGHTS, -0.1, -2.0], dtype=torch.float64),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    cdf = (log_mass(quantile(z, delta, weight), delta, weight) - total).exp()
    error = (cdf - torch.special.ndtr(z)).abs()
    assert error[total > -50].max() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_finite(dtype: torch.dtype) -> None:
    delta, weight = torch.meshgrid(
        torch.tensor([CLOSEST, 1e-20, FARTHEST], dtype=dtype),
        torch.tensor([0.0, -1e-38, -1e4, -1e30], dtype=dtype),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    assert not total.isnan().any()
    assert (total.exp() <= weight.exp()).all()
    assert not quantile(torch.zeros_like(delta), delta, weight).isnan().any()
