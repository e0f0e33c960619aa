"""What does a plan's latency cost in closed loop? Return and success against it, for exact samplers and for DDIM.

    asd-policy bench --policy checkpoints/intercept --env asd/Intercept-v0 --samplers ddpm asd ddim:10 ddim:5 ddim:4 \
        ddim:3 ddim:2 --backends torch-eager onnx --plans 50 --out runs/bench-intercept
    python scripts/latency_curve.py --checkpoints intercept --bench runs/bench-intercept/results.json --out runs/latency

By a clock that counts control steps, all that a sampler has to do with what its latency costs is the law of its plans.
So all exact samplers share one curve, measured with one of them, and what each of them takes itself (`--bench`, from
`asd-policy bench`) is a point on it. DDIM's laws are others, each with a curve of its own. Latencies are constant, and
those that cost equally many control steps are measured once. Every point is kept as it is done: run again with the same
options after an interruption, it goes on where it stopped.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

import asd_policy
from asd_policy import evaluate, plots
from asd_policy.environments import control_rate, make_env
from asd_policy.files import atomic_file, write_json
from asd_policy.latencies import Fixed
from asd_policy.pilots import PILOTS, ControlClock, make_pilot
from asd_policy.policy import Policy
from asd_policy.runner import LocalRunner, groups
from asd_policy.samplers import make_sampler
from asd_policy.vector import Envs, make_envs
from study_common import bundled, console, markdown_table, provenance

EXACT = "asd:window=8,draft=picard,verify=block"
"""Stands for every exact sampler: its plans depend on seeds alone, and it learns nothing first."""


@dataclass(frozen=True)
class Options:
    """What does a plan's latency cost in closed loop? Return and success against it."""

    out: Path
    """Folder for points.json, table.md and curve.svg."""
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
    """Of the evaluation; every point meets the same episodes."""


@dataclass(frozen=True)
class Task:
    """A checkpoint where it is evaluated."""

    name: str
    env: str
    hz: float
    """Control steps in a second, the environment's own."""
    own: tuple[dict[str, Any], ...]
    """Samplers with their own latencies, from `asd-policy bench`."""

    def delay(self, milliseconds: float) -> int:
        """Return the control steps that a latency costs."""
        return ControlClock("sync", self.hz, Fixed(milliseconds)).steps(milliseconds / 1e3)

    def delays(self, options: Options) -> list[int]:
        """Return those of the curves and of the samplers' own latencies, once each."""
        own = [each["latency_ms"]["mean"] for each in self.own]
        return sorted({self.delay(each) for each in (*options.latencies, *own)})


