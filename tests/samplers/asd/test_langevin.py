"""Langevin dynamics on energies in closed form: `asd` has the joint law of the unadjusted chain; mutants fail."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import ChainError, DenoiserError, SpecError
from asd_policy.evaluation.exactness.mutants import mutated
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import (
    DTYPE,
    EVENT,
    draw_sequentially,
    draw_speculatively,
    gaussian_law,
    make_tape,
    mixture_p_value,
    normal_p_value,
    step_p_value,
)

N, FEW, LEVEL = 12_000, 6_000, 1e-6
STEP_SIZES = np.geomspace(0.4, 0.02, 12)
CHAIN = GaussianChain.langevin(STEP_SIZES)
MEAN = torch.tensor([[0.5, -0.2], [0.1, 1.0]], dtype=DTYPE)
CURVATURE = torch.tensor([[3.0, 1.0], [4.0, 0.5]], dtype=DTYPE)
MODES = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, -0.5], [0.2, -1.0, -1.0, 1.0]], dtype=DTYPE)
SETTINGS = [Asd(5, draft, verify) for draft in DRAFTS for verify in VERIFIERS]
IDS = [setting.spec for setting in SETTINGS]


def quadratic(x: Tensor, step: Tensor, _: Tensor | None = None) -> Tensor:
    """∇E of a Gaussian's energy."""
    return CURVATURE * (x - MEAN)


def mixture(x: Tensor, step: Tensor, _: Tensor | None = None) -> Tensor:
    """∇E of −ln of a mixture of three Gaussians with variance 0.3."""
    offset = x.flatten(1)[:, None] - MODES  # [N, 3, 4]
    share = (-offset.square().sum(2) / 0.6 + torch.tensor([0.5, 0.3, 0.2], dtype=DTYPE).log()).softmax(1)
    return ((share[..., None] * offset).sum(1) / 0.3).view_as(x)


def quadratic_p_value(sample: Tensor) -> float:
    """Test samples for the law of the unadjusted chain on the quadratic energy, which has a closed form."""
    mean, deviation = gaussian_law(quadratic, CHAIN)
    return normal_p_value((sample - mean) / deviation)


@pytest.fixture(scope="module")
def sequential() -> Tensor:
    """Samples of the sequential chain on the mixture's energy."""
    return draw_sequentially(mixture, CHAIN, 100, N)


def test_a_step_is_langevins() -> None:
    """Against the formula, step by step, on the tape's own noise."""
    tape = make_tape(5, CHAIN, 1)
    x = tape.initial
    for step, size in enumerate(STEP_SIZES):
        x = x - size * mixture(x, torch.full((5,), step)) + (2 * size) ** 0.5 * tape.normals[:, step]
    for sampler in (Ddpm(), Asd(1)):
        found = sampler.sample(mixture, CHAIN, (5, *EVENT), generator=tape).sample
        torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_the_gradient_gets_the_step() -> None:
    """So that an energy can be annealed."""
    seen: list[int] = []

    def gradient(x: Tensor, step: Tensor, _: Tensor | None) -> Tensor:
        seen.extend(step.tolist())
        return x * (1 + step.view(-1, 1, 1))

    Ddpm().sample(gradient, CHAIN, (1, *EVENT))
    assert seen == list(range(12))


def test_small_steps_lead_to_the_density() -> None:
    """Many of them, from far away: variances are one over the curvature, up to the discretisation, h over 2."""
    chain = GaussianChain.langevin([0.02] * 500)
    sample = draw_sequentially(quadratic, chain, 3, 4000)
    torch.testing.assert_close(sample.mean(0), MEAN.flatten(), rtol=0, atol=0.1)
    torch.testing.assert_close(sample.var(0), 1 / CURVATURE.flatten(), rtol=0.15, atol=0)


@pytest.mark.parametrize("setting", [*SETTINGS, Asd(12), Asd(2, "picard", "reflection")], ids=[*IDS, "12", "2"])
def test_law_on_a_quadratic_energy(setting: Asd) -> None:
    assert quadratic_p_value(draw_speculatively(setting, quadratic, CHAIN, 2, N)) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_on_a_mixture(setting: Asd, sequential: Tensor) -> None:
    assert mixture_p_value(draw_speculatively(setting, mixture, CHAIN, 3, N), sequential) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_of_the_steps(setting: Asd) -> None:
    assert step_p_value(setting, mixture, CHAIN, 4, FEW) > LEVEL


