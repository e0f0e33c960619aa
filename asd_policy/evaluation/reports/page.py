"""An evaluation as one page, report.html: everything in one file, nothing fetched, nothing run."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asd_policy._common import extras
from asd_policy._common.files import atomic_file
from asd_policy.errors import RunError
from asd_policy.evaluation.comparison import load_run
from asd_policy.evaluation.reports import page_plots, plots, report, verdicts
from asd_policy.evaluation.reports.names import reference_of, short_name, shown_name
from asd_policy.evaluation.reports.page_plots import Results
from asd_policy.evaluation.reports.video import SIDE_BY_SIDE
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.policy.law import CHECKPOINT

PAGE = "report.html"
VIDEO_LIMIT = 8_000_000
"""Most bytes of a video that is put into the page; a larger one is linked."""
_SHOWN_FAILURES = 20
_DARK_COLOURS = ("#a3acb6", "#ff8f4d", "#5aaeff", "#3fc79a", "#f07fb5", "#e0b040", "#9fd3f5", "#b9a0ff")
"""Replace `plots.COLOURS` on a dark page."""


def write(folder: Path) -> Path:
    """Write the page of an evaluation beside its results.json, and return its path.

    Args:
        folder: With results.json and, if they were kept, episodes.jsonl and videos.

    Raises:
        RunError: results.json or episodes.jsonl is not what `asd-policy eval` writes, or no episode had finished.
    """
    run = load_run(folder)
    if not run.results["samplers"]:
        raise RunError(f"{run.path} has no sampler: no episode had finished")
    episodes = [each for each in run.episodes or () if each.index < run.results["episodes"]]
    try:
        page = build(run.results, episodes, _video(folder / SIDE_BY_SIDE))
    except KeyError as error:
        raise RunError(f"{run.path} lacks {error}, which an asd-policy eval of this version writes") from error
    path = folder / PAGE
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def build(results: Results, episodes: Sequence[Episode], video: dict[str, Any] | None = None) -> str:
    """Build the page as HTML. Whatever text results and episodes hold, the page shows it as text.

    Args:
        results: A results.json object of `eval`, with at least one sampler.
        episodes: Those it sums up; empty where they were not kept.
        video: From a file, see `write`.
    """
    jinja2 = extras.module("jinja2", "the report page", "eval")

    best = fastest_exact(results)
    clocked, sequential = report.is_clocked(results), reference_of(results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asd_policy.evaluation.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE).render(
        results=results,
        best=best,
        name=shown_name,
        short=short_name,
        verdict=verdicts.headline_verdict(best, sequential) if best and best["equivalence"] else None,
        reference=next((each for each in results["samplers"] if each["spec"] == sequential), None),
        sequential_name=short_name(sequential),
        complete=results.get("complete", not results.get("interrupted")),
        failures=[episode for episode in episodes if episode.error is not None],
        shown_failures=_SHOWN_FAILURES,
        columns=report.COLUMNS,
        rows=[report.row(each) for each in results["samplers"]],
        clock=report.clock_title(results) if clocked else None,
        timing_columns=report.TIMING_COLUMNS,
        timing_rows=[report.timing_row(each) for each in results["samplers"]] if clocked else [],
        other_rate=report.other_rate(results) if clocked else None,
        choices=[*report.choices(results), *report.cuts(results), *report.encodings(results)],
        verdicts=verdicts.equivalence_lines(results),
        sizes=report.sample_sizes(results),
        video=video,
        beside=", ".join(shown_beside(results).values()),
        plots=page_plots.draw_page_plots(results, episodes),
        facts=_facts(results),
        command=_command(results),
        light=plots.COLOURS,
        dark=_DARK_COLOURS,
    )


def fastest_exact(results: Results) -> Results | None:
    """Find the exact sampler, the sequential one aside, with the highest speedup: by the clock, else in rounds."""
    sequential = reference_of(results)
    exact = [each for each in results["samplers"] if each["exact"] and each["spec"] != sequential and each["plans"]]
    return max(exact, key=lambda each: each["wall_clock_speedup"] or each["algorithmic_speedup"], default=None)


def shown_beside(results: Results) -> dict[str, str]:
    """Choose the samplers of the side-by-side video, from left to right: specs, and their names.

    They are the sequential one, the fastest of the others, and the fastest exact one; fewer where there are fewer.
    """
    best, sequential = fastest_exact(results), report.reference_of(results)
    named = {each["spec"]: each for each in results["samplers"] if each["plans"]}
    ends = [named[sequential]] if sequential in named else []
    rest = [each for each in named.values() if each not in (*ends, best)]
    other = max(rest, key=lambda each: each["wall_clock_speedup"] or each["algorithmic_speedup"], default=None)
    return {each["spec"]: report.shown_name(each) for each in (*ends, other, best) if each is not None}


def _facts(results: Results) -> list[tuple[str, str]]:
    """List what ran where, as names and values, without what the record does not say."""
    commit = f", commit {results['commit']}" if results["commit"] else ""
    rates = {"environment_steps_per_second": "environment steps", "episodes_per_second": "episodes"}
    speeds = [f"{results[key]:.3g} {unit}" for key, unit in rates.items() if results.get(key) is not None]
    facts = {
        "Policy": results["policy"],
        "Law": "; ".join(report.laws_of(results)),
        "Task": results["env"],
        "Seed": results["seed"],
        "Episodes": f"{results['episodes']} for each sampler",
        "Environments": results.get("envs") and f"{results['envs']} at once",
        "Workers": results.get("workers"),
        "Device": results["device"],
        "Backend": f"{results['backend']}, {results['dtype']}",
        "Per second": ", ".join(speeds),
        "Software": f"asd_policy {results['package']}{commit}; torch {results['torch']}",
        "Started": results["started"],
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _command(results: Results) -> str:
    """Write the command line that makes these results, one option a line."""
    options = {"policy": [results["policy"]], "env": [results["env"]]}
    options["samplers"] = list(dict.fromkeys(each.get("ran", each["spec"]) for each in results["samplers"]))
    keys = {"episodes": "episodes", "envs": "envs", "seed": "seed", "device": "torch_device", "backend": "backend"}
    options |= {name: [str(results[key])] for name, key in keys.items() if key in results}
    if report.is_clocked(results):
        options |= {name: [str(results[name])] for name in ("clock", "hz", "latency", "continuity")}
    if results.get("deadline_ms") is not None:
        options |= {"deadline-ms": [f"{results['deadline_ms']:g}"], "fallback": [results["fallback"]]}
    if results.get("chain", CHECKPOINT) != CHECKPOINT:
        options["chain"] = [results["chain"]]
    if results.get("fixed_crop"):
        options["fixed-crop"] = []
    margins = [each["equivalence"]["margin"] for each in results["samplers"] if each["equivalence"]]
    if margins:
        options["margin"] = [str(margins[0])]
    if results.get("max_steps") is not None:
        options["max-steps"] = [str(results["max_steps"])]
    if results.get("workers", 1) > 1:
        options["workers"] = [str(results["workers"])]
    lines = [shlex.join((f"--{name}", *values)) for name, values in options.items()]
    return " \\\n  ".join(("asd-policy eval", *lines, "--out runs/again"))


def _video(path: Path) -> dict[str, Any] | None:
    """Read a video for the page; None where there is none."""
    if not path.exists():
        return None
    size = path.stat().st_size
    shown = {"name": path.name, "megabytes": f"{1e-6 * size:.1f}", "uri": None}
    if size <= VIDEO_LIMIT:
        shown["uri"] = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    return shown
