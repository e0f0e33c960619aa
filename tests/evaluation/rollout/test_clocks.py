"""Plans that come late: which action is taken in which control step, and what is said of it."""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asd_policy
from asd_policy.errors import SpecError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.rollout.clocks import PILOTS, ControlClock, make_pilot
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.evaluation.rollout.latencies import Fixed, Measured, read_latency
from asd_policy.evaluation.rollout.ray_runner import Recipe
from asd_policy.evaluation.rollout.runner import LocalRunner, groups
from asd_policy.evaluation.rollout.timing import summarize_timing
from asd_policy.evaluation.rollout.vector import make_envs
from asd_policy.evaluation.summary import summarize_episodes
from asd_policy.policy.continuity import CONTINUITIES, Prefix
from asd_policy.policy.plan import PlanRecord, Timing
from asd_policy.policy.policy import Policy
from asd_policy.samplers import make_sampler

ENV = "faulty_envs:faulty/None-v0"  # 20 steps, and every action counts in the reward
SPEC = "asd:window=5,draft=response,verify=block"
SEED = 3
STEPS, REST = 8, 15  # actions of the fixture's plans: executed before the next one, and from the first of those on
HZ = 10.0
Taken = tuple[int, ...]
"""Number of a plan, and the control step that its action was planned for."""


@pytest.fixture
def told() -> list[Prefix | None]:
    """What the plans of `policy` were told of the actions taken meanwhile."""
    return []


@pytest.fixture
def policy(small_checkpoint: Path, told: list[Prefix | None]) -> Policy:
    """A policy whose actions say which plan they are of, and for which control step."""
    policy = asd_policy.load_policy(small_checkpoint)

    def plan_for(rows: Sequence[int], prefixes: Sequence[Prefix | None] | None = None) -> list[Any]:
        told.extend(prefixes or ())
        chunks = []
        for row in rows:
            robot = policy.robots[row]
            number = len(robot.records)
            robot.records.append(
                PlanRecord(
                    at=robot.steps,
                    rounds=1,
                    nfe=1,
                    window=1,
                    batch=len(rows),
                    seconds=0.1,
                    network_seconds=None,
                    refused=None,
                    unjudged=None,
                )
            )
            chunks.append(np.array([[number, robot.steps + ahead] for ahead in range(REST)], np.float32))
        return chunks

    policy.plan_for = plan_for
    return policy


def control(policy: Policy, mode: str, delay: int, steps: int) -> tuple[list[Taken], list[Timing]]:
    """Run one robot whose plans come so many control steps late: its actions, and their timings."""
    pilot = make_pilot(policy, ControlClock(mode, HZ, Fixed(1e3 * delay / HZ)))
    pilot.reset_batch([0])
    taken = [tuple(map(int, pilot.act([0])[0])) for _ in range(steps)]
    return taken, [plan.timing for plan in pilot.robots[0].records if plan.timing is not None]


def span(plan: int, first: int, stop: int) -> list[Taken]:
    return [(plan, step) for step in range(first, stop)]


@pytest.mark.parametrize("mode", PILOTS)
def test_without_latency_it_is_the_policy(mode: str, policy: Policy) -> None:
    policy.reset_batch([0])
    unclocked = [tuple(map(int, policy.act([0])[0])) for _ in range(30)]
    assert unclocked == span(0, 0, 8) + span(1, 8, 16) + span(2, 16, 24) + span(3, 24, 30)
    taken, timings = control(policy, mode, 0, 30)
    assert taken == unclocked
    assert [(timing.latency, timing.delay, timing.stale) for timing in timings] == [(0.0, 0, 0)] * 4


@pytest.mark.parametrize(
    ("delay", "expected", "stale"),
    [
        (1, span(0, 0, 8) + [(0, 7)] + span(1, 8, 16) + [(1, 15)] + span(2, 17, 25), [0, 1, 1]),
        (3, span(0, 0, 8) + [(0, 7)] * 3 + span(1, 8, 16) + [(1, 15)] * 3 + span(2, 19, 27), [0, 3, 3]),
        (20, span(0, 0, 8) + [(0, 7)] * 20 + span(1, 8, 16) + [(1, 15)] * 5, [0, 20, 5]),
    ],
)
def test_sync(delay: int, expected: list[Taken], stale: list[int], policy: Policy) -> None:
    """The last action is repeated; then the plan is executed from its first action, late as it is."""
    taken, timings = control(policy, "sync", delay, len(expected))
    assert taken == expected
    for number, (timing, count) in enumerate(zip(timings, stale, strict=True)):
        assert replace(timing, seam=None) == Timing(delay / HZ, delay if number else 0, count, None)


