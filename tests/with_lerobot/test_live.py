"""A live LeRobot policy, accelerated: LeRobot's own numbers on one tape, its law, its queues, and no trace after."""

import copy
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness import checks as exactness
from asd_policy.evaluation.exactness import law, mutants
from asd_policy.samplers.asd.sampler import Asd
from conftest import (
    STEPS,
    call_network,
    condition,
    experience_of,
    make_config,
    make_policy,
    network_place,
    observe,
    sample_plans,
    stats_of,
    unet_of,
)

EVENT = (16, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def queues(policy: Any) -> dict[str, deque[Tensor]]:
    assert policy._queues is not None
    return policy._queues


def own_loop(policy: DiffusionPolicy, cond: Tensor, tape: NoiseTape, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Sample with LeRobot's own loop and scheduler along a tape."""
    noises: Iterator[Tensor] = iter(tape.normals.unbind(1))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises))
        return DiffusionModel.conditional_sample(policy.diffusion, len(cond), cond, noise=tape.initial)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("seed", [5, None], ids=["generator", "global"])
def test_window_one_is_lerobots_own_loop(policy: DiffusionPolicy, batch: int, given: bool, seed: int | None) -> None:
    """Of one seed, whether the chain's start is drawn with the rest or given as `noise`, for any number of robots."""
    cond = condition(policy, batch)
    noise = torch.randn((batch, *EVENT), generator=seeded(6)) if given else None

    def plan() -> Tensor:
        torch.manual_seed(7)
        with torch.no_grad():
            return policy.diffusion.conditional_sample(batch, cond, None if seed is None else seeded(seed), noise)

    expected = plan()
    asd_policy.accelerate(policy, "asd:window=1")
    torch.testing.assert_close(plan(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [(8, 7), (16, 3)])
def test_any_plan_is_drawn_alike(dims: tuple[int, int]) -> None:
    """Also where PyTorch draws the numbers of one step and those of all steps in different ways."""
    horizon, action_dim = dims
    action = PolicyFeature(FeatureType.ACTION, (action_dim,))
    torch.manual_seed(0)
    policy = DiffusionPolicy(make_config(horizon=horizon, n_action_steps=4, output_features={"action": action})).eval()
    cond = condition(policy)
    with torch.no_grad():
        expected = policy.diffusion.conditional_sample(1, cond, seeded(5))
    asd_policy.accelerate(policy, "asd:window=1")
    plan = policy.diffusion.conditional_sample(1, cond, seeded(5))
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-5)


