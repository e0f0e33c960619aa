"""A flow's chain against Euler's steps, DDIM's formula at a flow's levels, and diffusers' own scheduler of flows.

LeRobot's own loops are in tests/with_lerobot/test_flow.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from asd_policy.chain.flow import CONVENTIONS
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import ChainError, SpecError
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddpm import Ddpm
from support.known_laws import make_tape

STEPS = (1, 2, 3, 10, 37, 100)
ETAS = (1e-6, 0.3, 0.999999, 1.0)


def curve(x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
    """Compute a velocity that is no straight line, in points [N, 2, 2] and times [N]."""
    return torch.sin(3 * x) + time.view(-1, 1, 1) * x.flip(-1) - 0.4


def levels(steps: int, sigma_min: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Compute the flow's signal and noise [K + 1], from noise to data."""
    signal = np.linspace(0, 1, steps + 1)
    return signal, 1 - (1 - sigma_min) * signal


def make(steps: int, eta: float, convention: str) -> GaussianChain:
    """Make a chain of any convention."""
    return GaussianChain.from_flow(
        steps, eta, convention, num_train_timesteps=200 if convention == "timestep" else None
    )


@pytest.mark.parametrize("steps", STEPS)
def test_without_noise_it_is_euler_from_noise_to_data(steps: int) -> None:
    tape = make_tape(3, chain := GaussianChain.from_flow(steps, 0.0), seed=1)
    expected = tape.initial
    for k in range(steps):
        time = torch.full((3,), 1.0 + k * (-1.0 / steps), dtype=torch.float32).double()
        expected = expected - curve(expected, time) / steps
    found = Ddpm().sample(curve, chain, (3, 2, 2), generator=tape).sample
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma_min", [0.0, 0.05])
@pytest.mark.parametrize("steps", STEPS)
def test_without_noise_it_is_euler_in_the_time_of_data(steps: int, sigma_min: float) -> None:
    tape = make_tape(3, chain := GaussianChain.from_flow(steps, 0, "data", sigma_min), seed=1)
    times, expected = torch.from_numpy(chain.timesteps), tape.initial
    torch.testing.assert_close(times.float(), torch.linspace(0, 1, steps + 1)[:-1], rtol=2e-7, atol=0)  # two ulps
    for k in range(steps):
        expected = expected + curve(expected, times[k].expand(3)) / steps
    found = Ddpm().sample(curve, chain, (3, 2, 2), generator=tape).sample
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_without_noise_it_is_the_step_of_diffusers(steps: int) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=200)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    chain, x = GaussianChain.from_flow(steps, 0), torch.randn((4, 2, 2), generator=torch.Generator().manual_seed(0))
    tables = chain.tables(torch.device("cpu"), torch.float32)
    np.testing.assert_allclose(scheduler.timesteps.numpy() / 200, chain.timesteps, rtol=1e-6)
    for k, timestep in enumerate(scheduler.timesteps):
        velocity = curve(x, chain.tables(torch.device("cpu"), torch.float32).timesteps[k].expand(4))
        expected: Any = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        found = tables.a[k] * chain.predict(x, velocity, k) + tables.b[k] * x
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        x = expected


@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("steps", STEPS)
def test_steps_lead_from_level_to_level(steps: int, eta: float, sigma_min: float) -> None:
    """Of a perfect prediction, mean and variance of each step are those of the flow's levels."""
    chain, (signal, noise) = GaussianChain.from_flow(steps, eta, "data", sigma_min), levels(steps, sigma_min)
    np.testing.assert_allclose(chain.a + chain.b * signal[:-1], signal[1:], rtol=0, atol=1e-14)
    np.testing.assert_allclose(chain.b**2 * noise[:-1] ** 2 + chain.sigma**2, noise[1:] ** 2, rtol=1e-13, atol=0)
    assert (chain.sigma[:-1] > 0).all() and chain.sigma[-1] == 0
    assert np.isfinite(np.stack([chain.a, chain.b, chain.output_scale])).all() and (chain.a > 0).all()


@pytest.mark.parametrize("steps", STEPS)
def test_at_eta_one_it_is_the_posterior_of_ddpm(steps: int) -> None:
    """σ² is that of a point given the one before and the data (arXiv 2006.11239, eq. 7), at the flow's levels."""
    chain, (signal, noise) = GaussianChain.from_flow(steps, 1), levels(steps)
    kept = signal[:-1] / signal[1:]  # x_k = kept · x_{k+1} + fresh · ε
    fresh = noise[:-1] ** 2 - (kept * noise[1:]) ** 2
    np.testing.assert_allclose(chain.sigma**2, noise[1:] ** 2 * fresh / noise[:-1] ** 2, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(chain.b, kept * noise[1:] ** 2 / noise[:-1] ** 2, rtol=1e-10, atol=1e-15)
    half = GaussianChain.from_flow(steps, 0.5)
    np.testing.assert_allclose(half.sigma, 0.5 * chain.sigma, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1e-8, 1.0])
