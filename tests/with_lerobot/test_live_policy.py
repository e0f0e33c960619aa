"""A `Policy` of a live LeRobot policy: its plans are LeRobot's own, on LeRobot's own weights and encoders."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from test_cameras import CASES, RANGE, Pair, history
from torch import Tensor, nn

import asd_policy
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.adapters.networks import view_of
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history
from conftest import ENVIRONMENT_STATE, STATE, STEPS, condition, make_config, make_policy, observe, stats_of, unet_of

CPU = torch.device("cpu")


def live(pair: Pair, **options: Any) -> Policy:
    return asd_policy.load_policy(pair.theirs, processors=(pair.before, pair.after), **options)


@pytest.fixture(scope="module", params=["crop", "separate, environment", "resize up, crop"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair") / "saved", *CASES[request.param])


def test_features_are_lerobots(pair: Pair) -> None:
    steps = pair.observe(2)
    expected = pair.conditioning(steps)
    policy = live(pair)
    cond = encode_history(policy.encoder, history(steps), 2, CPU)
    torch.testing.assert_close(cond, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert policy.observation_shapes == pair.ours.observation_shapes
    assert policy.encoder.sizes == pair.ours.encoder.sizes


@pytest.mark.parametrize("sampler", ["ddpm", "asd:window=1"])
def test_plans_are_lerobots_on_one_tape(pair: Pair, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pair.observe(2)
    tape = NoiseTape.draw((1, 16, 2), STEPS, torch.Generator().manual_seed(5), CPU)
    noises: Iterator[Tensor] = iter(tape.normals.unbind(1))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises))
        expected = DiffusionModel.conditional_sample(
            pair.theirs.diffusion, 1, pair.conditioning(steps), noise=tape.initial
        )
    plan = live(pair, sampler=sampler).plan(history(steps), torch.Generator().manual_seed(5))
    torch.testing.assert_close(plan.chunk, pair.after(expected), rtol=0, atol=1e-4 * RANGE)


def test_actions_are_lerobots_in_closed_loop(tmp_path: Path) -> None:
    """History, queue and noise, over two plans; the live policy itself stays as it was."""
    pair = Pair(tmp_path / "saved", *CASES["shared"])
    names = [set(vars(part)) for part in (pair.theirs, pair.theirs.diffusion)]
    ours = live(pair, sampler="asd:window=1")
    asd_policy.accelerate(pair.theirs, "asd:window=1")
    pair.theirs.reset()
    for observation in pair.observe(12, seed=3):
        torch.manual_seed(7)
        ours.generator.manual_seed(7)
        with torch.no_grad():
            expected = pair.after(pair.theirs.select_action(pair.normalized(observation)))
        action = torch.from_numpy(ours.select_action(observation))
        torch.testing.assert_close(action, expected[0], rtol=0, atol=1e-4 * RANGE)
    asd_policy.restore(pair.theirs)
    assert [set(vars(part)) for part in (pair.theirs, pair.theirs.diffusion)] == names


def test_without_processors_it_speaks_the_live_policys_units(state_policy: DiffusionPolicy) -> None:
    """Those of `select_action`, which are normalised."""
    ours = asd_policy.load_policy(state_policy, "asd:window=1")
    asd_policy.accelerate(state_policy, "asd:window=1")
    for step in range(9):
        seen = observe(state_policy, seed=step)
        torch.manual_seed(step)
        ours.generator.manual_seed(step)
        action = torch.from_numpy(ours.select_action({name: each[0].numpy() for name, each in seen.items()}))
        torch.testing.assert_close(action, state_policy.select_action(seen)[0], rtol=0, atol=1e-5)


def test_normalised_frames_need_processors() -> None:
    policy = make_policy("image")
    message = "frames of observation.image are normalised by MEAN_STD outside of this DiffusionPolicy: give processors="
    with pytest.raises(asd_policy.SpecError, match=message):
        asd_policy.load_policy(policy)


def ddim_policy(steps: int = 5) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(make_config(noise_scheduler_type="DDIM", num_inference_steps=steps)).eval()


def test_ddim_plans_its_own_plan_or_the_trained_chain() -> None:
    policy = ddim_policy()
    own = asd_policy.load_policy(policy)
    assert own.reference.spec == "ddim:5" and own.steps == 5
    cond, noise = condition(policy), torch.randn(1, 16, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = policy.diffusion.conditional_sample(1, cond, noise=noise)
    tape = NoiseTape.draw((1, 16, 2), STEPS, torch.Generator().manual_seed(0), CPU, initial=noise)
    seen = {name: part.reshape(1, 2, -1) for name, part in split(policy, cond).items()}
    torch.testing.assert_close(own.plan(seen, tape).chunk, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(asd_policy.SpecError, match="asd.* needs a chain of Gaussian steps.*chain='trained'"):
        asd_policy.load_policy(policy, "asd")
    trained = asd_policy.load_policy(policy, "asd:window=4", chain="trained")
    assert trained.steps == STEPS
    assert max(trained.plan(seen).stats.rounds) < STEPS
    with pytest.raises(asd_policy.ChainError, match=r"in place; asd_policy.accelerate\(policy, chain='trained'\)"):
        asd_policy.accelerate(policy)


def split(policy: DiffusionPolicy, cond: Tensor) -> dict[str, Tensor]:
    """Take conditioning [1, cond_dim] of a policy without cameras apart, by feature [n_obs_steps, n]."""
    dims = [feature.shape[0] for feature in (policy.config.input_features or {}).values()]
    return dict(zip((STATE, ENVIRONMENT_STATE), cond.reshape(2, -1).split(dims, 1), strict=True))


def test_a_scheduler_that_plans_otherwise_is_refused() -> None:
    policy = ddim_policy()

    class Late(DDIMScheduler):
        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(num_inference_steps, device)
            self.timesteps = self.timesteps + 1

    late = Late.from_config(policy.diffusion.noise_scheduler.config)
    policy.diffusion.noise_scheduler = late  # pyright: ignore[reportAttributeAccessIssue]  # its stub
    with pytest.raises(asd_policy.AsdError, match="scheduler 'Late' is no chain|set_timesteps of this Late"):
        asd_policy.load_policy(policy)
    Late.__name__ = "DDIMScheduler"
    with pytest.raises(asd_policy.SpecError, match="set_timesteps of this DDIMScheduler is not .*Late overrides it"):
        asd_policy.load_policy(policy)


class SafePolicy(DiffusionPolicy):
    """Clamps each action."""

    name = "diffusion"

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return an action."""
        return super().select_action(batch, noise).clamp(-0.1, 0.1)


