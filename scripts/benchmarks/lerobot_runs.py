"""What does the plugin do to lerobot-eval and lerobot-rollout on gym-pusht? Tables for docs/results/lerobot.md.

    OMP_NUM_THREADS=1 .venv-lerobot-0.6.1/bin/python scripts/benchmarks/lerobot_runs.py \
        --policies runs/gym-pusht-64 runs/gym-pusht-pixels --out runs/lerobot

Run it by the Python of LeRobot's environment. LeRobot's own commands run with and without the plugin, in turn, on
the same seeds. A run that is in --out already is not repeated.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from asd_policy._common.hardware import hardware
from asd_policy._common.statistics import cluster_ratio, mean_interval, paired_bootstrap, paired_difference, wilson

STOPWATCH = Path(__file__).with_name("lerobot_timed.py")
OFF = "off"
FPS = 10


@dataclass(frozen=True)
class Options:
    """What to measure."""

    policies: tuple[str, ...]
    """LeRobot folders of Push-T, such as scripts/train.py makes them; fields to change follow a folder after commas,
    as in runs/gym-pusht-64,n_action_steps=8."""
    out: Path
    """Folder for the runs."""
    settings: tuple[str, ...] = ("asd",)
    """Values of ASD_POLICY_SAMPLER for the runs with the plugin; one of ASD_POLICY_BACKEND may follow, as in
    asd@onnx."""
    parts: tuple[Literal["rewards", "latency", "rollout"], ...] = ("rewards", "latency", "rollout")
    """What to measure: latency and rollout are to be taken on a machine that does nothing else."""
    episodes: int = 50
    """Episodes for the rewards."""
    batch: int = 10
    """Environments that run together for the rewards; one for the latency, as on a robot."""
    timed: int = 2
    """Episodes of each run for the latency."""
    turns: int = 3
    """Runs with and without the plugin for latency and rollout; the first begins with nothing in the cache."""
    seconds: int = 30
    """Of each run of lerobot-rollout."""
    seed: int = 1000
    """Of the first episode."""

    @property
    def chosen(self) -> list["Policy"]:
        """List the policies."""
        return [Policy(spec) for spec in self.policies]


@dataclass(frozen=True)
class Policy:
    """A policy's folder, and the fields of its configuration that the command line changes."""

    spec: str

    @property
    def path(self) -> Path:
        """Of the folder."""
        return Path(self.spec.partition(",")[0])

    @property
    def name(self) -> str:
        """Folder and fields, without the way to the folder."""
        return self.spec[len(str(self.path.parent)) + 1 :] if "/" in self.spec else self.spec

    @property
    def words(self) -> list[str]:
        """Name it on the command line."""
        return [f"--policy.path={self.path}", *(f"--policy.{field}" for field in self.spec.split(",")[1:])]

    @property
    def config(self) -> dict[str, Any]:
        """Read its configuration, as the command line changes it."""
        changed = (field.split("=", 1) for field in self.spec.split(",")[1:])
        return self.read("config.json") | {name: json.loads(value) for name, value in changed}

    def read(self, name: str) -> dict[str, Any]:
        """Read a file of the folder."""
        return json.loads((self.path / name).read_text())

    @property
    def has_camera(self) -> bool:
        """Tell whether it observes frames."""
        return "observation.image" in self.config["input_features"]


@dataclass(frozen=True)
class Run:
    """One run of lerobot-eval, in a folder."""

    folder: Path

    @cached_property
    def metrics(self) -> dict[str, list[Any]]:
        """Read what lerobot-eval says of each episode."""
        return json.loads((self.folder / "eval/eval_info.json").read_text())["per_task"][0]["metrics"]

    @cached_property
    def times(self) -> dict[str, Any]:
        """Read what the stopwatch says."""
        return json.loads((self.folder / "times.json").read_text())

    @property
    def said(self) -> list[str]:
        """List the plugin's lines."""
        lines = (self.folder / "log.txt").read_text().splitlines()
        return [line for line in lines if "LeRobot's" in line and not line.startswith("{")]

    @property
    def rewards(self) -> list[float]:
        """List the rewards that the robot of lerobot-rollout had."""
        return [json.loads(line)["reward"] for line in (self.folder / "robot.jsonl").read_text().splitlines()]

    @property
    def late(self) -> int:
        """Count the ticks of lerobot-rollout that it says took too long."""
        return (self.folder / "log.txt").read_text().count("loop is running slower")

    @property
    def rounds(self) -> str:
        """Write the sequential network calls of a plan, on average."""
        plans = self.times.get("plans")
        return f"{self.times['rounds'] / plans:.1f}" if plans else "–"


