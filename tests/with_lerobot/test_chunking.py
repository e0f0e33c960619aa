"""Real-time chunking of a live policy, called as LeRobot does: what is committed comes back, the rest is exact."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from dit_policies import make_dit
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness import checks as exactness
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from conftest import STATE, STEPS, observe, stats_of

FIRST = 1  # the action for the observation, of a plan with two observations
EXECUTED = 8


@dataclass
class Rtc:
    """LeRobot's configuration of real-time chunking, as far as a policy looks at it; 0.4.4 has another."""

    enabled: bool = True


def chunk(policy: DiffusionPolicy, left: Tensor | None, delay: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Ask for a plan as LeRobot's engine does."""
    plan: Any = policy.predict_action_chunk
    given = {"next.reward": 0.0, "info": {}, **observe(policy, batch, seed)}  # what its processors add
    return plan(given, inference_delay=delay, prev_chunk_left_over=left)


def padded(left: Tensor, length: int = 10) -> Tensor:
    """As LeRobot gives it, [10, action_dim]."""
    return torch.cat([left, left.new_zeros((length - len(left), left.shape[1]))])


def replacing_loop(loop: Any, network: Callable[[Tensor, Tensor], Tensor], tape: NoiseTape, left: Tensor) -> Tensor:
    """Sample with LeRobot's own network and scheduler, the first actions replaced before each call of the network.

    They follow q(x_{t−1} | x_t, x_0) of their known end, with the noise that is theirs.
    """
    x = tape.initial.clone()
    held = slice(FIRST, FIRST + left.shape[1])
    known, noises = tape.initial[:, held].clone(), iter(tape.normals.unbind(1))
    scheduler = loop.noise_scheduler
    scheduler.set_timesteps(loop.num_inference_steps)
    alphas = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [1.0]
    for k, t in enumerate(scheduler.timesteps):
        x[:, held] = known
        output = network(x, torch.full((len(x),), int(t)))
        noise = next(noises)
        x = stepped(scheduler, output, t, x, noise)
        now, then = alphas[k], alphas[k + 1]
        step = now / then
        mean = (then**0.5 * (1 - step) * left + step**0.5 * (1 - then) * known) / (1 - now)
        known = mean + ((1 - then) / (1 - now) * (1 - step)) ** 0.5 * noise[:, held]
    x[:, held] = left
    return x


def stepped(scheduler: Any, output: Tensor, timestep: Any, x: Tensor, noise: Tensor) -> Tensor:
    """One step of the scheduler with a noise that is given."""
    drawn: Iterator[Tensor] = iter([noise])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn))
        return scheduler.step(output, timestep, x).prev_sample


@pytest.mark.parametrize("batch", [1, 3])
def test_a_window_of_one_is_the_sequential_loop_with_the_same_actions_given(
    policy: DiffusionPolicy, batch: int
) -> None:
    left = 2 * torch.rand((batch, 6, 2), generator=torch.Generator().manual_seed(1)) - 1
    seen = {name: each[:, None].expand(-1, 2, *each.shape[1:]) for name, each in observe(policy, batch).items()}
    if policy.config.image_features:
        seen["observation.images"] = torch.stack([seen[name] for name in policy.config.image_features], -4)
    with torch.no_grad():
        cond = policy.diffusion._prepare_global_conditioning(seen)
        torch.manual_seed(3)
        tape = NoiseTape.draw((batch, 16, 2), STEPS, None)
        model = policy.diffusion
        expected = replacing_loop(model, lambda x, t: model.unet(x, t, global_cond=cond), tape, left[:, :4])
    asd_policy.accelerate(policy, "asd:window=1")
    asd_policy.warm_up(policy, batch)
    torch.manual_seed(3)
    plan = chunk(policy, left, 4, batch)
    assert torch.equal(plan[:, :4], left[:, :4])
    assert not plan.requires_grad
    torch.testing.assert_close(plan, expected[:, FIRST : FIRST + EXECUTED], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cameras", [0, 2])
def test_a_dit(cameras: int) -> None:
    """The same loop around another network, whose policy has no way of its own to plan for a single observation."""
    policy, batch = make_dit(cameras), 3
    left = 2 * torch.rand((batch, 6, 2), generator=torch.Generator().manual_seed(1)) - 1
    observed = observe(policy, batch)
    seen = dict(observed)
    for name in policy.config.input_features:
        seen[name] = torch.stack([observed[name]] * 2, 1)
    if cameras:
        seen["observation.images"] = torch.stack([seen[name] for name in policy.config.image_features], -4)
    with torch.no_grad():
        cond = policy.observation_encoder.encode(seen)
        torch.manual_seed(3)
        tape = NoiseTape.draw((batch, 16, 2), STEPS, None)
        dit = policy.noise_predictor
        expected = replacing_loop(policy.objective, lambda x, t: dit(x, t, conditioning_vec=cond), tape, left[:, :4])
    assert not policy.supports_rtc()
    asd_policy.accelerate(policy, "asd:window=1")
    asd_policy.warm_up(policy, batch)
    assert policy.supports_rtc()
    torch.manual_seed(3)
    plan = policy.predict_action_chunk(observed, inference_delay=4, prev_chunk_left_over=left)
    assert torch.equal(plan[:, :4], left[:, :4])
    torch.testing.assert_close(plan, expected[:, FIRST : FIRST + EXECUTED], rtol=0, atol=1e-5)
    assert policy.select_action(observed).shape == (batch, 2)  # and in LeRobot's own way as before
    assert not asd_policy.restore(policy).supports_rtc()


def test_the_committed_actions_come_back(policy: DiffusionPolicy) -> None:
    """As many as the delay, as are left, and as a plan has; what LeRobot pads is no action."""
    asd_policy.accelerate(policy, "asd:window=6")
    last = chunk(policy, None, 0)
    assert last.shape == (1, EXECUTED, 2)
    for left, delay, given in ((5, 3, 3), (5, 5, 5), (2, 7, 2), (5, 0, 0), (0, 4, 0)):
        rest = last[0, EXECUTED - left :]
        plan = chunk(policy, padded(rest), delay)
        assert torch.equal(plan[0, :given], rest[:given])
        assert not torch.equal(plan[0, given:], padded(rest)[given:EXECUTED])
        assert (plan[0, given:] != 0).all()
        assert torch.isfinite(plan).all()
    full = torch.rand(40, 2)  # longer than a plan, and longer delayed
    assert torch.equal(chunk(policy, full, 40)[0], full[:EXECUTED])
    middle = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.25, 0.0]])  # zeros between actions are an action
    assert torch.equal(chunk(policy, padded(middle), 3)[0, :3], middle)
    assert stats_of(policy).plans == 8


