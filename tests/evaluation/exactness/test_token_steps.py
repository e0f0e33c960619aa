"""The tests of token steps: silent on an exact sampler, and not on a broken one."""

from unittest import mock

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.evaluation.exactness import token_steps
from asd_policy.evaluation.exactness.checks import Check, bonferroni
from asd_policy.evaluation.exactness.token_steps import draft_check, token_checks
from asd_policy.evaluation.states import random_conditioning
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from support.small_token_policies import write_token_policy
from support.token_mutants import mutated_tokens

N, LEVEL = 3000, 1e-4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy whose tokens depend on each other, so that drafts are refused."""
    return asd_policy.load_policy(write_token_policy(tmp_path_factory.mktemp("tokens") / "policy", sharp=100.0))


def checks_of(policy: Policy, spec: str) -> list[Check]:
    conds = random_conditioning(policy, 1, 0)
    shape = (N, *policy.event)
    generator = torch.Generator().manual_seed(1)
    sampler = make_sampler(spec)
    result = sampler.sample(policy.denoiser, policy.law.chain, shape, conds.expand(N, -1), generator)
    with mock.patch.object(token_steps, "MOST_PLANS", N):
        return token_checks(policy, conds, result.sample.flatten(1).double().numpy()[None], 0)


@pytest.mark.parametrize("spec", ["tokens", "tokens:window=8", "tokens:window=8,draft=picard,verify=token"])
def test_an_exact_sampler_passes(spec: str, policy: Policy) -> None:
    checks = checks_of(policy, spec)
    assert {check.name for check in checks} == {
        "step size", "step mean", "step shape", "bias along marginals 1 steps old", "bias along marginals 4 steps old"
    }  # fmt: skip
    assert bonferroni(checks, LEVEL).holds


@pytest.mark.parametrize("mutant", ["accept-always", "redraw", "keep-noise", "peek"])
def test_a_broken_one_fails(mutant: str, policy: Policy) -> None:
    with mutated_tokens(mutant):
        checks = checks_of(policy, "tokens:window=8")
    assert not bonferroni(checks, LEVEL).holds


def test_a_lean_to_the_draft_is_seen() -> None:
    rng = np.random.default_rng(0)
    laws, guess = rng.dirichlet(np.ones(5), (2, 3000, 4))

    def drawn(law: np.ndarray) -> np.ndarray:
        return (law.cumsum(2) < rng.random((3000, 4, 1))).sum(2)

    right, leaning = drawn(laws), drawn(0.9 * laws + 0.1 * guess)
    assert draft_check(laws, guess, right, 1).p_value > LEVEL
    assert draft_check(laws, guess, leaning, 1).p_value < LEVEL