@pytest.mark.parametrize(
    ("delay", "expected", "stale"),
    [
        (1, span(0, 0, 9) + span(1, 9, 17) + span(2, 17, 25), [0, 0, 0, 0]),
        (3, span(0, 0, 11) + span(1, 11, 19) + span(2, 19, 27), [0, 0, 0, 0]),
        # A plan has actions for 15 steps, so one begun at step 8 that comes in step 18 is missed in three.
        (10, span(0, 0, 15) + [(0, 14)] * 3 + span(1, 18, 23) + [(1, 22)] * 5 + span(2, 28, 33), [0, 3, 5, 0]),
        # WarmStart as a whole when it comes: its last action is left, and the next plan begins in that step.
        (20, span(0, 0, 15) + [(0, 14)] * 13 + [(1, 22)] * 20 + [(2, 42)], [0, 13, 19, 0]),
    ],
)
def test_async(delay: int, expected: list[Taken], stale: list[int], policy: Policy) -> None:
    """The rest of the last plan is executed; then the new one takes over with its action for that very step."""
    taken, timings = control(policy, "async", delay, len(expected))
    assert taken == expected
    assert [timing.stale for timing in timings] == stale
    assert [timing.delay for timing in timings] == [0] + [delay] * (len(stale) - 1)


def test_a_seam_is_measured_in_normalised_units(policy: Policy) -> None:
    """From the old plan's action for the step to the new one's: here they differ by 1 in the first coordinate."""
    gain = policy.normalization["action"].gain.numpy()
    for mode, delay, steps, jump in (
        ("async", 3, 12, (1, 0)),
        ("async", 10, 19, (1, 4)),  # the old plan has run out in step 15: its action for 14 is repeated
        ("sync", 3, 12, (1, 1)),  # from that for step 7 to that for 8
    ):
        _, timings = control(policy, mode, delay, steps)
        assert [timing.seam for timing in timings[:2]] == [None, pytest.approx(np.linalg.norm(gain * jump))]
    _, timings = control(policy, "sync", 0, 12)
    assert [timing.seam for timing in timings] == [None, None]  # the old plan is at its end, and nothing is repeated


def test_the_seam_is_behind_what_a_plan_was_given(policy: Policy) -> None:
    """5 actions are given to a plan that comes after 2: the next 3 are those of the plan before."""
    pilot = make_pilot(policy, ControlClock("async", HZ, Listed([5, 2]), "inpaint"))
    pilot.reset_batch([0])
    plan_for = policy.plan_for

    def goes_on(rows: Sequence[int], prefixes: Sequence[Prefix | None] | None = None) -> list[Any]:
        """Plan with the actions given; the sixth is 7 further on."""
        plans = plan_for(rows, prefixes)
        for plan, each in zip(plans, prefixes or (), strict=True):
            if each is not None:
                plan[: each.delay] = each.actions[: each.delay]
                plan[each.delay] = each.actions[each.delay] + np.array([7, 0])
        return plans

    policy.plan_for = goes_on
    for _ in range(11):
        pilot.act([0])
    gain = float(policy.normalization["action"].gain[0])
    assert [plan.timing.seam for plan in pilot.robots[0].records if plan.timing] == [None, pytest.approx(7 * gain)]


@dataclass(frozen=True)
class Listed:
    """The latencies of a list, in turn [control steps]."""

    delays: list[int]
    name: str = "listed"
    sha256: None = None

    def draw(self, spec: str, measured: float, rng: np.random.Generator) -> float:
        """Take the next one [s]."""
        return self.delays.pop(0) / HZ


@pytest.mark.parametrize("continuity", CONTINUITIES)
def test_a_plan_is_told_what_is_done_meanwhile(continuity: str, policy: Policy, told: list[Prefix | None]) -> None:
    """The rest of the last plan, and the largest of the last delays, of the plan that was waited for too."""
    pilot = make_pilot(policy, ControlClock("async", HZ, Listed([5, 2, 6, 10, 1]), continuity))
    pilot.reset_batch([0])
    for _ in range(35):
        pilot.act([0])
    if continuity == "none":
        assert told == [None] * 5
        return
    first, *later = told
    assert first is None
    found = [(each.actions.astype(int).tolist(), each.delay, each.soft) for each in later if each is not None]
    soft = continuity == "soft"
    # Plans begin at 0, 8, 16, 24 and, the one before taking 10 steps, at 34, when it comes.
    assert found == [
        ([[0, step] for step in range(8, 15)], 5, soft),
        ([[1, step] for step in range(16, 23)], 5, soft),
        ([[2, step] for step in range(24, 31)], 6, soft),
        ([[3, step] for step in range(34, 39)], 5, soft),  # 10 are expected, and 5 actions are left
    ]


