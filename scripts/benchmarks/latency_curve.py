"""What does a plan's latency cost in closed loop? Return and success against it, for exact samplers and for DDIM.

    asd-policy bench --policy checkpoints/intercept --env asd/Intercept-v0 --samplers ddpm asd ddim:10 ddim:5 ddim:4 \
        ddim:3 ddim:2 --backends torch-eager onnx --plans 50 --out runs/bench-intercept
    python scripts/benchmarks/latency_curve.py --checkpoints intercept --bench runs/bench-intercept/results.json \
        --out runs/latency

By a clock that counts control steps, all that a sampler has to do with what its latency costs is the law of its plans.
So all exact samplers share one curve, measured with one of them; DDIM's laws are others, each with a curve of its own.
On the curves latencies are constant, and those that cost equally many control steps are measured once. What a sampler
takes itself (`--bench`, from `asd-policy bench`) is a point of its own, whose latencies are drawn from those that its
plans had there. Every point is kept as it is done: run again with the same options after an interruption, it goes on
where it stopped.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import tyro

import asd_policy
from asd_policy._common.files import atomic_file, write_json
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.clocks import PILOTS, ControlClock, make_pilot
from asd_policy.evaluation.rollout.environments import control_rate, make_env
from asd_policy.evaluation.rollout.latencies import Empirical, Fixed, Latency
from asd_policy.evaluation.rollout.runner import LocalRunner, groups
from asd_policy.evaluation.rollout.vector import Envs, make_envs
from asd_policy.evaluation.summary import summarize_episodes
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler
from latency_drawing import MEASURES, draw_all
from study_common import bundled, console, markdown_table, provenance

EXACT = "asd:window=8,draft=picard,verify=block"
"""Stands for every exact sampler, because its plans depend on seeds alone and it has nothing to learn first."""


@dataclass(frozen=True)
class Options:
    """What does a plan's latency cost in closed loop? Return and success against it."""

    out: Path
    """Folder for points.json, table.md, return.svg and success.svg."""
    checkpoints: tuple[str, ...] = ("intercept", "pusht", "metaworld-pick-place")
    """Names of bundled checkpoints, folders of checkpoints/."""
    latencies: tuple[float, ...] = (0, 20, 50, 100, 200, 400)
    """Of the curves [ms]."""
    approximate: tuple[str, ...] = ("ddim:2", "ddim:3", "ddim:4", "ddim:5", "ddim:10")
    """Specs of the samplers beside the exact ones."""
    bench: tuple[Path, ...] = ()
    """results.json of `asd-policy bench`, for the samplers' own latencies: one for each checkpoint, in their order."""
    backend: str = "torch-eager"
    """What runs the network here; it changes rounding, and how long this takes."""
    episodes: int = 50
    """For each point."""
    envs: int = 10
    """Episodes side by side."""
    seed: int = 0
    """Seed of the evaluation; every point gets the same episodes."""


@dataclass(frozen=True)
class Task:
    """A checkpoint where it is evaluated."""

    name: str
    env: str
    hz: float
    """Control steps in a second, the environment's own."""
    own: tuple[dict[str, Any], ...]
    """Samplers with their own latencies, from `asd-policy bench`, as its results.json has them."""

    def delay(self, milliseconds: float) -> int:
        """Compute the control steps that a latency costs."""
        return ControlClock("sync", self.hz, Fixed(milliseconds)).steps(milliseconds / 1e3)

    def points(self, options: Options) -> Iterator["Point"]:
        """Yield the points of the curves, those that cost the same once, and of the samplers' own latencies."""
        for delay in sorted({self.delay(each) for each in options.latencies}):
            for mode in PILOTS:
                for law in (EXACT, *options.approximate):
                    yield self.constant(mode, delay, law)
        for own in self.own:
            for mode in PILOTS:
                yield self.own_point(mode, own)

    def constant(self, mode: str, delay: int, law: str) -> "Point":
        """Make the point of a law whose plans come so many control steps late."""
        name = " ".join((self.name, mode if delay else "none", str(delay), law))
        return Point(name, mode, make_sampler(law).spec, Fixed(1e3 * delay / self.hz))

    def own_point(self, mode: str, own: dict[str, Any]) -> "Point":
        """Make the point of a sampler with its own latencies."""
        spec = make_sampler(EXACT if own["exact"] else own["spec"]).spec
        seconds = tuple(each / 1e3 for each in own["latencies_ms"])
        name = " ".join((self.name, mode, own["backend"], own["spec"]))
        return Point(name, mode, spec, Empirical(own["backend"], "", {spec: seconds}))


@dataclass(frozen=True)
class Point:
    """A point of the curves: one evaluation."""

    name: str
    """In the file of points."""
    mode: str
    """One of `PILOTS`."""
    spec: str
    """Of the sampler that plans, which has the law."""
    latency: Latency
    """What its plans take."""


