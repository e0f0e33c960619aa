"""An accelerated LeRobot policy keeps the law of its own loop, or refuses: whatever is changed, and when."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from lerobot.policies.diffusion import modeling_diffusion
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from torch import Tensor, nn

import asd_policy
from conftest import condition, make_policy, unet_of

Change = Callable[[DiffusionPolicy, pytest.MonkeyPatch], object]
SEEN = condition(make_policy("state"), 2)
SLOW = "torch-replicas:devices=cpu+cpu"  # a backend with copies of the weights


def halved(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do something else under the same name, as a decorator does that keeps names and documentation."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if isinstance(result, Tensor):
            return 0.5 * result
        return type(result)(0.5 * result.prev_sample, result.pred_original_sample)

    return wrapper


class Guided(nn.Module):
    """Classifier-free guidance: twice the network, in the network's place."""

    def __init__(self, unet: nn.Module, scale: float = 2.0) -> None:
        super().__init__()
        self.unet, self.scale = unet, scale

    def forward(self, x: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """Extrapolate from no conditioning to the conditioning."""
        free = self.unet(x, timestep, global_cond=torch.zeros_like(global_cond))
        return free + self.scale * (self.unet(x, timestep, global_cond=global_cond) - free)


class OneTimestep(Guided):
    """Guidance whose scale depends on the timestep of the first row."""

    def forward(self, x: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """Guide."""
        self.scale = 2.0 + float(timestep[0])
        return super().forward(x, timestep, global_cond)


class HalvedModel(DiffusionModel):
    """Halves what it samples."""

    def conditional_sample(self, *arguments: Any, **options: Any) -> Tensor:
        """Sample."""
        return 0.5 * super().conditional_sample(*arguments, **options)


def scheduler_of(policy: DiffusionPolicy) -> Any:
    return policy.diffusion.noise_scheduler


def in_class(cls: type, name: str) -> Change:
    return lambda _, patch: patch.setattr(cls, name, halved(getattr(cls, name)))


def on_scheduler(name: str) -> Change:
    return lambda policy, _: setattr(scheduler_of(policy), name, halved(getattr(scheduler_of(policy), name)))


def replace(make: Callable[[Any], Any]) -> Change:
    return lambda policy, _: setattr(policy.diffusion, "unet", make(unet_of(policy)))


def new_network(network: Any) -> nn.Module:
    other = copy.deepcopy(network)
    nn.init.constant_(other.final_conv[1].weight, 0.1)
    return other


class Halved(nn.Module):
    """Halves a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        """Halve it."""
        return 0.5 * weight


def one_layer(policy: DiffusionPolicy, _: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    unet_of(policy).final_conv[1] = nn.Conv1d(8, 2, 1)


def scale_alphas(policy: DiffusionPolicy, _: pytest.MonkeyPatch) -> None:
    scheduler_of(policy).alphas_cumprod.mul_(0.998)


def weights(policy: DiffusionPolicy, _: pytest.MonkeyPatch) -> None:
    for each in policy.parameters():
        each.data.mul_(1.5)


def halve_noise(_: DiffusionPolicy, patch: pytest.MonkeyPatch) -> None:
    own = scheduling_ddpm.randn_tensor  # pyright: ignore[reportPrivateImportUsage]  # what its steps draw by
    patch.setattr(scheduling_ddpm, "randn_tensor", lambda *arguments, **options: 0.5 * own(*arguments, **options))


CHANGES: dict[str, Change] = {
    "the loop in the class": in_class(DiffusionModel, "conditional_sample"),
    "generate_actions in the class": in_class(DiffusionModel, "generate_actions"),
    "step in the class": in_class(DDPMScheduler, "step"),
    "the variance in the class": lambda _, patch: patch.setattr(DDPMScheduler, "_get_variance", lambda *_, **__: 0.01),
    "the noise": halve_noise,
    "the network in its class": in_class(modeling_diffusion.DiffusionConditionalUnet1d, "forward"),
    "a block in its class": in_class(modeling_diffusion.DiffusionConv1dBlock, "forward"),
    "a layer in its class": in_class(nn.Mish, "forward"),
    "the class of the model": lambda policy, _: setattr(policy.diffusion, "__class__", HalvedModel),
    "step of the scheduler": on_scheduler("step"),
    "set_timesteps": lambda policy, _: setattr(
        scheduler_of(policy), "set_timesteps", lambda *_: setattr(scheduler_of(policy), "timesteps", torch.arange(6))
    ),
    "previous_timestep": lambda policy, _: setattr(scheduler_of(policy), "previous_timestep", lambda timestep: 0),
    "another scheduler": lambda policy, _: setattr(
        policy.diffusion, "noise_scheduler", DDPMScheduler.from_config(scheduler_of(policy).config, clip_sample=False)
    ),
    "the scheduler's configuration": lambda policy, _: scheduler_of(policy).register_to_config(clip_sample_range=0.2),
    "its coefficients": scale_alphas,
    "its coefficients, assigned": lambda policy, _: setattr(
        scheduler_of(policy), "alphas_cumprod", 0.998 * scheduler_of(policy).alphas_cumprod
    ),
    "its timesteps": lambda policy, _: scheduler_of(policy).set_timesteps(timesteps=[9, 5, 1]),
    "inference steps": lambda policy, _: setattr(policy.diffusion, "num_inference_steps", 6),
    "inference steps in the configuration": lambda policy, _: setattr(policy.config, "num_inference_steps", 6),
    "the network": replace(new_network),
    "guidance in its place": replace(Guided),
    "guidance by one timestep": replace(OneTimestep),
    "a hook": lambda policy, _: unet_of(policy).register_forward_hook(lambda _, __, output: 0.5 * output),
    "a hook on a layer": lambda policy, _: (
        unet_of(policy).mid_modules[0].register_forward_hook(lambda _, __, output: 0.5 * output)
    ),
    "forward of the network": lambda policy, _: setattr(unet_of(policy), "forward", halved(unet_of(policy).forward)),
    "the call of the network": lambda policy, _: setattr(
        unet_of(policy), "_call_impl", halved(unet_of(policy)._call_impl)
    ),
    "a layer": one_layer,
    "an option of a layer": lambda policy, _: setattr(unet_of(policy).final_conv[0].block[1], "eps", 1.0),
    "a parametrisation": lambda policy, _: nn.utils.parametrize.register_parametrization(
        unet_of(policy).final_conv[1], "weight", Halved()
    ),
    "weights": weights,
    "one weight": lambda policy, _: unet_of(policy).final_conv[1].bias.data.add_(1.0),
}


NAMED = {
    "the loop in the class": "conditional_sample of this DiffusionModel .* replaced in the class, by test_guard.halved",
    "step in the class": "step of this DDPMScheduler .* replaced in the class, by test_guard.halved",
    "the variance in the class": "_get_variance of this DDPMScheduler .* replaced in the class",
    "the noise": "randn_tensor, which draws the scheduler's noise, was replaced|does not step as its config",
    "the class of the model": "conditional_sample of this HalvedModel .* test_guard.HalvedModel overrides it",
    "step of the scheduler": "step of this DDPMScheduler .* the object has an attribute of that name",
    "set_timesteps": "set_timesteps of this DDPMScheduler .* the object has an attribute of that name",
    "previous_timestep": "previous_timestep of this DDPMScheduler was changed|does not step as its configuration says",
    "its coefficients": "alphas_cumprod of this DDPMScheduler was changed|does not step as its configuration says",
    "guidance by one timestep": "does it take one timestep for all rows|network was changed after torch-replicas",
}
"""What has to be refused, at least where it comes after `accelerate`, and how."""


def plan(policy: DiffusionPolicy) -> Tensor:
    """Sample with one seed."""
    with torch.no_grad():
        return policy.diffusion.conditional_sample(2, SEEN, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("when", "backend"), [("before", None), ("after a warm-up", None), ("between plans", SLOW)])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed_or_refused(
    name: str, when: str, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("state")
    other = copy.deepcopy(policy)
    try:
        if when == "before":
            CHANGES[name](policy, monkeypatch)
        asd_policy.accelerate(policy, "asd:window=1", backend)
        if when == "after a warm-up":
            asd_policy.warm_up(policy)
        if when == "between plans":
            plan(policy)
        if when != "before":
            CHANGES[name](policy, monkeypatch)
        found = plan(policy)
    except asd_policy.AsdError as error:
        assert len(str(error).splitlines()) == 1
        assert re.search(NAMED.get(name, ""), str(error))
        return
    assert name not in NAMED
    monkeypatch.undo()
    CHANGES[name](other, monkeypatch)
    expected = plan(other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_model_replaced_afterwards_is_named(state_policy: DiffusionPolicy) -> None:
    """What is there then plans by its own loop: an episode, and a warm-up, say so before the robot moves."""
    own = asd_policy.accelerate(state_policy, "asd:window=2").diffusion
    state_policy.diffusion = copy.deepcopy(make_policy("state").diffusion)
    message = "the DiffusionModel of this DiffusionPolicy was replaced after accelerate, .* has no sampler; accelerate"
    for use in (state_policy.reset, lambda: asd_policy.warm_up(state_policy), lambda: own.conditional_sample(2, SEEN)):
        with pytest.raises(asd_policy.SpecError, match=message):
            use()
    asd_policy.accelerate(state_policy, "asd:window=2").reset()
    plan(state_policy)


@pytest.mark.parametrize("change", ["scales", "other arguments", "fewer parts"])
def test_a_lerobot_with_another_loop_is_refused(
    state_policy: DiffusionPolicy, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version may have: its methods are its own, and none that are known here."""
    own = DiffusionModel.conditional_sample
    bodies: dict[str, Callable[..., Any]] = {
        "scales": lambda *arguments, **options: 0.5 * own(*arguments, **options),
        "other arguments": lambda self, batch, cond: own(self, batch, cond),
    }
    if change in bodies:
        monkeypatch.setattr(DiffusionModel, "conditional_sample", bodies[change])
        monkeypatch.setattr("asd_policy.policy.adapters.base._replaced_by", lambda *_: None)
        message = "its loop (is another one than is known|fails where it is known)"
    else:
        del state_policy.diffusion.num_inference_steps
        message = "its DiffusionModel has no num_inference_steps"
    tested = r"lerobot \S+ is installed, and 0\.4\.4 to 0\.6\.1 are tested"
    with pytest.raises(asd_policy.SpecError, match=message) as error:
        asd_policy.accelerate(state_policy)
    assert re.search(tested, str(error.value))
    assert len(str(error.value).splitlines()) == 1