class ShiftedModel(DiffusionModel):
    """Encodes in its own way."""

    def _prepare_global_conditioning(self, batch: dict[str, Tensor]) -> Tensor:
        return super()._prepare_global_conditioning(batch) + 1


def test_what_would_be_lost_is_refused(state_policy: DiffusionPolicy) -> None:
    with pytest.raises(asd_policy.SpecError, match="select_action of this SafePolicy .*SafePolicy overrides it"):
        asd_policy.load_policy(SafePolicy(state_policy.config).eval())
    other = DiffusionPolicy(state_policy.config).eval()
    other.diffusion = ShiftedModel(state_policy.config).eval()
    with pytest.raises(asd_policy.SpecError, match="_prepare_global_conditioning of this ShiftedModel"):
        asd_policy.load_policy(other)
    with pytest.raises(asd_policy.SpecError, match=r"is in training mode \(the policy\): call .eval\(\)"):
        asd_policy.load_policy(copy.deepcopy(state_policy).train())
    accelerated = asd_policy.accelerate(copy.deepcopy(state_policy))
    with pytest.raises(asd_policy.SpecError, match="is accelerated in place: asd_policy.restore it"):
        asd_policy.load_policy(accelerated)
    with pytest.raises(asd_policy.SpecError, match=r"weights of this DiffusionPolicy are torch.float16 on cpu"):
        asd_policy.load_policy(copy.deepcopy(state_policy).half())
    with pytest.raises(asd_policy.SpecError, match="is on cpu: leave device out, or move the policy to meta first"):
        asd_policy.load_policy(state_policy, device="meta")
    with pytest.raises(asd_policy.SpecError, match="cannot make a Policy of a DiffusionModel"):
        asd_policy.load_policy(state_policy.diffusion)