class Points:
    """Results by name, in a file that is written after each."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Take up what the file has, if it is of the same settings."""
        self._path = path
        self._kept: dict[str, Any] = {"settings": settings, "points": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise SystemExit(f"{path} is of other settings, {found['settings']}: name another --out")
            self._kept = found

    def get(self, point: Point) -> dict[str, Any] | None:
        """Look up a point's results; None where there are none yet."""
        return self._kept["points"].get(point.name)

    def add(self, point: Point, results: dict[str, Any]) -> None:
        """Keep a point's results."""
        self._kept["points"][point.name] = results
        write_json(self._path, self._kept)


def make_task(name: str, bench: Path | None) -> Task:
    """Make the task of a bundled checkpoint."""
    if name not in bundled():
        raise SystemExit(f"no bundled checkpoint {name!r}; there are {', '.join(bundled())}")
    env_id = bundled()[name][1]
    env = make_env(env_id)
    hz = control_rate(env)
    env.close()
    if hz is None:
        raise SystemExit(f"{env_id} does not tell its control frequency")
    own = () if bench is None else tuple(json.loads(bench.read_text())["samplers"])
    return Task(name, env_id, hz, own)


def measure(task: Task, options: Options, points: Points) -> None:
    """Measure the points of a task that are not there."""
    wanted = [point for point in task.points(options) if points.get(point) is None]
    if not wanted:
        return
    policy = asd_policy.load_policy(bundled()[task.name][0], backend=options.backend)
    env = make_env(task.env)
    samplers = [make_sampler(spec) for spec in dict.fromkeys(point.spec for point in wanted)]
    planners = {planner.sampler.spec: planner for planner in closed_loop.prepare_planners(policy, env, samplers)}
    env.close()
    envs = make_envs(partial(make_env, task.env), options.envs)
    try:
        for point in wanted:
            if points.get(point) is None:  # without latency both modes are one
                results = evaluate_point(planners[point.spec], envs, task, options, point)
                points.add(point, results)
                console.print(f"{point.name}: return {results['return_mean']:.3g}", highlight=False)
    finally:
        envs.close()


def evaluate_point(planner: Policy, envs: Envs, task: Task, options: Options, point: Point) -> dict[str, Any]:
    """Evaluate a point as results.json would report it."""
    pilot = make_pilot(planner, ControlClock(point.mode, task.hz, point.latency))
    spec = planner.sampler.spec
    episodes = list(LocalRunner({spec: pilot}, envs, options.seed).run(groups([spec], options.episodes, options.envs)))
    (summary,) = summarize_episodes({spec: planner.sampler}, episodes, len(planner.chain), hz=task.hz)
    return summary


def tables(tasks: Sequence[Task], options: Options, points: Points) -> Iterator[str]:
    """Yield a table of each task's curves, and one of its samplers at their own latencies."""
    for task in tasks:
        yield f"### `{task.env}`, {task.hz:g} Hz\n"
        header = ["law", "clock", *(f"{ms:g} ms: {task.delay(ms)} steps" for ms in options.latencies)]
        rows = [
            [_name(law), mode]
            + [cell(points.get(task.constant(mode, task.delay(ms), law))) for ms in options.latencies]
            for law in (EXACT, *options.approximate)
            for mode in PILOTS
        ]
        yield markdown_table(header, rows)
        if task.own:
            rows = [
                [f"`{own['spec']}`", own["backend"].partition(":")[0]]
                + [f"{own['latency_ms']['p50']:.0f} / {own['latency_ms']['p99']:.0f}"]
                + [each(points.get(task.own_point(mode, own))) for mode in PILOTS for each in (cell, missed)]
                for own in task.own
            ]
            columns = [f"{mode}{what}" for mode in PILOTS for what in ("", ", missed %")]
            yield markdown_table(["sampler", "backend", "latency p50 / p99 ms", *columns], rows)


def cell(point: dict[str, Any] | None) -> str:
    """Format a point as return and success, with their intervals."""
    if point is None:
        return "–"
    low, high = point["return_ci95"] or (math.nan, math.nan)
    worst, best = (100 * end for end in point["success_ci95"])
    success = f"{100 * point['success_rate']:.0f} % [{worst:.0f}, {best:.0f}]"
    return f"{point['return_mean']:.2f} [{low:.2f}, {high:.2f}]; {success}"


def missed(point: dict[str, Any] | None) -> str:
    """Compute the share of a point's plans that were not there when their first action was due [%]."""
    share = None if point is None else point["timing"]["missed_fraction"]
    return "–" if share is None else f"{100 * share:.0f}"


def _name(law: str) -> str:
    return "exact (`ddpm`, `asd`)" if law == EXACT else f"`{law}`"


def main() -> None:
    """Measure the missing points; write table and plot."""
    options = tyro.cli(Options, description=__doc__)
    if options.bench and len(options.bench) != len(options.checkpoints):
        raise SystemExit(f"{len(options.bench)} --bench for {len(options.checkpoints)} checkpoints: give one for each")
    benches = options.bench or [None] * len(options.checkpoints)
    tasks = [make_task(*pair) for pair in zip(options.checkpoints, benches, strict=True)]
    settings = {key: getattr(options, key) for key in ("backend", "episodes", "envs", "seed")}
    points = Points(options.out / "points.json", settings)
    for task in tasks:
        measure(task, options, points)
    words = ["python", "scripts/benchmarks/latency_curve.py"]
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            words += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else [value])]
    command = " ".join(words)
    about = (
        f"{options.episodes} episodes for each point, {options.envs} side by side; 95 % intervals, Student's of the "
    )
    about += f"return, Wilson's of success. {provenance(command, options.seed)}\n"
    text = "\n".join([*tables(tasks, options, points), about])
    with atomic_file(options.out / "table.md") as temporary:
        temporary.write_text(text)
    drawn = map(str, draw_all(text, {measure: options.out / f"{measure}.svg" for measure in MEASURES}))
    console.print(f"written: {', '.join((str(options.out / 'table.md'), *drawn))}")


if __name__ == "__main__":
    main()