def test_each_robot_has_its_own_rest(state_policy: DiffusionPolicy) -> None:
    asd_policy.accelerate(state_policy, "asd:window=6")
    left = torch.rand((2, 5, 2))
    left[1, 2:] = 0
    plan = chunk(state_policy, left, 4, 2)
    assert torch.equal(plan[0, :4], left[0, :4])
    assert torch.equal(plan[1, :2], left[1, :2])
    assert (plan[1, 2:] != 0).all()
    both = chunk(state_policy, left[0], 3, 2)
    assert torch.equal(both[:, :3], left[:1, :3].expand(2, -1, -1))


SAMPLES = 1000


def rest_of_plans(policy: DiffusionPolicy, spec: str, seed: int) -> exactness.Array:
    """Plans given three actions, without these [1, SAMPLES, …]."""
    asd_policy.accelerate(policy, spec)
    left = torch.full((4, 2), 3.0)  # far out, so that what follows depends on it
    batch = {name: each[:1].expand(SAMPLES, *each.shape[1:]) for name, each in observe(policy).items()}
    torch.manual_seed(seed)
    plan: Any = policy.predict_action_chunk
    return plan(batch, inference_delay=3, prev_chunk_left_over=left)[:, 3:].flatten(1).double().numpy()[None]


def are_alike(drawn: exactness.Array, reference: exactness.Array) -> bool:
    checks = [exactness.energy_check(drawn, reference, 4, 999), exactness.marginal_check(drawn, reference)]
    return exactness.bonferroni(checks, 0.01).holds