def test_mixed_precision(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's `use_amp`. A bfloat16 has eight bits, and one that rounds the other way moves the plan by some 0.02."""
    cond = condition(policy, 2)
    tape = NoiseTape.draw((2, *EVENT), STEPS, seeded(5))
    with torch.autocast("cpu", torch.bfloat16):
        expected = own_loop(policy, cond, tape, monkeypatch)
        asd_policy.accelerate(policy, "asd:window=1")
        plans = policy.diffusion.conditional_sample(2, cond, seeded(5))
        asd_policy.accelerate(policy, "asd:window=6")
        policy.diffusion.conditional_sample(2, cond)
    assert plans.dtype == torch.float32
    torch.testing.assert_close(plans, expected, rtol=0, atol=0.1)
    assert stats_of(policy).algorithmic_speedup > 1


def test_the_interface_is_as_before(policy: DiffusionPolicy) -> None:
    """Queues, chunks, seeds, autograd: with a window of one nobody can tell."""

    def drive() -> list[Tensor]:
        policy.reset()
        actions: list[Tensor] = []
        for step in range(19):
            torch.manual_seed(step)
            actions.append(policy.select_action(observe(policy, seed=step)))
        torch.manual_seed(19)
        chunk = policy.predict_action_chunk({name: Tensor() for name in set(queues(policy)) - {"action"}})
        queued = torch.stack(list(queues(policy)["action"]))
        assert not any(part.is_inference() or part.requires_grad for part in (*actions, chunk))
        return [*actions, chunk, queued]

    before = drive()
    asd_policy.accelerate(policy, "asd:window=1")
    for new, old in zip(drive(), before, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert stats_of(policy).plans == 4
    policy.reset()
    given = [policy.select_action(observe(policy), noise=torch.full((1, *EVENT), value)) for value in (1.0, -1.0)]
    assert stats_of(policy).plans == 5  # the second action was in the queue
    assert not torch.equal(*given)


@pytest.mark.parametrize("window", [1, 6])
def test_given_noise_is_the_start(state_policy: DiffusionPolicy, window: int) -> None:
    asd_policy.accelerate(state_policy, f"asd:window={window}")
    sample, cond = state_policy.diffusion.conditional_sample, condition(state_policy, 2)
    calls: list[Any] = []
    unet_of(state_policy).register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    sample(2, cond)  # the first plan also tries the network
    calls.clear()
    noise = torch.randn((2, *EVENT), generator=seeded(1))
    state_policy.reset()
    plans = sample(2, cond, seeded(2), noise)
    points, timesteps = calls[0]
    first = points[timesteps == STEPS - 1]
    assert torch.equal(first, noise)
    state_policy.reset()
    assert not torch.equal(plans, sample(2, cond, seeded(2)))
    with pytest.raises(asd_policy.ObservationError, match=r"the noise has shape \(2, 8, 2\), the plans \(2, 16, 2\)"):
        sample(2, cond, noise=noise[:, :8])


def test_a_generator_decides_everything(state_policy: DiffusionPolicy) -> None:
    asd_policy.accelerate(state_policy, "asd:window=6,draft=picard")
    sample, cond = state_policy.diffusion.conditional_sample, condition(state_policy, 2)
    state = torch.get_rng_state()
    one, again, other = (sample(2, cond, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    free = sample(2, cond)
    torch.manual_seed(0)
    assert torch.equal(free, sample(2, cond))


def test_the_encoder_runs_once_per_plan() -> None:
    policy = make_policy("image")
    seen: list[int] = []
    policy.diffusion.rgb_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    asd_policy.accelerate(policy, "asd:window=6")
    for step in range(17):
        policy.select_action(observe(policy, 3, step))
    assert seen == [6, 6, 6]  # three robots, two images each


def residual_checks(policy: Any, chain: GaussianChain, cond: Tensor) -> list[exactness.Check]:
    """Test every step that a batch of plans took."""
    rows, (owner, place) = len(cond), network_place(policy)
    network = getattr(owner, place)

    def call(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return call_network(policy, network, x, timestep, cond)

    recorder = law.PathRecorder(call, chain, rows, 32)

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, timestep: Tensor, **told: Tensor) -> Tensor:
            (cond,) = told.values()
            return recorder(x, timestep, cond)

    setattr(owner, place, Watched().eval())
    plans = sample_plans(policy, recorder.tag(cond), 11)
    setattr(owner, place, network)
    points = np.concatenate([recorder.points, plans.flatten(1)[:, None].double().numpy()], axis=1)
    guesses = {"earlier prediction": recorder.earlier, "window's start": recorder.start}
    steps = exactness.residual_steps(points, recorder.predictions, chain.a, chain.b, chain.sigma, guesses)
    return exactness.residual_checks(steps)


@pytest.mark.parametrize("kind", ["state", "dit"])
@pytest.mark.parametrize("spec", ["asd:window=6", "asd:window=12,draft=picard,verify=reflection"])
@pytest.mark.parametrize("mutant", [None, "accept-always"])
def test_steps_have_the_law_of_the_chain(kind: str, spec: str, mutant: str | None) -> None:
    """And a coupling that is broken on purpose does not."""
    policy: Any = make_policy(kind)
    asd_policy.accelerate(policy, spec)
    cond = condition(policy).expand(512, -1)
    for seed in range(3):  # the draft then starts from the last plan and responds as the plans before taught it to
        sample_plans(policy, cond, seed)
    chain = GaussianChain.from_scheduler((policy.objective if kind == "dit" else policy.diffusion).noise_scheduler)
    if mutant is None:
        assert exactness.bonferroni(residual_checks(policy, chain, cond), 0.01).holds
        assert stats_of(policy).algorithmic_speedup > 1.5
    else:
        with mutants.mutated(mutant):
            assert not exactness.bonferroni(residual_checks(policy, chain, cond), 0.01).holds


@pytest.mark.parametrize(("spec", "same"), [("asd:window=6", True), ("ddim:2", False)])
def test_plans_have_the_law_of_lerobots_loop(any_policy: Any, spec: str, same: bool) -> None:
    """Through `select_action`'s own path of observations; an approximate sampler shows that a difference is seen."""
    policy, rows = any_policy, 256
    batch = {name: values.expand(rows, *values.shape[1:]) for name, values in observe(policy).items()}

    def plans(seed: int) -> exactness.Array:
        torch.manual_seed(seed)
        policy.reset()
        policy.select_action(batch)
        return torch.stack(list(queues(policy)["action"]), 1).flatten(1).double().numpy()[None]

    reference = plans(1)
    asd_policy.accelerate(policy, spec)
    plans(2)
    drawn = plans(3)
    checks = [exactness.energy_check(drawn, reference, 4, 999), exactness.marginal_check(drawn, reference)]
    assert exactness.bonferroni(checks, 0.01).holds is same


def test_stats(state_policy: DiffusionPolicy) -> None:
    asd_policy.accelerate(state_policy, "asd:window=6")
    stats = stats_of(state_policy)
    assert (stats.last, stats.plans) == (None, 0)
    start = time.perf_counter()
    for _ in range(9):
        state_policy.select_action(observe(state_policy, 2))
    elapsed = time.perf_counter() - start
    assert stats is stats_of(state_policy)
    assert (stats.plans, stats.steps) == (4, 4 * STEPS)
    assert stats.last is not None
    assert len(stats.last.rounds) == len(stats.last.nfe) == 2
    assert sum(stats.last.rounds) < stats.rounds < stats.nfe
    assert 0 < stats.last.seconds < stats.seconds < elapsed
    assert stats.algorithmic_speedup == stats.steps / stats.rounds > 1


def test_restore_leaves_no_trace(policy: DiffusionPolicy) -> None:
    """Attributes, weights and numbers are those of before, and no other policy was ever touched."""

    def drive(policy: DiffusionPolicy) -> list[Tensor]:
        torch.manual_seed(0)
        policy.reset()
        return [policy.select_action(observe(policy, 2, step)) for step in range(9)]

    before, names = drive(policy), [set(vars(part)) for part in (policy, policy.diffusion)]
    weights, other = list(policy.state_dict()), copy.deepcopy(policy)
    assert asd_policy.accelerate(policy, "asd:window=6") is policy
    assert list(policy.state_dict()) == weights
    assert not all(torch.equal(new, old) for new, old in zip(drive(policy), before, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(drive(other), before, strict=True))
    assert asd_policy.restore(policy) is policy
    assert [set(vars(part)) for part in (policy, policy.diffusion)] == names
    assert all(torch.equal(new, old) for new, old in zip(drive(policy), before, strict=True))
    with pytest.raises(asd_policy.SpecError, match="this DiffusionPolicy is not accelerated"):
        asd_policy.restore(policy)


def test_accelerating_again_replaces(state_policy: DiffusionPolicy) -> None:
    names = set(vars(state_policy))
    for spec in ("asd:window=6", "ddpm"):
        asd_policy.accelerate(state_policy, spec)
    state_policy.select_action(observe(state_policy))
    assert stats_of(state_policy).rounds == STEPS
    asd_policy.restore(state_policy)
    assert set(vars(state_policy)) == names


def test_what_was_patched_before_comes_back(state_policy: DiffusionPolicy) -> None:
    """Another tool's attribute on the instance is not ours to remove."""
    resets: list[int] = []
    state_policy.reset = theirs = lambda: resets.append(1)
    asd_policy.accelerate(state_policy)
    state_policy.reset()
    assert resets == [1]
    asd_policy.restore(state_policy)
    assert vars(state_policy)["reset"] is theirs


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_are_accelerated_on_their_own(
    state_policy: DiffusionPolicy, copied: Callable[[DiffusionPolicy], DiffusionPolicy]
) -> None:
    asd_policy.accelerate(state_policy, "asd:window=6")
    other = copied(state_policy)
    nn.init.zeros_(unet_of(other).final_conv[1].weight)
    for policy in (state_policy, other):
        torch.manual_seed(0)
        policy.reset()
    first, second = state_policy.select_action(observe(other)), other.select_action(observe(other))
    assert not torch.equal(first, second)
    assert (stats_of(state_policy).plans, stats_of(other).plans) == (1, 1)
    asd_policy.restore(other)
    state_policy.select_action(observe(other))
    assert not hasattr(other, "asd_stats")


def test_the_last_plan_begins_the_next(state_policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved on by the actions executed; not across a reset, nor to another number of robots."""
    asd_policy.accelerate(state_policy, "asd:window=6")
    starts: list[Tensor | None] = []
    sampled: list[Tensor] = []
    sample = Asd.sample

    def spy(self: Asd, *arguments: Any, **options: Any) -> Any:
        starts.append(options["warm_start"].last_plan)
        result = sample(self, *arguments, **options)
        sampled.append(result.sample)
        return result

    monkeypatch.setattr(Asd, "sample", spy)
    for _ in range(9):
        state_policy.select_action(observe(state_policy, 2))
    first, second = starts
    assert first is None
    assert second is not None
    assert torch.equal(second, torch.cat([sampled[0][:, 8:], sampled[0][:, -1:].expand(-1, 8, -1)], dim=1))
    state_policy.reset()
    state_policy.select_action(observe(state_policy, 2))
    state_policy.diffusion.conditional_sample(3, condition(state_policy, 3))
    assert starts[2:] == [None, None]


def test_refusals(state_policy: DiffusionPolicy) -> None:
    names = set(vars(state_policy))
    with pytest.raises(asd_policy.SpecError, match="window=13 is not in 1 … 12"):
        asd_policy.accelerate(state_policy, "asd:window=13")
    model = state_policy.diffusion
    model.noise_scheduler = DDIMScheduler.from_config(model.noise_scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]  # its stub
    with pytest.raises(asd_policy.ChainError, match="DDIMScheduler with eta=0.*accelerate.*chain='trained'"):
        asd_policy.accelerate(state_policy)
    assert set(vars(state_policy)) == names
    with pytest.raises(
        asd_policy.SpecError, match="cannot accelerate a DiffusionModel; what can be accelerated: a Policy"
    ):
        asd_policy.accelerate(model)


def test_a_scheduler_changed_afterwards_is_noticed(state_policy: DiffusionPolicy) -> None:
    asd_policy.accelerate(state_policy, "asd:window=2")
    model = state_policy.diffusion
    model.num_inference_steps = 4
    with pytest.raises(asd_policy.ChainError, match="12 inference steps, it now has 4; accelerate the policy again"):
        state_policy.select_action(observe(state_policy))
    asd_policy.accelerate(state_policy, "asd:window=2")
    state_policy.select_action(observe(state_policy))
    assert stats_of(state_policy).steps == 4
    model.noise_scheduler = DDPMScheduler(num_train_timesteps=STEPS, clip_sample=False)
    with pytest.raises(asd_policy.ChainError, match="another noise scheduler"):
        state_policy.diffusion.conditional_sample(1, condition(state_policy))


def test_a_network_that_cannot_be_sampled_from(state_policy: DiffusionPolicy) -> None:
    """Found at the first plan."""
    unet = unet_of(state_policy)
    unet.final_conv.append(nn.Dropout())
    asd_policy.accelerate(state_policy.train())
    with pytest.raises(asd_policy.DenoiserError, match=r"two equal calls .* is dropout left on\? Call .eval\(\)"):
        state_policy.select_action(observe(state_policy))
    state_policy.eval().select_action(observe(state_policy))
    nn.init.constant_(unet.final_conv[1].bias, float("nan"))
    with pytest.raises(asd_policy.DenoiserError, match="NaN or infinity"):
        state_policy.diffusion.conditional_sample(1, condition(state_policy))


def test_sixteen_bits_are_refused(state_policy: DiffusionPolicy) -> None:
    """LeRobot then rounds the chain itself: before the policy is accelerated, and after."""
    message = "weights of the policy's DiffusionConditionalUnet1d are bfloat16, and LeRobot rounds each step"
    with pytest.raises(asd_policy.DenoiserError, match=message):
        asd_policy.accelerate(copy.deepcopy(state_policy).to(torch.bfloat16))
    asd_policy.accelerate(state_policy, "asd:window=2").to(torch.bfloat16)
    with pytest.raises(asd_policy.DenoiserError, match=message):
        state_policy.diffusion.conditional_sample(1, condition(state_policy))


class SafeModel(DiffusionModel):
    """Clamps what it samples."""

    def conditional_sample(self, *arguments: Any, **options: Any) -> Tensor:
        """Sample."""
        return super().conditional_sample(*arguments, **options).clamp(-0.1, 0.1)


class GuidedModel(DiffusionModel):
    """Samples in its own way."""

    def generate_actions(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Sample."""
        return 0.5 * super().generate_actions(batch, noise)


class SafePolicy(DiffusionPolicy):
    """Clamps each action."""

    name = "diffusion"

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return an action."""
        return super().select_action(batch, noise).clamp(-0.1, 0.1)


@pytest.mark.parametrize(("model", "method"), [(SafeModel, "conditional_sample"), (GuidedModel, "generate_actions")])
def test_a_sampling_method_of_somebody_elses_is_refused(
    state_policy: DiffusionPolicy, model: type[DiffusionModel], method: str
) -> None:
    state_policy.diffusion = model(state_policy.config).eval()
    with pytest.raises(asd_policy.SpecError, match=f"{method} of this {model.__name__} .* test_live.{model.__name__} "):
        asd_policy.accelerate(state_policy)
    state_policy.diffusion = DiffusionModel(state_policy.config).eval()
    own = getattr(state_policy.diffusion, method)
    setattr(state_policy.diffusion, method, lambda *arguments, **options: own(*arguments, **options))
    with pytest.raises(asd_policy.SpecError, match=f"{method} of this DiffusionModel .* attribute of that name"):
        asd_policy.accelerate(state_policy)
    delattr(state_policy.diffusion, method)
    asd_policy.accelerate(state_policy)


def test_what_is_done_around_the_sampling_stays(state_policy: DiffusionPolicy) -> None:
    """A clamp on the actions, a queue of its own: the sampler does not take its place."""
    policy = asd_policy.accelerate(SafePolicy(state_policy.config).eval(), "asd:window=6")
    assert policy.select_action(observe(policy)).abs().max() <= 0.1
    assert stats_of(policy).plans == 1


def test_after_a_warm_up_no_plan_is_held_up(policy: DiffusionPolicy) -> None:
    """Encoders included; random numbers and the policy's queues stay as they are."""
    asd_policy.accelerate(policy, "asd")
    calls: list[int] = []
    unet_of(policy).register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    state = torch.get_rng_state()
    warm = asd_policy.warm_up(policy, robots=2)
    assert torch.equal(torch.get_rng_state(), state)
    stats = stats_of(policy)
    assert (stats.plans, stats.last) == (0, None)
    assert (warm.calls, warm.points) == (stats.trial_calls, stats.trial_points) == (len(calls), sum(calls))
    assert all(len(queue) == 0 for queue in queues(policy).values())
    calls.clear()
    policy.select_action(observe(policy, 2))
    assert stats.last is not None
    assert stats.last.trial_calls == 0
    assert len(calls) == max(stats.last.rounds)
    with pytest.raises(asd_policy.SpecError, match="is in training mode: call .eval"):
        asd_policy.warm_up(policy.train())


def test_a_warm_up_learns_from_a_noise_of_its_own(state_policy: DiffusionPolicy) -> None:
    """Random numbers stay as they are, all calls are counted, and the law of what follows is the chain's."""
    asd_policy.accelerate(state_policy, "asd:window=6")
    calls: list[int] = []
    unet = unet_of(state_policy)
    unet.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    state = torch.get_rng_state()
    warm = asd_policy.warm_up(state_policy, learn=16, compare=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (warm.calls, warm.points) == (len(calls), sum(calls))
    assert (stats_of(state_policy).trial_calls, stats_of(state_policy).plans) == (len(calls), 0)
    assert warm.loop_seconds is not None and warm.loop_seconds > 0
    learned = experience_of(state_policy)
    assert learned.plans == learned.responses == 16
    chain = GaussianChain.from_scheduler(state_policy.diffusion.noise_scheduler)
    checks = residual_checks(state_policy, chain, condition(state_policy).expand(512, -1))
    assert exactness.bonferroni(checks, 0.01).holds
    taught = learned.moments["cross"].clone()
    again = make_policy("state")
    asd_policy.warm_up(asd_policy.accelerate(again, "asd:window=6"), learn=16)
    kept = experience_of(again)
    assert kept.plans == 16 and not torch.equal(kept.moments["cross"], taught)  # not what the plans since have taught


def test_ddim_in_the_chain_of_training(state_policy: DiffusionPolicy) -> None:
    """In place: LeRobot's own DDPM loop on the same weights, whatever of its steps DDIM takes."""
    cond = condition(state_policy)
    expected = state_policy.diffusion.conditional_sample(1, cond, seeded(5))
    model = state_policy.diffusion
    model.noise_scheduler = DDIMScheduler.from_config(model.noise_scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]  # its stub
    model.num_inference_steps = 4
    asd_policy.accelerate(state_policy, "asd:window=1", chain="trained")
    plan = model.conditional_sample(1, cond, seeded(5))
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-5)
    assert stats_of(state_policy).steps == STEPS
    model.num_inference_steps = 5
    with pytest.raises(asd_policy.ChainError, match="accelerated with 4 inference steps, it now has 5; accelerate"):
        model.conditional_sample(1, cond)
    with pytest.raises(asd_policy.SpecError, match="chain 'traned' is not one of checkpoint, trained"):
        asd_policy.accelerate(state_policy, "asd", chain="traned")


def test_the_compiler_stays_out_of_the_sampler(state_policy: DiffusionPolicy) -> None:
    """As lerobot-rollout wraps `predict_action_chunk`."""
    asd_policy.accelerate(state_policy, "asd:window=6")
    other = copy.deepcopy(state_policy)
    own: Any = state_policy.predict_action_chunk
    state_policy.predict_action_chunk = torch.compile(own, backend="eager")
    for seed in range(17):
        actions: list[Tensor] = []
        for each in (state_policy, other):
            torch.manual_seed(seed)
            actions.append(each.select_action(observe(each, 1, seed)))
        assert torch.equal(*actions)
    assert stats_of(state_policy).plans == 3
