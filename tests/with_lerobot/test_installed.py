"""Policies of their own type, accelerated because the plugin is installed: by nothing but a load through LeRobot."""

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import PushtEnv
from lerobot.policies import factory
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file, save_file
from torch import Tensor

import asd_policy
import lerobot_policy_asd
from asd_policy.policy.adapters import is_accelerated
from conftest import ENVIRONMENT_STATE, STATE, STEPS, experience_of, make_config, observe, stats_of
from lerobot_policy_asd import hook, loaded, report
from lerobot_policy_asd.settings import BACKEND, CHAIN, OFF, SAMPLER


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As in a process that has set none of the variables."""
    for name in (SAMPLER, CHAIN, BACKEND):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(report, "_loaded", [])
    monkeypatch.setattr(sys, "argv", ["program"])
    caplog.set_level(logging.INFO, "lerobot_policy_asd")


def load(folder: Path, **changes: object) -> DiffusionPolicy:
    """As `--policy.path` does, with options of the command line."""
    config = PreTrainedConfig.from_pretrained(
        folder, cli_overrides=[f"--{name}={value}" for name, value in changes.items()]
    )
    config.pretrained_path = folder
    policy = factory.make_policy(config, env_cfg=PushtEnv(obs_type="environment_state_agent_pos"))
    assert isinstance(policy, DiffusionPolicy)
    return policy


def plan(policy: DiffusionPolicy, seed: int = 0) -> Tensor:
    policy.reset()
    torch.manual_seed(seed)
    return policy.select_action(observe(policy, 1, seed))


def save(path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    DiffusionPolicy(make_config(**changes)).save_pretrained(path)
    return path


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each.getMessage() for each in caplog.records if each.name == "lerobot_policy_asd"]
    assert not any("\n" in line for line in found)
    return found


def test_it_plans_with_asd(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line at load; warm, so that no plan measures anything; counts that include all calls; saved as it was."""
    policy = load(folder)
    (line,) = lines(caplog)
    assert line.startswith("diffusion policy plans with asd (asd:window=")
    assert "the same law as LeRobot's own loop (DDPM)" in line and line.endswith(f"{SAMPLER}=off turns it off")
    stats = stats_of(policy)
    assert stats.trial_calls > STEPS  # LeRobot's own loop is one of them
    for seed in range(3):
        plan(policy, seed)
        assert stats.last is not None and stats.last.trial_calls == 0
    assert stats.plans == 3 and stats.rounds < 3 * STEPS
    report._say_what_was_done()
    last = lines(caplog)[-1]
    assert last.startswith(f"diffusion policy: 3 plans, {stats.rounds / 3:.1f} sequential network calls each in place")
    assert f"in place of {STEPS}; " in last and "where LeRobot's loop took" in last
    assert last.endswith(f"; {stats.trial_calls} network calls beside, to warm up and to measure")
    policy.save_pretrained(folder.parent / "again")
    assert PreTrainedConfig.from_pretrained(folder.parent / "again").type == "diffusion"
    assert type(policy) is DiffusionPolicy


def test_a_load_draws_no_numbers_of_the_user(folder: Path) -> None:
    """Evaluations begin with the same random stream with and without the package."""
    torch.manual_seed(3)
    load(folder)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SAMPLER, OFF)
        load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(SAMPLER, OFF)
    policy = load(folder)
    assert not is_accelerated(policy) and "conditional_sample" not in vars(policy.diffusion)
    assert lines(caplog) == [f"diffusion policy in LeRobot's own loop, as {SAMPLER}=off says"]


def test_window_one_is_lerobots_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAMPLER, OFF)
    expected = plan(load(folder))
    monkeypatch.setenv(SAMPLER, "asd:window=1")
    torch.testing.assert_close(plan(load(folder)), expected, rtol=0, atol=1e-5)


def test_an_approximate_sampler_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SAMPLER, "ddim:4")
    load(folder)
    assert "plans with ddim:4 (ddim:4), NOT the same law as LeRobot's own loop (DDPM)" in lines(caplog)[0]


