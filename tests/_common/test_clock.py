"""Stages of a plan on a clock that only the test moves."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asd_policy._common.clock import STAGES, Clock, DeviceClock, HostClock, Stopwatch, clock_of
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import OF_STEPS, make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import PicardDraft
from asd_policy.samplers.deadline import Budget


class Hand(HostClock):
    """A clock whose hand is moved by hand."""

    now = 0.0

    def tick(self) -> float:
        """Return the hand's place."""
        return self.now


def test_a_stopwatch_adds_up_stages_however_often_they_come() -> None:
    clock = Hand()
    stopwatch = Stopwatch(clock)
    for stage, until in (("encode", 1.0), ("draft", 3.0), ("network", 3.5), ("draft", 7.5), ("host", 8.0)):
        clock.now = until
        stopwatch.mark(stage)
    clock.now = 10.0
    expected = {"host": 1 + 2, "encode": 2, "draft": 0.5 + 0.5, "network": 4}
    assert stopwatch.stop() == dict.fromkeys(STAGES, 0.0) | expected


def test_a_mark_tells_the_stage_that_ends() -> None:
    stopwatch = Stopwatch(Hand())
    assert [stopwatch.mark(stage) for stage in ("draft", "network", "draft")] == ["host", "draft", "network"]


@pytest.mark.parametrize("name", sorted(set(OF_STEPS) - {"euler"}))  # that follows flows alone
def test_every_sampler_says_when_the_network_runs(name: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    clock = Hand()

    def network(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        clock.now += 1
        return mixture(x, timestep)

    stopwatch = Stopwatch(clock)
    spec = {"paradigms": "paradigms:window=4"}.get(name, name)  # the chain has twelve steps
    result = make_sampler(spec).sample(network, chain, (1, 2, 2), budget=Budget(stopwatch=stopwatch))
    assert stopwatch.stop() == dict.fromkeys(STAGES, 0.0) | {"network": float(max(result.stats.rounds))}


def test_a_round_has_its_stages(
    mixture: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time that passes in drafting and in judging is theirs."""
    clock = Hand()
    known, verifier = PicardDraft.known, VERIFIERS["reflection"]

    def slow_known(*args: Any) -> Any:
        clock.now += 3
        return known(*args)

    def slow_judge(*args: Any) -> Any:
        clock.now += 5
        return verifier.judge(*args)

    monkeypatch.setattr(PicardDraft, "known", slow_known)
    monkeypatch.setitem(VERIFIERS, "reflection", replace(verifier, judge=slow_judge))
    stopwatch = Stopwatch(clock)
    sampler = make_sampler("asd:window=4,draft=picard,verify=reflection")
    rounds = max(sampler.sample(mixture, chain, (1, 2, 2), budget=Budget(stopwatch=stopwatch)).stats.rounds)
    assert stopwatch.stop() == dict.fromkeys(STAGES, 0.0) | {"draft": 3.0 * rounds, "verify": 5.0 * rounds}


def test_the_clock_of_a_device() -> None:
    clock: Clock = clock_of(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    first, second = clock.tick(), clock.tick()
    assert clock.seconds([first, second, second + 2]) == [second - first, 2]
    assert isinstance(clock_of(torch.device("cuda:0")), DeviceClock)
    with pytest.raises(SpecError, match="device 'meta' has no clock here; a benchmark runs on cpu or cuda"):
        clock_of(torch.device("meta"))
