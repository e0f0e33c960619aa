"""Chains without noise in parallel: the sequential plan to a tolerance, never in more calls; ParaDiGMS on them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelScheduler
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.policy.law import Law
from asd_policy.samplers import compiled, make_sampler
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddim import Ddim, OwnDdim, shortened
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.paradigms import Paradigms
from asd_policy.samplers.parallel import OwnParallel, Parallel
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import full_chain, make_tape

BATCH, EVENT = 6, (4, 3)
FULL = GaussianChain.from_scheduler({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})
DDIM = shortened(Ddim(16), FULL)
CHAINS = {
    "ddim:16": DDIM,
    "flow, 10 steps": GaussianChain.from_flow(10, eta=0),
    "flow, 100 steps": GaussianChain.from_flow(100, eta=0),
}
each_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
DRAFTS = ("frozen", "picard", "warm")


def curve(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
    """A network whose predictions move with the point and the time."""
    time = timestep.to(x.dtype).reshape(-1, 1, 1) / 100
    return 0.5 * x + 0.5 * torch.sin(2 * x + time) + 0.2 * x.flip(-1)


def draw(chain: GaussianChain, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> NoiseTape:
    """Draw noise, of which plans without noise take the start alone."""
    return NoiseTape.draw((batch, *EVENT), len(chain), torch.Generator().manual_seed(1), dtype=dtype)


def plan(sampler: Any, chain: GaussianChain, network: Any = curve, dtype: torch.dtype = torch.float64) -> Any:
    """Sample a batch."""
    return sampler.sample(network, chain, (BATCH, *EVENT), generator=draw(chain, dtype=dtype))


class Net(torch.nn.Module):
    """A network whose matrix products round otherwise in every batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(13, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU(),
                torch.nn.Linear(256, 12),
            )  # fmt: skip

    @torch.no_grad()
    def forward(self, x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        """Call the layers."""
        return self.layers(torch.cat([x.flatten(1), timestep.to(x.dtype)[:, None] / 100], 1)).view_as(x)


@pytest.mark.parametrize("draft", DRAFTS)
@each_chain
def test_at_no_tolerance_it_is_the_sequential_plan(chain: GaussianChain, draft: str) -> None:
    """To the bit where the network's rows do not depend on their batch."""
    found = plan(Parallel(5, 0.0, draft), chain)
    assert torch.equal(found.sample, plan(Ddpm(), chain).sample)
    assert max(found.stats.rounds) <= len(chain)


@each_chain
def test_at_no_tolerance_a_network_is_as_near_as_it_rounds(chain: GaussianChain) -> None:
    """Float32: ten ulps of the samples' size, 1; matrix products of other batches round by about one in each step."""
    expected = plan(Ddpm(), chain, Net(), torch.float32).sample
    found = plan(Parallel(8, 0.0), chain, Net(), torch.float32).sample
    assert abs(found - expected).max() <= 10 * 1.2e-7 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("tol", [1e-6, 1e-2, 1e9])
@each_chain
def test_it_takes_no_more_calls_than_steps(chain: GaussianChain, tol: float, draft: str) -> None:
    calls: list[int] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        calls.append(len(x))
        return curve(x, timestep, cond)

    stats = plan(Parallel(4, tol, draft), chain, network).stats
    assert len(calls) == max(stats.rounds) <= len(chain) and sum(calls) == sum(stats.nfe)
    if tol == 1e9:
        assert max(stats.rounds) <= -(-len(chain) // 4) + (draft == "frozen")
    assert not any(each.exact for each in stats.plans)


@each_chain
def test_every_step_is_within_the_tolerance(chain: GaussianChain) -> None:
    """The plan is the sequential one of a network that is off by the tolerance at most: the claim itself."""
    tol, seen = 0.02, dict[int, tuple[Tensor, Tensor]]()

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        output = curve(x, timestep, cond)
        for point, time, said in zip(x, timestep, output, strict=True):
            step = int(np.abs(chain.timesteps - float(time)).argmin())
            seen[step] = point, chain.predict(point[None], said[None], step)[0]
        return output

    tape = draw(chain, 1)
    sample = Parallel(6, tol).sample(network, chain, (1, *EVENT), generator=tape).sample[0]
    # The point that was evaluated last at a step is the committed one.
    path = [*(seen[step][0] for step in range(len(chain))), sample]
    assert torch.equal(path[0], tape.initial[0])
    far = 0.0
    for step, (x, x0_pred) in sorted(seen.items()):
        guess = (path[step + 1] - chain.b[step] * x) / chain.a[step]
        far = max(far, float((guess - x0_pred).abs().max()))
    assert 0.001 < far <= tol * (1 + 1e-9)


def test_plans_come_nearer_with_the_tolerance() -> None:
    expected = plan(Ddpm(), DDIM).sample
    found = [plan(Parallel(8, tol), DDIM) for tol in (0.1, 0.01, 0.001)]
    errors = [float(abs(each.sample - expected).max()) for each in found]
    rounds = [sum(each.stats.rounds) for each in found]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert rounds[0] < rounds[1] < rounds[2] < 16 * BATCH


def test_the_last_plan_is_the_first_guess() -> None:
    """Of data that is nearly one point, whose prediction it is from the start on: one round, and else a second."""
    chain, points = shortened(Ddim(16), full_chain()), torch.tensor([[[0.5, -0.2], [0.1, 1.0]]], dtype=torch.float64)
    network, tape = MixtureDenoiser(full_chain(), points, torch.tensor([1e-3])), make_tape(3, chain, 1)
    for past, rounds in ((None, (2, 2, 2)), (WarmStart(points.expand(3, 2, 2)), (1, 1, 1))):
        found = Parallel(16, 0.01).sample(network, chain, (3, 2, 2), generator=tape, warm_start=past)
        assert found.stats.rounds == rounds


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("given", [False, True])
def test_compiled_rounds_are_the_references(given: bool, draft: str) -> None:
    mask = torch.zeros((BATCH, *EVENT), dtype=torch.bool)
    mask[:, :2, 0] = given
    held = Inpainting(mask, torch.full(mask.shape, 0.3, dtype=torch.float64))

    def sample() -> Any:
        return Parallel(5, 0.02, draft).sample(
            curve, DDIM, (BATCH, *EVENT), generator=draw(DDIM), inpainting=held if given else None
        )

    found = sample()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "load_kernels", lambda _: None)
        expected = sample()
    torch.testing.assert_close(found.sample, expected.sample, rtol=0, atol=1e-12)
    assert found.stats.plans == expected.stats.plans
    if given:
        assert (found.sample[:, :2, 0] == 0.3).all()


def test_rows_do_not_wait_for_each_other_and_numpy_has_the_same() -> None:
    together, tape = plan(Parallel(6), DDIM), draw(DDIM)
    for row in range(BATCH):
        at = slice(row, row + 1)
        own = NoiseTape(tape.initial[at], tape.normals[at], tape.uniforms[at])
        alone = Parallel(6).sample(curve, DDIM, (1, *EVENT), generator=own)
        assert torch.equal(alone.sample[0], together.sample[row])
        assert alone.stats.rounds[0] == together.stats.rounds[row]
    numbers: list[Any] = [each.numpy() for each in (tape.initial, tape.normals, tape.uniforms)]

    def network(x: Any, timestep: Any, _: Any) -> Any:
        return curve(torch.from_numpy(x), torch.from_numpy(np.asarray(timestep)), None).numpy()

    found = Parallel(6).sample(network, DDIM, (BATCH, *EVENT), generator=NoiseTape(*numbers))
    assert isinstance(found.sample, np.ndarray)
    np.testing.assert_allclose(found.sample, together.sample.numpy(), rtol=0, atol=1e-12)


# On a noisy chain, and where a checkpoint's own scheduler runs.


def test_with_steps_it_is_ddim_on_a_chain_with_noise() -> None:
    expected = plan(Ddim(16), FULL).sample
    found = plan(Parallel(8, 0.0, steps=16), FULL)
    torch.testing.assert_close(found.sample, expected, rtol=0, atol=1e-5)  # diffusers' own step is float32's
    assert found.stats.steps == 100 and max(found.stats.rounds) <= 16


def test_what_is_given_along_the_chain_is_given_at_the_steps_that_are_walked() -> None:
    tape, mask = draw(FULL), torch.zeros((BATCH, *EVENT), dtype=torch.bool)
    mask[:, :2] = True
    held = Inpainting.noised(mask, torch.full(mask.shape, 0.3, dtype=torch.float64), FULL, tape)
    found, expected = (
        sampler.sample(curve, FULL, (BATCH, *EVENT), generator=tape, inpainting=held).sample
        for sampler in (Parallel(8, 0.0, steps=16), Ddim(16))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    coarse = GaussianChain.from_scheduler(FULL.config, 30)
    tape = draw(coarse)
    held = Inpainting.noised(mask, torch.full(mask.shape, 0.3, dtype=torch.float64), coarse, tape)
    with pytest.raises(SpecError, match="16 steps have timesteps that the chain of 30 leaves out"):
        Parallel(8, steps=16).sample(curve, coarse, (BATCH, *EVENT), generator=tape, inpainting=held)


def test_where_a_checkpoints_own_scheduler_runs_it_has_its_steps() -> None:
    own = OwnDdim(steps=12, own_steps=12, timestep_spacing="trailing")
    law = Law(FULL, own)
    fitted = law.fitted(make_sampler("parallel:tol=0"))
    assert isinstance(fitted, OwnParallel) and fitted.sequential_steps(FULL) == 12 and not fitted.exact
    expected, found = plan(own, FULL), plan(fitted, FULL)
    torch.testing.assert_close(found.sample, expected.sample, rtol=0, atol=1e-5)
    assert found.stats.steps == 12 and found.stats.spec == "parallel:window=auto,tol=0,draft=warm"
    assert law.fitted(make_sampler("parallel:steps=6")).sample(curve, FULL, (1, *EVENT)).stats.steps == 12
    with pytest.raises(SpecError, match=r"window=13 is not in 1 … 12"):
        law.fitted(make_sampler("parallel:window=13"))


@pytest.mark.parametrize(
    ("spec", "chain", "message"),
    [
        ("parallel", FULL, "asd samples it exactly, and with an option such as steps=16 plans are those of ddim:16"),
        ("parallel:steps=16", DDIM, "on a chain without noise of 16 steps: steps= is for one with noise"),
        ("parallel:window=17", DDIM, "window=17 is not in 1 … 16"),
        ("parallel:window=9,steps=8", FULL, "window=9 is not in 1 … 8"),
        ("parallel:steps=101", FULL, "steps=101 is not in 1 … 100"),
        ("parallel:window=0", None, "window=0 is not in 1 … K"),
        ("parallel:steps=0", None, "steps=0 is not in 1 … K"),
        ("parallel:tol=-0.1", None, "tol=-0.1 is not a finite number from 0 up"),
        ("parallel:tol=nan", None, "tol=nan is not a finite number from 0 up"),
        ("parallel:tol=x", None, "tol=x in 'parallel:tol=x' is not of type float"),
        ("parallel:draft=response", None, "draft=response follows a chain's noise, and here is none; there are frozen"),
        ("parallel:draft=guess", None, "draft=guess is not one of"),
        ("asd:window=4", DDIM, "parallel does so in fewer rounds, approximately"),
    ],
)
def test_bad_specs(spec: str, chain: GaussianChain | None, message: str) -> None:
    with pytest.raises(SpecError) as error:
        sampler = make_sampler(spec)
        assert chain is not None
        sampler.check(chain)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["parallel", "parallel:window=4,tol=0.01,draft=picard", "parallel:tol=0,steps=16"])
def test_specs_read_back(spec: str) -> None:
    assert make_sampler(make_sampler(spec).spec) == make_sampler(spec) == copy.copy(make_sampler(spec))


def test_a_network_without_numbers_ends() -> None:
    calls: list[int] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        calls.append(len(x))
        return x * float("nan")

    with pytest.raises(DenoiserError, match="NaN or infinity"):
        plan(Parallel(5), DDIM, network)
    assert len(calls) == len(DDIM)


# The unit of ParaDiGMS's tolerance on chains without noise.


def test_the_unit_is_what_eta_one_would_add() -> None:
    scheduler = DDIMParallelScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(16)
    published = [float(scheduler._get_variance(timestep) ** 0.5) for timestep in scheduler.timesteps.tolist()]
    assert DDIM.unit is not None
    np.testing.assert_allclose(DDIM.unit, published, rtol=1e-5, atol=1e-7)
    for steps in (10, 100):
        unit = GaussianChain.from_flow(steps, eta=0).unit
        assert unit is not None
        np.testing.assert_allclose(unit, GaussianChain.from_flow(steps, eta=1).sigma, rtol=1e-12)


@each_chain
def test_paradigms_walks_chains_without_noise(chain: GaussianChain) -> None:
    expected = plan(Ddpm(), chain).sample
    exact, loose = (plan(Paradigms(8, tol), chain) for tol in (0.0, 0.3))
    torch.testing.assert_close(exact.sample, expected, rtol=0, atol=1e-9)
    assert max(loose.stats.rounds) < max(exact.stats.rounds) <= len(chain)
    assert 0 < abs(loose.sample - expected).max() < 0.5


def test_asd_of_one_step_is_not_refused() -> None:
    Asd(1).check(GaussianChain.from_flow(1, eta=0))
