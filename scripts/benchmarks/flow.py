"""How do plans of a flow with noise compare with Euler's steps? Tables for docs/results/flow.md.

    python scripts/train.py --env asd/Avoid-v0 --objective flow --out runs/avoid-flow
    python scripts/benchmarks/flow.py --policy runs/avoid-flow --env asd/Avoid-v0 --out runs/flow

Three tables: the rounds of `asd` by share of noise η and draft; the distance of the laws of plans at the same
observations, beside that of two samples of one law; and success in closed loop, of Euler's steps and of each η.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from scipy.spatial.distance import cdist

import asd_policy
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.exactness.checks import energy_check
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.states import States
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from study_common import clustered_error, count, learn, markdown_table, provenance

Numbers = npt.NDArray[Any]
_DRAFTS = ("frozen", "response")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policy: Path
    """A checkpoint of a flow."""
    env: str
    """Its environment."""
    out: Path
    """Folder for the runs of the closed loop."""
    etas: tuple[float, ...] = (1.0, 0.5)
    """Shares of noise."""
    euler: tuple[int, ...] = (100, 10)
    """Numbers of Euler's steps."""
    episodes: int = 200
    """Episodes of each row."""
    envs: int = 50
    """Episodes that run together."""
    observations: int = 4
    """At which the laws of plans are compared."""
    plans: int = 200
    """Plans at each of them, and of each row of the table of rounds."""
    window: int = 32
    """Points θ of a round."""
    seed: int = 0
    """Of episodes and tapes."""


def name_of(eta: float) -> str:
    """Write the name of a chain with noise."""
    return f"stochastic:eta={eta:g}"


def evaluate(options: Options, chain: str, samplers: list[str]) -> dict[str, Any]:
    """Run `asd-policy eval`; return its results."""
    out = options.out / chain.replace(":", "-").replace("=", "-")
    words = ["--policy", options.policy, "--env", options.env, "--chain", chain, "--episodes", options.episodes]
    words += ["--envs", options.envs, "--seed", options.seed, "--out", out, "--overwrite", "--json"]
    command = [sys.executable, "-m", "asd_policy.cli", "eval", *map(str, words), "--samplers", *samplers]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def successes(options: Options) -> Iterator[list[str]]:
    """Yield a row for each sampler of each law."""
    asd = f"asd:window={options.window}"
    runs = [("checkpoint", [f"euler:{steps}" for steps in options.euler])]
    runs += [(name_of(eta), ["ddpm", asd]) for eta in options.etas]
    for chain, samplers in runs:
        for each in evaluate(options, chain, samplers)["samplers"]:
            low, high = (100 * bound for bound in each["success_ci95"])
            success = f"{100 * each['success_rate']:.0f} [{low:.0f}, {high:.0f}]"
            yield [f"`{chain}`", f"`{each['spec']}`", success, f"{each['rounds_mean']:.1f}", f"{each['nfe_mean']:.0f}"]


def draw(policy: Policy, spec: str, conds: torch.Tensor, plans: int, seed: int) -> Numbers:
    """Draw plans [O, N, D] at observations [O, C]."""
    sampler, generator = policy.law.fitted(make_sampler(spec)), torch.Generator().manual_seed(seed)
    drawn = []
    for cond in conds:
        shape = (plans, *policy.event)
        sample = sampler.sample(policy.denoiser, policy.chain, shape, cond.expand(plans, -1), generator).sample
        drawn.append(sample.flatten(1).double().numpy())
    return np.stack(drawn)


def energies(first: Numbers, second: Numbers) -> Numbers:
    """Estimate the energy distance of plans [O, N, D] at each observation [O], in units of their mean distance.

    Without bias: 0 on average for equal laws, and negative as often as not.
    """
    found = []
    for x, y in zip(first, second, strict=True):
        across, n, m = cdist(x, y).mean(), len(x), len(y)
        within = cdist(x, x).sum() / (n * (n - 1)) + cdist(y, y).sum() / (m * (m - 1))
        found.append((2 * across - within) / across)
    return np.asarray(found)


def distances(options: Options, states: States) -> Iterator[list[str]]:
    """Yield a row for each pair of laws: the distance, with its interval over observations, and a permutation test."""
    conds, plain = states.cond[: options.observations], asd_policy.load_policy(options.policy)
    reference = f"euler:{options.euler[0]}"

    def of(chain: str, spec: str, seed: int) -> Numbers:
        return draw(plain.with_chain(chain), spec, conds, options.plans, options.seed + seed)

    euler = of("checkpoint", reference, 1)
    pairs = [(f"`{reference}` again", euler, of("checkpoint", reference, 2))]
    pairs += [
        (f"`euler:{steps}`, `{reference}`", of("checkpoint", f"euler:{steps}", 3), euler) for steps in options.euler[1:]
    ]
    for eta in options.etas:
        chain = name_of(eta)
        noisy = of(chain, "ddpm", 4)
        pairs.append((f"`{chain}`, `{reference}`", noisy, euler))
        pairs.append((f"`{chain}`: `asd`, `ddpm`", of(chain, f"asd:window={options.window}", 5), noisy))
    for what, first, second in pairs:
        each = energies(first, second)
        _, reach = clustered_error(each, np.arange(len(each)))
        p_value = energy_check(first, second, options.seed).p_value
        yield [what, f"{each.mean():.4f} [{each.mean() - reach:.4f}, {each.mean() + reach:.4f}]", f"{p_value:.3g}"]


def rounds(options: Options, states: States, calibration: States) -> Iterator[list[str]]:
    """Yield a row for each share of noise and draft, of plans at as many states; errors are clustered by episode."""
    for eta in options.etas:
        policy = asd_policy.load_policy(options.policy, chain=name_of(eta))
        for draft in _DRAFTS:
            spec = f"asd:window={options.window},draft={draft}"
            known = learn(policy.denoiser, policy.chain, spec, calibration, options.seed)
            counts = count(policy.denoiser, policy.chain, make_sampler(spec), states, known, options.seed)
            _, reach = clustered_error(counts.rounds, states.episode)
            mean, steps = float(counts.rounds.mean()), len(policy.chain)
            interval = f"{mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}]"
            yield [f"{eta:g}", f"`{draft}`", f"{steps}", interval, f"{steps / mean:.1f}", f"{counts.nfe.mean():.0f}"]


def main() -> None:
    """Measure, and print the tables."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    planner = asd_policy.load_policy(options.policy, "euler:10")
    env = make_env(options.env)
    states = closed_loop.collect_states(planner, env, options.plans, options.seed)
    calibration = closed_loop.collect_states(planner, env, 64, options.seed + 1_000_000)
    columns = ["η", "draft", "steps", "rounds", "steps / rounds", "network evaluations"]
    print(markdown_table(columns, list(rounds(options, states, calibration))), flush=True)
    columns = ["laws", "energy distance", "p of equal laws"]
    print(markdown_table(columns, list(distances(options, states))), flush=True)
    columns = ["chain", "sampler", "success %", "rounds", "network evaluations"]
    print(markdown_table(columns, list(successes(options))), flush=True)
    print(
        f"n = {options.plans} plans of each row of rounds, {options.observations} × {options.plans} plans of each law, "
        f"{options.episodes} episodes of each row of success; 95 % intervals: over episodes, over observations, "
        "Wilson's; observations are those that euler:10 meets"
    )
    print(provenance("python scripts/benchmarks/flow.py", options.seed))


if __name__ == "__main__":
    main()
