"""A live `MultiTaskDiTPolicy`, accelerated in place: LeRobot's own numbers from one seed, and no trace after."""

import copy
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from dit_policies import STEPS, TinyText, TinyVision, make_dit, require_dit
from torch import Tensor, nn

import asd_policy
from asd_policy.networks.dit import Dit
from asd_policy.policy.adapters.networks import UnknownNetworkError, view_of
from conftest import condition, observe, sample_plans, stats_of
from lerobot_policy_asd import report

POLICIES: dict[str, dict[str, Any]] = {
    "rope": {},
    "rope, no dropout, positions": {"dropout": 0.0, "use_positional_encoding": True},
    "attention, positions": {"use_rope": False, "use_positional_encoding": True},
    "attention": {"use_rope": False},
    "predicts samples, another horizon": {"prediction_type": "sample", "horizon": 11, "n_action_steps": 4},
    "fewer steps, no clips": {"num_inference_steps": 5, "clip_sample": False},
    "two cameras, an encoder each": {"cameras": 2, "use_separate_rgb_encoder_per_camera": True},
}


def drive(policy: Any, robots: int, steps: int = 19) -> list[Tensor]:
    """Actions of an episode, of one seed for each step."""
    policy.reset()
    actions: list[Tensor] = []
    for step in range(steps):
        torch.manual_seed(step)
        actions.append(policy.select_action(observe(policy, robots, seed=step)))
    return actions


@pytest.mark.parametrize("robots", [1, 3])
@pytest.mark.parametrize("case", POLICIES)
def test_window_one_is_lerobots_own_loop(case: str, robots: int) -> None:
    """Of one seed, for any number of robots, through observations, queues and a task."""
    policy = make_dit(**POLICIES[case])
    expected = drive(policy, robots)
    asd_policy.accelerate(policy, "asd:window=1")
    for new, old in zip(drive(policy, robots), expected, strict=True):
        assert not new.is_inference() and not new.requires_grad
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert stats_of(policy).plans == robots * -(-19 // policy.config.n_action_steps)


@pytest.mark.parametrize("case", POLICIES)
def test_the_dit_is_ours_on_its_weights(case: str) -> None:
    """No copy, and equal to LeRobot's forward."""
    policy = make_dit(**POLICIES[case])
    network = policy.noise_predictor
    view = view_of(network)
    assert type(view) is Dit
    assert {id(each) for each in view.parameters()} == {id(each) for each in network.parameters()}
    assert view.state_dict().keys() == network.state_dict().keys()
    x, timestep = torch.randn(5, policy.config.horizon, 2), torch.tensor([0, 3, 5, 8, 11])
    cond = condition(policy, 5)
    with torch.no_grad():
        expected = network(x, timestep, conditioning_vec=cond)
        found = view(x, timestep, cond)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def own_rotation(network: Any) -> None:
    network.transformer_blocks[1].attn.rope._cos_cached.mul_(0.99)


def other_norm(network: Any) -> None:
    network.transformer_blocks[1].norm2.eps = 1e-2


def own_forward(network: Any) -> None:
    network.transformer_blocks[0].attn.forward = lambda x: x


def other_gelu(network: Any) -> None:
    network.transformer_blocks[0].mlp[1] = nn.GELU()


def other_heads(network: Any) -> None:
    network.transformer_blocks[1].attn.num_heads = 4


def another_layer(network: Any) -> None:
    network.output_proj = nn.Sequential(network.output_proj, nn.Tanh())


def other_time(network: Any) -> None:
    network.time_mlp[0].dim = 6


def training(network: Any) -> None:
    network.transformer_blocks[1].attn.training = True


@pytest.mark.parametrize(
    "change", [own_rotation, other_norm, own_forward, other_gelu, other_heads, another_layer, other_time, training]
)
def test_another_network_is_seen(change: Callable[[Any], None]) -> None:
    policy = make_dit()
    change(policy.noise_predictor)
    with pytest.raises(UnknownNetworkError):
        view_of(policy.noise_predictor)


def test_another_modulation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_dit()
    monkeypatch.setattr(require_dit(), "modulate", lambda x, shift, scale: x * scale + shift)
    with pytest.raises(UnknownNetworkError, match="modulate is another one"):
        view_of(policy.noise_predictor)


def load(policy: Any, assign: bool) -> None:
    policy.load_state_dict({name: 1.5 * each for name, each in policy.state_dict().items()}, assign=assign)


def replace_network(policy: Any) -> None:
    policy.noise_predictor = make_dit(num_layers=1).noise_predictor


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda policy: load(policy, assign=False),
    "assigned": lambda policy: load(policy, assign=True),
    "a layer": lambda policy: setattr(policy.noise_predictor, "output_proj", nn.Linear(16, 2)),
    "a hook": lambda policy: policy.noise_predictor.register_forward_hook(lambda _, __, output: 0.5 * output),
    "rotations": lambda policy: own_rotation(policy.noise_predictor),
    "the network": replace_network,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_followed(change: str) -> None:
    policy = make_dit()
    asd_policy.accelerate(policy, "asd:window=1")
    cond = condition(policy, 2)
    before = sample_plans(policy, cond, 1)
    CHANGES[change](policy)
    after = sample_plans(policy, cond, 1)
    assert not torch.equal(before, after)
    own = sample_plans(asd_policy.restore(policy), cond, 1)
    torch.testing.assert_close(after, own, rtol=0, atol=1e-5)


def test_a_modulation_that_is_replaced_later_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_dit()
    asd_policy.accelerate(policy, "asd:window=1")
    cond = condition(policy, 2)
    before = sample_plans(policy, cond, 1)
    monkeypatch.setattr(require_dit(), "modulate", lambda x, shift, scale: x * (1 - scale) + shift)
    after = sample_plans(policy, cond, 1)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, sample_plans(asd_policy.restore(policy), cond, 1), rtol=0, atol=1e-5)


