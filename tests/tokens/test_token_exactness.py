"""The joint law of each draft × verifier × window against the law in closed form; mutants that must fail the same."""

import itertools

import numpy as np
import pytest
from scipy import stats

from asd_policy.chain.tokens import TokenChain
from asd_policy.tokens.couplings import TOKEN_VERIFIERS, Drafted
from asd_policy.tokens.rounds import TOKEN_DRAFTS, sample_tokens
from support.planted_tokens import TableModel
from support.token_mutants import TOKEN_MUTANTS, mutated_tokens

N = 20_000
ROUNDS = 200_000
LEVEL = 1e-6  # p-value below which a law counts as wrong; seeds are fixed
GIVEN = TokenChain((4, 1), 3, (2, 0, 3, 1))
DRAWN = TokenChain((2, 2), 3)
SETTINGS = [(draft, verify, window) for draft in TOKEN_DRAFTS for verify in TOKEN_VERIFIERS for window in (2, 3, 4)]


@pytest.fixture(scope="module")
def models() -> dict[TokenChain, TableModel]:
    """Models of both chains, whose marginals are of no one joint law."""
    return {chain: TableModel(chain) for chain in (GIVEN, DRAWN)}


@pytest.mark.parametrize("chain", [GIVEN, DRAWN], ids=["given order", "random orders"])
def test_reference_has_the_computed_law(chain: TokenChain, models: dict[TokenChain, TableModel]) -> None:
    assert models[chain].p_value(sample_tokens(models[chain], chain, N, seed=1).tokens) > LEVEL


@pytest.mark.parametrize(("draft", "verify", "window"), SETTINGS)
def test_law_in_a_given_order(draft: str, verify: str, window: int, models: dict[TokenChain, TableModel]) -> None:
    found = sample_tokens(models[GIVEN], GIVEN, N, window, draft, verify, 2)
    assert models[GIVEN].p_value(found.tokens) > LEVEL
    assert found.rounds.mean() < 4  # it did draft


@pytest.mark.parametrize(("draft", "verify"), [("frozen", "token"), ("picard", "sequence")])
def test_law_in_random_orders(draft: str, verify: str, models: dict[TokenChain, TableModel]) -> None:
    assert models[DRAWN].p_value(sample_tokens(models[DRAWN], DRAWN, N, 4, draft, verify, 3).tokens) > LEVEL


def test_each_order_has_a_law_of_its_own(models: dict[TokenChain, TableModel]) -> None:
    """Else the tests above could not see a wrong order."""
    other = TokenChain((4, 1), 3, (0, 1, 2, 3))
    assert models[GIVEN].p_value(sample_tokens(models[GIVEN], other, N, seed=1).tokens) < LEVEL


BROKEN = [
    ("accept-always", "frozen", "token"),
    ("accept-always", "picard", "sequence"),
    ("redraw", "frozen", "token"),
    ("redraw", "picard", "sequence"),
    ("keep-noise", "picard", "token"),
    ("keep-noise", "frozen", "sequence"),
    ("no-weight", "", "sequence"),
    ("keep-tape", "frozen", "sequence"),
    ("keep-tape", "picard", "sequence"),
    ("peek", "frozen", "token"),
    ("peek", "picard", "sequence"),
    ("see", "frozen", "token"),
    ("see", "picard", "sequence"),
]


def test_every_mutant_is_tried() -> None:
    assert {mutant for mutant, _, _ in BROKEN} == set(TOKEN_MUTANTS)


@pytest.mark.parametrize(("mutant", "draft", "verify"), [each for each in BROKEN if each[1]])
def test_mutants_fail(mutant: str, draft: str, verify: str, models: dict[TokenChain, TableModel]) -> None:
    with mutated_tokens(mutant):
        found = sample_tokens(models[GIVEN], GIVEN, N, 4, draft, verify, 2)
    assert models[GIVEN].p_value(found.tokens) < LEVEL


def step_p_value(verify: str) -> float:
    """Judge one round of two drafts that are far from their targets, many times.

    Returns:
        A p-value for each committed token having its target's law, given the tokens before it: χ².
    """
    rng, alphabet = np.random.default_rng(5), 6
    targets = [rng.dirichlet(np.ones(alphabet), (alphabet,) * step) for step in range(3)]
    draws = np.log(rng.dirichlet(np.ones(alphabet), 3))
    noise = rng.gumbel(size=(ROUNDS, 3, alphabet))
    drafted = (draws + noise).argmax(2)
    log_p = np.log(
        np.stack([targets[step][tuple(drafted[:, :step].T)] * np.ones((ROUNDS, 1)) for step in range(3)], axis=1)
    )
    uniform, residual = 1 - rng.random((ROUNDS, 3)), rng.random((ROUNDS, 3))
    log_q = np.broadcast_to(draws, log_p.shape)
    given = Drafted(log_p, log_q, drafted, noise, uniform, residual, np.full(ROUNDS, 3))
    verdict = TOKEN_VERIFIERS[verify].judge(given)
    tokens = drafted.copy()
    tokens[np.arange(ROUNDS), verdict.last] = verdict.token
    total, degrees = 0.0, 0
    for step in range(3):
        there = tokens[verdict.last >= step]
        for prefix in itertools.product(range(alphabet), repeat=step):
            found = np.bincount(there[(there[:, :step] == prefix).all(1), step], minlength=alphabet)
            expected = found.sum() * targets[step][prefix]
            if expected.min() > 5:
                total += float(((found - expected) ** 2 / expected).sum())
                degrees += alphabet - 1
    return float(stats.chi2.sf(total, degrees))


@pytest.mark.parametrize("verify", TOKEN_VERIFIERS)
def test_law_of_a_round(verify: str) -> None:
    assert step_p_value(verify) > LEVEL


@pytest.mark.parametrize("mutant", ["accept-always", "redraw", "keep-noise", "no-weight"])
def test_mutants_fail_in_a_round(mutant: str) -> None:
    with mutated_tokens(mutant):
        assert step_p_value("sequence") < LEVEL


def test_a_draft_of_a_law_that_is_not_used_is_caught(models: dict[TokenChain, TableModel]) -> None:
    """The test sees a bias of a few percent in one token."""
    found = sample_tokens(models[GIVEN], GIVEN, N, seed=4).tokens
    rng = np.random.default_rng(0)
    moved = np.where(rng.random(N) < 0.05, 0, found[:, 0])
    assert models[GIVEN].p_value(np.column_stack([moved, found[:, 1:]])) < LEVEL