def test_ddim_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless its chain of training is asked for, which is that of a DDPM policy with the same weights."""
    path = save(tmp_path / "ddim", noise_scheduler_type="DDIM", num_inference_steps=4)
    monkeypatch.setenv(SAMPLER, "asd:window=1")
    assert not is_accelerated(load(path))
    (line,) = lines(caplog)
    assert line.startswith("diffusion policy runs unchanged, in LeRobot's own loop: DDIM adds no noise")
    assert f"{CHAIN}=trained" in line
    by_option = load(path, noise_scheduler_type="DDPM")
    assert is_accelerated(by_option)
    assert f"in 4 of the {STEPS} steps that it was trained for ({CHAIN}=trained takes them all)" in lines(caplog)[-1]
    monkeypatch.setenv(CHAIN, "trained")
    trained = load(path)
    assert "as the DDPM chain that it was trained for, not that of LeRobot's own loop (DDIM)" in lines(caplog)[-1]
    actions = plan(trained)
    assert stats_of(trained).steps == STEPS
    monkeypatch.setenv(SAMPLER, OFF)
    own = load(save(tmp_path / "ddpm"))
    torch.testing.assert_close(actions, plan(own), rtol=0, atol=1e-5)


class Clamped(DiffusionModel):
    """A loop whose actions are small."""

    def conditional_sample(self, *given: object, **options: object) -> Tensor:
        """Sample as LeRobot does, and clamp."""
        return super().conditional_sample(*given, **options).clamp(-0.1, 0.1)  # pyright: ignore[reportArgumentType]  # passed on


def test_a_loop_of_its_own_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a sampler is asked for: it would not do what the loop does."""
    monkeypatch.setattr("lerobot.policies.diffusion.modeling_diffusion.DiffusionModel", Clamped)
    for spec in ("", "asd"):
        monkeypatch.setenv(SAMPLER, spec)
        assert float(plan(load(folder)).abs().max()) <= 0.11
        assert "runs unchanged, in LeRobot's own loop: conditional_sample of this Clamped" in lines(caplog)[-1]


def test_unknown_internals_are_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(DiffusionModel, "generate_actions")
    policy = load(folder)
    assert not is_accelerated(policy) and "conditional_sample" not in vars(policy.diffusion)
    assert "runs unchanged, in LeRobot's own loop: " in lines(caplog)[-1]


def test_what_fails_in_the_warm_up_is_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that is not finite on zeros may be so on observations; it is LeRobot's affair then."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["diffusion.unet.final_conv.1.bias"][:] = float("nan")
    save_file(weights, file)
    policy = load(folder)
    assert not is_accelerated(policy) and "conditional_sample" not in vars(policy.diffusion)
    assert "runs unchanged, in LeRobot's own loop: " in lines(caplog)[-1]


def test_missing_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """LeRobot runs on random ones; nothing is made of that unasked, and asked for it is an error."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["diffusion.unet.final_conv.1.bias"]
    save_file(weights, file)
    assert not is_accelerated(load(folder))
    assert lines(caplog)[-1].endswith("lacks 1 of its tensors, random now, such as diffusion.unet.final_conv.1.bias")
    monkeypatch.setenv(SAMPLER, "asd")
    with pytest.raises(asd_policy.CheckpointError, match="lacks 1 of its tensors.*ASD_POLICY_SAMPLER=asd is for pol"):
        load(folder)


def test_without_graphs_on_cuda_it_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are the default there, and what they cannot record is planned without."""
    monkeypatch.setattr(loaded, "_is_on_cuda", lambda _: True)
    assert is_accelerated(load(folder))
    assert ", without CUDA graphs (BackendError: torch-cuda-graph needs a CUDA GPU" in lines(caplog)[-1]


REFUSED = {
    (SAMPLER, "fast"): "ASD_POLICY_SAMPLER=fast: no sampler 'fast'.*ASD_POLICY_SAMPLER=off is LeRobot's own loop",
    (SAMPLER, "asd:widow=3"): "ASD_POLICY_SAMPLER=asd:widow=3: no option 'widow'",
    (SAMPLER, "asd:window=99"): "window=99 is not in 1 … 12",
    (CHAIN, "traned"): "ASD_POLICY_CHAIN=traned: chain 'traned' is not one of checkpoint, trained",
    (BACKEND, "tensorrt"): "ASD_POLICY_BACKEND=tensorrt: no backend 'tensorrt'",
    (BACKEND, "torch-cuda-graph"): "torch-cuda-graph needs a CUDA GPU",
    (BACKEND, OFF): "off is a value of ASD_POLICY_SAMPLER",
}