def test_backends_run_the_live_network() -> None:
    policy = make_dit()
    with pytest.raises(asd_policy.BackendError, match="torch-cuda-graph needs a CUDA GPU"):
        asd_policy.accelerate(policy, backend="torch-cuda-graph")
    assert not hasattr(policy, "asd_stats")
    cond = condition(policy, 2)
    expected = sample_plans(policy, cond, 1)
    for spec in ("torch-replicas:devices=cpu+cpu", "onnx"):
        asd_policy.accelerate(policy, "asd:window=1", backend=spec)
        torch.testing.assert_close(sample_plans(policy, cond, 1), expected, rtol=0, atol=1e-4)
    CHANGES["in place"](policy)
    with pytest.raises(asd_policy.BackendError, match="network was changed after onnx.* accelerate .* again"):
        sample_plans(policy, cond, 1)
    policy = make_dit()
    other_gelu(policy.noise_predictor)
    with pytest.raises(asd_policy.BackendError, match=r"onnx.* cannot run the policy's network: .*GELU"):
        asd_policy.accelerate(policy, backend="onnx")


def test_autocast_stays_lerobots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `use_amp`: the network's own forward, in the user's precision. LeRobot alone draws in 16 bits then."""
    policy = make_dit()
    cond = condition(policy, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with monkeypatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.randn(shape))
            expected = sample_plans(policy, cond, 1)
        asd_policy.accelerate(policy, "asd:window=1")
        plans = sample_plans(policy, cond, 1)
    torch.testing.assert_close(plans, expected.float(), rtol=0, atol=0.1)


def test_after_a_warm_up_no_plan_is_held_up() -> None:
    """Encoders of frames and text included; random numbers and queues stay as they are."""
    policy = make_dit(1)
    asd_policy.accelerate(policy, "asd", deadline_ms=60_000)
    text: list[Any] = []
    policy.observation_encoder.text_encoder.register_forward_pre_hook(lambda _, given: text.append(given))
    state = torch.get_rng_state()
    warm = asd_policy.warm_up(policy, robots=2)
    assert torch.equal(torch.get_rng_state(), state)
    tokens, read = text[0]
    assert tokens.shape == read.shape == (2, 6) and bool(read.all())
    stats = stats_of(policy)
    assert (stats.plans, stats.last) == (0, None)
    assert (warm.calls, warm.points) == (stats.trial_calls, stats.trial_points)
    assert all(len(queue) == 0 for queue in policy._queues.values())
    policy.select_action(observe(policy, 2))
    assert stats.last is not None and policy.last_plan is not None
    assert stats.last.trial_calls == 0
    policy.reset()
    assert policy.last_plan is None


def test_a_deadline_in_place() -> None:
    """Encoding counts: a plan whose encoder takes the time that there is jumps at once."""
    policy = make_dit()
    asd_policy.accelerate(policy, "asd:window=2", deadline_ms=60_000)
    asd_policy.warm_up(policy)
    policy.select_action(observe(policy))
    last = stats_of(policy).last
    assert last is not None and not last.cut[0]
    asd_policy.accelerate(policy, "asd:window=2", deadline_ms=200)
    asd_policy.warm_up(policy)
    policy.reset()
    policy.observation_encoder.text_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    policy.select_action(observe(policy))
    last = stats_of(policy).last
    assert last is not None and last.cut[0]
    asd_policy.restore(policy)
    assert "_generate_actions" not in vars(policy)


def test_restore_leaves_no_trace() -> None:
    policy = make_dit()
    before, names = drive(policy, 2, 9), [set(vars(part)) for part in (policy, policy.objective)]
    weights, other = list(policy.state_dict()), copy.deepcopy(policy)
    assert asd_policy.accelerate(policy, "asd:window=6") is policy
    assert list(policy.state_dict()) == weights
    assert not all(torch.equal(new, old) for new, old in zip(drive(policy, 2, 9), before, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(drive(other, 2, 9), before, strict=True))
    copied: Any = pickle.loads(pickle.dumps(policy))
    for each in (policy, copied):
        asd_policy.restore(each)
        assert [set(vars(part)) for part in (each, each.objective)] == names
        assert all(torch.equal(new, old) for new, old in zip(drive(each, 2, 9), before, strict=True))


def test_another_objective_is_refused_by_name() -> None:
    flow = make_dit(objective="flow_matching")
    message = r"this MultiTaskDiTPolicy has the objective flow_matching, whose plans .* chain='stochastic'"
    for attempt in (asd_policy.accelerate, asd_policy.load_policy):
        with pytest.raises(asd_policy.ChainError, match=message):
            attempt(flow)
    assert not hasattr(flow, "asd_stats")


def test_ddim_is_refused_in_place_but_for_the_trained_chain() -> None:
    ddim = make_dit(noise_scheduler_type="DDIM", num_inference_steps=5)
    with pytest.raises(asd_policy.ChainError, match="DDIMScheduler with eta=0.*'trained'"):
        asd_policy.accelerate(ddim)
    asd_policy.accelerate(ddim, "asd:window=1", chain="trained")
    trained = make_dit()
    for new, old in zip(drive(ddim, 2), drive(trained, 2), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)


def test_a_chunk_given_committed_actions() -> None:
    """LeRobot's real-time chunking, with the task in the batch: the committed actions, and others after them."""
    policy = make_dit(1)
    assert not policy.supports_rtc()
    asd_policy.accelerate(policy, "asd:window=6")
    assert policy.supports_rtc()
    torch.manual_seed(0)
    seen = observe(policy, 2)
    first = policy.predict_action_chunk(seen, inference_delay=0)
    left = first[:, 3:]
    chunk = policy.predict_action_chunk(seen, inference_delay=2, prev_chunk_left_over=left)
    assert chunk.shape == first.shape == (2, 8, 2)
    assert torch.equal(chunk[:, :2], left[:, :2]) and not torch.equal(chunk[:, 2:5], left[:, 2:])
    asd_policy.restore(policy)
    assert not policy.supports_rtc()


