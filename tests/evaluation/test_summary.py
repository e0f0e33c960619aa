"""Summaries of episodes: counts, means, comparisons with ddpm, and values that are missing."""

from dataclasses import replace

import numpy as np
import pytest

from asd_policy.evaluation.costs import summarize_encoding
from asd_policy.evaluation.reports import report
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.summary import summarize_episodes
from asd_policy.policy.plan import PlanRecord
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.records import SpeculationStats, overhead_fraction


def by_spec(*specs: str) -> dict[str, Sampler]:
    """List samplers that run as they were asked for, as `closed_loop.resolve_samplers` does."""
    return {sampler.spec: sampler for sampler in map(make_sampler, specs)}


def fake_episode(
    spec: str, index: int, success: bool, milliseconds: float, rounds: int, mode: str | None = None
) -> Episode:
    seconds = milliseconds / 1e3
    plan = PlanRecord(
        at=0,
        rounds=rounds,
        nfe=2 * rounds,
        window=8,
        batch=1,
        seconds=seconds,
        network_seconds=0.9 * seconds,
        refused=None,
        unjudged=None,
    )
    full = make_sampler(spec).spec
    return Episode(full, index, success, float(success), 10, mode if success else None, None, (plan, plan))


def test_summary() -> None:
    specs = ["ddpm", "asd:window=8"]
    episodes = [
        fake_episode("ddpm", 0, True, 100, 100, "a"),
        fake_episode("asd:window=8", 0, True, 20, 12, "a"),
        fake_episode("ddpm", 1, False, 100, 100, "a"),
        fake_episode("asd:window=8", 1, True, 30, 8, "b"),
    ]
    ddpm, asd = summarize_episodes(by_spec(*specs), episodes, 100)
    assert ddpm["success_rate"] == 0.5
    assert asd["success_rate"] == 1.0
    assert asd["success_ci95"] == pytest.approx((0.342, 1.0), abs=1e-3)
    low, high = asd["paired_difference_ci95"]
    assert low < 0.5 < high
    assert asd["modes"] == {"a": 1, "b": 1}
    assert asd["mode_entropy"] == pytest.approx(np.log(2))
    assert asd["plans"] == 4
    assert asd["rounds_mean"] == 10
    assert asd["nfe_mean"] == 20
    assert asd["acceptance_length_mean"] == asd["algorithmic_speedup"] == 10
    assert asd["wall_clock_speedup"] == pytest.approx(4.0)
    assert ddpm["wall_clock_speedup"] == pytest.approx(1.0)
    assert asd["overhead_fraction"] == pytest.approx(0.1)
    assert asd["latency_ms"]["mean"] == pytest.approx(25)
    assert asd["latency_ms"]["max"] == pytest.approx(30)


def test_summary_without_a_reference() -> None:
    (only,) = summarize_episodes(by_spec("asd", "ddpm"), [fake_episode("asd", 0, True, 5, 9)], 100)
    assert only["wall_clock_speedup"] is None
    assert only["paired_difference_ci95"] is None
    assert only["return_ci95"] is None
    assert only["mode_entropy"] is None


def test_summary_of_episodes_without_plans() -> None:
    """They failed at once; a table has dashes for them."""
    samplers = by_spec("ddpm", "asd:window=8")
    broken = Episode(list(samplers)[1], 0, False, None, 0, None, "the environment raised RuntimeError: no", ())
    first, second = summarize_episodes(samplers, [fake_episode("ddpm", 0, True, 5, 9), broken], 100)
    assert first.keys() == second.keys()
    assert (second["failed"], second["success_rate"], second["plans"]) == (1, 0.0, 0)
    assert second["rounds_mean"] is second["latency_ms"] is second["return_mean"] is None
    assert set(report.row(second)[3:]) == {"–"}


def test_acceptance_by_step() -> None:
    """Of two plans of four steps: refused at 1 and at nothing, not judged at 3 and at 0 and 3."""
    plan = fake_episode("asd:window=2", 0, True, 5, 3).plans[0]
    plans = (replace(plan, refused=(1,), unjudged=(3,)), replace(plan, refused=(), unjudged=(0, 3)))
    episode = replace(fake_episode("asd:window=2", 0, True, 5, 3), plans=plans)
    (summary,) = summarize_episodes(by_spec("asd:window=2"), [episode], 4)
    assert summary["acceptance_by_step"] == [1.0, 0.5, 1.0, None]


def test_encoding_is_no_overhead() -> None:
    """And stands beside it, so that it is seen; policies of vectors alone have none."""
    found = summarize_encoding([0.2, 0.1, None], 2.0)
    assert found["encode_fraction"] == pytest.approx(0.15) and found["encode_ms"] == pytest.approx(150)
    assert summarize_encoding([None], 2.0) == {"encode_fraction": None, "encode_ms": None}
    calls = [SpeculationStats(plans=(), steps=1, seconds=1.0, network_seconds=0.5)]
    assert overhead_fraction(calls, 1.0, 0.3) == pytest.approx(0.2)
    assert overhead_fraction(calls, 1.0) == pytest.approx(0.5)
