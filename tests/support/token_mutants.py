"""Mutants of the token sampler, broken in one thing that exactness rests on. Tests of exactness must fail them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from asd_policy.tokens import couplings
from asd_policy.tokens.couplings import TOKEN_VERIFIERS, Drafted, TokenJudge, TokenVerdict
from asd_policy.tokens.rounds import TokenRounds


def _accept_always(judge: TokenJudge) -> TokenJudge:
    """Accept every draft: parallel sampling without verification."""

    def broken(given: Drafted) -> TokenVerdict:
        every = np.arange(len(given.live))
        last = given.live - 1
        own = (given.log_p[every, last] + given.gumbel[every, last]).argmax(1)
        return TokenVerdict(last, own, np.zeros(len(last), bool))

    return broken


def _redraw(judge: TokenJudge) -> TokenJudge:
    """Take a refused token from its own law with fresh noise: wrong because the refusal was selective."""

    def broken(given: Drafted) -> TokenVerdict:
        right = judge(given)
        every = np.arange(len(given.live))
        levels = np.exp(given.log_p[every, right.last]).cumsum(1)
        fresh = (levels <= given.residual[every, right.last, None] * levels[:, -1:]).sum(1)
        return right._replace(token=np.where(right.refused, fresh, right.token))

    return broken


def _keep_noise(judge: TokenJudge) -> TokenJudge:
    """Take a refused token with the noise that led to the refusal."""

    def broken(given: Drafted) -> TokenVerdict:
        right = judge(given)
        every = np.arange(len(given.live))
        own = (given.log_p[every, right.last] + given.gumbel[every, right.last]).argmax(1)
        return right._replace(token=np.where(right.refused, own, right.token))

    return broken


def _no_weight(judge: TokenJudge) -> TokenJudge:
    """Draw from the residual of a token, and not of its prefix."""

    def broken(given: Drafted) -> TokenVerdict:
        right = judge(given)
        return couplings._settle(given, right.last, np.zeros_like(given.uniform))

    return broken


_VERDICTS: dict[str, Callable[[TokenJudge], TokenJudge]] = {
    "accept-always": _accept_always,
    "redraw": _redraw,
    "keep-noise": _keep_noise,
    "no-weight": _no_weight,
}


def _peek(self: TokenRounds, *given: Any) -> None:
    """Let a draft lean to the noise of its own step."""
    _LEARN(self, *given)
    steps = len(self.chain)
    leaning = self.guess[:, :steps] + 0.5 * self.tape.gumbels
    self.guess[:, :steps] = leaning - np.log(np.exp(leaning).sum(-1, keepdims=True))


def _see(self: TokenRounds, *given: Any) -> Any:
    """Show the network the draft of the step that it is asked about."""
    with mock.patch.object(self, "rank", self.rank - 1):
        return _EVALUATE(self, *given)


_LEARN, _EVALUATE = TokenRounds._learn, TokenRounds._evaluate
TOKEN_MUTANTS = (*_VERDICTS, "keep-tape", "peek", "see")


@contextmanager
def mutated_tokens(mutant: str) -> Iterator[None]:
    """Break the token sampler in one way, one of `TOKEN_MUTANTS`, for as long as the context lasts."""
    if mutant in _VERDICTS:
        broken = {name: replace(each, judge=_VERDICTS[mutant](each.judge)) for name, each in TOKEN_VERIFIERS.items()}
    elif mutant == "keep-tape":
        broken = {name: replace(each, renews=False) for name, each in TOKEN_VERIFIERS.items()}
    else:
        method, made = ("_learn", _peek) if mutant == "peek" else ("_evaluate", _see)
        with mock.patch.object(TokenRounds, method, made):
            yield
        return
    with mock.patch.dict(TOKEN_VERIFIERS, broken):
        yield