def test_the_ends_keep_their_digits(eta: float) -> None:
    """Against 50 digits: near the noise σ → β and near the data β → 0, where differences lose theirs."""
    mpmath = pytest.importorskip("mpmath")
    chain = GaussianChain.from_flow(10_000, eta)
    with mpmath.workdps(50):
        for k in (0, 1, 2, 5000, 9997, 9998):
            t, s = 1 - mpmath.mpf(k) / 10_000, 1 - mpmath.mpf(k + 1) / 10_000
            sigma = eta * s / t * mpmath.sqrt(t**2 - (s * (1 - t) / (1 - s)) ** 2)
            b = mpmath.sqrt(s**2 - sigma**2) / t
            for found, expected in ((chain.sigma[k], sigma), (chain.b[k], b), (chain.a[k], 1 - s - b * (1 - t))):
                assert float(abs(found - expected)) <= 1e-12 * float(abs(expected)) + 1e-16
    assert (chain.a[-1], chain.b[-1], chain.sigma[-1]) == (1, 0, 0)


def test_conventions_are_one_flow() -> None:
    """The same velocity in the words of each network gives the same plans."""
    tape = make_tape(3, chain := make(20, 0.7, "noise"), seed=2)
    reference = Ddpm().sample(curve, chain, (3, 2, 2), generator=tape).sample
    turned: dict[str, Callable[..., Tensor]] = {
        "data": lambda x, time, _: -curve(x, 1 - time),
        "timestep": lambda x, timestep, _: curve(x, (timestep + 1) / 200),
    }
    assert {"noise", *turned} == set(CONVENTIONS)
    for convention, denoiser in turned.items():
        found = Ddpm().sample(denoiser, make(20, 0.7, convention), (3, 2, 2), generator=tape).sample
        torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-6)


def test_integer_timesteps_are_as_even_as_they_can_be() -> None:
    chain = GaussianChain.from_flow(7, 0, "timestep", num_train_timesteps=20)
    assert chain.timesteps.tolist() == [19, 16, 13, 10, 8, 5, 2] and chain.has_integer_timesteps
    x, velocity = torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = chain.tables(torch.device("cpu"), torch.float64)
    times = [*((chain.timesteps + 1) / 20), 0]
    for k in range(7):
        found = tables.a[k] * chain.predict(x, velocity, k) + tables.b[k] * x
        torch.testing.assert_close(found, x + (times[k + 1] - times[k]) * velocity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_get_times_in_the_precision_of_the_points(dtype: torch.dtype) -> None:
    """By the sequential sampler and by rounds alike, compiled or not: the numbers of the chain's table."""
    chain, seen = GaussianChain.from_flow(6, 1.0), set()

    def spy(x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
        assert time.dtype == x.dtype and time.shape == (len(x),)
        seen.update(time.tolist())
        return curve(x, time)

    for sampler in (Ddpm(), Asd(3), Asd(3, "frozen", "reflection")):
        sampler.sample(spy, chain, (2, 2, 2), cond=torch.zeros((2, 0), dtype=dtype))
        assert seen == set(chain.timesteps.tolist()) == {float(np.float32(1.0 + k * (-1 / 6))) for k in range(6)}
        seen.clear()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"eta": -0.1}, r"eta -0.1 is not a number in \[0, 1\]"),
    ({"eta": 1.5}, r"eta 1.5 is not a number in \[0, 1\]"),
    ({"eta": math.nan}, r"eta nan is not a number in \[0, 1\]"),
    ({"eta": "1"}, r"eta '1' is not a number in \[0, 1\]"),
    ({"eta": True}, r"eta True is not a number in \[0, 1\]"),
    ({"steps": 0}, "steps 0 is not an integer in 1 … 10000"),
    ({"steps": 2.5}, r"steps 2.5 is not an integer in 1 … 10000"),
    ({"convention": "reverse"}, "convention 'reverse' is not one of noise, data, timestep"),
    ({"convention": "data", "sigma_min": 1.0}, r"sigma_min 1.0 is not a number in \[0, 1\)"),
    ({"sigma_min": 0.1}, "sigma_min 0.1 is of the convention 'data'"),
    ({"num_train_timesteps": 100}, "num_train_timesteps is of the convention 'timestep'"),
    ({"convention": "timestep"}, "num_train_timesteps None is not in 1 … 20000"),
    ({"convention": "timestep", "num_train_timesteps": 5}, "steps 10 is not an integer in 1 … 5"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChainError, match=message):
        GaussianChain.from_flow(**{"steps": 10, "eta": 1.0} | options)


def test_a_chain_without_noise_is_refused_by_asd() -> None:
    with pytest.raises(SpecError, match=r"needs steps that add noise, .* \(eta=0\): ddpm walks it"):
        Asd(4).sample(curve, GaussianChain.from_flow(10, 0), (1, 2, 2))
