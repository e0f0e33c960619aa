"""Rounds of a batch of token plans: draft, evaluate, verify, commit; each row with a cursor of its own.

A round drafts the tokens of a row's next steps, evaluates the prefixes that they make in one call of the network, and
commits those that the verifier lets stand, and one more. `frozen` drafts from the marginals at the last committed
prefix. `picard` drafts each step from the marginals that were last seen for it: those of its own prefix in the round
before, whatever became of that prefix, else those of the longest. Both use the tape's Gumbel noise, so that a draft
changes only where its marginals do. The first round of a row, which has seen no marginals, evaluates one point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asd_policy._common.names import did_you_mean
from asd_policy.chain.tokens import TokenChain
from asd_policy.errors import SpecError
from asd_policy.tokens.couplings import TOKEN_VERIFIERS, Drafted, TokenVerdict
from asd_policy.tokens.marginals import Marginals, check_marginals, log_law, read_logits
from asd_policy.tokens.tape import Floats, Ints, TokenTape

FROZEN, PICARD = TOKEN_DRAFTS = "frozen", "picard"


def check_how(draft: str, verify: str) -> None:
    """Refuse names that there are none of.

    Raises:
        SpecError: One is none of `TOKEN_DRAFTS` or `TOKEN_VERIFIERS`.
    """
    for name, value, valid in (("draft", draft, TOKEN_DRAFTS), ("verify", verify, TOKEN_VERIFIERS)):
        if value not in valid:
            raise SpecError(f"no {name} {value!r} of tokens; there are {', '.join(valid)}{did_you_mean(value, valid)}")


@dataclass(frozen=True)
class TokenSamples:
    """Sampled tokens, and what they cost."""

    tokens: Ints
    """Shape [B, n]."""
    rounds: Ints
    """Network calls that each row waited for [B]."""
    nfe: Ints
    """Points that were evaluated for each row [B]."""
    refused: Sequence[Sequence[int]]
    """The steps of each row whose draft was refused."""
    unjudged: Sequence[Sequence[int]]
    """The steps of each row that took their own token, without a draft to judge."""


@dataclass(frozen=True)
class Evaluated:
    """What one call of the network returned for R rows."""

    logits: npt.NDArray[np.floating]
    """Of the points, those of a row one after the other, [N, n, A]."""
    first: Ints
    """Place of each row's first point [R]."""