def test_processors_that_do_more_are_refused(state_policy: DiffusionPolicy) -> None:
    before, after = make_pre_post_processors(state_policy.config, dataset_stats=None)
    assert asd_policy.load_policy(state_policy, processors=(before, after)).action_dim == 2
    for wrong in (before, (before,), 3, (after, before)):
        with pytest.raises(asd_policy.SpecError, match="processors"):
            asd_policy.load_policy(state_policy, processors=wrong)
    rename = before.steps[0]
    assert hasattr(rename, "rename_map")
    setattr(rename, "rename_map", {"state": STATE})  # noqa: B010  its type has no such attribute
    with pytest.raises(asd_policy.SpecError, match="the processors rename observations"):
        asd_policy.load_policy(state_policy, processors=(before, after))

    setattr(rename, "rename_map", {})  # noqa: B010  as above
    scale = type("Scale", (type(after.steps[-1]),), {"__module__": "mine"})
    after.steps = [*after.steps, scale(**{"device": "cpu"})]
    with pytest.raises(asd_policy.SpecError, match=r"the processors have a step mine\.Scale, which is not known here"):
        asd_policy.load_policy(state_policy, processors=(before, after))


def test_the_unet_is_ours_on_its_weights(state_policy: DiffusionPolicy) -> None:
    """No copy, and equal to LeRobot's forward."""
    unet = unet_of(state_policy)
    view = view_of(unet)
    assert {id(each) for each in view.parameters()} == {id(each) for each in unet.parameters()}
    policy = asd_policy.load_policy(state_policy)
    assert type(policy.network) is ConditionalUnet1d
    x, timestep = torch.randn(5, 16, 2), torch.tensor([0, 3, 5, 8, 11])
    cond = condition(state_policy, 5)
    with torch.no_grad():
        expected = unet(x, timestep, global_cond=cond)
        for denoiser in (view, Encoding(policy.denoiser)):
            found = denoiser(x, timestep, cond)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class Encoding:
    """Encodes the conditioning for each call."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Predict."""
        return self.denoiser(x, timestep, self.denoiser.encode(cond))


def replaced(policy: DiffusionPolicy) -> dict[str, Tensor]:
    return {name: 1.5 * each for name, each in policy.state_dict().items()}


CHANGES = {
    "in place": lambda policy: policy.load_state_dict(replaced(policy)),
    "assigned": lambda policy: policy.load_state_dict(replaced(policy), assign=True),
    "a layer": lambda policy: unet_of(policy).final_conv.__setitem__(1, nn.Conv1d(8, 2, 1)),
    "a hook": lambda policy: unet_of(policy).register_forward_hook(lambda _, __, output: 0.5 * output),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_followed_in_place(state_policy: DiffusionPolicy, change: str) -> None:
    asd_policy.accelerate(state_policy, "asd:window=1")
    cond = condition(state_policy, 2)

    def plan(policy: DiffusionPolicy) -> Tensor:
        with torch.no_grad():
            return policy.diffusion.conditional_sample(2, cond, torch.Generator().manual_seed(1))

    before = plan(state_policy)
    CHANGES[change](state_policy)
    after = plan(state_policy)
    assert not torch.equal(before, after)
    own = plan(asd_policy.restore(state_policy))
    torch.testing.assert_close(after, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "assigned"])
