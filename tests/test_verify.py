"""The couplings: acceptance probability, law of a step and of a whole chain, numerical edges."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy import verify
from asd_policy.residual import log_mass
from asd_policy.verify import VERIFIERS, Judge, Verdict, Verifier, accepts, block, reflect, reflection

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


# A chain of six steps in two dimensions, judged in rounds of up to WINDOW points. Steps are x' = clean + b·x + σξ.

STEPS, WIDTH, WINDOW = 6, 2, 5
SIGMA = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0, 0.7])
PUSH = torch.tensor([[0.4, -0.3], [0.2, 0.5]])
NAMES = list(VERIFIERS)


def target(x: Tensor, step: Tensor) -> Tensor:
    """Return the target's x̂0 [..., 2] at points [..., 2] of steps [...]."""
    return x @ PUSH.to(x) + torch.stack((0.1 * step, 0.3 - step), -1).to(x)


def drafts(x: Tensor, step: Tensor, sizes: Tensor, seen: Tensor) -> Tensor:
    """Return drafts of x̂0 that are off by about sizes [K] · σ, in a way that depends on the point and on its past.

    Args:
        x: Points [..., 2].
        step: The steps that leave them [...].
        sizes: Size of the error per step [K].
        seen: What earlier rounds have seen of these points [..., 2].
    """
    turn = 0.4 * (step + torch.tanh(x.sum(-1) + seen[..., 1]))
    error = (1 + 0.9 * torch.tanh(2 * (x[..., 0] - x[..., 1] + seen[..., 0]))) * (sizes * SIGMA).to(x)[step]
    return target(x, step) + error.unsqueeze(-1) * torch.stack((turn.cos(), turn.sin()), -1)


def sample_chains(judge: Judge, sizes: Tensor, dtype: torch.dtype, peek: int = 0) -> tuple[Tensor, float]:
    """Return (x_{k+1} − m_k(x_k))/σ_k of N chains [N, K, D], and the mean steps that a first round commits.

    Sequential sampling makes these independent standard normals, and that fixes the chain's joint law.
    With `peek` = 1, drafts use what was seen one point further than they may.
    """
    generator = torch.Generator().manual_seed(0)
    tape = torch.randn((N, STEPS, WIDTH), generator=generator, dtype=dtype)
    uniforms = 1 - torch.rand((N, STEPS), generator=generator, dtype=dtype)
    path, seen = torch.zeros((2, N, STEPS + 1, WIDTH), dtype=dtype)
    cursor = torch.zeros(N, dtype=torch.int64)
    sigmas, slots = SIGMA.to(dtype), torch.arange(WINDOW)
    committed = []
    while len(rows := (cursor < STEPS).nonzero().squeeze(1)):
        steps = cursor[rows].unsqueeze(1) + slots
        live, steps = steps < STEPS, steps.clamp(max=STEPS - 1)
        at, sigma = (rows.unsqueeze(1), steps), sigmas[steps].unsqueeze(-1)
        noise, memory = tape[at], seen[rows.unsqueeze(1), steps + peek]
        points, guesses = [path[rows, cursor[rows]]], []
        for slot in range(WINDOW):
            guesses.append(drafts(points[-1], steps[:, slot], sizes, memory[:, slot]))
            points.append(guesses[-1] + 0.5 * points[-1] + sigma[:, slot] * noise[:, slot])
        point, drafted = torch.stack(points[:-1], 1), torch.stack(points[1:], 1)
        clean = target(point, steps)
        verdict = judge(torch.stack(guesses, 1) - clean, 1 / sigma.squeeze(-1), noise, uniforms[at], live)
        own = clean + 0.5 * point + sigma * verdict.noise
        result = torch.where((slots < verdict.last.unsqueeze(1)).unsqueeze(2), drafted, own)
        where = (rows.unsqueeze(1).expand_as(steps)[live], steps[live])
        path[where[0], where[1] + 1] = result[live]
        seen[where] = point[live]
        tape[where], uniforms[where] = verdict.noise[live], verdict.uniform[live]
        cursor[rows] += verdict.last + 1
        committed.append((verdict.last + 1).double().mean().item())
    before = path[:, :-1]
    mean = target(before, torch.arange(STEPS).expand(N, -1)) + 0.5 * before
    return (path[:, 1:] - mean) / sigmas.unsqueeze(-1), committed[0]


def smallest_p_value(result: Tensor) -> float:
    """Test vectors [N, …] for standard normality: coordinates, oblique projections, radius."""
    flat = result.double().flatten(1)
    oblique = torch.randn((flat.shape[1], 12), generator=torch.Generator().manual_seed(7), dtype=flat.dtype)
    values = torch.cat((flat, flat @ (oblique / oblique.norm(dim=0))), 1)
    p_values = [stats.kstest(column.numpy(), "norm").pvalue for column in values.T]
    return min(*p_values, stats.kstest(flat.square().sum(1).numpy(), stats.chi2(flat.shape[1]).cdf).pvalue)