BROKEN = [
    ("accept-always", "picard", "reflection"),
    ("accept-always", "response", "block"),
    ("redraw", "frozen", "reflection"),
    ("redraw", "response", "block"),
    ("keep-noise", "picard", "reflection"),
    ("keep-tape", "picard", "block"),
    ("peek", "picard", "block"),
    ("smooth", "picard", "reflection"),
    ("smooth", "response", "block"),
]


@pytest.mark.parametrize(("mutant", "draft", "verify"), BROKEN)
def test_mutants_fail(mutant: str, draft: str, verify: str) -> None:
    """In the law of the steps, which sees what the last point alone has forgotten."""
    with mutated(mutant):
        assert step_p_value(Asd(6, draft, verify), mixture, CHAIN, 4, FEW) < LEVEL


def test_a_wrong_step_size_fails() -> None:
    """The tests see the chain itself: steps half as large again have another law."""
    wrong = GaussianChain.langevin(1.5 * STEP_SIZES)
    assert quadratic_p_value(draw_speculatively(Asd(5), quadratic, wrong, 2, N)) < LEVEL


def test_rounds_are_fewer_than_steps_and_the_response_learns_the_curvature() -> None:
    """On a quadratic energy gradients follow the noise linearly: what is learned of that makes drafts better."""
    chain, experience = GaussianChain.langevin([0.05] * 60), Experience()
    rounds = []
    for seed in range(12):
        tape = NoiseTape.draw((8, 4, 2), 60, torch.Generator().manual_seed(seed), dtype=DTYPE)
        found = Asd(60, "response", "block").sample(
            lambda x, step, cond: 2.0 * (x - 0.5), chain, (8, 4, 2), generator=tape,
            warm_start=WarmStart(None, experience),
        )  # fmt: skip
        rounds.append(np.mean(found.stats.rounds))
    assert rounds[0] < 30 and rounds[-1] < 0.8 * rounds[0]


def test_steep_energies_teach_a_response() -> None:
    """Gradients are as large as the energy is steep: what they move a point by is of the order of the noise."""
    chain, experience = GaussianChain.langevin([4e-3] * 40), Experience()
    rounds = []
    for seed in range(12):
        tape = NoiseTape.draw((8, 4, 2), 40, torch.Generator().manual_seed(seed), dtype=DTYPE)
        found = Asd(16, "response", "block").sample(
            lambda x, step, cond: 100.0 * x + 50.0 * torch.tanh(x), chain, (8, 4, 2), generator=tape,
            warm_start=WarmStart(None, experience),
        )  # fmt: skip
        rounds.append(np.mean(found.stats.rounds))
    assert experience.plans == 12 * 8 and rounds[-1] < 0.8 * rounds[0]


def test_given_coordinates_stay_and_the_others_have_the_law_given_them(sequential: Tensor) -> None:
    mask = torch.zeros((N, *EVENT), dtype=torch.bool)
    mask[:, 0, 1] = True
    held = Inpainting(mask, torch.full(mask.shape, 0.2, dtype=DTYPE))
    found, expected = (
        sampler.sample(mixture, CHAIN, (N, *EVENT), generator=make_tape(N, CHAIN, seed), inpainting=held).sample
        for sampler, seed in ((Asd(5), 5), (Ddpm(), 6))
    )
    assert (found[:, 0, 1] == 0.2).all()
    assert mixture_p_value(found.flatten(1), expected.flatten(1)) > LEVEL
    assert mixture_p_value(found.flatten(1), sequential) < LEVEL


