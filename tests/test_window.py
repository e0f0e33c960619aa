"""The cost model behind `window=auto`."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from asd_policy.chain import GaussianChain
from asd_policy.experience import Experience
from asd_policy.models.analytic import MixtureDenoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.base import Past
from asd_policy.samplers.window import WINDOWS, expected_seconds, window_costs

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
    return Experience(latency=latency, overhead=1e-4)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_free_batch_takes_the_largest_window(batch: int) -> None:
    costs = window_costs(experience(5e-3, 0, batch), batch, 100)
    assert min(costs, key=lambda window: costs[window]) == max(WINDOWS)


def test_a_batch_at_full_price_takes_none() -> None:
    costs = window_costs(experience(0, 5e-3), 1, 100)
    assert min(costs, key=lambda window: costs[window]) == 1


def test_between_them_lies_a_window_between() -> None:
    costs = window_costs(experience(5e-3, 5e-4), 1, 100)
    best = min(costs, key=lambda window: costs[window])
    assert 1 < best < max(WINDOWS)
    assert costs[best] < costs[1]


def test_frequent_refusals_shrink_the_window() -> None:
    easy, hard = experience(5e-3, 5e-4), experience(5e-3, 5e-4)
    for known, refused in ((easy, 0.01), (hard, 0.6)):
        known.moments = {"judged": torch.full((100,), 50.0), "refused": torch.full((100,), 50 * refused)}
    windows = []
    for known in (easy, hard):
        costs = window_costs(known, 1, 100)
        windows.append(min(costs, key=lambda window: costs[window]))
    assert windows[1] < windows[0]


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
    generator, past = torch.Generator().manual_seed(0), Past(None, known)
    results = [make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, past=past) for _ in range(6)]
    assert results[-1].stats.window == expected
    assert known.latency[1] == per_call + per_point
    measured = len(dial.sizes)
    make_sampler("asd").sample(dial, chain, (1, 2, 2), generator=generator, past=past)
    assert len(dial.sizes) - measured <= len(chain)  # measured once


def test_without_experience_the_window_is_fixed(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    result = make_sampler("asd").sample(mixture, chain, (1, 2, 2))
    assert result.stats.window == len(chain)  # 32, but the chain has no more
