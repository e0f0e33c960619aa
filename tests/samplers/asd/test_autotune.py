"""The cost model behind `auto`."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.recording import MOST_RECORDINGS
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.autotune import (
    DEFAULT,
    PRIOR_REFUSALS,
    WINDOWS,
    Setting,
    call_seconds,
    candidates,
    expected_costs,
    expected_seconds,
    refusals,
    shortlist,
)
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.trials import ENOUGH, STAGES, Trial
from asd_policy.samplers.warm_start import WarmStart

Floats = npt.NDArray[np.float64]


def simulate(hazard: Floats, window: int, latency: Floats, plans: int = 20_000) -> tuple[float, float]:
    """Return mean and standard error of a plan's time, by playing the rounds of the model."""
    rng = np.random.default_rng(0)
    steps = len(hazard)
    times = np.zeros(plans)
    for plan in range(plans):
        cursor = 0
        while cursor < steps:
            points = min(window, steps - cursor)
            times[plan] += latency[points]
            refused = np.flatnonzero(rng.random(points - 1) < hazard[cursor : cursor + points - 1])
            cursor += points if len(refused) == 0 else int(refused[0]) + 1
    return float(times.mean()), float(times.std() / np.sqrt(plans))


@pytest.mark.parametrize("window", [1, 4, 20])
def test_expected_time_is_that_of_the_rounds(window: int) -> None:
    hazard = np.linspace(0.02, 0.4, 20)
    latency = 1 + 0.1 * np.arange(21.0)
    mean, error = simulate(hazard, window, latency)
    found = expected_seconds(hazard, window, lambda points: latency[points])
    assert abs(found - mean) < 4 * error + 1e-9


def experience(seconds_per_call: float, seconds_per_point: float, batch: int = 1) -> Experience:
    latency = {batch * window: seconds_per_call + seconds_per_point * batch * window for window in WINDOWS}
    return Experience(latency=latency)


def best(known: Experience, batch: int = 1) -> Setting:
    costs = expected_costs(candidates(100), known, batch, 100)
    return min(costs, key=lambda setting: costs[setting])


def told(refused: float) -> tuple[Tensor, Tensor]:
    """Fifty drafts judged at each step, a share of them refused."""
    return torch.full((100,), 50.0), torch.full((100,), 50 * refused)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_free_batch_takes_the_largest_window(batch: int) -> None:
    assert best(experience(5e-3, 0, batch), batch) == (max(WINDOWS), *DEFAULT.pair)


def test_a_batch_at_full_price_takes_none() -> None:
    assert best(experience(0, 5e-3)).window == 1


def test_between_them_lies_a_window_between() -> None:
    known = experience(5e-3, 5e-4)
    costs = expected_costs(candidates(100), known, 1, 100)
    assert 1 < best(known).window < max(WINDOWS)
    assert costs[best(known)] < costs[Setting(1, *DEFAULT.pair)]


def test_frequent_refusals_shrink_the_window() -> None:
    windows = []
    for refused in (0.01, 0.6):
        known = experience(5e-3, 5e-4)
        known.judgements = {pair: told(refused) for pair in PRIOR_REFUSALS}
        windows.append(best(known).window)
    assert windows[1] < windows[0]


def test_the_pair_with_fewer_refusals_is_taken() -> None:
    known = experience(5e-3, 0)
    known.judgements = {pair: told(0.05 if pair == ("warm", "reflection") else 0.1) for pair in PRIOR_REFUSALS}
    assert best(known).pair == ("warm", "reflection")


