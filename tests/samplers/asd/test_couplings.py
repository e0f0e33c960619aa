"""The couplings: acceptance probability, law of a step and of a whole chain, numerical edges."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy.samplers.asd import couplings as verify
from asd_policy.samplers.asd.couplings import VERIFIERS, Judge, Verdict, accepts, block, reflect, reflection
from support.known_laws import normal_p_value

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
UNEVEN = (0.3, 1.5, 0.7, 1.0, 0.5, 1.0)


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


def sample_chains(judge: Judge, sizes: tuple[float, ...], dtype: torch.dtype, number: int = N, peek: int = 0) -> Tensor:
    """Return (x_{k+1} − m_k(x_k))/σ_k of chains [number, K, D].

    Sequential sampling makes these independent standard normals, and that fixes the chain's joint law.
    With `peek` = 1, drafts use what was seen one point further than they may.
    """
    generator = torch.Generator().manual_seed(0)
    part = 5000  # which fits the cache
    return torch.cat([sample_part(judge, sizes, dtype, part, peek, generator) for _ in range(number // part)])


def sample_part(
    judge: Judge, sizes: tuple[float, ...], dtype: torch.dtype, number: int, peek: int, generator: torch.Generator
) -> Tensor:
    """Return one part of `sample_chains` [number, K, D]."""
    sized = torch.tensor(sizes)
    tape = torch.randn((number, STEPS, WIDTH), generator=generator, dtype=dtype)
    uniforms = 1 - torch.rand((number, STEPS), generator=generator, dtype=dtype)
    path, seen = torch.zeros((2, number, STEPS + 1, WIDTH), dtype=dtype)
    cursor = torch.zeros(number, dtype=torch.int64)
    sigmas, slots = SIGMA.to(dtype), torch.arange(WINDOW)
    while len(rows := (cursor < STEPS).nonzero().squeeze(1)):
        steps = cursor[rows].unsqueeze(1) + slots
        live, steps = steps < STEPS, steps.clamp(max=STEPS - 1)
        at, sigma = (rows.unsqueeze(1), steps), sigmas[steps].unsqueeze(-1)
        noise, memory = tape[at], seen[rows.unsqueeze(1), steps + peek]
        points, guesses = [path[rows, cursor[rows]]], []
        for slot in range(WINDOW):
            guesses.append(drafts(points[-1], steps[:, slot], sized, memory[:, slot]))
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
    before = path[:, :-1]
    mean = target(before, torch.arange(STEPS).expand(number, -1)) + 0.5 * before
    return (path[:, 1:] - mean) / sigmas.unsqueeze(-1)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float32, (1e-6,) * STEPS),
        (torch.float32, (0.3,) * STEPS),
        (torch.float32, (3.0,) * STEPS),
        (torch.float64, (0.01,) * STEPS),
        (torch.float64, UNEVEN),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", VERIFIERS)
def test_joint_law_of_a_chain(name: str, dtype: torch.dtype, sizes: tuple[float, ...]) -> None:
    assert normal_p_value(sample_chains(VERIFIERS[name].judge, sizes, dtype)) > LEVEL


def accept_all(right: Verdict, noise: Tensor, live: Tensor) -> Verdict:
    return right._replace(last=live.sum(1) - 1, noise=noise)


def take_refused_step_from_target(right: Verdict, noise: Tensor, live: Tensor) -> Verdict:
    redrawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    refused = (torch.arange(live.shape[1]) == right.last.unsqueeze(1)) & right.rejected.unsqueeze(1)
    return right._replace(noise=torch.where(refused.unsqueeze(2), redrawn, right.noise))


def keep_tape_as_it_was(right: Verdict, noise: Tensor, live: Tensor) -> Verdict:
    after = torch.arange(live.shape[1]) > right.last.unsqueeze(1)
    return right._replace(noise=torch.where(after.unsqueeze(2), noise, right.noise))


@pytest.mark.parametrize("mutate", [accept_all, take_refused_step_from_target, keep_tape_as_it_was])
def test_the_chain_test_has_power(mutate: Callable[[Verdict, Tensor, Tensor], Verdict]) -> None:
    def judge(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor, live: Tensor) -> Verdict:
        return mutate(block(gap, scale, noise, uniform, live), noise, live)

    assert normal_p_value(sample_chains(judge, UNEVEN, torch.float32, number=N // 2)) < LEVEL


def test_the_chain_test_sees_a_wrong_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """S = p gives h = p, the acceptance of a prefix taken by itself."""
    monkeypatch.setattr(verify, "log_mass", lambda y, delta, log_weight: log_weight)
    assert normal_p_value(sample_chains(block, UNEVEN, torch.float32, number=N // 2)) < LEVEL


@pytest.mark.parametrize("judge", [reflection, block])
def test_the_chain_test_sees_a_draft_that_peeks(judge: Judge) -> None:
    """What was seen one point further depends on the step's own noise."""
    assert normal_p_value(sample_chains(judge, UNEVEN, torch.float32, number=N // 2, peek=1)) < LEVEL


def equal_gaps(norm: float, points: int, number: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of a judge: rounds of equal gaps that do not depend on the noise."""
    generator = torch.Generator().manual_seed(3)
    gap = norm * torch.tensor([0.6, 0.0, -0.8]).expand(number, points, 3)
    noise = torch.randn(gap.shape, generator=generator)
    uniform = 1 - torch.rand((number, points), generator=generator)
    return gap, torch.ones((number, points)), noise, uniform, torch.ones((number, points), dtype=torch.bool)


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", VERIFIERS)
def test_one_draft_stands_as_often_as_any_coupling_allows(name: str, norm: float) -> None:
    count = int(VERIFIERS[name].judge(*equal_gaps(norm, 2)).last.sum())
    assert stats.binomtest(count, N, float(2 * stats.norm.cdf(-norm / 2))).pvalue > LEVEL


@pytest.mark.parametrize("norm", [0.03, 0.1, 0.3, 1.0])
def test_a_block_keeps_more(norm: float) -> None:
    arguments = equal_gaps(norm, 24, N // 10)
    by_step, by_block = (judge(*arguments).last.double() for judge in (reflection, block))
    noise = math.sqrt((by_step.var() + by_block.var()).item() / len(by_step))
    assert (by_block.mean() - by_step.mean()).item() > 3 * noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", VERIFIERS)
def test_perfect_drafts_stand_with_their_noise(name: str, dtype: torch.dtype) -> None:
    gap, scale, noise, uniform, live = equal_gaps(0.0, 6, 3)
    scale[:, 4:] = math.inf
    live[1, 3:], live[2, 1:] = False, False
    uniform[:] = 1 - 1e-7
    verdict = VERIFIERS[name].judge(gap.to(dtype), scale.to(dtype), noise.to(dtype), uniform.to(dtype), live)
    assert verdict.last.tolist() == [5, 2, 0]
    assert not verdict.rejected.any()
    assert torch.equal(verdict.noise, noise.to(dtype)) and torch.equal(verdict.uniform, uniform.to(dtype))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", VERIFIERS)
def test_a_step_without_noise_or_too_far_is_refused(name: str, size: float) -> None:
    """A perfect step, one that cannot stand, and one more: the second is taken from its target, by a finite noise."""
    gap, scale, noise, uniform, live = equal_gaps(size, 3)
    gap = gap * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1)
    scale[:, 1] = math.inf if size < 1 else 1e30
    verdict = VERIFIERS[name].judge(gap, scale, noise, uniform, live)
    assert (verdict.last == 1).all() and verdict.rejected.all()
    assert stats.kstest((verdict.noise[:, 1] @ torch.tensor([0.6, 0.0, -0.8])).numpy(), "norm").pvalue > LEVEL
    assert normal_p_value(verdict.noise[:, 1:]) > LEVEL