def test_robots_have_clocks_of_their_own(policy: Policy) -> None:
    """Plans of several robots that are due in one step are made together, and each is as if alone."""
    pilot = make_pilot(policy, ControlClock("async", HZ, Fixed(300)))
    pilot.reset_batch([0, 1])
    both = [[tuple(map(int, action)) for action in pilot.act([0, 1])] for _ in range(20)]
    alone = [tuple(map(int, pilot.act([1])[0])) for _ in range(10)]
    expected, _ = control(policy, "async", 3, 30)
    assert [pair[0] for pair in both] == expected[:20]
    assert [pair[1] for pair in both] + alone == expected


def test_what_a_run_by_a_clock_adds_up_to(policy: Policy) -> None:
    """Fresh actions at 0 … 7, 11 … 18 and 22 … 26 of 27 steps, so 18 gaps of one step and two of four."""
    _, timings = control(policy, "sync", 3, 27)
    plans = tuple(
        PlanRecord(
            at=at,
            rounds=1,
            nfe=1,
            window=1,
            batch=1,
            seconds=0.1,
            network_seconds=None,
            refused=None,
            unjudged=None,
            timing=timing,
        )
        for at, timing in zip((0, 8, 19), timings, strict=True)
    )
    episode = Episode(SPEC, 0, True, 1.0, 27, None, None, plans)
    said = summarize_timing([episode, replace(episode, index=1, error="it broke")], HZ)
    assert said is not None
    assert (said["missed_deadlines"], said["missed_fraction"], said["stale_steps_mean"]) == (2, 1.0, 6.0)
    assert said["stale_fraction"] == pytest.approx(6 / 27)
    assert said["control_frequency_hz"] == pytest.approx(21 / 2.7)
    assert said["jitter_ms"] == pytest.approx(100 * np.std([1] * 18 + [4] * 2))
    assert (said["delay_steps_mean"], said["delay_steps_max"]) == (3.0, 3)
    assert said["counted_latency_ms"]["mean"] == pytest.approx(300)
    assert said["seam_mean"] is not None
    cut = replace(episode, steps=20, plans=(*plans[:2], replace(plans[2], timing=Timing(0.3, 3, 1, None))))
    short = summarize_timing([cut], HZ)
    assert short is not None
    assert short["jitter_ms"] == pytest.approx(100 * np.std([1] * 14 + [4, 2]))  # no action follows the last wait
    frozen = replace(episode, steps=100, plans=(plans[0], replace(plans[1], timing=Timing(50.0, 500, 92, None))))
    stuck = summarize_timing([frozen], HZ)
    assert stuck is not None
    assert stuck["jitter_ms"] == pytest.approx(100 * np.std([1] * 7 + [93]))
    assert summarize_timing([replace(episode, error="it broke")], HZ) is None


def test_an_episode_of_a_clock_as_json() -> None:
    plan = PlanRecord(
        at=8,
        rounds=7,
        nfe=140,
        window=32,
        batch=2,
        seconds=0.25,
        network_seconds=None,
        refused=(3, 90),
        unjudged=(31,),
        timing=Timing(0.25, 3, 1, 0.5),
    )
    episode = Episode(SPEC, 3, True, 1.5, 40, None, None, (plan, replace(plan, timing=None)))
    values = episode.to_json()
    assert Episode.from_json(values) == episode
    del values["plans"][1]["timing"]  # of a run before there were clocks
    assert Episode.from_json(values) == episode


@pytest.mark.parametrize(
    ("seconds", "hz", "steps"),
    [(0.0, 50, 0), (0.02, 50, 1), (0.021, 50, 2), (0.07, 100, 7), (1e-6, 50, 1), (3, 20, 60)],
)
def test_a_latency_in_control_steps(seconds: float, hz: float, steps: int) -> None:
    """To the next step that begins; 0.07 s at 100 Hz, which floating point takes for a little more than 7, are 7."""
    assert ControlClock("sync", hz, Measured()).steps(seconds) == steps


def test_clocks_that_are_none() -> None:
    for hz in (0.0, -50.0, float("nan"), float("inf"), 1e-320, 1e9):
        says = f"--hz {hz:g} is not a number of control steps in a second in 0.001 … 1e+06"
        with pytest.raises(SpecError, match=re.escape(says)):
            ControlClock("sync", hz, Measured())
    with pytest.raises(SpecError, match="clock 'later' is not one of sync, async"):
        ControlClock("later", 50, Measured())
    with pytest.raises(SpecError, match="--continuity 'hard' is not one of none, inpaint, soft"):
        ControlClock("async", 50, Measured(), "hard")
    with pytest.raises(SpecError, match="--continuity soft is for --clock async"):
        ControlClock("sync", 50, Measured(), "soft")


