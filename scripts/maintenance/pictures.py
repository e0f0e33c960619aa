"""Make the pictures of the front page from what docs/results has measured: a moving one, a chart, and a drawing.

    python scripts/maintenance/pictures.py

Latencies and success are those of docs/results/latency.md; nothing is measured again. The moving picture runs episodes
of asd/Intercept-v0 in which each plan takes the median latency of its sampler, so it is the same on any machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from PIL import Image

import asd_policy
import round_drawing
from asd_policy._common.files import atomic_file
from asd_policy.evaluation.closed_loop import prepare_planners, run_episode
from asd_policy.evaluation.reports import plots
from asd_policy.evaluation.reports.page_plots import draw_tradeoff
from asd_policy.evaluation.reports.video import RENDER_MODE, Frame, labelled
from asd_policy.evaluation.rollout.clocks import ControlClock, make_pilot
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.latencies import Fixed
from asd_policy.samplers import make_sampler

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs/results/latency.md"
PICTURES = ROOT / "docs/pictures"
TASK, CHECKPOINT = "asd/Intercept-v0", "intercept"
SIZE, FONT, COLOURS = 320, 20, 64  # of the moving picture: [px], [px], and how many
BACKENDS = ("onnx", "torch-eager")
PAPER = "asd:window=8,draft=frozen,verify=reflection"
SAMPLERS = ("ddpm", "ddim:10", PAPER, "asd")
FILMED = {"ddpm": "ddpm", "asd": "asd:window=8,draft=picard,verify=block"}
"""Rows whose latencies are filmed, and what plans: of `asd` a setting whose plans depend on seeds alone."""
FILM_BACKEND = "torch-eager"
HELD = 20  # frames at an episode's end
SERVED = 0.3  # [m]: no puck moves as far in a step, but one that is served is as far from where the last one ended
MOST_BYTES = 2_000_000
PAGE = """# The pictures of the front page

```sh
python scripts/maintenance/pictures.py
```

draws them from [latency.md](../results/latency.md), which says how its numbers were measured. Nothing is measured
again; the moving picture takes minutes.

![ddpm misses pucks that asd meets](intercept.gif)

`{task}` under `--clock async`, in real time: the pucks do not wait for plans. Each plan takes the median of its
sampler in PyTorch on one CPU thread: {rates}. Episodes {episodes} of seed {seed}: the
first in which `ddpm` fails and `asd` does not. Both have the same law; `asd` is filmed as
`{asd}`, whose plans depend on seeds alone.

![Success against latency](latency_success.svg)

Success under `--clock async` against the median latency of a plan: upper left is the best. 50 episodes for each
point, with Wilson's 95 % intervals. Samplers of one law are joined by a line: what differs along it is latency
alone. ≈ marks another law, that of DDIM.

![A round](round.svg)