def test_a_warm_up_that_learns_and_compares() -> None:
    policy = make_dit(1)
    asd_policy.accelerate(policy, "asd:window=6")
    warm = asd_policy.warm_up(policy, robots=2, learn=2, compare=True)
    assert warm.loop_seconds is not None and warm.loop_seconds > 0
    assert (warm.calls, warm.points) == (stats_of(policy).trial_calls, stats_of(policy).trial_points)
    assert "conditional_sample" in vars(policy.objective)


def test_methods_of_somebody_elses_are_refused() -> None:
    """And those around the sampling stay."""
    module = require_dit()

    def clamped(self: Any, *given: Any) -> Tensor:
        """Sample."""
        return module.DiffusionObjective.conditional_sample(self, *given).clamp(-0.1, 0.1)

    def guided(self: Any, batch: dict[str, Tensor]) -> Tensor:
        """Sample."""
        return 0.5 * module.MultiTaskDiTPolicy._generate_actions(self, batch)

    policy = make_dit()
    policy.objective.__class__ = type("SafeObjective", (module.DiffusionObjective,), {"conditional_sample": clamped})
    with pytest.raises(asd_policy.SpecError, match="conditional_sample of this SafeObjective .* overrides it"):
        asd_policy.accelerate(policy)
    policy = make_dit()
    policy._generate_actions = guided.__get__(policy)
    with pytest.raises(asd_policy.SpecError, match="_generate_actions of this MultiTaskDiTPolicy .* attribute of that"):
        asd_policy.accelerate(policy)
    policy = make_dit()
    own = policy.select_action
    policy.select_action = lambda batch: own(batch).clamp(-0.1, 0.1)
    asd_policy.accelerate(policy, "asd:window=6")
    assert policy.select_action(observe(policy)).abs().max() <= 0.1
    assert stats_of(policy).plans == 1


