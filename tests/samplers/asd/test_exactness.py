"""The law of each draft × verifier × window against the sequential one; mutants that the same tests must catch.

How small a difference they would see is measured by scripts/benchmarks/power.py.
"""

import pytest
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness.mutants import MUTANTS, mutated
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import Sampler
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import (
    draw_sequentially,
    draw_speculatively,
    gaussian_law,
    make_tape,
    mixture_p_value,
    normal_p_value,
    short_chain,
    step_p_value,
)

N = 40_000
FEW = 20_000  # plans whose steps are watched, or of which some numbers are given
LEVEL = 1e-6  # p-value below which a law counts as wrong; seeds are fixed

SETTINGS = [Asd(window, draft, verify) for draft in DRAFTS for verify in VERIFIERS for window in (2, 3, 5, 12)]
IDS = [setting.spec for setting in SETTINGS]


def gaussian_p_value(sample: Tensor, gaussian: MixtureDenoiser, chain: GaussianChain) -> float:
    """Return a p-value for samples [N, D] having the law of the sequential sampler."""
    mean, deviation = gaussian_law(gaussian, chain)
    return normal_p_value((sample - mean) / deviation)


@pytest.fixture(scope="module")
def sequential(mixture: MixtureDenoiser, chain: GaussianChain) -> Tensor:
    """Samples of the reference sampler."""
    return draw_sequentially(mixture, chain, seed=100, count=N)


