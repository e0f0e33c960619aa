"""An accelerated LeRobot policy keeps the law of its own loop, or refuses: whatever is changed, and when."""

import copy
import functools
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


def one_row(noise: Any) -> Callable[..., Tensor]:
    return lambda *arguments, **options: 0.5 * noise(*arguments, **options)


CHANGES: dict[str, Change] = {
    "the loop in the class": in_class(DiffusionModel, "conditional_sample"),
    "generate_actions in the class": in_class(DiffusionModel, "generate_actions"),
    "step in the class": in_class(DDPMScheduler, "step"),
    "the variance in the class": lambda _, patch: patch.setattr(DDPMScheduler, "_get_variance", lambda *_, **__: 0.01),
    "the noise": lambda _, patch: patch.setattr(scheduling_ddpm, "randn_tensor", one_row(scheduling_ddpm.randn_tensor)),
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
        return
    monkeypatch.undo()
    CHANGES[name](other, monkeypatch)
    expected = plan(other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
