"""The cost model behind `auto`."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.autotune import (
    DEFAULT,
    PRIOR_REFUSALS,
    WINDOWS,
    Setting,
    candidates,
    expected_costs,
    expected_seconds,
)
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.warm_start import WarmStart

Floats = npt.NDArray[np.float64]


def simulate(hazard: Floats, window: int, latency: Floats, overhead: float, plans: int = 20_000) -> tuple[float, float]:
    """Return mean and standard error of a plan's time, by playing the rounds of the model."""
    rng = np.random.default_rng(0)
    steps = len(hazard)
    times = np.zeros(plans)
    for plan in range(plans):
        cursor = 0
        while cursor < steps:
            points = min(window, steps - cursor)
            times[plan] += latency[points] + (overhead if window > 1 else 0)
            refused = np.flatnonzero(rng.random(points - 1) < hazard[cursor : cursor + points - 1])
            cursor += points if len(refused) == 0 else int(refused[0]) + 1
    return float(times.mean()), float(times.std() / np.sqrt(plans))


@pytest.mark.parametrize("window", [1, 4, 20])
def test_expected_time_is_that_of_the_rounds(window: int) -> None:
    hazard = np.linspace(0.02, 0.4, 20)
    latency = 1 + 0.1 * np.arange(21.0)
    mean, error = simulate(hazard, window, latency, 0.3)
    found = expected_seconds(hazard, window, lambda points: latency[points], 0.3)
    assert abs(found - mean) < 4 * error + 1e-9


def experience(seconds_per_call: float, seconds_per_point: float, batch: int = 1) -> Experience:
    latency = {batch * window: seconds_per_call + seconds_per_point * batch * window for window in WINDOWS}
    overhead = {(*pair, batch): {2: 1e-4, 64: 1e-4} for pair in PRIOR_REFUSALS}
    return Experience(latency=latency, overhead=overhead)


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


def test_an_engine_that_costs_more_than_it_saves_is_not_taken() -> None:
    """Where the network is fast, a simpler draft may be the better one, and is tried unseen."""
    known = experience(1e-3, 0)
    known.judgements = {DEFAULT.pair: told(0.05)}
    for (draft, verify, _), timed in known.overhead.items():
        timed |= dict.fromkeys(timed, 1e-3 if (draft, verify) == ("warm", "reflection") else 5e-3)
    assert best(known).pair == ("warm", "reflection")
    known.judgements["warm", "reflection"] = told(0.5)  # as it turns out
    assert best(known).pair == DEFAULT.pair


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
    sizes: list[int] = field(default_factory=list)

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Let time pass."""
        self.now += self.per_call + self.per_point * len(x)
        self.sizes.append(len(x))
        return self.network(x, timestep)


@pytest.mark.parametrize(("per_call", "per_point", "expected"), [(1.0, 0.0, 12), (0.0, 1.0, 1)])
def test_auto_measures_and_chooses(
    per_call: float,
    per_point: float,
    expected: int,
    mixture: MixtureDenoiser,
    chain: GaussianChain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = Dial(mixture, per_call, per_point)
    monkeypatch.setattr("time.perf_counter", dial.perf_counter)
    known = Experience()
    generator, past = torch.Generator().manual_seed(0), WarmStart(None, known)
    results = [
        make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, warm_start=past) for _ in range(6)
    ]
    assert results[-1].stats.window == expected
    assert known.latency[1] == per_call + per_point
    measured = len(dial.sizes)
    make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, warm_start=past)
    assert len(dial.sizes) - measured <= len(chain)  # measured once


def test_without_experience_the_window_is_fixed(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    result = make_sampler("asd").sample(mixture, chain, (1, 2, 2))
    assert result.stats.window == len(chain)  # 32, but the chain has no more