@pytest.mark.parametrize(("name", "value"), list(REFUSED))
def test_what_is_asked_for_and_cannot_be_had(
    folder: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in Python; one line and no traceback in LeRobot's commands."""
    monkeypatch.setenv(name, value)
    with pytest.raises(asd_policy.AsdError, match=REFUSED[name, value]):
        load(folder)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lerobot-eval"])
    with pytest.raises(SystemExit, match=f"lerobot_policy_asd: {REFUSED[name, value]}"):
        load(folder)


@pytest.mark.parametrize("place", ["get_policy_class", "make_policy", "from_pretrained"])
def test_another_package_in_the_same_place(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is done on top of it unasked, and all of it where the user asks."""
    method = place == "from_pretrained"
    own = vars(PreTrainedPolicy)[place].__func__ if method else getattr(factory, place)
    scope = {"__name__": "lerobot_policy_other", "own": own}
    exec("def theirs(*given, **options): return own(*given, **options)", scope)
    theirs = scope["theirs"]
    assert isinstance(theirs, FunctionType)
    monkeypatch.setattr(*((PreTrainedPolicy, place, classmethod(theirs)) if method else (factory, place, theirs)))
    assert not is_accelerated(load(folder))
    assert f"lerobot_policy_other has changed LeRobot's {'PreTrainedPolicy.' * method}{place}, too" in lines(caplog)[-1]
    monkeypatch.setenv(SAMPLER, "asd")
    assert is_accelerated(load(folder))


@pytest.mark.parametrize("how", ["module", "main"])
def test_training_is_not_touched(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "module":
        monkeypatch.setitem(sys.modules, "lerobot.scripts.lerobot_train", factory)
    else:
        monkeypatch.setattr(sys.modules["__main__"], "__file__", "src/lerobot/scripts/lerobot_train.py", raising=False)
    assert not is_accelerated(load(folder)) and not lines(caplog)


def test_other_policies_are_not_touched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = {STATE: PolicyFeature(FeatureType.STATE, (2,)), ENVIRONMENT_STATE: PolicyFeature(FeatureType.ENV, (16,))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    config = ACTConfig(input_features=features, output_features=action, device="cpu", dim_model=16, n_heads=2)
    ACTPolicy(config).save_pretrained(tmp_path)
    ACTPolicy.from_pretrained(tmp_path)
    assert not lines(caplog)


def test_a_lerobot_whose_parts_lie_elsewhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line, in the place of the traceback that LeRobot writes of plugins that cannot be imported."""
    monkeypatch.delitem(sys.modules, "lerobot_policy_asd.hook")
    monkeypatch.setitem(sys.modules, "lerobot.policies.pretrained", None)
    importlib.reload(lerobot_policy_asd)
    (line,) = lines(caplog)
    assert line.startswith("policies run unchanged: ") and "0.4.4 to 0.6.1 are tested" in line


def test_installing_twice_changes_nothing() -> None:
    before = vars(PreTrainedPolicy)["from_pretrained"].__func__
    hook.install()
    assert vars(PreTrainedPolicy)["from_pretrained"].__func__ is before and hook.is_hook(before)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The windows that are timed."""
    import asd_policy.samplers.asd.autotune as autotune

    own, windows = autotune._time_call, list[int]()
    monkeypatch.setattr(autotune, "_time_call", lambda *given: windows.append(given[2]) or own(*given))
    yield windows


def test_the_next_process_recalls_it(folder: Path, timed: list[int]) -> None:
    """Times, and what plans with a noise of their own have taught; not what the user's plans have."""
    first = load(folder)
    assert timed
    taught, learned = stats_of(first).trial_calls, experience_of(first).plans
    assert learned >= 16 and not experience_of(first).undecided
    for seed in range(5):
        plan(first, seed)
    first.reset()
    timed.clear()
    again = load(folder)
    assert not timed
    assert stats_of(again).trial_calls < taught
    assert experience_of(again).plans == learned  # those of the warm-up
    chosen = [[trial.left for trial in experience_of(each).trials.values()] for each in (first, again)]
    assert chosen[0] == chosen[1] and [len(left) for left in chosen[0]] == [1]


def test_the_robots_of_an_evaluation_are_expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", "--eval.n_episodes=3", "--eval.batch_size", "3"])
    policy = load(folder)
    policy.select_action(observe(policy, 3))
    last = stats_of(policy).last
    assert last is not None and last.trial_calls == 0 and len(last.rounds) == 3
    assert "for 3 robots together, where LeRobot's loop took" in report.summary(
        stats_of(policy), report._loaded[0].warm_ups
    )
