"""Two runs against each other: what is paired, what is not, and what cannot be compared."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asd_policy import cli
from asd_policy._common.files import write_json
from asd_policy._common.statistics import paired_bootstrap, paired_difference, unpaired_difference
from asd_policy.errors import RunError
from asd_policy.evaluation.comparison import Run, compare_runs, equivalence_result, load_run, pair, reward_difference
from asd_policy.evaluation.equivalence import tost_paired, tost_unpaired
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.reports.names import short_name
from asd_policy.evaluation.reports.verdicts import equivalence_lines
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.journal import Journal
from asd_policy.evaluation.summary import summarize_episodes
from asd_policy.policy.plan import PlanRecord
from asd_policy.samplers import make_sampler

DDPM, ASD = "ddpm", "asd:window=8,draft=picard,verify=block"


def make_episode(
    index: int, success: bool = True, spec: str = ASD, rounds: int = 10, seconds: float = 0.1, plans: int = 2
) -> Episode:
    plan = PlanRecord(
        at=0,
        rounds=rounds,
        nfe=20,
        window=8,
        batch=1,
        seconds=seconds,
        network_seconds=0.9 * seconds,
        refused=None,
        unjudged=None,
    )
    total = float(success) + index / 10
    return Episode(spec, index, success, total, 8 * plans, None, None, plans * (plan,))


def write_run(folder: Path, episodes: list[Episode], seed: int = 0, journal: bool = True, **changes: Any) -> Path:
    """Write what an evaluation with these episodes leaves; return its results.json."""
    if journal:
        book = Journal.start(folder, {})
        for episode in episodes:
            book.add(episode)
        book.close()
    samplers = {episode.spec: make_sampler(episode.spec) for episode in episodes}
    count = len(episodes) // len(samplers)
    results = {
        "version": 1,
        "command": "eval",
        "env": "asd/Avoid-v0",
        "seed": seed,
        "episodes": count,
        "samplers": summarize_episodes(samplers, episodes, 100),
    }
    write_json(folder / "results.json", {**results, **changes})
    return folder / "results.json"


def run_of(episode: Callable[[int], Episode], folder: Path, count: int = 40, **options: Any) -> Run:
    return load_run(write_run(folder, [episode(index) for index in range(count)], **options))


def test_equivalence_of_pairs() -> None:
    first = [make_episode(index, index % 10 != 0) for index in range(100)]
    second = [make_episode(index, index % 10 != 5) for index in range(100)]
    verdict = equivalence_result(pair(first, second), 0.2)
    assert verdict["p_value"] == pytest.approx(
        tost_paired([e.success for e in first], [e.success for e in second], 0.2)
    )
    assert verdict["equivalent"] is True
    assert 0.5 < verdict["power"] < 1
    assert equivalence_result(pair(first, second), 0.05)["equivalent"] is False
    few = equivalence_result(pair(first[:5], second[:5]), 0.1)
    assert few["power"] == 0
    assert not few["equivalent"]


def test_reward_differences_leave_out_what_is_not_finite() -> None:
    first, second = make_episode(0), make_episode(1)
    lost = Episode(ASD, 0, False, None, 1, None, "the environment raised", ())
    assert reward_difference([(first, second)]) == {"mean": pytest.approx(0.1), "ci95": None}
    assert reward_difference([(first, lost), (first, second)]) == {"mean": pytest.approx(0.1), "ci95": None}
    assert reward_difference([(first, lost)]) is None


def test_paired_runs(tmp_path: Path) -> None:
    first = run_of(lambda i: make_episode(i, i % 4 != 0, rounds=20 + i), tmp_path / "a")
    second = run_of(lambda i: make_episode(i, i % 5 != 0, rounds=10 + i // 2, seconds=0.05), tmp_path / "b")
    results = compare_runs(first, second, 0.2)
    assert results["paired"] is True and results["why_unpaired"] is None
    (found,) = results["samplers"]
    assert found["spec"] == ASD and found["episodes"] == [40, 40]
    wins, others = ([i % n != 0 for i in range(40)] for n in (5, 4))
    assert found["success_difference"] == {"mean": pytest.approx(2 / 40), "ci95": paired_difference(wins, others)}
    mean, interval = paired_bootstrap(*([win + i / 10 for i, win in enumerate(side)] for side in (wins, others)))
    assert found["return_difference"] == {"mean": mean, "ci95": interval}
    assert found["rounds_ratio"]["mean"] == pytest.approx((10 + np.mean(np.arange(40) // 2)) / (20 + 19.5))
    low, high = found["rounds_ratio"]["ci95"]
    assert 0.48 < low < found["rounds_ratio"]["mean"] < high < 0.52  # what both share widens nothing
    assert found["latency_ratio"] == {"mean": pytest.approx(0.5), "ci95": pytest.approx((0.5, 0.5))}
    assert found["equivalence"]["p_value"] == pytest.approx(tost_paired(wins, others, 0.2))


def test_runs_of_other_lengths_are_paired_where_they_overlap(tmp_path: Path) -> None:
    first, second = run_of(make_episode, tmp_path / "a", 30), run_of(make_episode, tmp_path / "b", 12)
    assert compare_runs(first, second, 0.1)["samplers"][0]["episodes"] == [12, 12]


def test_runs_of_other_seeds_are_two_groups(tmp_path: Path) -> None:
    first = run_of(lambda i: make_episode(i, i % 4 != 0, rounds=20 + i), tmp_path / "a")
    second = run_of(lambda i: make_episode(i, i % 5 != 0, rounds=10 + i), tmp_path / "b", 60, seed=1)
    results = compare_runs(first, second, 0.2)
    assert (results["paired"], results["why_unpaired"]) == (False, "the seeds are 0 and 1")
    (found,) = results["samplers"]
    assert found["episodes"] == [40, 60]
    later, earlier = (48, 60), (30, 40)
    assert found["success_difference"] == {"mean": pytest.approx(0.05), "ci95": unpaired_difference(later, earlier)}
    assert found["equivalence"]["p_value"] == pytest.approx(tost_unpaired(later, earlier, 0.2))
    assert found["equivalence"]["power"] is None
    low, high = found["return_difference"]["ci95"]
    assert low < found["return_difference"]["mean"] < high
    assert found["rounds_ratio"]["ci95"][0] < (10 + 29.5) / (20 + 19.5) < found["rounds_ratio"]["ci95"][1]


def test_results_alone(tmp_path: Path) -> None:
    """As earlier versions left them: two groups, and ratios without intervals."""
    first = run_of(make_episode, tmp_path / "a", journal=False)
    second = run_of(lambda i: make_episode(i, rounds=5), tmp_path / "b")
    results = compare_runs(first, second, 0.1)
    assert results["why_unpaired"] == f"no episodes.jsonl in {tmp_path / 'a'}"
    assert results["samplers"][0]["rounds_ratio"] == {"mean": 0.5, "ci95": None}


def test_runs_without_plans(tmp_path: Path) -> None:
    """Where every episode failed before its first plan."""
    broken = run_of(
        lambda i: replace(make_episode(i, False, plans=0), error="it broke", total_reward=None), tmp_path / "a"
    )
    for other in (run_of(make_episode, tmp_path / "b"), run_of(make_episode, tmp_path / "c", journal=False)):
        (found,) = compare_runs(broken, other, 0.1)["samplers"]
        assert found["rounds_ratio"] is found["latency_ratio"] is found["return_difference"] is None
        assert found["success_difference"]["mean"] == 1
        report.comparison_table(compare_runs(broken, other, 0.1))


def test_only_shared_samplers_are_compared(tmp_path: Path) -> None:
    both = [make_episode(i, spec=spec) for i in range(4) for spec in (DDPM, ASD)]
    first = load_run(write_run(tmp_path / "a", both))
    second = run_of(make_episode, tmp_path / "b", 4)
    third = run_of(lambda i: make_episode(i, spec=DDPM), tmp_path / "c", 4)
    assert [found["spec"] for found in compare_runs(first, second, 0.1)["samplers"]] == [ASD]
    with pytest.raises(RunError, match=f"no sampler is in both: .* has {ASD}; .* has ddpm"):
        compare_runs(second, third, 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json cannot be read: No such file or directory"),
        ("{", "is no results.json of asd-policy"),
        ("[1, 2]", "is no results.json of asd-policy"),
        ('{"version": 1}', "is no results.json of asd-policy"),
        ('{"version": 1, "command": "eval", "samplers": []}', "is no results.json of asd-policy"),
        ('{"version": 2, "command": "eval"}', "has version 2; version 1 can be read"),
        ('{"version": 1, "command": "bench"}', "is of asd-policy bench; those of asd-policy eval can be read"),
    ],
)
def test_what_cannot_be_compared(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path / "good", [make_episode(0)])
    bad = tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "results.json").write_text(content)
    assert cli.run(["compare", str(good), str(bad)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_another_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_run(tmp_path / env, [make_episode(0)], env=f"asd/{env}-v0") for env in ("Avoid", "PushT")]
    assert cli.run(["compare", *map(str, paths)]) == 2
    assert "only runs in the same environment can be compared" in capsys.readouterr().err
    assert cli.run(["compare", str(paths[0]), str(paths[0]), "--margin", "1.5"]) == 2
    assert "--margin 1.5 is not between 0 and 1" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By file and by folder, one JSON object on stdout, the table and the verdict on stderr."""
    first = write_run(tmp_path / "a", [make_episode(i) for i in range(60)])
    second = write_run(tmp_path / "b", [make_episode(i, rounds=5) for i in range(60)])
    assert cli.run(["compare", str(first), str(second.parent), "--json"]) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results == json.loads(json.dumps(compare_runs(load_run(first), load_run(second), 0.1)))
    assert results["first"] == str(first) and results["second"] == str(second)
    for words in ("asd θ=8", "+0.0 [", "0.50×", "episodes paired", "success equivalent within 10 points (p = "):
        assert words in printed.err


def test_the_summary_of_a_run_has_the_verdict() -> None:
    episodes = [make_episode(i, spec=spec) for i in range(60) for spec in (DDPM, ASD)]
    ddpm, asd = summarize_episodes({spec: make_sampler(spec) for spec in (DDPM, ASD)}, episodes, 100, margin=0.2)
    assert ddpm["equivalence"] is None
    assert asd["equivalence"] == equivalence_result(pair(episodes[::2], episodes[1::2]), 0.2)
    assert asd["reward_difference"] == {"mean": 0.0, "ci95": (0.0, 0.0)}
    (alone,) = summarize_episodes({ASD: make_sampler(ASD)}, episodes[1::2], 100)
    assert alone["equivalence"] is alone["reward_difference"] is None
    assert equivalence_lines({"samplers": [ddpm, asd]}) == [
        f"{short_name(ASD)}: success equivalent within 20 points (p = {asd['equivalence']['p_value']:.2g}, 60 episodes)"
    ]