class Points:
    """Results by task, mode, delay and law, in a file that is written after each."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Take up what the file has, if it is of the same settings."""
        self._path = path
        self._kept: dict[str, Any] = {"settings": settings, "points": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise SystemExit(f"{path} is of other settings, {found['settings']}: name another --out")
            self._kept = found

    @staticmethod
    def _key(task: Task, mode: str, delay: int, law: str) -> str:
        return " ".join((task.name, mode if delay else "none", str(delay), law))

    def get(self, task: Task, mode: str, delay: int, law: str) -> dict[str, Any] | None:
        """Return a point, or None where it is not there yet."""
        return self._kept["points"].get(self._key(task, mode, delay, law))

    def add(self, task: Task, mode: str, delay: int, law: str, point: dict[str, Any]) -> None:
        """Keep a point."""
        self._kept["points"][self._key(task, mode, delay, law)] = point
        write_json(self._path, self._kept)


def make_task(name: str, bench: Path | None) -> Task:
    """Return the task of a bundled checkpoint."""
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
    laws = (EXACT, *options.approximate)
    wanted = [(delay, mode, law) for delay in task.delays(options) for mode in PILOTS for law in laws]
    if all(points.get(task, mode, delay, law) for delay, mode, law in wanted):
        return
    policy = asd_policy.load_policy(bundled()[task.name][0], backend=options.backend)
    env = make_env(task.env)
    planners = {p.sampler.spec: p for p in evaluate.prepare(policy, env, [make_sampler(law) for law in laws])}
    env.close()
    envs = make_envs(partial(make_env, task.env), options.envs)
    try:
        for delay, mode, law in wanted:
            if points.get(task, mode, delay, law) is None:
                point = evaluate_point(planners[make_sampler(law).spec], envs, task, options, mode, delay)
                points.add(task, mode, delay, law, point)
                console.print(f"{task.name}, {mode}, {delay} steps, {law}: return {point['return_mean']:.3g}")
    finally:
        envs.close()


def evaluate_point(planner: Policy, envs: Envs, task: Task, options: Options, mode: str, delay: int) -> dict[str, Any]:
    """Return what results.json would say of a sampler whose plans come so many control steps late."""
    pilot = make_pilot(planner, ControlClock(mode, task.hz, Fixed(1e3 * delay / task.hz)))
    spec = planner.sampler.spec
    episodes = list(LocalRunner({spec: pilot}, envs, options.seed).run(groups([spec], options.episodes, options.envs)))
    (summary,) = evaluate.summarize({spec: planner.sampler}, episodes, len(planner.chain), hz=task.hz)
    return summary


def law_of(own: dict[str, Any]) -> str:
    """Return the law of a sampler of a benchmark, by the sampler that it was measured with."""
    return EXACT if own["exact"] else own["spec"]


def tables(tasks: Sequence[Task], options: Options, points: Points) -> Iterator[str]:
    """Yield a table of each task's curves, and one of its samplers at their own latencies."""
    for task in tasks:
        yield f"### `{task.env}`, {task.hz:g} Hz\n"
        header = ["law", "clock", *(f"{ms:g} ms: {task.delay(ms)} steps" for ms in options.latencies)]
        rows = [
            [_name(law), mode, *(cell(points.get(task, mode, task.delay(ms), law)) for ms in options.latencies)]
            for law in (EXACT, *options.approximate)
            for mode in PILOTS
        ]
        yield markdown_table(header, rows)
        if task.own:
            rows = [
                [f"`{own['spec']}`", own["backend"], f"{(ms := own['latency_ms']['mean']):.0f}", str(task.delay(ms))]
                + [cell(points.get(task, mode, task.delay(ms), law_of(own))) for mode in PILOTS]
                for own in task.own
            ]
            yield markdown_table(["sampler", "backend", "own latency ms", "steps", *PILOTS], rows)


def cell(point: dict[str, Any] | None) -> str:
    """Return a point as return and success, with their intervals."""
    if point is None:
        return "–"
    low, high = point["return_ci95"] or (math.nan, math.nan)
    worst, best = (100 * end for end in point["success_ci95"])
    success = f"{100 * point['success_rate']:.0f} % [{worst:.0f}, {best:.0f}]"
    return f"{point['return_mean']:.2f} [{low:.2f}, {high:.2f}]; {success}"


def _name(law: str) -> str:
    return "exact (`ddpm`, `asd`)" if law == EXACT else f"`{law}`"


def draw(tasks: Sequence[Task], options: Options, points: Points, path: Path) -> None:
    """Plot return against latency: a column for each task, a row for each mode."""
    laws = (EXACT, *options.approximate)
    with plots.drawing() as pyplot:
        size = (3.4 * len(tasks), 5.6)
        figure, axes = pyplot.subplots(2, len(tasks), figsize=size, layout="constrained", squeeze=False, sharey="col")
        for column, task in enumerate(tasks):
            for axis, mode in zip(axes[:, column], PILOTS, strict=True):
                for index, law in enumerate(laws):
                    label = "exact: ddpm, asd" if law == EXACT else law
                    curve(axis, task, mode, law, options, points, plots.mark(index), label if column == 0 else None)
                axis.set(title=f"{task.env}, {mode}", xlabel="latency of a plan [ms]", ylabel="return")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(laws))
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def curve(
    axis: Any,
    task: Task,
    mode: str,
    law: str,
    options: Options,
    points: Points,
    style: dict[str, Any],
    label: str | None,
) -> None:
    """Draw one law's curve, and crosses with names where its samplers' own latencies are."""
    there = [(ms, points.get(task, mode, task.delay(ms), law)) for ms in sorted(options.latencies)]
    known = [(ms, point) for ms, point in there if point is not None]
    axis.plot(
        [ms for ms, _ in known],
        [point["return_mean"] for _, point in known],
        linestyle=plots.line_style(law == EXACT),
        label=label,
        **style,
    )
    for ms, point in known:
        if point["return_ci95"] is not None:
            axis.vlines(ms, *point["return_ci95"], color=style["color"], linewidth=0.8)
    for own in task.own:
        ms = own["latency_ms"]["mean"]
        point = points.get(task, mode, task.delay(ms), law_of(own))
        if law_of(own) == law and point is not None:
            axis.plot(ms, point["return_mean"], linestyle="", marker="x", markersize=8, color=style["color"])
            name = f"{own['spec'].partition(':')[0] if own['exact'] else own['spec']}, {own['backend']}"
            axis.annotate(name, (ms, point["return_mean"]), (4, 4), textcoords="offset points", fontsize=7)


def main() -> None:
    """Measure what is not there yet; write table and plot of what is."""
    options = tyro.cli(Options, description=__doc__)
    if options.bench and len(options.bench) != len(options.checkpoints):
        raise SystemExit(f"{len(options.bench)} --bench for {len(options.checkpoints)} checkpoints: give one for each")
    benches = options.bench or [None] * len(options.checkpoints)
    tasks = [make_task(*pair) for pair in zip(options.checkpoints, benches, strict=True)]
    settings = {key: getattr(options, key) for key in ("backend", "episodes", "envs", "seed")}
    points = Points(options.out / "points.json", settings)
    for task in tasks:
        measure(task, options, points)
    command = (
        f"python scripts/latency_curve.py --checkpoints {' '.join(options.checkpoints)} --episodes {options.episodes} "
        f"--envs {options.envs} --backend {options.backend} --out {options.out}"
    )
    about = (
        f"{options.episodes} episodes for each point, {options.envs} side by side; 95 % intervals, Student's of the "
    )
    about += f"return, Wilson's of success. {provenance(command, options.seed)}\n"
    with atomic_file(options.out / "table.md") as temporary:
        temporary.write_text("\n".join([*tables(tasks, options, points), about]))
    draw(tasks, options, points, options.out / "curve.svg")
    console.print(f"written: {options.out / 'table.md'}, {options.out / 'curve.svg'}")


if __name__ == "__main__":
    main()
