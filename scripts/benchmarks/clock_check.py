"""Is the clock of `asd-policy eval --clock async` right? Real time against counted steps.

    python scripts/benchmarks/clock_check.py --policy checkpoints/intercept --env asd/Intercept-v0 \
        --samplers ddpm asd ddim:2

For each sampler episodes are run twice: first by `asd_policy.ControlLoop`, which steps the environment at its rate in
real time while another thread plans, and records the plans' latencies; then by counted steps, with latencies drawn from
those. The returns should have one law; the last column is the difference of their means, with Welch's interval.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from scipy import stats

from asd_policy import ControlLoop, LoopOptions, load_policy
from asd_policy.deploy.realtime.planner import PolicyPlanner
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.clocks import ControlClock, make_pilot
from asd_policy.evaluation.rollout.environments import control_rate, make_env
from asd_policy.evaluation.rollout.latencies import Empirical
from asd_policy.evaluation.rollout.runner import LocalRunner, groups
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.planner import Planned
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from study_common import markdown_table, provenance


@dataclass(frozen=True)
class Options:
    """What to compare."""

    policy: str
    """Checkpoint: a path, or a Hub id."""
    env: str
    """Gymnasium id; it has to tell its control frequency."""
    samplers: tuple[str, ...] = ("ddpm", "asd", "ddim:2")
    """Sampler specs."""
    backend: str = "torch-eager"
    """What runs the network."""
    episodes: int = 30
    """Of each sampler, in real time; counted are three times as many."""
    seed: int = 0
    """Of both."""


class Timed(PolicyPlanner):
    """A planner that records the latencies of its plans [s]."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.seconds: list[float] = []

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan, and look at the clock."""
        start = time.perf_counter()
        planned = super().plan(observations, step, begins, prefix)
        self.seconds.append(time.perf_counter() - start)
        return planned


class Returns(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the returns of the episodes that have ended."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.ended: list[float] = []
        self._now = 0.0

    def step(self, action: Any) -> Any:
        """Step, and add the reward."""
        outcome = super().step(action)
        self._now += float(outcome[1])
        if outcome[2] or outcome[3]:
            self.ended.append(self._now)
            self._now = 0.0
        return outcome


def real(planner: Timed, options: Options, hz: float) -> list[float]:
    """Measure the returns of episodes in real time."""
    env = Returns(make_env(options.env))
    loop = ControlLoop.for_env(planner, env, hz, LoopOptions(late_limit=10**9, patience=1.0), seed=options.seed)
    with loop:
        while len(env.ended) < options.episodes and not loop.wait(0.1):
            pass
    env.close()
    return env.ended[: options.episodes]


def counted(policy: Policy, options: Options, hz: float, seconds: Sequence[float]) -> list[float]:
    """Measure the returns of episodes whose time is counted in control steps."""
    spec = policy.sampler.spec
    pilot = make_pilot(policy, ControlClock("async", hz, Empirical("those of the loop", "", {spec: tuple(seconds)})))
    envs = make_envs(partial(make_env, options.env), 1)
    try:
        runner = LocalRunner({spec: pilot}, envs, options.seed)
        done = runner.run(groups([spec], 3 * options.episodes, 1))
        return [episode.total_reward for episode in done if episode.total_reward is not None]
    finally:
        envs.close()


def interval(returns: Sequence[float]) -> str:
    """Compute a mean with Student's interval."""
    low, high = stats.ttest_1samp(returns, 0).confidence_interval()
    return f"{np.mean(returns):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Compare, and print the table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    env = make_env(options.env)
    hz = control_rate(env)
    if hz is None:
        raise SystemExit(f"{options.env} does not tell its control frequency")
    policy = load_policy(options.policy, backend=options.backend)
    rows = []
    for planner in closed_loop.prepare_planners(policy, env, [make_sampler(spec) for spec in options.samplers]):
        timed = Timed(planner)
        found = real(timed, options, hz)
        expected = counted(planner, options, hz, timed.seconds)
        apart = stats.ttest_ind(found, expected, equal_var=False).confidence_interval()
        p50, p99 = 1e3 * np.percentile(timed.seconds, (50, 99))
        rows.append(
            [f"`{planner.sampler.spec}`", f"{p50:.0f} / {p99:.0f}", str(len(timed.seconds)), interval(found)]
            + [interval(expected), f"{np.mean(found) - np.mean(expected):.2f} [{apart.low:.2f}, {apart.high:.2f}]"]
        )
    env.close()
    header = ["sampler", "plan p50 / p99 ms", "plans", "return in real time", "return counted", "difference"]
    print(markdown_table(header, rows))
    script = "python scripts/benchmarks/clock_check.py"
    words = f"{script} --policy {options.policy} --env {options.env} --backend {options.backend}"
    command = f"{words} --samplers {' '.join(options.samplers)} --episodes {options.episodes}"
    print(
        f"{options.episodes} episodes in real time, {3 * options.episodes} counted. {provenance(command, options.seed)}"
    )


if __name__ == "__main__":
    main()