class TokenRounds:
    """The state of a batch of plans between rounds."""

    def __init__(
        self, network: Marginals, chain: TokenChain, tape: TokenTape, window: int, draft: str, verify: str
    ) -> None:
        """Begin.

        Args:
            network: The any-order model.
            chain: Its tokens.
            tape: The randomness; what verdicts have looked at is drawn afresh in it.
            window: Most points θ that a call evaluates per row; 1 is the sequential sampler.
            draft: One of `TOKEN_DRAFTS`.
            verify: A key of `TOKEN_VERIFIERS`.
        """
        batch, n = tape.orders.shape
        self.network, self.chain, self.tape = network, chain, tape
        self.window, self.draft, self.verifier = window, draft, TOKEN_VERIFIERS[verify]
        self.rank = tape.orders.argsort(1)
        """The step that samples each token [B, n]."""
        self.tokens = np.zeros((batch, n), np.int64)
        self.cursor = np.zeros(batch, np.int64)
        """Tokens of each row that are committed."""
        self.guess = np.zeros((batch, n + window, chain.alphabet))
        """log q of each step's next draft; rows beyond the last step are for windows that reach there."""
        self.rounds, self.nfe = np.zeros((2, batch), np.int64)
        self.refused: list[list[int]] = [[] for _ in range(batch)]
        self.unjudged: list[list[int]] = [[] for _ in range(batch)]

    def run(self) -> TokenSamples:
        """Do rounds until every row has all its tokens."""
        while len(rows := np.flatnonzero(self.cursor < len(self.chain))):
            self.advance(rows)
        return TokenSamples(self.tokens, self.rounds, self.nfe, self.refused, self.unjudged)

    def advance(self, rows: Ints) -> None:
        """Do one round of some rows."""
        cursor, n = self.cursor[rows], len(self.chain)
        count = np.minimum(np.where(self.rounds[rows] > 0, self.window, 1), n - cursor)
        slots = np.arange(count.max())
        steps = np.minimum(cursor[:, None] + slots, n - 1)  # [R, m]; those of slots that are not live do not matter
        at = rows[:, None], steps
        log_q, noise = self.guess[at], self.tape.gumbels[at]
        drafted = (log_q + noise).argmax(2)
        evaluated = self._evaluate(rows, steps, drafted, count)
        log_p = self._own_laws(evaluated, rows, steps, count)
        given = Drafted(log_p, log_q, drafted, noise, self.tape.uniforms[at], self.tape.residuals[at], count)
        verdict = self.verifier.judge(given)
        self._commit(rows, steps, drafted, count, verdict)
        if self.verifier.renews:
            spoiled = (slots > verdict.last[:, None]) & (slots < count[:, None]) & verdict.refused[:, None]
            row, slot = np.nonzero(spoiled)
            self.tape.renew(rows[row], steps[row, slot])
        self._learn(rows, steps, log_p, evaluated, count, verdict.last)

    def _evaluate(self, rows: Ints, steps: Ints, drafted: Ints, count: Ints) -> Evaluated:
        """Call the network on the prefixes that the drafts make: slot s knows the tokens of s more steps."""
        whole = self.tokens[rows]
        live = np.arange(steps.shape[1]) < count[:, None]
        row, slot = np.nonzero(live)
        whole[row, self.tape.orders[rows[row], steps[row, slot]]] = drafted[row, slot]
        known = self.rank[rows[row]] < steps[row, slot][:, None]
        logits = self.network(np.where(known, whole[row], 0), known, rows[row])
        return Evaluated(read_logits(logits, len(row), self.chain), count.cumsum() - count)

    def _own_laws(self, evaluated: Evaluated, rows: Ints, steps: Ints, count: Ints) -> Floats:
        """Give log p of each slot's own step, given the prefix of that slot [R, m, A]."""
        slot = np.minimum(np.arange(steps.shape[1]), count[:, None] - 1)
        return self._laws(evaluated, rows, slot, steps)

    def _laws(self, evaluated: Evaluated, rows: Ints, slot: Ints, steps: Ints) -> Floats:
        """Give log p of some steps [R, k], at a slot [R, 1] or at a slot each [R, k]: [R, k, A]."""
        place = np.take_along_axis(self.tape.orders[rows], steps, axis=1)
        return log_law(evaluated.logits[evaluated.first[:, None] + slot, place])

    def _commit(self, rows: Ints, steps: Ints, drafted: Ints, count: Ints, verdict: TokenVerdict) -> None:
        """Make the drafts that stand final, and the token after them."""
        slots, every = np.arange(steps.shape[1]), np.arange(len(rows))
        drafted = drafted.copy()
        drafted[every, verdict.last] = verdict.token
        row, slot = np.nonzero(slots <= verdict.last[:, None])
        self.tokens[rows[row], self.tape.orders[rows[row], steps[row, slot]]] = drafted[row, slot]
        for which, step, was_refused in zip(rows, steps[every, verdict.last], verdict.refused, strict=True):
            (self.refused if was_refused else self.unjudged)[which].append(int(step))
        self.cursor[rows] += verdict.last + 1
        self.rounds[rows] += 1
        self.nfe[rows] += count

    def _learn(self, rows: Ints, steps: Ints, log_p: Floats, evaluated: Evaluated, count: Ints, last: Ints) -> None:
        """Keep the marginals that the next drafts are of.

        What a step gets was seen at a prefix of steps before it: never of its own noise.
        """
        if self.window == 1:
            return
        held, first = last, self.cursor[rows]
        if self.draft == PICARD:
            slots = np.arange(steps.shape[1])
            row, slot = np.nonzero((slots > last[:, None]) & (slots < count[:, None]))
            self.guess[rows[row], steps[row, slot]] = log_p[row, slot]
            held = count - 1
            first = steps[np.arange(len(rows)), held] + 1
        ahead = first[:, None] + np.arange(self.window)
        inside = np.minimum(ahead, len(self.chain) - 1)
        self.guess[rows[:, None], ahead] = self._laws(evaluated, rows, held[:, None], inside)


def sample_tokens(
    network: Marginals,
    chain: TokenChain,
    batch: int = 1,
    window: int = 1,
    draft: str = FROZEN,
    verify: str = "sequence",
    seed: int | Sequence[int] = 0,
) -> TokenSamples:
    """Sample an any-order model, exactly as its sequential sampler would, in fewer rounds.

    Args:
        network: The model.
        chain: Its tokens, and their order.
        batch: Rows to sample.
        window: Most points that a call evaluates per row, 1 … n; 1 is the sequential sampler.
        draft: One of `TOKEN_DRAFTS`.
        verify: A key of `TOKEN_VERIFIERS`.
        seed: Of all rows together, or one for each row, which is then the same in any batch.

    Raises:
        DenoiserError: The network is not one that can be sampled from, see `check_marginals`.
        SpecError: An option is none of these.
        ValueError: There are neither one nor B seeds.
    """
    check_how(draft, verify)
    if batch < 1:
        raise SpecError(f"batch={batch} is not 1 or more")
    if not 1 <= window <= len(chain):
        raise SpecError(f"window={window} is not in 1 … {len(chain)}, the number of tokens of a plan")
    check_marginals(network, chain, batch)
    sources = [np.random.default_rng(each) for each in ([seed] if isinstance(seed, int) else seed)]
    return TokenRounds(network, chain, TokenTape.draw(chain, sources, batch), window, draft, verify).run()
