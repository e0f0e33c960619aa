"""How do rounds grow with the number of steps K, on analytic mixtures and on a trained network?"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy import stats

from asd_policy._common.files import atomic_file
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.evaluation.states import States
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.autotune import DEFAULT
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from study_common import Results, Subject, console, count, learn, markdown_table, summarize

THEORY = {"sequential": 1.0, "ASD, token by token": 2 / 3, "sequence-level": 1 / 2}
"""Exponent of K in the number of rounds: by definition, of arXiv 2505.03983, of arXiv 2511.07869."""
TARGET = 0.5
MIXTURES = ((16, 2), (16, 7))
"""Events of the analytic laws, time × action like those of policies."""
MODES = 8
SPREADS = (0.05, 0.2)
"""Standard deviation of the narrowest and of the widest mode; their means are uniform in ±1."""
TRAIN_STEPS = 1000
"""Training steps of the mixtures' schedule: a chain of K steps visits K of its noise levels."""
COLOURS_OF_MORE = ("tab:purple", "tab:brown", "tab:pink", "tab:olive")
"""In the plot, of drafts beyond the first four."""
LEARNING_WINDOW = 64
"""Window of the plans that `response` learns from; the result does not depend on it."""


@dataclass(frozen=True)
class Problem:
    """A law to sample with several numbers of steps."""

    name: str
    denoiser: Callable[[int], tuple[Denoiser, GaussianChain]]
    """Makes network and chain for K steps."""
    states: States
    calibration: States
    steps: tuple[int, ...]
    drafts: tuple[str, ...]


def mixture(event: Sequence[int], steps: tuple[int, ...], plans: int, calibration: int, seed: int) -> Problem:
    """Make a Gaussian mixture; `warm` has no last plan there, and would be `picard`."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.rand((MODES, *event), generator=generator) - 1
    spreads = torch.linspace(*SPREADS, MODES)
    config = {"num_train_timesteps": TRAIN_STEPS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}

    def denoiser(count: int) -> tuple[Denoiser, GaussianChain]:
        chain = GaussianChain.from_scheduler(config, count)
        return MixtureDenoiser(chain, means, spreads), chain

    name = f"mixture {'×'.join(map(str, event))}"
    none = States.none(plans, event), States.none(calibration, event)
    return Problem(name, denoiser, *none, steps, tuple(draft for draft in DRAFTS if draft != "warm"))


def trained(subject: Subject, steps: tuple[int, ...]) -> Problem:
    """Make a checkpoint's network in coarser chains over its own noise schedule, with the same last step."""
    config = subject.policy.chain.config

    def denoiser(count: int) -> tuple[Denoiser, GaussianChain]:
        return subject.policy.denoiser, GaussianChain.from_scheduler(config, count)

    return Problem(subject.name, denoiser, subject.states, subject.calibration, steps, tuple(DRAFTS))


def measure(problem: Problem, seed: int, results: Results) -> list[dict[str, Any]]:
    """Measure one record per number of steps, draft and verifier; the window is the whole chain."""
    records = []
    settings = list(itertools.product(problem.steps, problem.drafts, VERIFIERS))
    learned: dict[int, Experience] = {}
    for steps, draft, verifier in track(settings, f"scaling, {problem.name}", console=console):

        def run(steps: int = steps, draft: str = draft, verifier: str = verifier) -> dict[str, Any]:
            denoiser, chain = problem.denoiser(steps)
            if DRAFTS[draft].responds and steps not in learned:
                spec = f"asd:window={min(steps, LEARNING_WINDOW)}"
                learned[steps] = learn(denoiser, chain, spec, problem.calibration, seed)
            sampler = make_sampler(f"asd:window={steps},draft={draft},verify={verifier}")
            counts = count(denoiser, chain, sampler, problem.states, learned.get(steps), seed)
            summary = summarize(counts, problem.states.episode, steps)
            return {"problem": problem.name, "draft": draft, "verify": verifier, **summary}

        records.append(results.once(f"{problem.name} {steps} {draft} {verifier}", run))
    return records


def slope(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Fit the exponent of K in the mean rounds, by least squares of their logarithms, with its standard error."""
    fit = stats.linregress(
        [np.log(record["steps"]) for record in records], [np.log(record["rounds_mean"]) for record in records]
    )
    return float(fit.slope), float(fit.stderr)  # pyright: ignore[reportAttributeAccessIssue]  # scipy's own untyped result


def curves(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Group the records of one problem by draft and verifier, in order of K."""
    pairs = dict.fromkeys((record["draft"], record["verify"]) for record in records)
    by_steps = sorted(records, key=lambda record: record["steps"])
    return {pair: [r for r in by_steps if (r["draft"], r["verify"]) == pair] for pair in pairs}


def markdown(records: list[dict[str, Any]]) -> str:
    """Format a table of mean rounds and exponents of one problem."""
    found = curves(records)
    steps = sorted({record["steps"] for record in records})
    rows = []
    for (draft, verifier), curve in found.items():
        exponent, error = slope(curve)
        cells = [f"{r['rounds_mean']:.1f} ± {r['rounds_standard_error']:.1f}" for r in curve]
        rows.append([f"`{draft}` + `{verifier}`", *cells, f"{exponent:.2f} ± {error:.2f}"])
    exponent, error = slope(found[DEFAULT.pair])
    word = "reached" if exponent <= TARGET else "not reached"
    return "\n".join(
        [
            f"### {records[0]['problem']}\n",
            markdown_table(["", *(f"K = {k}" for k in steps), "exponent"], rows),
            f"Target for the default, exponent {TARGET:g} or less: {word} ({exponent:.2f} ± {error:.2f}). "
            f"n = {records[0]['n']} plans for each cell.\n",
        ]
    )


def plot(problems: Sequence[list[dict[str, Any]]], path: Path) -> None:
    """Draw rounds against K, one panel per problem, as an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Text as text and no date or random ids: a small file that is the same for the same data.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "asd", "font.size": 10})
    colours = {draft: f"C{(3, 1, 2, 0, *range(4, 10))[index % 10]}" for index, draft in enumerate(DRAFTS)}
    figure, axes = pyplot.subplots(1, len(problems), figsize=(4 * len(problems), 4.2), squeeze=False)
    for axis, records in zip(axes[0], problems, strict=True):
        steps = np.array(sorted({record["steps"] for record in records}))
        start = max(r["rounds_mean"] for r in records if r["steps"] == steps[0])
        for name, exponent in THEORY.items():
            line = start * (steps / steps[0]) ** exponent
            axis.plot(steps, line, color="0.75", linewidth=1, zorder=0)
            axis.annotate(name, (steps[-1], line[-1]), color="0.45", fontsize=8, ha="right", va="bottom")
        for (draft, verifier), curve in curves(records).items():
            axis.errorbar(
                [r["steps"] for r in curve],
                [r["rounds_mean"] for r in curve],
                [2 * r["rounds_standard_error"] for r in curve],
                color=colours[draft],
                linestyle="-" if verifier == DEFAULT.verify else ":",
                marker="o",
                markersize=3,
                label=f"{draft} + {verifier}",
            )
        axis.set(xscale="log", yscale="log", xlabel="steps K", title=records[0]["problem"])
        axis.set_xticks(steps, [str(k) for k in steps])
        axis.minorticks_off()
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= axis.get_ylim()[1]]
        axis.set_yticks(ticks, [str(t) for t in ticks])
    axes[0][0].set_ylabel("mean rounds per plan (window = K)")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes[0]), key=lambda both: len(both[1]))
    figure.legend(handles, labels, ncols=4, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)
