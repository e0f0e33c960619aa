"""A flow's chain against LeRobot's own Euler loops, and live `MultiTaskDiTPolicy` objects with a flow's objective."""

import copy
from typing import Any

import pytest
import torch
from dit_policies import condition_dit, make_dit
from torch import Tensor

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.samplers import make_sampler
from conftest import observe, stats_of

STEPS = 7


def curve(x: Tensor, time: Tensor) -> Tensor:
    """Compute a velocity that is no straight line, at points [N, 5, 2] and times [N]."""
    return torch.sin(3 * x) + torch.cos(4 * time).view(-1, 1, 1) * x.flip(-1)


def walked(chain: GaussianChain, start: Tensor) -> Tensor:
    """Walk a chain from given points [N, 5, 2]."""
    tape = NoiseTape.draw(start.shape, len(chain), initial=start)
    network = lambda x, time, _: curve(x, time)  # noqa: E731
    return make_sampler("ddpm").sample(network, chain, start.shape, generator=tape).sample


@pytest.mark.parametrize("steps", [1, 3, 10, 50])
def test_common_flow_matching(steps: int) -> None:
    """The loop of π0, SmolVLA and others: time from 1 at the noise to 0, v = ε − x0."""
    module = pytest.importorskip("lerobot.policies.common.flow_matching", reason="this lerobot has it elsewhere")
    start = torch.randn((3, 5, 2), generator=torch.Generator().manual_seed(0))
    expected = module.euler_integrate(curve, start, steps)
    torch.testing.assert_close(walked(GaussianChain.from_flow(steps, 0), start), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma_min", [0.0, 0.05])
@pytest.mark.parametrize("steps", [1, 3, 10, 50])
def test_flow_matching_objective(steps: int, sigma_min: float) -> None:
    """The loop of multi_task_dit: time from 0 at the noise to 1, v = x0 − (1 − sigma_min) ε."""
    objective = make_dit(objective="flow_matching", sigma_min=sigma_min).objective
    start, grid = torch.randn((3, 5, 2), generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, steps + 1)
    expected = objective._euler_integrate(lambda x, time, conditioning_vec: curve(x, time), start, grid, None)
    found = walked(GaussianChain.from_flow(steps, 0, "data", sigma_min), start)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma_min", [0.0, 0.05])
def test_the_path_is_that_of_its_loss(sigma_min: float) -> None:
    """Of the velocity that LeRobot trains for, the prediction is the data, at every time."""
    objective = make_dit(objective="flow_matching", sigma_min=sigma_min).objective
    data, seen = torch.randn((64, 5, 2)), list[tuple[Tensor, Tensor]]()

    def model(x: Tensor, time: Tensor, conditioning_vec: Any) -> Tensor:
        seen.append((x, time))
        return torch.zeros_like(x)

    torch.manual_seed(3)
    objective.compute_loss(model, {"action": data}, None)
    torch.manual_seed(3)
    noise, ((x, time),) = torch.randn_like(data), seen
    chain = GaussianChain.from_flow(STEPS, 1.0, "data", sigma_min)
    velocity = data - (1 - sigma_min) * noise
    for k, at in enumerate(chain.timesteps.tolist()):
        point = at * data + (1 - (1 - sigma_min) * at) * noise
        torch.testing.assert_close(chain.predict(point, velocity, k), data, rtol=1e-4, atol=1e-5)
    weight = time.view(-1, 1, 1)
    torch.testing.assert_close(x, weight * data + (1 - (1 - sigma_min) * weight) * noise)  # the same path


def flow_dit(**options: Any) -> Any:
    """A small policy whose flow has seven steps."""
    return make_dit(objective="flow_matching", num_integration_steps=STEPS, **options)


def drive(policy: Any, robots: int = 2, steps: int = 9) -> list[Tensor]:
    """Actions of an episode, of one seed for each step."""
    policy.reset()
    actions: list[Tensor] = []
    for step in range(steps):
        torch.manual_seed(step)
        actions.append(policy.select_action(observe(policy, robots, seed=step)))
    return actions


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_the_option_makes_a_chain_with_noise(method: str) -> None:
    policy = flow_dit(integration_method=method)
    own = drive(policy)
    asd_policy.accelerate(policy, "asd:window=1", chain="stochastic:eta=0.5")
    window_one = drive(policy)
    assert stats_of(policy).plans == 4 and stats_of(policy).steps == 4 * STEPS
    asd_policy.accelerate(policy, "ddpm", chain="stochastic:eta=0.5")
    for new, old in zip(window_one, drive(policy), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert not torch.equal(window_one[0], own[0])  # another law than that of its own loop
    asd_policy.accelerate(policy, "asd:window=4", chain="stochastic")
    assert all(action.isfinite().all() for action in drive(policy))
    latest = stats_of(policy).last
    assert latest is not None and max(latest.rounds) < STEPS
    asd_policy.restore(policy)
    assert all(torch.equal(new, old) for new, old in zip(drive(policy), own, strict=True))


def test_the_network_is_ours_on_its_weights() -> None:
    """Plans by this package's DiT, at times that are no integers, are those of LeRobot's own forward."""
    policy = flow_dit()
    asd_policy.accelerate(policy, "ddpm", chain="stochastic")
    cond = condition_dit(policy, 2)
    torch.manual_seed(5)
    found = policy.objective.conditional_sample(policy.noise_predictor, 2, cond)
    chain = GaussianChain.from_flow(STEPS, 1.0, "data")
    torch.manual_seed(5)
    tape = NoiseTape.draw((2, 16, 2), STEPS)
    with torch.no_grad():
        expected = make_sampler("ddpm").sample(
            lambda x, time, c: policy.noise_predictor(x, time, conditioning_vec=c), chain, (2, 16, 2), cond, tape
        )
    torch.testing.assert_close(found, expected.sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("stochastic:eta=0", "eta=0 adds no noise, so there is nothing to draft and verify"),
        ("stochastic:eta=-1", r"eta -1.0 is not a number in \[0, 1\]"),
    ],
)
def test_shares_of_noise_out_of_range(chain: str, message: str) -> None:
    with pytest.raises(asd_policy.SpecError, match=message):
        asd_policy.accelerate(flow_dit(), chain=chain)


def test_without_the_option_it_is_refused() -> None:
    for chain in (None, "checkpoint", "trained"):
        with pytest.raises(asd_policy.ChainError, match=r"nothing to draft and verify; .* chain='stochastic'"):
            asd_policy.accelerate(flow_dit(), chain=chain)
    with pytest.raises(asd_policy.ChainError, match="chain 'stochastic' is a flow's, and this policy has a DDPM"):
        asd_policy.accelerate(make_dit(), chain="stochastic")


def test_a_flow_that_runs_the_other_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version might do; the loop is compared with the chain on a known network."""
    policy = flow_dit()
    kind = type(policy.objective)
    integrate = kind._euler_integrate

    def turned(self: Any, model: Any, x_init: Tensor, time_grid: Tensor, conditioning_vec: Tensor) -> Tensor:
        def other(x: Tensor, time: Tensor, conditioning_vec: Any) -> Tensor:
            return model(x, 1 - time, conditioning_vec=conditioning_vec)

        return integrate(self, other, x_init, time_grid, conditioning_vec)

    turned.__module__ = kind.__module__
    monkeypatch.setattr(kind, "_euler_integrate", turned)
    with pytest.raises(asd_policy.SpecError, match=r"its loop is another one|_euler_integrate of this"):
        asd_policy.accelerate(policy, chain="stochastic")


def test_a_changed_configuration_is_named() -> None:
    policy = flow_dit()
    asd_policy.accelerate(policy, "asd:window=4", chain="stochastic")
    policy.objective.config = copy.copy(policy.config)
    policy.objective.config.num_integration_steps = 3
    with pytest.raises(asd_policy.ChainError, match="accelerated with num_integration_steps 7, it now has 3"):
        drive(policy, steps=1)