def test_reference_has_the_computed_law(gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    assert gaussian_p_value(draw_sequentially(gaussian, chain, 1, N), gaussian, chain) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_on_a_gaussian(setting: Asd, gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    assert gaussian_p_value(draw_speculatively(setting, gaussian, chain, 2, N), gaussian, chain) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_on_a_mixture(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain, sequential: Tensor) -> None:
    assert mixture_p_value(draw_speculatively(setting, mixture, chain, 3, N), sequential) > LEVEL


def draw_with_a_given_coordinate(sampler: Sampler, seed: int, noised: bool, mixture: MixtureDenoiser) -> Tensor:
    """Return samples [FEW, 4] whose second number is given, between two of the modes, by plans that have a past.

    Args:
        sampler: What to draw with.
        seed: Of the noise.
        noised: Whether the network sees it as noisy as the others.
        mixture: The network.
    """
    chain = short_chain()

    def held(tape: NoiseTape) -> Inpainting:
        mask = torch.zeros(tape.initial.shape, dtype=torch.bool)
        mask[:, 0, 1] = True
        values = torch.full(mask.shape, 0.2, dtype=torch.float64)
        return Inpainting.noised(mask, values, chain, tape) if noised else Inpainting(mask, values)

    experience = Experience()
    before, tape = make_tape(500, chain, 7), make_tape(FEW, chain, seed)
    past = WarmStart(None, experience)
    Asd(5).sample(mixture, chain, (500, 2, 2), generator=before, inpainting=held(before), warm_start=past)
    past = WarmStart(torch.full((FEW, 2, 2), 0.2, dtype=torch.float64), experience)
    return sampler.sample(
        mixture, chain, (FEW, 2, 2), generator=tape, inpainting=held(tape), warm_start=past
    ).sample.flatten(1)


@pytest.fixture(scope="module", params=[False, True], ids=["shown as it is", "shown noised"])
def given(request: pytest.FixtureRequest, mixture: MixtureDenoiser) -> tuple[bool, Tensor]:
    """Whether the given coordinate is shown noised, and samples of the reference sampler."""
    return request.param, draw_with_a_given_coordinate(Ddpm(), 5, request.param, mixture)


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_law_with_a_given_coordinate(
    draft: str, verify: str, given: tuple[bool, Tensor], mixture: MixtureDenoiser
) -> None:
    noised, sequential = given
    found = draw_with_a_given_coordinate(Asd(5, draft, verify), 6, noised, mixture)
    assert (found[:, 1] == 0.2).all()
    assert mixture_p_value(found, sequential) > LEVEL


@pytest.mark.parametrize("mutant", ["accept-always", "peek"])
def test_mutants_fail_with_a_given_coordinate(
    mutant: str, given: tuple[bool, Tensor], mixture: MixtureDenoiser
) -> None:
    noised, sequential = given
    with mutated(mutant):
        found = draw_with_a_given_coordinate(Asd(5, "picard", "reflection"), 6, noised, mixture)
    assert mixture_p_value(found, sequential) < LEVEL


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_of_the_steps(setting: Asd, data: str, request: pytest.FixtureRequest, chain: GaussianChain) -> None:
    assert step_p_value(setting, request.getfixturevalue(data), chain, 4, FEW) > LEVEL


# Mutants: each breaks one thing that exactness rests on, and must be caught by the tests above.

BROKEN = [
    ("accept-always", "picard", "reflection"),
    ("accept-always", "response", "block"),
    ("redraw", "frozen", "reflection"),
    ("redraw", "response", "block"),
    ("keep-noise", "picard", "reflection"),
    ("keep-noise", "response", "block"),
    ("keep-tape", "picard", "block"),
    ("peek", "frozen", "reflection"),
    ("peek", "picard", "block"),
    ("smooth", "picard", "reflection"),
    ("smooth", "response", "block"),
    ("leak", "response", "reflection"),
    ("leak", "response", "block"),
]
# The Gaussian's law is known in closed form, a mixture's is sampled too: the gentlest mutants show in the first alone.
GENTLE = [
    ("keep-tape", "picard", "block"),
    ("leak", "response", "reflection"),
    ("leak", "response", "block"),
]


def test_every_mutant_is_tried() -> None:
    assert {mutant for mutant, _, _ in BROKEN} == set(MUTANTS)


@pytest.mark.parametrize(("mutant", "draft", "verify"), BROKEN)
def test_mutants_fail_on_a_gaussian(
    mutant: str, draft: str, verify: str, gaussian: MixtureDenoiser, chain: GaussianChain
) -> None:
    with mutated(mutant):
        sample = draw_speculatively(Asd(5, draft, verify), gaussian, chain, 2, N)
    assert gaussian_p_value(sample, gaussian, chain) < LEVEL


@pytest.mark.parametrize(("mutant", "draft", "verify"), [mutant for mutant in BROKEN if mutant not in GENTLE])
def test_mutants_fail_on_a_mixture(
    mutant: str, draft: str, verify: str, mixture: MixtureDenoiser, chain: GaussianChain, sequential: Tensor
) -> None:
    with mutated(mutant):
        sample = draw_speculatively(Asd(5, draft, verify), mixture, chain, 3, N)
    assert mixture_p_value(sample, sequential) < LEVEL


@pytest.mark.parametrize(("mutant", "draft", "verify"), BROKEN)
def test_mutants_fail_in_their_steps(
    mutant: str, draft: str, verify: str, gaussian: MixtureDenoiser, chain: GaussianChain
) -> None:
    with mutated(mutant):
        assert step_p_value(Asd(5, draft, verify), gaussian, chain, 4, FEW) < LEVEL


@pytest.mark.parametrize("verify", VERIFIERS)
def test_a_tape_used_twice_is_caught(verify: str, gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    """A last plan made of the same noise knows it: tapes of successive plans have to be independent."""
    tape, sampler = make_tape(N, chain, 4), Asd(5, "warm", verify)
    first = sampler.sample(gaussian, chain, (N, 2, 2), generator=tape).sample
    again = sampler.sample(gaussian, chain, (N, 2, 2), generator=tape, warm_start=WarmStart(first)).sample
    assert gaussian_p_value(first.flatten(1), gaussian, chain) > LEVEL
    assert gaussian_p_value(again.flatten(1), gaussian, chain) < LEVEL
