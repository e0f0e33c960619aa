"""Anytime planning, on a clock that only the network moves."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.base import Target
from asd_policy.samplers.ddpm import walk
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.pace import REMEMBERED, Pace, pace_of
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import DTYPE, EVENT, make_tape

ROWS = 6
CALL, POINT = 0.010, 0.001  # seconds of a network call, and of each of its points

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers


@dataclass
class Machine:
    """A network that takes time, on a clock that shows nothing else."""

    network: MixtureDenoiser
    now: float = 1000.0
    slow: float = 1.0

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict."""
        self.now += self.slow * (CALL + POINT * len(x))
        return self.network(x, timestep, cond)


@pytest.fixture
def machine(mixture: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(mixture)
    monkeypatch.setattr(time, "perf_counter", lambda: machine.now)
    return machine


SPECS = ["ddpm", "ddim:10", "dpmsolver:10", "paradigms:window=4", "asd:window=4", "asd:window=4,draft=frozen"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_deadline_that_is_met_changes_nothing(spec: str, machine: Machine, chain: GaussianChain) -> None:
    sampler, tape = make_sampler(spec), make_tape(ROWS, chain, 0)
    shape = (ROWS, *EVENT)
    without = sampler.sample(machine, chain, shape, generator=tape)
    within = sampler.sample(machine, chain, shape, generator=tape, budget=Budget(deadline_ms=1e6))
    assert torch.equal(within.sample, without.sample)
    assert within.stats.rounds == without.stats.rounds
    assert within.stats.cut == (False,) * ROWS
    assert within.stats.exact == without.stats.exact == (sampler.exact,) * ROWS


@pytest.mark.parametrize("spec", SPECS)
def test_once_the_times_are_known_plans_are_there_in_time(spec: str, machine: Machine, chain: GaussianChain) -> None:
    sampler, past, shape = make_sampler(spec), WarmStart(None, Experience()), (ROWS, *EVENT)
    cuts = 0
    for seed in range(5):
        for milliseconds in (30, 60, 90, 120):
            result = sampler.sample(
                machine,
                chain,
                shape,
                generator=make_tape(ROWS, chain, seed),
                warm_start=past,
                budget=Budget(deadline_ms=milliseconds),
            )
            cuts += sum(result.stats.cut)
            assert result.sample.isfinite().all()
            if seed:
                assert result.stats.seconds <= milliseconds / 1000 + 1e-9
    assert cuts > 0


@pytest.mark.parametrize("fallback", ["jump", "last_plan"])
@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4", "asd:window=12"])
def test_whatever_the_deadline_few_plans_are_late(
    spec: str, fallback: str, machine: Machine, chain: GaussianChain
) -> None:
    """Also where no round, or no second one, fits: it is tried again now and then, and not every second time."""
    sampler, shape = make_sampler(spec), (ROWS, *EVENT)
    last = torch.ones(shape, dtype=DTYPE)
    for milliseconds in range(17, 90, 6):
        past = WarmStart(last, Experience())
        for seed in range(2):  # rounds of all sizes are known
            sampler.sample(
                machine,
                chain,
                shape,
                generator=make_tape(ROWS, chain, seed),
                warm_start=past,
                budget=Budget(deadline_ms=1e6, fallback=fallback),
            )
        late = [
            sampler.sample(
                machine,
                chain,
                shape,
                generator=make_tape(ROWS, chain, seed),
                warm_start=past,
                budget=Budget(deadline_ms=milliseconds, fallback=fallback),
            ).stats.seconds
            > milliseconds / 1000 + 1e-9
            for seed in range(REMEMBERED + 8)
        ]
        assert sum(late) <= 2, milliseconds


def test_the_last_plan_needs_no_time(machine: Machine, chain: GaussianChain) -> None:
    """Calls of 16 ms: 6 steps fit into 100 ms, for which a jump leaves no room."""
    shape, rounds = (ROWS, *EVENT), {}
    for fallback in ("jump", "last_plan"):
        past = WarmStart(torch.ones(shape, dtype=DTYPE), Experience())
        results = [
            make_sampler("ddpm").sample(
                machine,
                chain,
                shape,
                generator=make_tape(ROWS, chain, 0),
                warm_start=past,
                budget=Budget(deadline_ms=100, fallback=fallback),
            )
            for _ in range(2)
        ]
        rounds[fallback] = results[1].stats.rounds
    assert rounds == {"jump": (6,) * ROWS, "last_plan": (6,) * ROWS}  # 5 and a jump; 6


def test_the_time_before_and_after_the_sampler_counts(machine: Machine, chain: GaussianChain) -> None:
    """A deadline that began 50 ms ago has 50 of 100 left, and what comes after a jump is kept back with it."""
    shape, tape, past = (1, *EVENT), make_tape(1, chain, 0), WarmStart(None, Experience())
    results = [
        make_sampler("ddpm").sample(
            machine,
            chain,
            shape,
            generator=tape,
            warm_start=past,
            budget=Budget(deadline_ms=100, began=machine.now - 0.05),
        )
        for _ in range(2)
    ]
    assert results[1].stats.rounds == (4,)  # calls of 11 ms: 3 and a jump


def test_without_a_policy_times_are_those_of_the_network(machine: Machine, chain: GaussianChain) -> None:
    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return machine(x, timestep, cond)

    seconds = []
    for seed in range(4):
        before = machine.now
        make_sampler("asd:window=12").sample(
            network, chain, (1, *EVENT), generator=make_tape(1, chain, seed), budget=Budget(deadline_ms=50)
        )
        seconds.append(machine.now - before)
    assert seconds[0] > 0.05
    assert max(seconds[1:]) <= 0.05 + 1e-9
    assert pace_of(network).least(("jump", 1)) == pytest.approx(0.011)
    assert pace_of([]).least(("jump", 1)) == math.inf


def test_what_was_never_timed_is_taken_for_a_call(machine: Machine, chain: GaussianChain) -> None:
    """Of 40 ms two calls of 11 take 22, to know their time: one and a jump do not fit into the rest."""
    result = make_sampler("ddpm").sample(
        machine, chain, (1, *EVENT), generator=make_tape(1, chain, 0), budget=Budget(deadline_ms=40)
    )
    assert result.stats.rounds == (1,)
    assert result.stats.seconds == pytest.approx(0.033)


def test_a_call_that_was_held_up_does_not_refuse_a_deadline(machine: Machine, chain: GaussianChain) -> None:
    """The floor is the shortest of several timings."""

    @dataclass(eq=False)
    class HeldUp:
        calls: int = 0

        def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            self.calls += 1
            machine.slow = 10 if self.calls < 6 else 1
            return machine(x, timestep, cond)

    result = make_sampler("ddpm").sample(
        HeldUp(), chain, (1, *EVENT), generator=make_tape(1, chain, 0), budget=Budget(deadline_ms=40)
    )
    assert result.stats.cut == (True,)


def test_a_cut_plan_is_the_prediction_at_the_point_that_it_had_come_to(machine: Machine, chain: GaussianChain) -> None:
    tape, shape = make_tape(ROWS, chain, 0), (ROWS, *EVENT)
    experience = Experience()
    # Calls of 16 ms: 5 steps and a jump fit into 100 ms, 6 and a jump do not.
    results = [
        make_sampler("ddpm").sample(
            machine,
            chain,
            shape,
            generator=tape,
            warm_start=WarmStart(None, experience),
            budget=Budget(deadline_ms=100),
        )
        for _ in range(2)
    ]
    stats = results[1].stats
    assert stats.cut == (True,) * ROWS
    assert stats.rounds == stats.nfe == (6,) * ROWS
    target = Target(machine, chain, shape)
    x = tape.initial
    tables = chain.tables(x.device, x.dtype)
    for k in range(5):
        clean = target.predict(x, torch.full((ROWS,), k))
        x = tables.a[k] * clean + tables.sigma[k] * tape.normals[:, k] + tables.b[k] * x
    torch.testing.assert_close(results[1].sample, target.predict(x, torch.full((ROWS,), 5)), rtol=0, atol=1e-12)
    assert torch.equal(walk(target, tape)[0], make_sampler("ddpm").sample(machine, chain, shape, generator=tape).sample)


@pytest.mark.parametrize("spec", ["asd:window=4", "paradigms:window=4,tol=0.7"])
def test_rows_that_are_done_are_what_they_would_have_been(spec: str, machine: Machine, chain: GaussianChain) -> None:
    sampler, shape = make_sampler(spec), (40, *EVENT)
    tape = make_tape(40, chain, 1)
    full = sampler.sample(machine, chain, shape, generator=tape)
    known = Experience()
    known.freeze()
    results = [
        sampler.sample(
            machine,
            chain,
            shape,
            generator=tape,
            warm_start=WarmStart(None, known),
            budget=Budget(deadline_ms=milliseconds),
        )
        for milliseconds in np.linspace(1500, 300, 40)
    ]
    result = next(result for result in results if 0 < sum(result.stats.cut) < 40)
    cut = torch.tensor(result.stats.cut)
    assert torch.equal(result.sample[~cut], full.sample[~cut])
    assert any((each.sample != full.sample).any() for each in results)
    assert [rounds for rounds, gone in zip(result.stats.rounds, result.stats.cut, strict=True) if not gone] == [
        rounds for rounds, gone in zip(full.stats.rounds, result.stats.cut, strict=True) if not gone
    ]


@pytest.mark.parametrize("spec", SPECS)
def test_the_rest_of_the_last_plan(spec: str, machine: Machine, chain: GaussianChain) -> None:
    """Costs no call; a row that has no plan before it jumps."""
    sampler, shape, known = make_sampler(spec), (ROWS, *EVENT), Experience()
    last = torch.ones((ROWS, *EVENT), dtype=DTYPE)
    lacking = last.clone()
    lacking[1] = 0
    _, full, partly = (
        sampler.sample(
            machine,
            chain,
            shape,
            generator=make_tape(ROWS, chain, 2),
            warm_start=WarmStart(plans, known),
            budget=Budget(deadline_ms=40, fallback="last_plan"),
        )
        for plans in (last, last, lacking)
    )
    assert all(full.stats.cut) and all(partly.stats.cut)
    assert torch.equal(full.sample, last)
    others = torch.arange(ROWS) != 1
    assert torch.equal(partly.sample[others], last[others])
    assert (partly.sample[1] != 0).all()
    assert partly.stats.rounds[1] == partly.stats.rounds[0] + 1


@pytest.mark.parametrize("fallback", ["jump", "last_plan"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_deadline_below_one_call_names_the_floor(
    spec: str, fallback: str, machine: Machine, chain: GaussianChain
) -> None:
    with pytest.raises(
        SpecError, match=r"deadline_ms=10 is shorter than one network call, which takes 16 ms here for 6"
    ):
        make_sampler(spec).sample(machine, chain, (ROWS, *EVENT), budget=Budget(deadline_ms=10, fallback=fallback))


@pytest.mark.parametrize("milliseconds", [0, -3, math.nan, math.inf])
def test_a_deadline_is_a_positive_number(milliseconds: float, machine: Machine, chain: GaussianChain) -> None:
    with pytest.raises(SpecError, match=f"deadline_ms={milliseconds:g} is not a positive number"):
        make_sampler("asd:window=4").sample(machine, chain, (1, *EVENT), budget=Budget(deadline_ms=milliseconds))


def test_an_unknown_fallback_is_refused(machine: Machine, chain: GaussianChain) -> None:
    with pytest.raises(SpecError, match="fallback=guess is not one of jump, last_plan"):
        make_sampler("asd:window=4").sample(
            machine, chain, (1, *EVENT), budget=Budget(deadline_ms=50, fallback="guess")
        )


def test_a_machine_that_slows_down_is_noticed_and_forgiven(machine: Machine, chain: GaussianChain) -> None:
    """The first long time of a kind may be an accident, so two plans are late; those after them are not.

    And when it is fast again, plans get their rounds back.
    """
    sampler, known = make_sampler("ddpm"), Experience()

    def plan(seed: int) -> tuple[float, int]:
        result = sampler.sample(
            machine,
            chain,
            (1, *EVENT),
            generator=make_tape(1, chain, seed),
            warm_start=WarmStart(None, known),
            budget=Budget(deadline_ms=120),
        )
        return result.stats.seconds, result.stats.rounds[0]

    plan(0)
    assert plan(1)[1] == 10
    machine.slow = 3
    slow = [plan(seed) for seed in range(5)]
    assert all(seconds <= 0.12 for seconds, _ in slow[2:])
    machine.slow = 1
    assert [plan(seed)[1] for seed in range(40)][-1] == 10


def test_an_accident_does_not_forbid_rounds_for_ever(machine: Machine, chain: GaussianChain) -> None:
    """A round that has taken longer than the deadline is tried again, though no round is done meanwhile."""
    sampler, known = make_sampler("asd:window=12"), Experience()

    def rounds(seed: int) -> int:
        result = sampler.sample(
            machine,
            chain,
            (1, *EVENT),
            generator=make_tape(1, chain, seed),
            warm_start=WarmStart(None, known),
            budget=Budget(deadline_ms=200),
        )
        return result.stats.rounds[0]

    assert rounds(0) > 1
    machine.slow = 20  # so that not even a jump is done in time
    rounds(1)
    machine.slow = 1
    assert rounds(2) > 1  # once may be an accident
    machine.slow = 20
    rounds(3)
    machine.slow = 1
    after = [rounds(seed) for seed in range(4, 12 + REMEMBERED)]
    assert after[0] == 1
    assert min(after[-4:]) > 1


def test_a_first_round_that_was_held_up_costs_one_plan(machine: Machine, chain: GaussianChain) -> None:
    """What a call of a new size has to load, say."""
    seen: set[int] = set()

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        machine.now += 0.2 if len(x) > 1 and not seen else 0.0
        seen.update({len(x)} - {1})
        return machine(x, timestep, cond)

    past, cut = WarmStart(None, Experience()), []
    for seed in range(8):
        noise, budget = make_tape(1, chain, seed), Budget(deadline_ms=150)
        result = make_sampler("asd:window=8").sample(
            network, chain, (1, *EVENT), generator=noise, warm_start=past, budget=budget
        )
        cut.append(result.stats.cut[0])
    assert cut == [True] + 7 * [False]


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4", "paradigms:window=4"])
def test_a_jump_ends_at_a_sample_that_is_clipped(spec: str, machine: Machine) -> None:
    """DDIM's steps point along the noise of the raw prediction: by their own x̂0, which is beyond the clipped one."""
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    chain = GaussianChain.from_scheduler({**config, "clip_sample": True, "prediction_type": "epsilon"}, 100, 0.5)
    sampler, experience = make_sampler(spec), Experience()
    beyond = 0.0
    for milliseconds in (60, 90, 140):
        for seed in range(3):
            result = sampler.sample(
                lambda x, timestep, cond: 1.5 * machine(x, timestep, cond), chain, (ROWS, *EVENT),
                generator=make_tape(ROWS, chain, seed), warm_start=WarmStart(None, experience),
                budget=Budget(deadline_ms=milliseconds),
            )  # fmt: skip
            assert any(result.stats.cut)
            beyond = max(beyond, float(result.sample[torch.tensor(result.stats.cut)].abs().max()))
    assert beyond == 1.0


def test_pace_is_the_second_longest_of_the_last_times() -> None:
    pace = Pace()
    assert pace.expect("round") is None
    assert pace.least("round") == math.inf
    for seconds in (1.0, 3.0, 2.0):
        pace.note("round", seconds)
    assert (pace.expect("round"), pace.least("round")) == (2, 1)
    other = pace.copy()
    for _ in range(REMEMBERED - 1):
        other.note("round", 1.5)
    assert (other.expect("round"), pace.expect("round"), pace.expect("call")) == (1.5, 2, None)
    other.note("call", 7.0)
    assert (other.expect("call"), other.least("round")) == (7, 1)


def test_what_is_refused_is_tried_again() -> None:
    """At once where it was timed once, for that may have been an accident; then after so many times in a row."""
    pace = Pace()
    found = []
    for attempt in range(2 * REMEMBERED + 4):
        if pace.expect("round") is None:
            pace.note("round", 3.0)
            found.append(attempt)
        pace.refuse("round")
    assert found == [0, 1, REMEMBERED + 2, REMEMBERED + 3]
    pace.note("round", 3.0)
    for _ in range(3):  # never so often in a row
        pace.note("round", 3.0)
        for _ in range(REMEMBERED):
            pace.refuse("round")
        assert pace.copy().expect("round") == 3


@pytest.fixture
def slow_policy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], asd_policy.Policy]:
    """A policy whose network takes 10 ms a call, on a clock that shows nothing else."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    call = Target.call

    def slowed(self: Target, seen: Tensor, timestep: Tensor, rows: Tensor | None = None) -> Tensor:
        now[0] += 0.01
        return call(self, seen, timestep, rows)

    monkeypatch.setattr(Target, "call", slowed)
    return lambda spec: asd_policy.load_policy(checkpoint).with_sampler(make_sampler(spec))


def test_a_policy_keeps_its_deadline_and_records_what_was_cut(
    slow_policy: Callable[[str], asd_policy.Policy],
) -> None:
    policy = slow_policy("ddpm").with_deadline(45, "last_plan")
    assert (policy.deadline_ms, policy.fallback) == (45, "last_plan")
    observation = {"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}
    policy.reset(seed=0)
    actions = [policy.select_action(observation) for _ in range(24)]
    records = policy.robots[0].records
    assert [(record.cut, record.exact) for record in records] == [(True, False)] * 3
    # The second plan and the third are the rest of the one before: its last action is held where it ends.
    first = policy.plans[0].chunk[0].numpy()
    held = np.concatenate([first[1:], np.repeat(first[-1:], 9, axis=0)])
    np.testing.assert_allclose(np.stack(actions), held[:24], atol=1e-5)
    free = policy.with_deadline(None)
    free.reset(seed=0)
    free.select_action(observation)
    assert [(record.cut, record.exact) for record in free.robots[0].records] == [(False, True)]


def test_what_a_cut_plan_has_seen_is_learned(slow_policy: Callable[[str], asd_policy.Policy]) -> None:
    """Else a policy whose plans are all cut would never learn to draft."""
    policy = slow_policy("asd:window=2").with_deadline(55)
    policy.reset(seed=0)
    policy.select_action({"agent_pos": np.zeros(4), "environment_state": np.zeros(3)})
    assert policy.robots[0].records[0].cut
    assert policy.experience.plans == 1
    assert policy.experience.moments["noise"].any()
