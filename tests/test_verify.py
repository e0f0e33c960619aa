"""The reflection coupling: acceptance probability, law of the result, numerical edges."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy.verify import accepts, reflect

N = 100_000
LEVEL = 1e-5  # of each test, on fixed seeds


def couple(shift: Tensor, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return N acceptances and the standardised results (x − m)/σ for one v [D]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((N, len(shift)), generator=generator, dtype=dtype)
    uniform = 1 - torch.rand(N, generator=generator, dtype=dtype)
    gap = shift.to(dtype).expand(N, -1)
    accepted = accepts(gap, torch.ones(N, dtype=dtype), noise, uniform)
    return accepted, torch.where(accepted[:, None], gap + noise, reflect(gap, noise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1e-6, 1e-3, 0.1, 1.0, 3.0, 1e3])
def test_acceptance_probability(norm: float, dtype: torch.dtype) -> None:
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    accepted, _ = couple(norm * direction, dtype)
    expected = 2 * stats.norm.cdf(-norm / 2)
    count = int(accepted.sum())
    assert stats.binomtest(count, N, float(expected)).pvalue > LEVEL if 0 < expected < 1 else count == N * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0.0, 1e-6, 1e-3, 0.1, 1.0, 3.0, 1e3])
def test_result_is_the_target_law(norm: float, dtype: torch.dtype) -> None:
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    across = torch.tensor([1.0, 0.0, -1.0]) / math.sqrt(2)
    _, result = couple(norm * direction, dtype)
    for axis in (direction, across):
        assert stats.kstest((result @ axis.to(dtype)).numpy(), "norm").pvalue > LEVEL
    assert stats.kstest(result.square().sum(-1).numpy(), stats.chi2(3).cdf).pvalue > LEVEL


def test_the_law_test_has_power() -> None:
    """Accepting every draft, or plain noise in the place of a reflection, is seen by the test above."""
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    gap, noise = direction.expand(N, -1), torch.randn((N, 3), generator=torch.Generator().manual_seed(1))
    uniform = 1 - torch.rand(N, generator=torch.Generator().manual_seed(2))
    accepted = accepts(gap, torch.ones(N), noise, uniform)
    redrawn = torch.randn((N, 3), generator=torch.Generator().manual_seed(3))
    for mutant in (gap + noise, torch.where(accepted[:, None], gap + noise, redrawn)):
        assert stats.kstest((mutant @ direction).numpy(), "norm").pvalue < LEVEL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gap_accepts_whatever_the_scale(dtype: torch.dtype) -> None:
    gap, noise = torch.zeros((3, 2), dtype=dtype), torch.randn((3, 2), dtype=dtype)
    scale = torch.tensor([0.0, 1.0, math.inf], dtype=dtype)
    assert accepts(gap, scale, noise, torch.full((3,), 1 - 1e-7, dtype=dtype)).all()
    assert torch.equal(reflect(gap, noise), noise)


def test_no_noise_rejects_a_wrong_draft() -> None:
    """σ = 0 makes the scale infinite: the step must come from the target."""
    gap = torch.tensor([[1e-30, 0.0], [1.0, -1.0]])
    assert not accepts(gap, torch.full((2,), math.inf), torch.randn(2, 2), torch.full((2,), 1e-30)).any()


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_reflection_keeps_lengths_at_every_size_of_gap(size: float) -> None:
    """Squares of these gaps overflow or vanish in float32; the mirror must not."""
    gap, noise = size * torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, 2.0]])
    mirrored = reflect(gap, noise)
    torch.testing.assert_close(mirrored, noise - 2 * -1.0 * torch.tensor([[0.6, -0.8]]))
    torch.testing.assert_close(reflect(gap, mirrored), noise)


def test_overflowing_shift_is_reflected() -> None:
    gap, noise = torch.tensor([[1e30, 1e30]]), torch.tensor([[1.0, -1.0]])
    assert not accepts(gap, torch.tensor([1e30]), noise, torch.tensor([0.5])).any()
    assert torch.isfinite(reflect(gap, noise)).all()
