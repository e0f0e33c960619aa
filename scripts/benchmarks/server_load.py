"""How many plans a second does a policy server make, and how late are they? Tables for docs/results/serving.md.

    python scripts/benchmarks/server_load.py

`asd-policy serve` runs in a process of its own on this machine. The clients are threads of this one; each asks for its
next plan as soon as it has one, the most that a robot can ask for. They send the observations of episodes that were
rolled out before, so that drafts are as good as in use. The second table has the price of the
wire: plans here and plans on the server take turns, for equal observations and noise.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import asd_policy
from asd_policy._common.hardware import hardware, versions
from asd_policy.deploy.serving import RemotePlan, RemotePolicy
from asd_policy.evaluation.reports.report import git_commit
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler

ROOT = Path(__file__).resolve().parents[2]
ROLL_OUT = "asd:window=16"  # exact, so its observations are those of every exact sampler
EPISODES = 4
Robot = RemotePolicy | Policy


@dataclass(frozen=True)
class Options:
    """What to measure."""

    checkpoints: tuple[str, ...] = ("avoid", "metaworld-pick-place")
    """Names of bundled checkpoints."""
    backends: tuple[str, ...] = ("onnx", "torch-eager")
    """Backend specs."""
    samplers: tuple[str, ...] = ("ddpm", "asd")
    """Sampler specs."""
    clients: tuple[int, ...] = (1, 4, 16)
    """Numbers of clients."""
    seconds: float = 20.0
    """For each number of clients."""
    plans: int = 40
    """Plans here, and as many there, for the price of the wire."""


@dataclass(frozen=True)
class Load:
    """The measurements of the clients of one run."""

    plans: list[list[RemotePlan]]
    """Of each client."""
    seconds: float
    """Length of the run [s]."""

    def row(self) -> list[str]:
        """Format cells of the table."""
        late = 1e3 * np.array([plan.seconds for plans in self.plans for plan in plans])
        batch = statistics.mean(plan.batch for plans in self.plans for plan in plans)
        counts = sorted(map(len, self.plans))
        return [
            f"{len(late) / self.seconds:.1f}",
            f"{np.percentile(late, 50):.0f} / {np.percentile(late, 99):.0f}",
            f"{batch:.1f}",
            f"{counts[0]} … {counts[-1]}",
        ]


def roll_out(checkpoint: str, env_id: str) -> list[list[Any]]:
    """Run a few episodes; return their observations, step by step."""
    policy, env, episodes = asd_policy.load_policy(checkpoint, ROLL_OUT, backend="onnx"), make_env(env_id), []
    for seed in range(EPISODES):
        policy.reset(seed)
        observation, _ = env.reset(seed=seed)
        seen, over = [], False
        while not over:
            seen.append(observation)
            observation, _, terminated, truncated, _ = env.step(policy.select_action(observation))
            over = terminated or truncated
        episodes.append(seen)
    env.close()
    return episodes


@contextmanager
def serve(checkpoint: str, backend: str, sampler: str) -> Iterator[str]:
    """Run a server; yield its address."""
    words = ["--policy", checkpoint, "--backend", backend, "--sampler", sampler, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "asd_policy.cli", "serve", *words], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("serving ")), None)
        if line is None:
            raise SystemExit(f"no server for {checkpoint} on {backend} with {sampler}")
        yield f"127.0.0.1:{line.rpartition(':')[2].strip()}"
    finally:
        process.terminate()
        process.communicate()


def drive(robot: Robot, episodes: Sequence[Sequence[Any]], first: int) -> Iterator[tuple[float, Any]]:
    """Act on the observations of one episode after the other; yield each plan, and how long it took [s]."""
    for seed in count(first):
        robot.reset(seed)
        last = None
        for observation in episodes[seed % len(episodes)]:
            start = time.perf_counter()
            robot.select_action(observation)
            seconds = time.perf_counter() - start
            if robot.last_plan is not last:
                last = robot.last_plan
                yield seconds, last


def load(address: str, clients: int, seconds: float, episodes: Sequence[Sequence[Any]]) -> Load:
    """Let so many clients ask for plans, for a while; their first plans do not count."""
    found: list[list[RemotePlan]] = [[] for _ in range(clients)]
    ready, end = threading.Barrier(clients + 1), threading.Event()

    def run(index: int) -> None:
        with RemotePolicy(address, timeout=120) as robot:
            plans = drive(robot, episodes, 1000 * index)
            next(plans)
            ready.wait()
            while not end.is_set():
                found[index].append(next(plans)[1])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    time.sleep(seconds)
    counted = [list(plans) for plans in found]
    taken = time.perf_counter() - start
    end.set()
    for thread in threads:
        thread.join()
    return Load(counted, taken)


def wire(
    address: str, checkpoint: str, backend: str, sampler: str, plans: int, episodes: Sequence[Sequence[Any]]
) -> list[str]:
    """Format cells: latency of plans here and there, and what is around a plan there."""
    here = asd_policy.load_policy(checkpoint, sampler, backend=backend)
    local, remote = [], []
    with RemotePolicy(address, timeout=120) as robot:
        turns = zip(drive(here, episodes, 0), drive(robot, episodes, 0), strict=True)
        for (seconds, _), (_, plan) in islice(turns, plans):
            local.append(seconds)
            remote.append(plan)
    there, around = [plan.seconds for plan in remote], [plan.seconds - plan.planned for plan in remote]
    cells = (1e3 * np.array(each) for each in (local, there, around))
    return [f"{np.percentile(cell, 50):.1f} / {np.percentile(cell, 99):.1f}" for cell in cells]


def main() -> None:
    """Measure, and print the tables."""
    options = tyro.cli(Options, description=__doc__)
    entries = json.loads((ROOT / "checkpoints/manifest.json").read_text())
    envs = {Path(entry["path"]).name: entry["env"] for entry in entries}
    prices = []
    print("| checkpoint | backend | sampler | clients | plans/s | latency p50 / p99 ms | batch | plans of a client |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.checkpoints:
        checkpoint = str(ROOT / "checkpoints" / name)
        episodes = roll_out(checkpoint, envs[name])
        for backend in options.backends:
            for sampler in options.samplers:
                with serve(checkpoint, backend, sampler) as address:
                    what = f"| `{name}` | `{backend}` | `{sampler}` |"
                    for clients in options.clients:
                        row = load(address, clients, options.seconds, episodes).row()
                        print(what, clients, "|", " | ".join(row), "|", flush=True)
                    if not make_sampler(sampler).learns:  # otherwise the server has learned more by now
                        cells = wire(address, checkpoint, backend, sampler, options.plans, episodes)
                        prices.append(f"{what} {' | '.join(cells)} |")
    print("\n| checkpoint | backend | sampler | here p50 / p99 ms | there p50 / p99 ms | wire p50 / p99 ms |")
    print("|---|---|---|---|---|---|")
    print("\n".join(prices))
    found, revision = versions(torch.device("cpu")), git_commit()
    print(
        f"\n{hardware(torch.device('cpu'))}; torch {found['torch']}, onnxruntime {found['onnxruntime']}, grpcio "
        f"{version('grpcio')}; asd_policy {asd_policy.__version__}" + (f" at {revision[:8]}" if revision else "") + "; "
        f"{options.seconds:g} s for each number of clients, {options.plans} plans for the wire; load "
        f"average of the machine at the end {os.getloadavg()[1]:.1f}"
    )


if __name__ == "__main__":
    main()