def test_changes_are_told_to_a_policy(state_policy: DiffusionPolicy, change: str) -> None:
    policy = asd_policy.load_policy(state_policy)
    CHANGES[change](state_policy)
    seen = {STATE: torch.zeros(1, 2, 2), ENVIRONMENT_STATE: torch.zeros(1, 2, 16)}
    with pytest.raises(asd_policy.BackendError, match="weights were changed after it was prepared"):
        policy.plan(seen)
    again = policy.with_backend(policy.backend).plan(seen, torch.Generator().manual_seed(0))
    anew = asd_policy.load_policy(state_policy).plan(seen, torch.Generator().manual_seed(0))
    assert torch.equal(again.chunk, anew.chunk)


def test_backends_run_the_live_network(state_policy: DiffusionPolicy) -> None:
    with pytest.raises(asd_policy.BackendError, match="torch-cuda-graph needs a CUDA GPU"):
        asd_policy.accelerate(state_policy, backend="torch-cuda-graph")
    assert not hasattr(state_policy, "asd_stats")
    cond = condition(state_policy, 2)
    with torch.no_grad():
        expected = state_policy.diffusion.conditional_sample(2, cond, torch.Generator().manual_seed(1))
    asd_policy.accelerate(state_policy, "asd:window=1", backend="torch-replicas:devices=cpu+cpu")
    plan = state_policy.diffusion.conditional_sample(2, cond, torch.Generator().manual_seed(1))
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-4)
    CHANGES["in place"](state_policy)
    with pytest.raises(asd_policy.BackendError, match="network was changed after torch-replicas.* accelerate .* again"):
        state_policy.diffusion.conditional_sample(2, cond)
    asd_policy.restore(state_policy)
    assert "conditional_sample" not in vars(state_policy.diffusion)


def test_a_deadline_in_place() -> None:
    """Encoding counts: a plan whose encoder takes the time that there is jumps at once."""
    policy = make_policy("image")
    asd_policy.accelerate(policy, "asd:window=2", deadline_ms=60_000)
    asd_policy.warm_up(policy)
    policy.select_action(observe(policy))
    last = stats_of(policy).last
    assert last is not None and not last.cut[0]
    asd_policy.accelerate(policy, "asd:window=2", deadline_ms=200)
    asd_policy.warm_up(policy)
    policy.reset()
    policy.diffusion.rgb_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    policy.select_action(observe(policy))
    last = stats_of(policy).last
    assert last is not None and last.cut[0]
    asd_policy.restore(policy)
    assert "generate_actions" not in vars(policy.diffusion)
    with pytest.raises(asd_policy.SpecError, match="deadline_ms=-1 is not a positive number"):
        asd_policy.accelerate(policy, deadline_ms=-1)


def test_statistics_inside_the_policy_are_read(tmp_path: Path) -> None:
    """Where LeRobot before 0.4 keeps them: the policy is then the one that the processors make."""
    pair = Pair(tmp_path / "saved", *CASES["separate, environment"])
    expected = live(pair).normalization
    for module, step in (("normalize_inputs", pair.before), ("unnormalize_outputs", pair.after)):
        statistics: dict[str, dict[str, Tensor]] = {}
        for key, value in next(each for each in step.steps if hasattr(each, "norm_map")).state_dict().items():
            feature, _, name = key.rpartition(".")
            statistics.setdefault(feature, {})[name] = value
        kept = nn.Module()
        for feature, by_name in statistics.items():
            frozen = {name: nn.Parameter(value, requires_grad=False) for name, value in by_name.items()}
            kept.add_module(f"buffer_{feature.replace('.', '_')}", nn.ParameterDict(frozen))
        pair.theirs.add_module(module, kept.eval())
    found = asd_policy.load_policy(pair.theirs).normalization
    assert found.keys() == expected.keys()
    for name, affine in found.items():
        for part in ("origin", "gain", "shift"):
            assert torch.equal(getattr(affine, part), getattr(expected[name], part)), name
