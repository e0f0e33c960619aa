"""The residual law against its definition in high precision."""

import math
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from asd_policy.samplers.asd.residual import CLOSEST, FARTHEST, crossing, log_mass, mirror, refused_level, renew

LOG_WEIGHTS = [0.0, -1e-9, *(math.log(p) for p in (0.999, 0.5, 1e-3, 1e-12))]
DELTAS = [1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, FARTHEST]
ALONG = [-8.0, -5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0, 8.0]


def maps(along: Tensor, delta: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual's y and the renewed noise of refused drafts."""
    left_over = log_mass(crossing(delta, log_weight), delta, log_weight).exp()
    level = refused_level(along, delta, log_weight, (left_over - log_weight.expm1()).log())
    return mirror(level, along, delta, log_weight), renew(level)


def mass(y: float, delta: float, log_weight: float) -> Any:
    """Return p·Φ(y) − Φ(y − δ) to some sixty digits, at y = b if y is beyond it."""
    top = mpf(delta) / 2 + mpf(log_weight) / mpf(delta)
    y_exact = min(mpf(y), top)
    return mp.exp(log_weight) * mp.ncdf(y_exact) - mp.ncdf(y_exact - delta)


@pytest.mark.parametrize("log_weight", LOG_WEIGHTS)
def test_mass_and_maps(log_weight: float) -> None:
    weight, along = (torch.tensor(values, dtype=torch.float64) for values in (log_weight, ALONG))
    with mp.workdps(80):
        for delta in DELTAS:
            residual, refused = (mass(math.inf, delta, sign * log_weight) for sign in (1, -1))
            delta_tensor = torch.full_like(along, delta)
            total = log_mass(crossing(delta_tensor, weight), delta_tensor, weight)[0].exp().item()
            assert total == pytest.approx(float(residual), rel=1e-7, abs=1e-16)
            y, renewed = maps(along, delta_tensor, weight.expand_as(along))
            assert torch.isfinite(y).all() and torch.isfinite(renewed).all()
            if residual < 1e-13:  # the probability that anything is drawn from this law
                continue
            for along_one, y_one, renewed_one in zip(ALONG, y.tolist(), renewed.tolist(), strict=True):
                level = float(mass(-along_one, delta, -log_weight) / refused)
                assert float(mass(y_one, delta, log_weight) / residual) == pytest.approx(level, abs=4e-6)
                assert float(mp.ncdf(-renewed_one)) == pytest.approx(level, abs=1e-7)


def test_mirror_is_good_where_samples_are() -> None:
    """The few tail values that the fixed number of steps leaves unfinished do not show."""
    along, delta, weight = torch.meshgrid(
        torch.linspace(-3.5, 6, 191, dtype=torch.float64),
        torch.tensor([*DELTAS, 0.5, 2.0, 5.0], dtype=torch.float64),
        torch.tensor([*LOG_WEIGHTS, -0.1, -2.0], dtype=torch.float64),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    y, renewed = maps(along, delta, weight)
    cdf, level = (log_mass(y, delta, weight) - total).exp(), torch.special.ndtr(-renewed)
    drawn = (total > math.log(1e-13)) & (level < 1 - 1e-4)
    assert (cdf - level).abs()[drawn].max() < 2e-7


def test_mirror_of_a_full_weight_is_a_reflection() -> None:
    along = torch.linspace(-4, 4, 33, dtype=torch.float64)
    delta = torch.tensor([1e-6, 1e-2, 1.0, 20.0], dtype=torch.float64).unsqueeze(1)
    y, _ = maps(*torch.broadcast_tensors(along, delta, torch.zeros_like(delta)))
    refused = -along < 0.5 * delta  # y > b
    torch.testing.assert_close(y[refused], -along.expand_as(y)[refused])


def test_edges_are_numbers() -> None:
    along, delta, weight = torch.meshgrid(
        torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64),
        torch.tensor([CLOSEST, 1e-20, FARTHEST], dtype=torch.float64),
        torch.tensor([0.0, -1e-38, -1e4, -1e6], dtype=torch.float64),
        indexing="ij",
    )
    total = log_mass(crossing(delta, weight), delta, weight)
    assert not total.isnan().any()
    assert (total.exp() <= weight.exp()).all()
    assert all(torch.isfinite(mapped).all() for mapped in maps(along, delta, weight))