def test_changes_that_would_change_the_law_are_refused() -> None:
    policy = make_dit()
    asd_policy.accelerate(policy, "asd:window=2")
    sample_plans(policy, condition(policy), 0)
    policy.noise_predictor.transformer_blocks[0].train()
    with pytest.raises(
        asd_policy.DenoiserError,
        match="blocks.0.attn of the policy's .* drops out: .* call .eval",
    ):
        sample_plans(policy, condition(policy), 0)
    policy.objective.num_inference_steps = 4
    with pytest.raises(asd_policy.ChainError, match=f"{STEPS} inference steps, it now has 4; accelerate"):
        policy.select_action(observe(policy))
    asd_policy.accelerate(policy, "asd:window=2")
    policy.objective.noise_scheduler = DDPMScheduler(num_train_timesteps=STEPS)
    with pytest.raises(asd_policy.ChainError, match="another noise scheduler"):
        policy.select_action(observe(policy))
    policy = make_dit()
    asd_policy.accelerate(policy, "asd:window=2")
    policy.to(torch.float16)
    with pytest.raises(asd_policy.DenoiserError, match="DiffusionTransformer are float16, and LeRobot rounds"):
        sample_plans(policy, condition(policy), 0)
    with pytest.raises(asd_policy.DenoiserError, match="DiffusionTransformer are float16, and LeRobot rounds"):
        asd_policy.accelerate(make_dit().half())


def test_training_is_not_touched() -> None:
    """LeRobot's loss and its gradients."""
    policy = make_dit()
    batch = {name: each.expand(2, *each.shape[1:]) for name, each in observe(policy).items()}
    batch["observation.state"] = batch["observation.state"][:, None].expand(2, 2, 3)
    batch["action"] = torch.zeros(2, policy.config.horizon, 2)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return policy.train().forward(batch)[0]

    before = loss()
    asd_policy.accelerate(policy, "asd:window=2")
    after = loss()
    after.backward()
    assert torch.equal(before, after)
    assert policy.noise_predictor.output_proj.weight.grad is not None


def saved(path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A policy in a folder, and CLIP's trained weights at hand for who loads it."""
    make_dit(**changes).save_pretrained(path)
    monkeypatch.setattr(require_dit(), "CLIPVisionModel", TinyVision)
    monkeypatch.setattr(require_dit(), "CLIPTextModel", TinyText)
    return path


def test_the_installed_plugin_accelerates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What LeRobot loads, of its own type; flow matching stays LeRobot's, and a line says so."""
    monkeypatch.delenv("ASD_POLICY_SAMPLER", raising=False)
    monkeypatch.setattr(report, "_loaded", [])
    caplog.set_level(logging.INFO, "lerobot_policy_asd")
    load = require_dit().MultiTaskDiTPolicy.from_pretrained
    policy = load(saved(tmp_path / "ddpm", monkeypatch, cameras=1))
    line = caplog.messages[-1]
    assert line.startswith("multi_task_dit policy plans with asd (asd:window=") and "own loop (DDPM)" in line
    policy.select_action(observe(policy, 2))
    assert stats_of(policy).plans == 2
    policy.save_pretrained(tmp_path / "again")
    assert '"type": "multi_task_dit"' in (tmp_path / "again/config.json").read_text()
    policy = load(saved(tmp_path / "flow", monkeypatch, objective="flow_matching"))
    assert (
        "runs unchanged, in LeRobot's own loop: this MultiTaskDiTPolicy has the objective flow" in caplog.messages[-1]
    )
    assert not hasattr(policy, "asd_stats")