@pytest.fixture(scope="module")
def planner(small_checkpoint: Path) -> Policy:
    env = make_env(ENV)
    (planner,) = closed_loop.prepare_planners(asd_policy.load_policy(small_checkpoint), env, [make_sampler(SPEC)])
    env.close()
    return planner


def episodes(planner: Policy, clock: ControlClock | None, count: int = 3, envs: int = 1) -> list[Episode]:
    """Drop from episodes what depends on this machine's clock."""
    runner = LocalRunner({SPEC: make_pilot(planner, clock)}, make_envs(partial(make_env, ENV), envs), SEED)
    done = list(runner.run(groups([SPEC], count, envs)))
    runner.close()
    return untimed(done)


def untimed(done: Sequence[Episode]) -> list[Episode]:
    ordered = sorted(done, key=lambda each: each.index)
    return [
        replace(each, plans=tuple(replace(plan, seconds=0.0, network_seconds=None) for plan in each.plans))
        for each in ordered
    ]


@pytest.mark.parametrize("mode", PILOTS)
def test_no_latency_gives_the_episodes_without_a_clock(mode: str, planner: Policy) -> None:
    """To the last bit of the return."""
    waited = episodes(planner, None)
    clocked = episodes(planner, ControlClock(mode, HZ, Fixed(0)))
    assert all(plan.timing is not None for each in clocked for plan in each.plans)
    assert [replace(each, plans=tuple(replace(plan, timing=None) for plan in each.plans)) for each in clocked] == waited


@pytest.mark.parametrize("latency", ["250", "trace.txt"])
def test_given_latencies_come_out_again(latency: str, planner: Policy, tmp_path: Path, small_checkpoint: Path) -> None:
    """Whoever runs the group, and beside whom; a file's are drawn for each plan, differently in each episode."""
    if latency.endswith("txt"):
        (tmp_path / latency).write_text("100\n250\n330\n\n700\n")
        latency = str(tmp_path / latency)
    clock = ControlClock("async", HZ, read_latency(latency, [SPEC]))
    first = episodes(planner, clock)
    assert episodes(planner, clock) == first
    recipe = Recipe.of(str(small_checkpoint), "cpu", {SPEC: planner}, ENV, 1, SEED, clock)
    worker = pickle.loads(pickle.dumps(recipe)).cook()  # as Ray takes it elsewhere
    assert untimed(list(worker.run(groups([SPEC], 3, 1)))) == first
    worker.close()
    drawn = [counted(each) for each in first]
    if latency == "250":
        assert set(drawn) == {(0.25,) * 3}
    else:
        assert len(set(drawn)) == 3
        assert {each for plans in drawn for each in plans} <= {0.1, 0.25, 0.33, 0.7}
    two = episodes(planner, clock, envs=2)
    for alone, beside in zip(first, two, strict=True):
        assert alone.total_reward == pytest.approx(beside.total_reward, abs=1e-3)
        assert (alone.steps, [plan.at for plan in alone.plans]) == (beside.steps, [plan.at for plan in beside.plans])
        assert counted(alone) == counted(beside)


def test_continuity_in_closed_loop(planner: Policy) -> None:
    """It changes what is done; given actions leave the law on the rest of a plan exact, drawing to them does not."""
    returns, exact = [], []
    for continuity in CONTINUITIES:
        done = episodes(planner, ControlClock("async", HZ, Fixed(300), continuity))
        returns.append(tuple(each.total_reward for each in done))
        exact.append([[plan.exact for plan in each.plans] for each in done])
        (summary,) = summarize_episodes({SPEC: planner.sampler}, done, len(planner.chain), hz=HZ)
        assert summary["exact"] is (continuity != "soft")
    assert len(set(returns)) == 3
    assert exact == [[[True, True, True]] * 3, [[True, True, True]] * 3, [[True, False, False]] * 3]


def counted(episode: Episode) -> tuple[float, ...]:
    return tuple(plan.timing.latency for plan in episode.plans if plan.timing is not None)


def test_measured_latency_is_the_plan_s_own(planner: Policy) -> None:
    runner = LocalRunner(
        {SPEC: make_pilot(planner, ControlClock("sync", 1e3, Measured()))}, make_envs(partial(make_env, ENV), 1), SEED
    )
    (episode,) = runner.run(groups([SPEC], 1, 1))
    runner.close()
    assert counted(episode) == tuple(plan.seconds for plan in episode.plans)
    later = [plan.timing for plan in episode.plans[1:] if plan.timing is not None]
    assert [timing.delay for timing in later] == [int(np.ceil(1e3 * timing.latency)) for timing in later]