def test_a_plan_that_was_lucky_does_not_make_its_pair_the_best() -> None:
    known, once = experience(5e-3, 5e-4), torch.ones(100)
    usual = {pair: (3 * once, 3 * share * once) for pair, share in PRIOR_REFUSALS.items()}
    for lucky in (pair for pair in PRIOR_REFUSALS if pair != DEFAULT.pair):
        known.judgements = {DEFAULT.pair: usual[DEFAULT.pair], lucky: (once, 0 * once)}
        assert best(known).pair == DEFAULT.pair
    # What plans say of how often this policy's drafts are refused at all is believed soon.
    known.judgements = {DEFAULT.pair: (5 * once, 2 * once)}
    hazards = {pair: refusals(pair, known, 100) for pair in PRIOR_REFUSALS}
    assert (hazards[DEFAULT.pair] > 0.3).all() and (hazards["warm", "block"] > hazards[DEFAULT.pair]).all()


def test_what_is_given_stays() -> None:
    assert {setting.draft for setting in candidates(100, draft="picard")} == {"picard"}
    assert {setting.verify for setting in candidates(100, verify="block")} == {"block"}
    assert {setting.window for setting in candidates(100, window=7)} == {7}
    assert max(setting.window for setting in candidates(12)) == 12


@dataclass
class Dial:
    """A network and its clock: a call takes so long as it is told, on a clock of its own."""

    network: MixtureDenoiser
    per_call: float
    per_point: float
    now: float = 0.0
    dear: dict[int, float] = field(default_factory=dict)
    """What a call of so many points takes beside that."""

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Let time pass."""
        self.now += self.per_call + self.per_point * len(x) + self.dear.get(len(x), 0.0)
        return self.network(x, timestep)


@pytest.mark.parametrize(("per_call", "per_point", "expected"), [(1.0, 0.0, 12), (0.0, 1.0, 1)])
def test_auto_tries_and_chooses(
    per_call: float,
    per_point: float,
    expected: int,
    mixture: MixtureDenoiser,
    chain: GaussianChain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the time of plans as they run; once it has chosen, nothing is timed or tried any more."""
    dial = Dial(mixture, per_call, per_point)
    monkeypatch.setattr("time.perf_counter", dial.perf_counter)
    known = Experience()
    generator, past = torch.Generator().manual_seed(0), WarmStart(None, known)

    def windows(plans: int) -> list[int]:
        made = [
            make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, warm_start=past)
            for _ in range(plans)
        ]
        return [plan.stats.window for plan in made]

    tried = windows(4 + 8 * ENOUGH)
    assert known.latency[1] == per_call + per_point
    assert len(set(tried)) > 1
    assert set(windows(3)) == {expected}
    assert known.trials[1, None, None].done
    known.freeze()
    assert windows(1) == [expected]