A round of `asd`, with the paper's coupling, beside sequential sampling. [How it works](../theory/algorithm.md).
"""


@dataclass(frozen=True)
class Options:
    """Make the pictures of the front page from what docs/results has measured."""

    out: Path = PICTURES
    """Folder to write into."""
    episodes: int = 3
    """Of the moving picture: the first ones in which ddpm fails and asd does not."""
    seed: int = 0
    """Seed of its episodes."""


@dataclass(frozen=True)
class Measured:
    """A line of latency.md: a sampler on a backend, with its own latencies under `--clock async`."""

    task: str
    spec: str
    backend: str
    p50_ms: float
    success: float
    """Share of episodes."""
    success_ci95: tuple[float, float]


def read_measured(text: str) -> list[Measured]:
    """Read the tables of samplers with their own latencies from the text of latency.md.

    Raises:
        ValueError: A line is not what scripts/benchmarks/latency_curve.py writes.
    """
    found, task = [], ""
    for line in text.splitlines():
        if line.startswith("## `"):
            task = line.split("`")[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 7 and cells[1] in BACKENDS:
            success = cells[5].partition("; ")[2]  # as in "1.24 [1.03, 1.45]; 30 % [19, 44]"
            rate, _, interval = success.partition(" % ")
            low, high = (float(end) / 100 for end in interval.strip("[]").split(", "))
            latency = float(cells[2].partition(" / ")[0])
            found.append(Measured(task, cells[0].split("`")[1], cells[1], latency, float(rate) / 100, (low, high)))
    if not found:
        raise ValueError(f"{MEASURED} has no table of samplers with their own latencies")
    return found


def draw_chart(measured: Sequence[Measured], path: Path) -> None:
    """Draw success against latency, a panel for each task; a line joins the samplers of one law on one backend."""
    shown = [each for each in measured if each.spec in SAMPLERS]
    shown.sort(key=lambda each: (SAMPLERS.index(each.spec), BACKENDS.index(each.backend)))
    tasks = list(dict.fromkeys(each.task for each in measured))
    rows = {each: asdict(each) | _named(each) for each in shown}
    styles = plots.Styles(list(rows.values()))
    with plots.drawing() as pyplot:
        figure, axes = pyplot.subplots(1, len(tasks), figsize=(8.6, 3.3), layout="constrained", sharey=True)
        for axis, task in zip(axes, tasks, strict=True):
            there = [each for each in shown if each.task == task]
            for backend in BACKENDS:
                exact = sorted((e for e in there if e.backend == backend and rows[e]["exact"]), key=lambda e: e.p50_ms)
                line = styles.dash(rows[exact[0]]) | {"color": plots.FAINT, "linewidth": 1, "zorder": 0}
                axis.plot([e.p50_ms for e in exact], [100 * e.success for e in exact], **line)
            draw_tradeoff(axis, [(rows[each], each.p50_ms) for each in there], styles)
            axis.set(title=task.removeprefix("asd/").removesuffix("-v0"), xlabel="latency of a plan [ms], median")
            axis.set_ylabel("successful episodes [%]" if axis is axes[0] else "")
        handles, names = axes[0].get_legend_handles_labels()
        legend = dict(zip(names, handles, strict=True))
        for backend in BACKENDS:
            style = styles.dash({"backend": backend})
            legend[f"one law, on {backend}"] = pyplot.Line2D([], [], color=plots.FAINT, linewidth=1, **style)
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, handlelength=3.2)
        with atomic_file(path) as temporary:
            plots.save(figure, temporary, "svg")


def _named(each: Measured) -> dict[str, Any]:
    return {"success_rate": each.success, "exact": make_sampler(each.spec).exact}


class Filming(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that keeps its frames, each under a title and what became of the pucks."""

    def __init__(self, env: gymnasium.Env[Any, Any], title: str) -> None:
        super().__init__(env)
        self._title = title
        self._ended, self._y = 0, 0.0
        self.met, self.missed = 0, 0
        self.frames: list[Frame] = []

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and film what it begins with."""
        observation, info = self.env.reset(**options)
        self._ended, self.frames = 0, []
        self._film(observation, info, terminated=False)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, and film what it leads to."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._film(observation, info, terminated)
        return observation, reward, terminated, truncated, info

    def _film(self, observation: Any, info: dict[str, Any], terminated: bool) -> None:
        """Count pucks: one has ended where the next is served, far from it, and where the episode ends."""
        y = float(observation["environment_state"][1])
        if self.frames:
            self._ended += terminated or y > self._y + SERVED
        self._y, self.met = y, info["intercepted"]
        self.missed = max(0, self._ended - self.met)  # one that was met may not have ended yet
        counts = f"met {self.met}, missed {self.missed}"
        self.frames.append(labelled(np.asarray(self.env.render()), self._title, counts, font=FONT))


class Studio:
    """Films episodes of `TASK` with a sampler whose plans take a given time."""

    def __init__(self, name: str, latency_ms: float, seed: int) -> None:
        """Load the policy.

        Args:
            name: Of the sampler, one of `FILMED`.
            latency_ms: Of each of its plans.
            seed: Of the episodes.
        """
        self._seed = seed
        policy = asd_policy.load_policy(ROOT / "checkpoints" / CHECKPOINT, FILMED[name])
        env = make_env(f"{TASK},width={SIZE},height={SIZE}", RENDER_MODE)
        self._env = Filming(env, f"{name}, {latency_ms:.0f} ms a plan")
        self.hz = env.metadata["render_fps"]
        (planner,) = prepare_planners(policy, self._env, [policy.sampler])
        self._pilot = make_pilot(planner, ControlClock("async", self.hz, Fixed(latency_ms)))

    def film(self, index: int) -> tuple[bool, list[Frame]]:
        """Run an episode by its index; say whether it succeeds, and return its frames."""
        episode = run_episode(self._pilot, self._env, index, self._seed)
        return episode.success, self._env.frames


def film(measured: Sequence[Measured], options: Options, path: Path) -> list[int]:
    """Make the moving picture; return which episodes it shows.

    Args:
        measured: Of latency.md.
        options: How many episodes, and their seed.
        path: To write.

    Raises:
        ValueError: It is larger than `MOST_BYTES`.
    """
    latency = {each.spec: each.p50_ms for each in measured if (each.task, each.backend) == (TASK, FILM_BACKEND)}
    slow, fast = (Studio(name, latency[name], options.seed) for name in FILMED)
    shown: list[Frame] = []
    indices: list[int] = []
    for index in count():
        (missed, left), (hit, right) = slow.film(index), fast.film(index)
        if hit and not missed:
            ends = left[-1], right[-1]
            pairs = [*zip_longest(left, right), *[(None, None)] * HELD]
            shown += [np.hstack([end if f is None else f for f, end in zip(p, ends, strict=True)]) for p in pairs]
            indices.append(index)
        if len(indices) == options.episodes:
            break
    with atomic_file(path) as temporary:
        write_gif(shown, slow.hz, temporary)
        if (size := temporary.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{path.name} has {size} bytes, more than {MOST_BYTES}: film fewer --episodes")
    return indices


def write_gif(frames: Sequence[Frame], fps: float, path: Path) -> None:
    """Write frames as a GIF that plays for ever, with one palette for all of them, so that nothing flickers."""
    images = [Image.fromarray(frame) for frame in frames]
    sample = Image.fromarray(np.vstack(frames[:: max(1, len(frames) // 8)]))
    palette = sample.quantize(COLOURS, dither=Image.Dither.NONE)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    flat[0].save(path, "GIF", save_all=True, append_images=flat[1:], duration=1000 / fps, loop=0, optimize=False)


def page(measured: Sequence[Measured], episodes: Sequence[int], options: Options) -> str:
    """Write the page of the pictures: what each shows, with the numbers that are in it."""
    there = {each.spec: each for each in measured if (each.task, each.backend) == (TASK, FILM_BACKEND)}
    rates = ", ".join(
        f"`{name}` {there[name].p50_ms:.0f} ms and success in {100 * there[name].success:.0f} % of 50 episodes"
        for name in FILMED
    )
    return PAGE.format(
        task=TASK, rates=rates, episodes=", ".join(map(str, episodes)), seed=options.seed, asd=FILMED["asd"]
    )


def main() -> None:
    """Make the pictures, and the page that says what they show."""
    options = tyro.cli(Options, description=__doc__)
    measured = read_measured(MEASURED.read_text())
    draw_chart(measured, options.out / "latency_success.svg")
    round_drawing.draw(options.out / "round.svg")
    episodes = film(measured, options, options.out / "intercept.gif")
    with atomic_file(options.out / "README.md") as temporary:
        temporary.write_text(page(measured, episodes, options))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
