"""LeRobot's `--use_torch_compile`: it compiles the U-Net and `predict_action_chunk`; plans stay, and nothing stalls."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dit_policies import make_dit
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor, nn
from torch._dynamo.utils import counters

import asd_policy
from asd_policy.networks.backends import torch_compiled
from asd_policy.networks.backends.torch_eager import TorchEager
from asd_policy.policy.adapters import is_accelerated, networks
from conftest import make_config, observe, stats_of
from lerobot_policy_asd.settings import SAMPLER

SPEC = "asd:window=6"


@pytest.fixture
def compiled() -> DiffusionPolicy:
    """As `compile_model` makes it; nothing is compiled before the first call."""
    torch.manual_seed(0)
    return DiffusionPolicy(make_config(down_dims=(8,), compile_model=True)).eval()


@pytest.fixture
def plain(compiled: DiffusionPolicy) -> DiffusionPolicy:
    """The same without."""
    policy = DiffusionPolicy(make_config(down_dims=(8,))).eval()
    weights = {name.replace("_orig_mod.", ""): each for name, each in compiled.state_dict().items()}
    policy.load_state_dict(weights)
    return policy


def drive(policy: DiffusionPolicy, steps: int) -> list[Tensor]:
    """Each step with a seed of its own."""
    policy.reset()
    actions: list[Tensor] = []
    for step in range(steps):
        torch.manual_seed(step)
        with torch.inference_mode():
            actions.append(policy.select_action(observe(policy, 1, step)))
    return actions


def test_it_is_compiled_once_and_plans_stay(
    compiled: DiffusionPolicy,
    plain: DiffusionPolicy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first plan, for every number of points; the compiler keeps out of everything else.

    With LeRobot's own form of the network each number of points would be compiled, and the sampler traced.
    """
    context = pytest.importorskip("lerobot.rollout.context")
    monkeypatch.setattr(torch_compiled, "SIZES", (1, 2))  # a window of 6 has no more cases
    with caplog.at_level("INFO", "asd_policy"):
        asd_policy.accelerate(compiled, SPEC)
    assert caplog.text.count("is compiled anew, for calls of any size and without mode='reduce-overhead'") == 1
    asd_policy.accelerate(plain, SPEC)
    counters.clear()
    asd_policy.warm_up(compiled, compare=True)
    assert counters["stats"]["unique_graphs"] == 2  # one point, and any other number
    counters.clear()
    assert context._wrap_predict_action_chunk_with_torch_compile(compiled, backend="inductor", mode="default")
    for new, old in zip(drive(compiled, 33), drive(plain, 33), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 0
    assert counters["frames"]["total"] == 0  # looking at one takes a tenth of a second
    assert stats_of(compiled).plans == 5


def test_a_policy_that_is_wrapped_before_it_is_known(plain: DiffusionPolicy) -> None:
    """The compiler traces nothing of real-time chunking either, whatever changes from call to call."""
    asd_policy.accelerate(plain, SPEC)
    own: Any = plain.predict_action_chunk
    counters.clear()
    plan = torch.compile(own, backend="eager")
    left = torch.rand(5, 2)
    for delay in range(6):
        torch.manual_seed(delay)
        new = plan(observe(plain), inference_delay=delay, prev_chunk_left_over=left)
        torch.manual_seed(delay)
        plain.reset()
        torch.testing.assert_close(new[:, :delay], left[None, :delay])
    assert counters["stats"]["unique_graphs"] == counters["frames"]["total"] == 0


def test_a_dit_is_left_alone() -> None:
    """It has no `compile_model`; LeRobot's wrapper is all that there is."""
    policy = make_dit()
    asd_policy.accelerate(policy, SPEC)
    asd_policy.warm_up(policy)
    counters.clear()
    policy.predict_action_chunk = torch.compile(policy.predict_action_chunk, backend="eager")
    for step in range(9):
        assert torch.isfinite(policy.select_action(observe(policy, 1, step))).all()
    assert counters["stats"]["unique_graphs"] == counters["frames"]["total"] == 0
    assert policy.asd_stats.plans == 2


def test_a_policy_that_lerobot_loads_without_its_weights_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that was saved without `compile_model` has other names for the U-Net's tensors than a policy with.

    LeRobot runs that on random ones.
    """
    monkeypatch.delenv(SAMPLER, raising=False)
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--compile_model=true"])
    with caplog.at_level("WARNING", "lerobot_policy_asd"):
        policy = DiffusionPolicy.from_pretrained(folder, config=config)
    assert not is_accelerated(policy)
    assert "random now, such as diffusion.unet._orig_mod." in caplog.text


def test_what_is_asked_for_runs_it(compiled: DiffusionPolicy, plain: DiffusionPolicy) -> None:
    """A backend by name takes the network as it was before the compiler."""
    asd_policy.accelerate(compiled, SPEC, backend="torch-eager")
    asd_policy.accelerate(plain, SPEC)
    counters.clear()
    for new, old in zip(drive(compiled, 9), drive(plain, 9), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 0
    asd_policy.restore(compiled)
    planner = asd_policy.load_policy(compiled, SPEC)
    assert planner.backend == TorchEager()


def test_a_compiled_network_that_somebody_changed_is_no_known_one(compiled: DiffusionPolicy) -> None:
    """What the compiler's form does besides would be lost."""
    unet: Any = compiled.diffusion.unet
    own = unet.forward
    handle = unet.register_forward_hook(lambda *_: None)
    with pytest.raises(networks.UnknownNetworkError, match=r"what torch.compile made of it has hooks"):
        networks.view_of(unet)
    handle.remove()
    unet.forward = lambda *given, **options: 0 * own(*given, **options)
    with pytest.raises(networks.UnknownNetworkError, match=r"what torch.compile made of it has another forward"):
        networks.view_of(unet)
    unet.forward = own
    assert networks.view_of(unet) is not None
    unet._orig_mod.final_conv.append(nn.Tanh())
    with pytest.raises(networks.UnknownNetworkError, match=r"it has final_conv.2 besides"):
        networks.view_of(unet)