def test_the_clock_overrules_the_model(
    mixture: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large calls become dear in plans, which the calls that were timed have not shown."""
    dial = Dial(mixture, 1.0, 0.3)
    monkeypatch.setattr("time.perf_counter", dial.perf_counter)
    known, generator = Experience(), torch.Generator().manual_seed(0)

    def plan() -> int:
        past = WarmStart(None, known)
        return make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, warm_start=past).stats.window

    for _ in range(5):
        plan()
    expected = min(trial := known.trials[1, None, None].left)
    assert len(trial) > 1
    for size in range(expected.window + 1, len(chain) + 1):
        dial.dear[size] = 50.0
    for _ in range(8 * ENOUGH):
        plan()
    assert plan() == expected.window


def test_what_plans_cost_is_what_is_told() -> None:
    setting = Setting(8, "picard", "block")
    trial = Trial.of([setting, Setting(16, "picard", "block")])
    for rounds, seconds in ((10, 99.0), (10, 1.0), (20, 2.0), (15, 1.5), (15, 30.0)):
        trial.note(setting, rounds, 8 * rounds, seconds)
    assert trial.seconds(setting) == pytest.approx(14 * 0.1)  # neither what the first had to load nor a busy moment
    assert trial.tail(setting) > trial.seconds(setting)


def test_rounds_and_points_have_prices_of_their_own() -> None:
    """A plan of few rounds may have as many points as one of many: the time of a round differs from plan to plan."""
    plans = {Setting(8, "picard", "block"): [(16, 110), (12, 96), (14, 105), (13, 104)]}
    plans |= {Setting(32, "picard", "block"): [(4, 120), (9, 250), (5, 140), (8, 170)]}
    slow = {8: 1.0, 32: 1.1}  # one setting's points are dearer: its calls are of another size
    trial = Trial.of(plans)
    for setting, counts in plans.items():
        for rounds, points in (counts[0], *counts):
            trial.note(setting, rounds, points, slow[setting.window] * (0.4 * rounds + 0.03 * points))
    for setting, counts in plans.items():
        rounds, points = np.mean([counts[0], *counts], axis=0)
        assert trial.seconds(setting) == pytest.approx(slow[setting.window] * (0.4 * rounds + 0.03 * points), rel=0.01)


def tried_rounds(found: dict[int, float], expected: dict[int, float]) -> dict[int, float]:
    """Estimate the rounds of windows that took `found` in ten plans each, a model expecting others; in thousandths."""
    settings = {window: Setting(window, "picard", "block") for window in found}
    trial = Trial.of(settings.values())
    for window, setting in settings.items():
        for _ in range(10):
            trial.tried[setting].add(round(1000 * found[window]), round(1000 * found[window]), found[window])
    counts = {setting: 1000 * expected[window] for window, setting in settings.items()}
    trial.expected = {setting: (count, count) for setting, count in counts.items()}
    return {window: trial.seconds(setting) for window, setting in settings.items()}


def test_noise_of_a_few_plans_is_smoothed() -> None:
    """The model's shape, but for a factor that goes along with the window; of one window nobody else knows anything."""
    model = {1: 100.0, 4: 27.0, 8: 15.0, 16: 9.0, 32: 6.0}
    truth = {window: rounds * (0.9 + 0.05 * np.log(window)) for window, rounds in model.items()} | {1: 100.0}
    assert tried_rounds(truth, model) == pytest.approx(truth, rel=1e-3)
    lucky = tried_rounds(truth | {32: 0.8 * truth[32]}, model)
    assert 0.84 * truth[32] < lucky[32] < 0.95 * truth[32]  # two thirds of its luck are the others', too
    assert lucky[1] == pytest.approx(100)
    few = {32: 5.0, 16: 9.5}
    assert tried_rounds(few, model) == pytest.approx(few)


@pytest.mark.parametrize(("share", "taken"), [(0.97, False), (0.9, True)])
def test_the_luck_of_a_setting_alone_is_not_taken_for_a_gain(share: float, taken: bool) -> None:
    """Others of its pair were not tried. A third more or less in each plan leaves the mean of so many 6 % of doubt."""
    settings = [Setting(window, "response", "block") for window in (8, 16, 32)]
    alone = Setting(16, "response", "reflection")
    trial = Trial.of([*settings, alone])
    trial.expected = dict.fromkeys(trial.tried, (100.0, 100.0))
    for plan in range(ENOUGH):
        for setting in trial.tried:
            count = round(1000 * (share if setting == alone else 1) * (1 + (-1) ** plan / 3))
            trial.note(setting, count, count, 1e-3 * count)
            assert trial.done or len(trial.left) == 4
    assert (trial.best == alone) == taken


def test_the_model_is_asked_before_each_decision(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    sampler, experience = make_sampler("asd"), Experience()
    while not experience.plans or experience.undecided:
        sampler.sample(mixture, chain, (1, 2, 2), warm_start=WarmStart(None, experience))
    (trial,) = experience.trials.values()
    assert trial.expected.keys() == trial.tried.keys()
    for setting, (rounds, points) in trial.expected.items():
        assert len(chain) / setting.window <= rounds <= len(chain) <= points
        if setting.window > 1 and trial.tried[setting].plans > 3:
            assert (rounds, points) == pytest.approx(trial.tried[setting].counts.mean(0), rel=0.3)


def test_of_equals_the_shorter_tail_is_taken() -> None:
    steady, wild = Setting(8, "picard", "block"), Setting(32, "picard", "block")
    trial = Trial.of([wild, steady])
    for plan in range(ENOUGH):
        for setting, rounds in ((wild, 5 + 10 * (plan % 2)), (steady, 10)):
            trial.note(setting, rounds, 8 * rounds, 0.1 * rounds)
    assert trial.done and trial.best == steady


def test_what_cannot_be_the_best_is_tried_no_more() -> None:
    fast, slow = Setting(8, "picard", "block"), Setting(32, "picard", "block")
    trial = Trial.of([slow, fast])
    turns = []
    while not trial.done:
        setting = trial.turn(1)
        turns.append(setting)
        trial.note(setting, 10, 80, 1.0 if setting == fast else 1.5)
    assert turns[:2] == [slow, fast] and all(set(turns[at : at + 2]) == {slow, fast} for at in (2, 4, 6))
    assert len(turns) == 8 and trial.best == fast
    trial.note(Setting(9, "picard", "block"), 1, 1, 0.1)  # not one of those that are tried
    assert trial.best == fast


@pytest.mark.parametrize(("begin", "end"), [(0, 12), (7, 80), (20, 60)])
def test_load_that_comes_and_goes_is_not_a_settings_own(begin: int, end: int) -> None:
    """Ten times as long: for plans, not for one setting. The best one is a fifth cheaper."""
    best, *others = settings = [Setting(window, "picard", "block") for window in (8, 4, 16, 32, 64)]
    trial, made = Trial.of([*others, best]), 0
    while not trial.done:
        setting = trial.turn(1)
        seconds = (1.0 if setting == best else 1.25) * (10 if begin <= made < end else 1)
        trial.note(setting, 10, 80, seconds)
        made += 1
    assert trial.best == best and len(settings) == len(trial.tried)


def test_settings_of_which_plans_are_cut_or_fail_are_left() -> None:
    """What was lost is not cheap: only the short ones of its plans are known."""
    tight, wide, never = (Setting(window, "picard", "block") for window in (100, 24, 64))
    trial = Trial.of([tight, wide, never])
    made: list[Setting] = []
    while not trial.done:
        setting = trial.turn(1)
        made.append(setting)
        if setting == never or (setting == tight and trial.tried[tight].plans % 2):
            trial.lose(setting)
        else:
            trial.note(setting, 10, 80, 0.9 if setting == tight else 1.0)
    assert trial.best == wide and made.count(never) == made.count(tight) == min(STAGES)
    assert trial.tried[never].lost == 1 and trial.tried[tight].lost == 0.5
    again = Trial.from_json(trial.to_json())
    assert [cost.lost for cost in again.tried.values()] == [cost.lost for cost in trial.tried.values()]


def test_where_all_plans_are_lost_the_first_setting_stays() -> None:
    first, second = (Setting(window, "picard", "block") for window in (8, 24))
    trial = Trial.of([first, second])
    for _ in range(2 * ENOUGH):
        trial.lose(trial.turn(1))
    assert trial.done and trial.best == first and trial.record() == []


def test_recordings_are_tried_in_blocks() -> None:
    """Each setting is one more recording: to go to and fro would record them again and again."""
    trial = Trial.of([Setting(8, "picard", "block"), Setting(32, "picard", "block")])
    turns = []
    for _ in range(10):
        turns.append(trial.turn(4).window)
        trial.note(trial.turn(4), 10, 80, 1.0)
    assert turns[:8] == [8] * 4 + [32] * 4 and turns[8] == turns[9]


def test_what_comes_back_in_plans_falls_on_all_settings() -> None:
    """A task whose every other plan is hard, and two settings that cost the same."""
    settings = [Setting(8, "picard", "block"), Setting(32, "picard", "block")]
    trial = Trial.of(settings)
    for plan in range(2 * ENOUGH - 1):
        trial.note(trial.turn(1), 5 + 10 * (plan % 2), 80, 1.0)
    for setting in settings:
        assert 7 < trial.tried[setting].counts[:, 0].mean() < 13


def test_trials_are_kept() -> None:
    trial = Trial.of([Setting(8, "picard", "block"), Setting(32, "picard", "block")])
    for _ in range(3):
        trial.note(trial.turn(1), 10, 80, 1.0)
    trial.expected = dict.fromkeys(trial.tried, (9.0, 90.0))
    other = trial.copy()
    assert (other.tried, other.left, other.expected) == (trial.tried, trial.left, trial.expected)
    other.note(other.turn(1), 10, 80, 1.0)
    assert other.tried != trial.tried
    for damage in ((0, 8, 1.0), (9, 8, 1.0), (9, 80, -1.0), (9, 80, np.inf), (9, 80, np.nan)):
        written = trial.to_json()
        written[1][0][4].append(damage)
        with pytest.raises(ValueError, match="no number of rounds, points and seconds"):
            Trial.from_json(written)


def test_the_shortlist_is_what_may_be_the_best() -> None:
    costs = {Setting(window, "picard", "block"): cost for window, cost in ((1, 9.0), (4, 1.2), (8, 1.0), (16, 1.4))}
    assert [setting.window for setting in shortlist(costs)] == [8, 4]
    flat = {Setting(window, *pair): 1.0 for window in WINDOWS for pair in PRIOR_REFUSALS}
    assert len(shortlist(flat)) <= 9 and len({setting.window for setting in shortlist(flat)}) >= 7
    assert len(shortlist(flat, 4)) + 1 < MOST_RECORDINGS  # with the sequential sampler beside them


def test_times_between_and_beyond_those_that_were_measured() -> None:
    known = Experience(latency={1: 1.0, 4: 2.5, 16: 8.5})
    np.testing.assert_allclose(call_seconds(known, np.array([1, 2, 4, 10, 16, 32])), [1, 1.5, 2.5, 5.5, 8.5, 16.5])
    assert call_seconds(Experience(latency={4: 2.0}), np.array([9])) == 2.0


def test_what_has_no_memory_is_not_tried() -> None:
    known = Experience(latency={1: 4e-3, 4: 4e-3, 16: 5e-3, 64: np.inf})
    costs = expected_costs(candidates(100), known, 1, 100)
    assert {each.window for each, cost in costs.items() if np.isinf(cost)} == {64, 100}
    assert max(setting.window for setting in shortlist(costs)) == 48
    np.testing.assert_allclose(call_seconds(known, np.array([16, 28, 52, 64, 800])), [5e-3, 6e-3, 8e-3, np.inf, np.inf])
    known.latency = {8: np.inf, 32: 1.0}  # on a device that has become full
    assert {each.window for each in shortlist(expected_costs(candidates(100), known, 8, 100))} <= set(WINDOWS)


def test_a_network_without_memory_for_many_points(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Large calls that are timed fail, and some of plans: what fits makes all later ones. Then there is less room."""
    room = 40

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        if len(x) > room:
            raise MemoryError
        return mixture(x, timestep)

    sampler, past = make_sampler("asd"), WarmStart(None, Experience())

    def plans(count: int) -> int:
        failed = 0
        for seed in range(count):
            try:
                noise = torch.Generator().manual_seed(seed)
                sampler.sample(network, chain, (8, 2, 2), generator=noise, warm_start=past)
            except MemoryError:
                failed += 1
        return failed

    assert plans(20) <= 3 and plans(20) == 0
    room = 12
    assert 0 < plans(20) <= 3 and plans(20) == 0


def test_without_experience_the_window_is_fixed(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    result = make_sampler("asd").sample(mixture, chain, (1, 2, 2))
    assert result.stats.window == len(chain)  # 32, but the chain has no more
