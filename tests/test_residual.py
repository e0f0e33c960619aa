"""The residual law against its definition in high precision."""

import math

import pytest
import torch
from mpmath import mp, mpf

from asd_policy.residual import CLOSEST, FARTHEST, crossing, log_mass, mirror, renew

LOG_WEIGHTS = [0.0, -1e-9, *(math.log(p) for p in (0.999, 0.5, 1e-3, 1e-12))]
# The form changes at 1/16.
DELTAS = [1e-8, 1e-6, 1e-4, 1e-2, 0.0624, 0.0626, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, FARTHEST]
ALONG = [-8.0, -5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0, 8.0]
# Relative error of S, and absolute error of the CDF of what is mapped.
TOLERANCES = [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-10, 4e-6)]


def mass(y: float, delta: float, log_weight: float) -> "mpf":
    """Return p·Φ(y) − Φ(y − δ) to some sixty digits, at y = b if y is beyond it."""
    top = mpf(delta) / 2 + mpf(log_weight) / mpf(delta)
    y_exact = min(mpf(y), top)
    return mp.exp(log_weight) * mp.ncdf(y_exact) - mp.ncdf(y_exact - delta)


@pytest.mark.parametrize(("dtype", "mass_error", "cdf_error"), TOLERANCES)
@pytest.mark.parametrize("log_weight", LOG_WEIGHTS)
def test_mass_and_maps(log_weight: float, dtype: torch.dtype, mass_error: float, cdf_error: float) -> None:
    weight = torch.tensor(log_weight, dtype=dtype)
    along = torch.tensor(ALONG, dtype=dtype)
    with mp.workdps(80):
        for delta in torch.tensor(DELTAS, dtype=dtype):
            residual, refused = (mass(math.inf, delta.item(), sign * weight.item()) for sign in (1, -1))
            total = log_mass(crossing(delta, weight), delta, weight).exp().item()
            assert total == pytest.approx(float(residual), rel=mass_error, abs=1e-20)
            y, renewed = (f(along, delta.expand_as(along), weight.expand_as(along)) for f in (mirror, renew))
            assert torch.isfinite(y).all() and torch.isfinite(renewed).all()
            if residual < 1e-13:  # the probability that anything is drawn from this law
                continue
            for along_one, y_one, renewed_one in zip(along.tolist(), y.tolist(), renewed.tolist(), strict=True):
                level = float(mass(-along_one, delta.item(), -weight.item()) / refused)
                assert float(mass(y_one, delta.item(), weight.item()) / residual) == pytest.approx(level, abs=cdf_error)
                assert float(mp.ncdf(-renewed_one)) == pytest.approx(level, abs=cdf_error)


def test_mirror_is_good_where_samples_are() -> None:
    """The few tail values that the fixed number of steps leaves unfinished do not show."""
    along, delta, weight = torch.meshgrid(
        torch.linspace(-3.5, 6, 191, dtype=torch.float64),
        torch.tensor([*DELTAS, 0.5, 2.0, 5.0], dtype=torch.float64),
        torch.tensor([*LOG_WEIGHTS, -0.1, -2.0], dtype=torch.float64),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    cdf = (log_mass(mirror(along, delta, weight), delta, weight) - total).exp()
    level = torch.special.ndtr(-renew(along, delta, weight))
    drawn = (total > math.log(1e-13)) & (level < 1 - 1e-4)
    assert (cdf - level).abs()[drawn].max() < 1e-8


def test_mirror_of_a_full_weight_is_a_reflection() -> None:
    along = torch.linspace(-4, 4, 33, dtype=torch.float64)
    delta = torch.tensor([1e-6, 1e-2, 1.0, 20.0], dtype=torch.float64).unsqueeze(1)
    y = mirror(*torch.broadcast_tensors(along, delta, torch.zeros_like(delta)))
    refused = -along < 0.5 * delta  # y > b
    torch.testing.assert_close(y[refused], -along.expand_as(y)[refused])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_numbers(dtype: torch.dtype) -> None:
    along, delta, weight = torch.meshgrid(
        torch.tensor([-10.0, 0.0, 10.0], dtype=dtype),
        torch.tensor([CLOSEST, 1e-20, FARTHEST], dtype=dtype),
        torch.tensor([0.0, -1e-38, -1e4, -1e6], dtype=dtype),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    assert not total.isnan().any()
    assert (total.exp() <= weight.exp()).all()
    for f in (mirror, renew):
        assert torch.isfinite(f(along, delta, weight)).all()
