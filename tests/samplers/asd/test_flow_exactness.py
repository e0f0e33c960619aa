"""The law of `asd` on a flow's chain with noise, against its own sequential law; mutants that the tests must catch.

The settings are fewer than in test_exactness.py, whose couplings and drafts these are: what is new is the chain.
"""

import pytest
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.exactness.mutants import MUTANTS, mutated
from asd_policy.networks.analytic import MixtureFlow
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.euler import Euler
from support.known_laws import (
    EVENT,
    draw_sequentially,
    draw_speculatively,
    gaussian_flow,
    gaussian_law,
    make_tape,
    mixture_flow,
    mixture_p_value,
    normal_p_value,
    step_p_value,
)

N, FEW = 20_000, 5_000
LEVEL = 1e-6  # as in test_exactness.py
ETAS = (1.0, 0.3)

SETTINGS = [(Asd(5, draft, verify), 1.0) for draft in DRAFTS for verify in VERIFIERS] + [(Asd(5), 0.3)]
IDS = [f"{setting.spec} eta={eta}" for setting, eta in SETTINGS]


def flow_chain(eta: float) -> GaussianChain:
    """Make a chain of twelve steps, so coarse that drafts are often wrong."""
    return GaussianChain.from_flow(12, eta)


def p_value(sample: Tensor, network: MixtureFlow, chain: GaussianChain) -> float:
    """Test that samples [N, D] have the law of the sequential sampler, known in closed form: a p-value."""
    mean, deviation = gaussian_law(network, chain)
    return normal_p_value((sample - mean) / deviation)


@pytest.mark.parametrize("eta", ETAS)
def test_reference_has_the_computed_law(eta: float) -> None:
    chain, network = flow_chain(eta), gaussian_flow()
    assert p_value(draw_sequentially(network, chain, 1, N), network, chain) > LEVEL


@pytest.mark.parametrize(("setting", "eta"), SETTINGS, ids=IDS)
def test_law_on_a_gaussian(setting: Asd, eta: float) -> None:
    chain, network = flow_chain(eta), gaussian_flow()
    assert p_value(draw_speculatively(setting, network, chain, 2, N), network, chain) > LEVEL


@pytest.mark.parametrize("eta", ETAS)
def test_law_on_a_mixture(eta: float) -> None:
    chain, network = flow_chain(eta), mixture_flow()
    sequential = draw_sequentially(network, chain, 100, N)
    for setting in (Asd(3), Asd(12, "picard", "reflection")):
        assert mixture_p_value(draw_speculatively(setting, network, chain, 3, N), sequential) > LEVEL


@pytest.mark.parametrize(("setting", "eta"), SETTINGS, ids=IDS)
def test_law_of_the_steps(setting: Asd, eta: float) -> None:
    assert step_p_value(setting, gaussian_flow(), flow_chain(eta), 4, FEW) > LEVEL


BROKEN = [
    ("accept-always", "picard", "reflection"),
    ("redraw", "response", "block"),
    ("keep-noise", "picard", "reflection"),
    ("keep-tape", "picard", "block"),
    ("peek", "frozen", "reflection"),
    ("smooth", "response", "block"),
    ("leak", "response", "reflection"),
]


GENTLE = ("keep-tape", "leak")  # which more plans show


def test_every_mutant_is_tried() -> None:
    assert {mutant for mutant, _, _ in BROKEN} == set(MUTANTS)


@pytest.mark.parametrize(("mutant", "draft", "verify"), BROKEN)
def test_mutants_fail_in_their_steps(mutant: str, draft: str, verify: str) -> None:
    count = 4 * FEW if mutant in GENTLE else FEW
    with mutated(mutant):
        assert step_p_value(Asd(5, draft, verify), gaussian_flow(), flow_chain(1.0), 4, count) < LEVEL


def test_another_share_of_noise_is_another_law() -> None:
    """What a chain of another η draws fails, and so do Euler's steps: the law is the chain's own."""
    chain, network = flow_chain(1.0), gaussian_flow()
    other = draw_speculatively(Asd(5), network, flow_chain(0.5), 2, N)
    assert p_value(other, network, chain) < LEVEL
    euler = Euler(12).sample(network, chain, (N, *EVENT), generator=make_tape(N, chain, 2)).sample.flatten(1)
    assert p_value(euler, network, chain) < LEVEL
    assert torch.isfinite(euler).all()


def test_few_steps_draw_near_to_the_data_as_they_grow() -> None:
    """In the limit of small steps the law is the data's whatever η; at few steps it is not, and at 0.3 another one."""
    network = gaussian_flow()
    data = torch.tensor([0.3, 1.0, 0.05, 2.0], dtype=torch.float64)
    for eta in (0.0, *ETAS):
        errors = []
        for steps in (12, 120, 1200):
            _, deviation = gaussian_law(network, GaussianChain.from_flow(steps, eta))
            errors.append(float(((deviation - data) / data).abs().max()))
        assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.05
