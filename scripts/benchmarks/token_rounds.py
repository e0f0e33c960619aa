"""How many rounds does a plan of tokens take: as it gets longer, on planted models; and on a token policy.

python scripts/benchmarks/token_rounds.py
python scripts/benchmarks/token_rounds.py --policy checkpoints/avoid-tokens
"""

import shlex
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from scipy import stats

import asd_policy
from asd_policy.chain.tokens import TokenChain
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.reports.report import shared_name
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.samplers.tokens import Tokens
from asd_policy.tokens.couplings import TOKEN_VERIFIERS, Booleans
from asd_policy.tokens.rounds import TOKEN_DRAFTS, sample_tokens
from asd_policy.tokens.tape import Ints
from study_common import count, markdown_table, provenance, summarize

Floats = npt.NDArray[np.floating]
THEORY = {"token": "2/3", "sequence": "1/2", "gumbel": ""}
TOGETHER = 25
"""Plans that are sampled together: memory depends on it, no count does."""


@dataclass(frozen=True)
class Options:
    """How many rounds does a plan of tokens take: as it gets longer, on planted models; and on a token policy."""

    policy: Path | None = None
    """A token policy to measure; without one, the planted models are."""
    env: str = "asd/Avoid-v0"
    """Environment whose states the policy plans in."""
    windows: tuple[int, ...] = (4, 8, 16, 32)
    """Windows of the policy's plans."""
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Tokens of the planted models' plans."""
    plans: int = 200
    """For each cell."""
    seed: int = 0
    """Of the models, the states and the noise."""


class DriftingModel:
    """Two values; what a token is likely to be drifts with every token before it, one as much as another.

    Given the known tokens S of values ±1, P(x_i = +1) = ½ + ¼ ε'_i sin(4 n^(−1/2) Σ_{j∈S} ε_j x_j), ε and ε' random
    signs. A draft that was seen m tokens ago is off by about (m/n)^(1/2), whatever the order. Token-level acceptance
    then stops after n^(1/3) tokens, and sequence-level after n^(1/2): n^(2/3) and n^(1/2) rounds.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Draw the signs."""
        self.known_signs, self.signs = np.random.default_rng(seed).choice([-1.0, 1.0], (2, length)).astype(np.float32)

    def __call__(self, tokens: Ints, known: Booleans, rows: Ints) -> Floats:
        """Compute the marginals, as `tokens.marginals.Marginals`."""
        place = np.where(known, 2 * tokens - 1, 0).astype(np.float32) @ self.known_signs
        lean = 0.25 * np.sin(4 * place / np.sqrt(len(self.signs)))[:, None] * self.signs
        return np.log(np.stack([0.5 - lean, 0.5 + lean], axis=-1))


def planted_rounds(length: int, draft: str, verify: str, options: Options) -> Floats:
    """Count the rounds of plans of a planted model, each in an order of its own [plans]."""
    model, chain = DriftingModel(length, options.seed), TokenChain((length, 1), 2)
    window = min(length, round(4 * np.sqrt(length)))  # several times what a round commits
    found = [
        sample_tokens(model, chain, TOGETHER, window, draft, verify, options.seed + part).rounds
        for part in range(-(-options.plans // TOGETHER))
    ]
    return np.concatenate(found)[: options.plans].astype(float)


def slope(lengths: Floats, rounds: list[Floats], seed: int) -> tuple[float, float, float]:
    """Fit log mean rounds against log n by least squares; return the slope and its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)

    def fit(means: list[float]) -> float:
        return float(np.polyfit(np.log(lengths), np.log(means), 1)[0])

    drawn = [fit([float(rng.choice(each, len(each)).mean()) for each in rounds]) for _ in range(2000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return fit([float(each.mean()) for each in rounds]), float(low), float(high)


def planted_table(options: Options) -> str:
    """Measure the planted models."""
    rows = [["sequential", *map(str, options.lengths), "1", "1"]]
    for draft, verify in product(TOKEN_DRAFTS, TOKEN_VERIFIERS):
        rounds = [planted_rounds(length, draft, verify, options) for length in options.lengths]
        fitted = slope(np.array(options.lengths), rounds, options.seed)
        cells = [_mean(each) for each in rounds]
        name = f"`{draft}` + `{verify}`"
        rows.append([name, *cells, "{:.2f} [{:.2f}, {:.2f}]".format(*fitted), THEORY[verify]])
        print(name, *cells, file=sys.stderr)
    return markdown_table(["", *(f"n = {n}" for n in options.lengths), "slope [95 %]", "in theory"], rows)


def _mean(values: Floats) -> str:
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.1f} ± {reach:.1f}"


def policy_table(options: Options) -> str:
    """Measure a token policy in states of its own episodes."""
    policy = asd_policy.load_policy(options.policy)
    chain = policy.law.tokens
    if chain is None or policy.law.fast is None:
        raise SystemExit(f"--policy {options.policy} is not a policy of tokens")
    env = make_env(options.env)
    states = closed_loop.collect_states(policy.with_sampler(policy.law.fast), env, options.plans, options.seed)
    env.close()
    windows = [window for window in options.windows if 1 < window <= len(chain)]
    rows = []
    for draft, verify in product(TOKEN_DRAFTS, TOKEN_VERIFIERS):
        cells = []
        for window in windows:
            counts = count(policy.denoiser, chain, Tokens(window, draft, verify), states, None, options.seed)
            found = summarize(counts, states.episode, len(chain))
            reach = found["rounds_mean"] - len(chain) / found["speedup_ci95"][1]
            cells.append(f"{found['rounds_mean']:.1f} ± {reach:.1f} · {found['nfe_per_step']:.2f}")
        rows.append([f"`{draft}` + `{verify}`", *cells])
        print(*rows[-1], file=sys.stderr)
    said = (
        f"n = {len(chain)} tokens; {len(states)} states of {len(np.unique(states.episode))} episodes of {options.env}."
    )
    return markdown_table(["", *(f"θ = {window}" for window in windows)], rows) + f"\n{said}\n"


def main() -> None:
    """Print a table, and on what it was measured."""
    options = tyro.cli(Options, description=__doc__)
    if options.plans < 2 or min(options.lengths) < 2:
        raise SystemExit(f"--plans {options.plans} and --lengths {min(options.lengths)} are not 2 or more")
    print(planted_table(options) if options.policy is None else policy_table(options))
    words = shlex.join(["python", *map(shared_name, sys.argv)])
    print(f"{options.plans} plans for each cell. {provenance(words, options.seed)}")


if __name__ == "__main__":
    main()
