"""An accelerated policy of diffusion_policy keeps the law of its loop, or refuses: whatever is changed, and when."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

import asd_policy
from support import live_policies as live

KIND = "unet, camera"
Change = Callable[[Any, pytest.MonkeyPatch], object]


class Halved(nn.Module):
    """Halves a weight, or what a network says."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Halve it."""
        return 0.5 * (x if self.network is None else self.network(x, *arguments, **options))


class FirstTimestep(Halved):
    """Scales by the timestep of the first row."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Scale."""
        return (1 + arguments[0].flatten()[0]) * super().forward(x, *arguments, **options)


def in_class(cls: type, name: str) -> Change:
    own = getattr(cls, name)
    return lambda _, patch: patch.setattr(cls, name, lambda *arguments, **options: 0.5 * own(*arguments, **options))


def setting(path: str, value: Callable[[Any], Any]) -> Change:
    """Set an attribute to what a function makes of it."""

    def change(policy: Any, _: pytest.MonkeyPatch) -> None:
        owner = policy
        *way, name = path.split(".")
        for each in way:
            owner = owner[int(each)] if each.isdigit() else getattr(owner, each)
        setattr(owner, name, value(getattr(owner, name)))

    return change


def scale_data(policy: Any, _: pytest.MonkeyPatch) -> None:
    for each in policy.parameters():
        each.data.mul_(1.5)


def halve_noise(_: Any, patch: pytest.MonkeyPatch) -> None:
    own = scheduling_ddpm.randn_tensor  # pyright: ignore[reportPrivateImportUsage]  # what its steps draw by
    patch.setattr(scheduling_ddpm, "randn_tensor", lambda *arguments, **options: 0.5 * own(*arguments, **options))


CHANGES: dict[str, Change] = {
    "the loop in the class": in_class(live.UnetSampling, "conditional_sample"),
    "the variance": in_class(DDPMScheduler, "_get_variance"),
    "the noise": halve_noise,
    "step": setting("noise_scheduler.step", lambda own: lambda *arguments, **options: own(*arguments, **options)),
    "the configuration": lambda policy, _: policy.noise_scheduler.register_to_config(clip_sample_range=0.3),
    "a coefficient": setting("noise_scheduler.alphas_cumprod", lambda each: 0.998 * each),
    "another scheduler": setting(
        "noise_scheduler", lambda own: DDPMScheduler.from_config(own.config, clip_sample_range=0.3)
    ),
    "inference steps": setting("num_inference_steps", lambda _: 10),
    "a generator": setting("kwargs", lambda _: {"generator": torch.Generator().manual_seed(3)}),
    "guidance in the network's place": setting("model", Halved),
    "guidance by one timestep": setting("model", FirstTimestep),
    "forward of the network": setting(
        "model.forward", lambda own: lambda *each, **options: 0.5 * own(*each, **options)
    ),
    "forward in the class": in_class(live.Block, "forward"),
    "an option of a layer": setting("model.final_conv.0.block.1.eps", lambda _: 1.0),
    "a hook": lambda policy, _: policy.model.register_forward_hook(lambda _, __, output: 0.5 * output),
    "a parametrisation": lambda policy, _: nn.utils.parametrize.register_parametrization(
        policy.model.final_conv[1], "weight", Halved()
    ),
    "weights": scale_data,
    "the encoder": lambda policy, _: policy.obs_encoder.conv.register_forward_hook(lambda _, __, output: 0.5 * output),
    "the normaliser": lambda policy, _: policy.normalizer.params_dict["pos"]["scale"].data.mul_(0.5),
}


@pytest.mark.parametrize("when", ["before", "between plans"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed_or_refused(name: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other, seen = live.make(KIND), live.make(KIND), live.theirs(live.observations(KIND))

    def plan(policy: Any) -> Tensor:
        torch.manual_seed(7)
        with torch.no_grad():
            return policy.predict_action(seen)["action"]

    before = plan(other)
    try:
        if when == "before":
            CHANGES[name](policy, monkeypatch)
        asd_policy.accelerate(policy, "asd:window=1")
        found = plan(policy)
        if when != "before":
            CHANGES[name](policy, monkeypatch)
            found = plan(policy)
    except asd_policy.AsdError as error:
        assert len(str(error).splitlines()) == 1
        return
    monkeypatch.undo()
    CHANGES[name](other, monkeypatch)
    expected = plan(other)
    assert not torch.equal(expected, before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