def run_command(options: Options, policy: Policy, setting: str, command: str, words: list[str], folder: Path) -> Run:
    """Run a command of LeRobot's, unless it has been; what the plugin keeps is kept for each policy and setting alone.

    Raises:
        SystemExit: The command has failed, or its policy was to be accelerated and was not.
    """
    if (folder / "times.json").exists():
        return Run(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [sys.executable, str(STOPWATCH), str(folder / "times.json"), command, *policy.words, *words]
    spec, _, backend = setting.partition("@")
    own = {"ASD_POLICY_SAMPLER": spec, "ASD_POLICY_BACKEND": backend}
    own["ASD_POLICY_CACHE"] = str(options.out / policy.name / f"cache-{setting}")
    offline = {"HF_HUB_OFFLINE": "1", "SDL_VIDEODRIVER": "dummy"}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(words, env={**os.environ, **own, **offline}, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        program = command.replace("_", "-")
        raise SystemExit(f"{program} of {policy.spec} with {setting} has failed: see {folder / 'log.txt'}")
    run = Run(folder)
    if setting != OFF and "plans" not in run.times:
        (folder / "times.json").unlink()
        raise SystemExit(f"{policy.spec} was not accelerated: {' '.join(run.said) or 'the plugin says nothing'}")
    return run


def evaluate(options: Options, policy: Policy, setting: str, episodes: int, batch: int, name: str) -> Run:
    """Run lerobot-eval once."""
    observed = "pixels_agent_pos" if policy.has_camera else "environment_state_agent_pos"
    folder = options.out / policy.name / name
    words = ["--policy.device=cpu", "--env.type=pusht", f"--env.obs_type={observed}", f"--seed={options.seed}"]
    words += [f"--eval.n_episodes={episodes}", f"--eval.batch_size={batch}", "--eval.use_async_envs=false"]
    return run_command(options, policy, setting, "lerobot_eval", [*words, f"--output_dir={folder / 'eval'}"], folder)


def roll_out(options: Options, policy: Policy, setting: str, turn: int) -> Run:
    """Run lerobot-rollout once, on gym-pusht as a robot."""
    folder = options.out / policy.name / name_run("rollout", setting, turn)
    words = ["--policy.device=cpu", "--robot.type=pusht", f"--robot.record={folder / 'robot.jsonl'}"]
    words += [f"--robot.seed={options.seed + turn}", f"--fps={FPS}", f"--duration={options.seconds}"]
    words += ["--strategy.type=base", "--return_to_initial_position=false", "--play_sounds=false"]
    words += ['--rename_map={"observation.images.front": "observation.image"}']
    return run_command(options, policy, setting, "lerobot_rollout", words, folder)


def policy_rows(options: Options) -> Iterator[str]:
    """Yield a table of what the policies are."""
    yield "| policy | observes | horizon / executed | steps of the chain | M parameters | trained for |"
    yield "|---|---|---|---|---|---|"
    for policy in options.chosen:
        config, notes = policy.config, policy.read("training.json")
        observed = ", ".join(name.removeprefix("observation.") for name in config["input_features"])
        chain = config["num_inference_steps"] or config["num_train_timesteps"]
        steps = notes.get("step", notes["options"]["steps"])
        yield (
            f"| `{policy.name}` | {observed} | {config['horizon']} / {config['n_action_steps']} | {chain} "
            f"| {notes['parameters'] / 1e6:.1f} | {steps} steps |"
        )


def interval(low: float, high: float, digits: int) -> str:
    """Write an interval."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def reward_rows(options: Options) -> Iterator[str]:
    """Evaluate, and yield a table of success, rewards and their differences."""
    yield "| policy | plugin | episodes | success % | largest reward | sum of rewards | plans | rounds of a plan |"
    yield "|---|---|---|---|---|---|---|---|"
    for policy in options.chosen:
        runs = {
            setting: evaluate(options, policy, setting, options.episodes, options.batch, f"rewards-{setting}")
            for setting in (OFF, *options.settings)
        }
        for setting, run in runs.items():
            successes = [bool(each) for each in run.metrics["successes"]]
            low, high = wilson(sum(successes), len(successes))
            cells = [
                str(len(successes)),
                f"{100 * statistics.mean(successes):.0f} {interval(100 * low, 100 * high, 0)}",
            ]
            for name, digits in (("max_rewards", 3), ("sum_rewards", 1)):
                cells.append(f"{statistics.mean(run.metrics[name]):.{digits}f} {_mean(run.metrics[name], digits)}")
            calls = len(run.times["plans_s"])
            yield f"| `{policy.name}` | `{setting}` | {' | '.join(cells)} | {calls} | {run.rounds} |"
        for setting in options.settings:
            cells = " | ".join(_differences(runs[setting], runs[OFF]))
            yield f"| | `{setting}` less `{OFF}` | | {cells} | | |"


def _mean(values: Sequence[float], digits: int) -> str:
    found = mean_interval(values)
    return "" if found is None else interval(*found, digits)


def _differences(on: Run, off: Run) -> Iterator[str]:
    """Yield the differences of paired episodes, with and without the plugin."""
    with_it, without = (list(map(bool, run.metrics["successes"])) for run in (on, off))
    low, high = paired_difference(with_it, without)
    mean = statistics.mean(with_it) - statistics.mean(without)
    yield f"{100 * mean:+.0f} {interval(100 * low, 100 * high, 0)}"
    for name, digits in (("max_rewards", 3), ("sum_rewards", 1)):
        mean, found = paired_bootstrap(on.metrics[name], off.metrics[name])
        yield f"{mean:+.{digits}f} {interval(*found, digits) if found else ''}"


def eval_timed(options: Options, policy: Policy, setting: str, turn: int) -> Run:
    """Run lerobot-eval once, with one environment."""
    return evaluate(options, policy, setting, options.timed, 1, name_run("latency", setting, turn))


def name_run(what: str, setting: str, turn: int) -> str:
    """Name the folder of a run."""
    return f"{what}-{setting}-{turn}"


def in_turn(options: Options, policy: Policy, run: Callable[[Options, Policy, str, int], Run]) -> dict[str, list[Run]]:
    """Run without the plugin and with it, in turn; the first with each setting begins with an empty cache."""
    runs: dict[str, list[Run]] = {setting: [] for setting in (OFF, *options.settings)}
    for turn in range(options.turns):
        for setting, done in runs.items():
            if turn == 0:
                shutil.rmtree(options.out / policy.name / f"cache-{setting}", ignore_errors=True)
            done.append(run(options, policy, setting, turn))
    return runs


def latency_rows(options: Options) -> Iterator[str]:
    """Run lerobot-eval with one robot, in turn, and yield a table of latencies."""
    yield f"| policy | plugin | load, first time; again s | {_LATENCY} |"
    yield "|---|---|---|---|---|---|---|---|"
    for policy in options.chosen:
        runs = in_turn(options, policy, eval_timed)
        for setting, done in runs.items():
            first, *others = (f"{run.times['load_s'][0]:.1f}" for run in done)
            cells = _latency(done, runs[OFF])
            yield f"| `{policy.name}` | `{setting}` | {first}; {', '.join(others)} | {' | '.join(cells)} |"


def rollout_rows(options: Options) -> Iterator[str]:
    """Run lerobot-rollout of the policies with a camera, in turn, and yield a table of latencies and late ticks."""
    yield f"| policy | plugin | {_LATENCY} | actions sent | late ticks | largest reward |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for policy in (each for each in options.chosen if each.has_camera):
        runs = in_turn(options, policy, roll_out)
        for setting, done in runs.items():
            cells = [
                *_latency(done, runs[OFF]),
                ", ".join(str(len(run.rewards)) for run in done),
                ", ".join(str(run.late) for run in done),
                ", ".join(f"{max(run.rewards):.2f}" for run in done),
            ]
            yield f"| `{policy.name}` | `{setting}` | {' | '.join(cells)} |"


_LATENCY = "first plan ms | later plans p50 / p95 ms | n | ratio of means | rounds of a plan"


def _latency(done: Sequence[Run], off: Sequence[Run]) -> list[str]:
    """Write the cells of `_LATENCY` of some runs, against those without the plugin."""
    later = _later(done)
    p50, p95 = np.percentile(later, [50, 95])
    rounds, plans = (sum(run.times.get(name, 0) for run in done) for name in ("rounds", "plans"))
    return [
        ", ".join(f"{1e3 * run.times['plans_s'][0]:.0f}" for run in done),
        f"{p50:.0f} / {p95:.0f}",
        str(len(later)),
        "" if done is off else _ratio(_later(off), later),
        f"{rounds / plans:.1f}" if plans else "–",
    ]


def _later(runs: Sequence[Run]) -> list[float]:
    """List how long all plans took but the first of each run [ms]."""
    return [1e3 * each for run in runs for each in run.times["plans_s"][1:]]


def _ratio(off: list[float], on: list[float]) -> str:
    """Write how many times as long a plan takes without the plugin, with its interval over plans."""
    clusters = (np.array([[each, 1.0] for each in values]) for values in (off, on))
    value, found = cluster_ratio(*clusters, paired=False)
    return f"{value:.2f} {interval(*found, 2) if found else ''}"


def lines_said(options: Options) -> Iterator[str]:
    """Yield the plugin's lines, of the last run of each policy with each setting."""
    for policy in options.chosen:
        for setting in (OFF, *options.settings):
            yield f"{policy.name}, {setting}:"
            yield from Run(options.out / policy.name / name_run("latency", setting, options.turns - 1)).said


def main() -> None:
    """Measure, and print the tables."""
    options = tyro.cli(Options, description=__doc__)
    tables = [policy_rows(options)]
    if "rewards" in options.parts:
        tables.append(reward_rows(options))
    if "latency" in options.parts:
        tables += [latency_rows(options), lines_said(options)]
    if "rollout" in options.parts:
        tables.append(rollout_rows(options))
    for table in tables:
        for line in table:
            print(line, flush=True)
        print()
    packages = ("lerobot", "torch", "diffusers", "gym-pusht", "asd-policy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{hardware(torch.device('cpu'))}; Python {platform.python_version()}, {versions}")


if __name__ == "__main__":
    main()
