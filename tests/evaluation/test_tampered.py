"""Runs that somebody has changed: report and compare end in one line, or with what is there; never in a traceback."""

import copy
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from asd_policy import cli
from asd_policy.errors import RunError
from asd_policy.evaluation import comparison
from asd_policy.evaluation.reports import page
from asd_policy.evaluation.rollout.journal import NAME, RESULTS
from support.fuzzing import SCALE, places
from support.run_files import episodes, results, sampler, save

TRIALS = 40 * SCALE
VALUES = (
    None, True, -1, 0, 1, 3, 0.5, 2**53, 10**400, -1e308, float("nan"), float("inf"), "", "x", "<b>", "ddpm", [], [1],
    [1, 2], ["x", None], {}, {"mean": 1}, [[[]]],
)  # fmt: skip


def tampered(value: Any, choose: random.Random) -> Any:
    """Change, remove or double something in a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(choose.choice((1, 1, 2))):
        *path, key = choose.choice(list(places(value)))
        holder = value
        for step in path:
            holder = holder[step]
        action = choose.random()
        if action < 0.2:
            del holder[key]
        elif action < 0.3 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = copy.deepcopy(choose.choice(VALUES))
    return value


def try_all(folder: Path, other: Path) -> None:
    """Write the page of a run and compare it with another, which may be refused."""
    for attempt in (
        lambda: page.write(folder),
        lambda: comparison.compare_runs(comparison.load_run(folder), comparison.load_run(other), 0.1),
        lambda: comparison.compare_runs(comparison.load_run(other), comparison.load_run(folder), 0.1),
    ):
        try:
            json.dumps(attempt(), default=str, allow_nan=False)
        except RunError as error:
            assert str(error).isprintable()


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs, the first of which is to be tampered with."""
    timing = {
        "counted_latency_ms": {"mean": 123.0, "p50": 120.0, "p95": 187.0, "p99": 190.0, "max": 200.0},
        "delay_steps_mean": 1.2, "delay_steps_max": 3, "stale_fraction": 0.1, "missed_fraction": 0.2,
        "control_frequency_hz": 9.5, "jitter_ms": 3.0, "seam_mean": 0.05,
    }  # fmt: skip
    clock = {"clock": "async", "hz": 10.0, "env_hz": 20.0, "latency": "40", "latency_sha256": None,
             "continuity": "none", "deadline_ms": 50.0, "fallback": "jump"}  # fmt: skip
    samplers = [sampler(spec, timing=timing, cut_plans=2) for spec in ("ddpm", "asd:window=8,draft=frozen")]
    done = episodes(("ddpm", "asd:window=8,draft=frozen"))
    record = results(*samplers, **clock)
    return save(tmp_path / "run", record, done), save(tmp_path / "other", record, done)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(TRIALS))
def test_tampered_results(seed: int, runs: tuple[Path, Path]) -> None:
    path = runs[0] / RESULTS
    path.write_text(json.dumps(tampered(json.loads(path.read_text()), random.Random(seed))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plots without sense
        try_all(*runs)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_tampered_journal(seed: int, runs: tuple[Path, Path]) -> None:
    path, choose = runs[0] / NAME, random.Random(seed)
    lines = path.read_text().splitlines()
    index = choose.randrange(len(lines))
    lines[index] = json.dumps(tampered(json.loads(lines[index]), choose))
    path.write_text("\n".join(lines) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all(*runs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"samplers": "ddpm"}', "results.samplers is 'ddpm', not a list"),
        ('{"samplers": [{"spec": ["ddpm"]}]}', "results.samplers[0].spec is ['ddpm'], not text"),
        ('{"samplers": [{"spec": "ddpm", "success_rate": 3}]}', "results.samplers[0].success_rate is 3, not in 0 … 1"),
        ('{"samplers": [{"spec": "ddpm", "plans": 3, "rounds_mean": null, "latency_ms": null}]}', "ddpm has 3 plans"),
        ('{"episodes": true}', "results.episodes is True, not an integer of 64 bits"),
        ('{"started": 1e999}', "results.started is inf, not text"),
        ("[" * 100000, "is no results.json of asd-policy"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["report", "compare"])
def test_the_line_names_the_place(
    command: str, text: str, said: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs[0] / RESULTS
    changes = json.loads(text) if text.startswith("{") else None
    path.write_text(text if changes is None else json.dumps(json.loads(path.read_text()) | changes))
    assert cli.run([command, str(runs[0]), *([str(runs[1])] if command == "compare" else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"asd-policy: {path} ") and said in line