def test_the_law_of_the_rest(state_policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the sequential sampler with the same actions given."""
    reference = rest_of_plans(state_policy, "ddpm", 1)
    assert are_alike(rest_of_plans(state_policy, "asd:window=6,draft=picard", 2), reference)
    assert stats_of(state_policy).algorithmic_speedup > 1.2
    monkeypatch.setattr(Inpainting, "noised", lambda mask, values, *_: Inpainting(mask & False, values))
    mutant = rest_of_plans(state_policy, "asd:window=6,draft=picard", 2)  # written over a plan that does not know
    assert not are_alike(mutant, reference)


def test_without_its_arguments_nothing_changes(policy: DiffusionPolicy) -> None:
    """LeRobot's own method, with its queues and offline, `noise` included."""
    pytest.importorskip("lerobot.rollout", reason="lerobot before 0.6 plans from its queues alone")
    batch = {name: each[:, None].expand(-1, 2, *each.shape[1:]) for name, each in observe(policy).items()}
    noise = torch.randn((1, 16, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.manual_seed(0)
        expected = policy.predict_action_chunk(batch, noise=noise)
    asd_policy.accelerate(policy, "asd:window=1")
    torch.manual_seed(0)
    torch.testing.assert_close(policy.predict_action_chunk(batch, noise=noise), expected, rtol=0, atol=1e-5)
    plan: Any = policy.predict_action_chunk
    torch.manual_seed(0)
    with_time = plan(batch, inference_delay=0)
    torch.manual_seed(0)
    assert torch.equal(chunk(policy, None, 0), with_time)
    assert all(len(queue) == 0 for queue in (policy._queues or {}).values())
    with pytest.raises(asd_policy.SpecError, match="takes noise only without committed actions"):
        plan(batch, noise=noise, inference_delay=0)


def test_lerobot_asks_and_is_answered(policy: DiffusionPolicy, caplog: pytest.LogCaptureFixture) -> None:
    """What it looks at before it plans so, before, while and after a policy is accelerated."""
    supports = pytest.importorskip("lerobot.rollout.inference.rtc").supports_rtc_inference
    assert not supports(policy)
    names = set(vars(policy))
    asd_policy.accelerate(policy, "asd:window=6")
    assert supports(policy)
    stats = stats_of(policy)
    assert (stats.plans, stats.last) == (0, None)
    with caplog.at_level("INFO", "asd_policy"):
        chunk(policy, torch.rand(10, 2), 3)
        assert stats.last is not None
        assert stats.last.trial_calls == 0  # it was warm
        chunk(policy, None, 0)
    assert stats.plans == 2
    assert caplog.text.count("it stands for all 2 (n_obs_steps)") == 1
    asd_policy.restore(policy)
    assert not supports(policy)
    assert set(vars(policy)) == names


def test_a_queue_that_appends_is_given_whole_plans(state_policy: DiffusionPolicy) -> None:
    """`--inference.rtc.enabled=false`: what is left is executed before the plan, and is not its begin."""
    asd_policy.accelerate(state_policy, "asd:window=6")
    left = torch.full((4, 2), 0.123)
    config: Any = state_policy.config
    config.rtc_config = Rtc(enabled=False)
    assert not (chunk(state_policy, left, 3) == 0.123).any()
    config.rtc_config = Rtc()
    assert (chunk(state_policy, left, 3)[0, :3] == 0.123).all()


def test_drafts_start_from_the_last_plan_at_its_rest(
    state_policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far on as the rest is, not as the plan was made for."""
    told: list[Tensor | None] = []
    own = Asd.sample

    def sample(*given: Any, warm_start: WarmStart, **options: Any) -> Any:
        told.append(warm_start.last_plan)
        return own(*given, warm_start=warm_start, **options)

    monkeypatch.setattr(Asd, "sample", sample)
    asd_policy.accelerate(state_policy, "asd:window=6")
    last = chunk(state_policy, None, 0)
    chunk(state_policy, padded(last[0, 3:]), 2)
    assert told[0] is None
    assert told[1] is not None
    assert torch.equal(told[1][:, FIRST : FIRST + 5], last[:, 3:])


class ClampingPolicy(DiffusionPolicy):
    """Clamps each action, in a method that LeRobot's engine of real-time chunking does not call."""

    name = "diffusion"

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return an action."""
        return super().select_action(batch, noise).clamp(-0.1, 0.1)


def test_a_policy_that_would_lose_something_does_not_support_it(state_policy: DiffusionPolicy) -> None:
    supports = pytest.importorskip("lerobot.rollout.inference.rtc").supports_rtc_inference
    policy = asd_policy.accelerate(ClampingPolicy(state_policy.config).eval())
    assert not supports(policy)


def test_bad_input(state_policy: DiffusionPolicy) -> None:
    asd_policy.accelerate(state_policy, "asd:window=6")
    plan: Any = state_policy.predict_action_chunk
    left, batch = torch.rand(4, 2), observe(state_policy)
    for broken, delay, said in (
        (left, -1, "inference_delay=-1 is negative"),
        (torch.rand(4, 3), 1, r"has shape \(4, 3\), not \(T, 2\) or \(1, T, 2\)"),
        (torch.rand(3, 4, 2), 1, r"has shape \(3, 4, 2\), not"),
        (left * float("nan"), 1, "prev_chunk_left_over holds NaN or infinity"),
    ):
        with pytest.raises(asd_policy.SpecError, match=said):
            plan(batch, inference_delay=delay, prev_chunk_left_over=broken)
    with pytest.raises(asd_policy.ObservationError, match="the batch lacks 'observation.environment_state'; it has"):
        plan({STATE: batch[STATE]}, inference_delay=0)
    with pytest.raises(asd_policy.ObservationError, match=r"'observation.state' has shape \(1, 3, 2\), not"):
        plan({**batch, STATE: torch.zeros(1, 3, 2)}, inference_delay=0)
    assert stats_of(state_policy).plans == 0
    chunk(state_policy, left, 2)  # and goes on
