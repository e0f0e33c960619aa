"""Rounds of token plans: equal to the sequential sampler where they must be, and what they cost."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asd_policy._common import arrays
from asd_policy.chain.tokens import ORDERS, TokenChain, order_of
from asd_policy.errors import ChainError, DenoiserError, SpecError
from asd_policy.tokens.couplings import TOKEN_VERIFIERS, Booleans
from asd_policy.tokens.marginals import check_marginals
from asd_policy.tokens.rounds import TOKEN_DRAFTS, sample_tokens
from asd_policy.tokens.tape import Floats, Ints
from support.planted_tokens import TableModel

CHAIN = TokenChain((3, 2), 3, (5, 0, 3, 1, 4, 2))
SETTINGS = [(draft, verify) for draft in TOKEN_DRAFTS for verify in TOKEN_VERIFIERS]


@pytest.fixture(scope="module")
def model() -> TableModel:
    """A model with a law for each order."""
    return TableModel(CHAIN)


@pytest.mark.parametrize(("draft", "verify"), SETTINGS)
def test_window_one_is_sequential(draft: str, verify: str, model: TableModel) -> None:
    sequential = sample_tokens(model, CHAIN, 50, seed=7)
    found = sample_tokens(model, CHAIN, 50, 1, draft, verify, seed=7)
    assert (found.tokens == sequential.tokens).all()
    assert (found.rounds == 6).all() and (found.nfe == 6).all()
    assert found.unjudged == [[0, 1, 2, 3, 4, 5]] * 50


@pytest.mark.parametrize("draft", TOKEN_DRAFTS)
def test_gumbel_makes_the_sequential_plan_of_its_tape(draft: str, model: TableModel) -> None:
    sequential = sample_tokens(model, CHAIN, 200, seed=7)
    found = sample_tokens(model, CHAIN, 200, 4, draft, "gumbel", seed=7)
    assert (found.tokens == sequential.tokens).all()
    assert found.rounds.mean() < 6


@pytest.mark.parametrize(("draft", "verify"), SETTINGS)
def test_right_drafts_all_stand_and_make_the_sequential_plan(draft: str, verify: str) -> None:
    """Tokens that are independent of each other: after a first look a call gains a whole window."""
    chain = TokenChain((11, 1), 5, order_of("coarse", (11, 1)))
    logits = np.random.default_rng(0).standard_normal((11, 5))

    def independent(tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        return np.broadcast_to(logits, (len(tokens), 11, 5))

    sequential = sample_tokens(independent, chain, 40, seed=3)
    found = sample_tokens(independent, chain, 40, 4, draft, verify, seed=3)
    assert (found.tokens == sequential.tokens).all()
    assert (found.rounds == 1 + 3).all() and (found.nfe == 1 + 4 + 4 + 2).all()
    assert found.unjudged == [[0, 4, 8, 10]] * 40 and found.refused == [[]] * 40


@pytest.mark.parametrize("order", [CHAIN.order, None], ids=["given", "drawn"])
@pytest.mark.parametrize(("draft", "verify"), SETTINGS)
def test_a_row_does_not_depend_on_its_neighbours(
    draft: str, verify: str, order: tuple[int, ...] | None, model: TableModel
) -> None:
    chain = TokenChain(CHAIN.event, CHAIN.alphabet, order)
    together = sample_tokens(model, chain, 6, 4, draft, verify, seed=list(range(6)))
    for row in range(6):
        alone = sample_tokens(model, chain, 1, 4, draft, verify, seed=[row])
        assert (alone.tokens[0] == together.tokens[row]).all()
        assert alone.rounds[0] == together.rounds[row] and alone.nfe[0] == together.nfe[row]


def test_each_round_ends_in_a_step_that_was_refused_or_not_judged(model: TableModel) -> None:
    found = sample_tokens(model, CHAIN, 100, 4, seed=2)
    for refused, unjudged, rounds in zip(found.refused, found.unjudged, found.rounds, strict=True):
        ends = sorted([*refused, *unjudged])
        assert len(ends) == rounds and ends[-1] == 5 and len(set(ends)) == len(ends)
    assert any(found.refused)


def test_a_token_of_no_probability_never_comes() -> None:
    chain = TokenChain((4, 1), 3, order_of("forward", (4, 1)))

    def never_twice(tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        """Forbid what the token before is."""
        logits = np.zeros((len(tokens), 4, 3))
        for place in range(1, 4):
            point = np.flatnonzero(known[:, place - 1])
            logits[point, place, tokens[point, place - 1]] = -np.inf
        return logits

    for draft, verify in SETTINGS:
        tokens = sample_tokens(never_twice, chain, 500, 4, draft, verify).tokens
        assert (tokens[:, 1:] != tokens[:, :-1]).all()


# What is refused.


def test_a_network_that_sees_unknown_tokens_is_named(model: TableModel) -> None:
    def seeing(tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        """Look at the token after each, known or not."""
        logits = np.array(model(tokens, known, rows))
        logits[:, 2, 0] += tokens[:, 3]
        return logits

    assert check_marginals(model, CHAIN) == (3, 24)
    with pytest.raises(DenoiserError, match="sees tokens that it should not: its marginals change .* at token 2, with"):
        sample_tokens(seeing, CHAIN)


def test_a_network_that_is_random_is_named(model: TableModel) -> None:
    rng = np.random.default_rng(0)

    def random(tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        logits = np.array(model(tokens, known, rows))
        return logits + rng.standard_normal(logits.shape)

    with pytest.raises(DenoiserError, match="two equal calls of the network differ"):
        check_marginals(random, CHAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[:, :5], r"logits of shape \(8, 5, 3\); \(8, 6, 3\) are needed"),
        (lambda logits: logits.astype(int), "returned int64, not floating-point logits"),
        (lambda logits: logits * np.nan, "NaN or infinity among its logits"),
        (lambda logits: np.full_like(logits, -np.inf), "NaN or infinity among its logits"),
    ],
)
def test_bad_logits_are_refused(change: Callable[[Floats], Floats], message: str, model: TableModel) -> None:
    with pytest.raises(DenoiserError, match=message):
        sample_tokens(lambda *point: change(np.zeros_like(model(*point))), CHAIN)


@pytest.mark.parametrize(
    ("event", "alphabet", "order", "message"),
    [
        ((0, 2), 3, None, "a plan of 0 × 2 tokens has none"),
        ((2, 2), 1, None, "an alphabet of 1 has nothing to choose from: 2 or more"),
        ((2, 1), 3, (0,), "an order of 1 tokens for 2: each of 0 … 1 once, and 1 is missing"),
        ((2, 1), 3, (0, 2), "0 … 1 once, and 1 is missing"),
        ((2, 1), 3, (0, 1, 1), "an order of 3 tokens for 2: each of 0 … 1 once, and one is twice"),
        ((2, 1), 3, (0, 1, 5), "and 5 is not one"),
    ],
)
def test_chains_that_do_not_fit_are_refused(
    event: tuple[int, int], alphabet: int, order: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ChainError, match=message):
        TokenChain(event, alphabet, order)


def test_as_many_generators_as_rows(model: TableModel) -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3: give one, or one per row"):
        sample_tokens(model, CHAIN, 3, seed=[1, 2])


@pytest.mark.parametrize("horizon", [1, 2, 5, 16])
@pytest.mark.parametrize("name", ORDERS)
def test_named_orders_have_each_token_once(name: str, horizon: int) -> None:
    order = order_of(name, (horizon, 2))
    assert order is None if name == "random" else sorted(order or ()) == list(range(2 * horizon))


def test_orders_are_what_their_names_say() -> None:
    assert order_of("forward", (3, 2)) == (0, 1, 2, 3, 4, 5)
    assert order_of("coarse", (8, 1)) == (7, 3, 5, 1, 6, 4, 2, 0)
    with pytest.raises(ChainError, match="order 'backward' is not one of forward, coarse, random"):
        order_of("backward", (3, 2))


def test_bins_are_decoded_to_their_middles() -> None:
    chain = TokenChain((1, 4), 4)
    for device in (arrays.NUMPY, "cpu"):
        tokens = arrays.asarray([0, 1, 2, 3], device)
        assert chain.decode(tokens).tolist() == [-0.75, -0.25, 0.25, 0.75]
        assert chain.encode(chain.decode(tokens)).tolist() == [0, 1, 2, 3]
        values = arrays.asarray([-1.5, -1.0, 0.999, 1.0, 2.0], device, "float32")
        assert chain.encode(values).tolist() == [0, 0, 3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 is not in 1 … 6"),
        ({"window": 7}, "window=7 is not in 1 … 6, the number of tokens of a plan"),
        ({"batch": 0}, "batch=0 is not 1 or more"),
        ({"draft": "frozn"}, "no draft 'frozn' of tokens; there are frozen, picard (did you mean 'frozen'?)"),
        ({"verify": "block"}, "no verify 'block' of tokens; there are token, sequence, gumbel"),
        ({"batch": 3, "seed": [1, 2]}, "2 generators for a batch of 3"),
    ],
)
def test_options_that_are_none_are_refused(model: TableModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises((SpecError, ValueError), match=re.escape(message)):
        sample_tokens(model, CHAIN, **options)