def test_any_gradient_can_be_accelerated() -> None:
    generator = torch.Generator().manual_seed(0)

    def pull(x: Tensor, step: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return 2 * (x - cond)

    fast = asd_policy.accelerate_fn(pull, GaussianChain.langevin([0.05] * 40), "asd:8")
    found = fast((3, 4, 2), torch.ones(3, 4, 2), generator)
    assert found.sample.shape == (3, 4, 2) and max(found.stats.rounds) < 40
    again = fast((3, 4, 2), torch.ones(3, 4, 2), generator, executed=2)  # a last plan says nothing of a gradient
    assert max(again.stats.rounds) < 40 and all(each.exact for each in again.stats.plans)
    with pytest.raises(ChainError, match="num_inference_steps and eta are of a scheduler"):
        asd_policy.accelerate_fn(quadratic, CHAIN, num_inference_steps=3)


# Bad input.


@pytest.mark.parametrize(
    ("step_sizes", "message"),
    [
        ([0.1, -0.1], r"step size -0\.1 of step 1 is not a positive, finite number"),
        ([0.0], r"step size 0\.0 of step 0 is not"),
        ([float("nan"), 1], "step size nan of step 0"),
        ([0.1, float("inf")], "step size inf of step 1"),
        ([0.1, "a"], "step size 'a' of step 1"),
        ([True], "step size True of step 0"),
        (np.array([[0.1]]), "step size array.* of step 0"),
        ([], "step_sizes has 0 numbers, not 1 … 10000"),
        ([0.1] * 10_001, "step_sizes has 10001 numbers"),
        (itertools.count(1), "is not a list of 1 … 10000 numbers"),
        (0.1, "step_sizes 0.1 is not a list"),
        ([0.1, 0.2, 0.3], "step sizes grow from 0.1 to 0.3 without end"),
    ],
)
def test_bad_step_sizes(step_sizes: Any, message: str) -> None:
    with pytest.raises(ChainError, match=message) as error:
        GaussianChain.langevin(step_sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "step_sizes", [[0.1], [0.1, 0.1], [0.1, 0.3, 0.2], (1,), np.array([0.2, 0.1], np.float32), range(3, 0, -1)]
)
def test_good_step_sizes(step_sizes: Any) -> None:
    chain = GaussianChain.langevin(step_sizes)
    assert len(chain) == len(step_sizes) and not chain.predicts_sample
    assert (chain.a > 0).all() and (
        chain.sigma > 0
    ).all()  # with a below 0 `block` takes directions for their opposites


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4", "paradigms:window=4"])
@pytest.mark.parametrize(
    "gradient", [lambda x, step, cond: x * float("nan"), lambda x, step, cond: 1e30 * x**3], ids=["nan", "too steep"]
)
def test_a_gradient_that_is_not_finite_is_named(gradient: Callable[..., Tensor], spec: str) -> None:
    with pytest.raises(DenoiserError, match=r"energy's gradient is not finite, or the step sizes are too large for it"):
        make_sampler(spec).sample(gradient, CHAIN, (2, *EVENT))


@pytest.mark.parametrize("spec", ["ddim:5", "dpmsolver:5", "parallel:steps=5", "parallel", "euler:5"])
def test_other_samplers_say_that_they_do_not_fit(spec: str) -> None:
    with pytest.raises(SpecError) as error:
        make_sampler(spec).check(CHAIN)
    assert "\n" not in str(error.value) and spec.partition(":")[0] in str(error.value)


def test_nothing_takes_a_gradient_for_a_sample() -> None:
    tape = make_tape(2, CHAIN, 0)
    with pytest.raises(SpecError, match="a gradient is none: Langevin dynamics is cut by fallback='last_plan'"):
        Asd(4).sample(mixture, CHAIN, (2, *EVENT), generator=tape, budget=Budget(100.0))
    last = WarmStart(torch.ones((2, *EVENT), dtype=DTYPE))
    cut = Budget(1e5, "last_plan")
    assert Asd(4).sample(mixture, CHAIN, (2, *EVENT), generator=tape, warm_start=last, budget=cut).stats.plans[0].exact
    mask = torch.zeros(tape.initial.shape, dtype=torch.bool)
    held = Inpainting.noised(mask, tape.initial, CHAIN, tape)
    with pytest.raises(ValueError, match="values are given as they are"):
        Asd(4).sample(mixture, CHAIN, (2, *EVENT), generator=tape, inpainting=held)
