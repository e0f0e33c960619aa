"""Any callable: sampled exactly, looked at before it is used, learning from call to call."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

import asd_policy
from asd_policy.errors import ChainError, DenoiserError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import mixture_p_value

SCHEDULER = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
LEVEL = 1e-6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2), (3, 16, 3)])
def test_window_one_is_the_schedulers_own_loop(shape: tuple[int, ...], mixture: MixtureDenoiser) -> None:
    """As people write it with diffusers, the object or its configuration given; the noise is drawn alike."""

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return mixture(x, timestep).float() if shape[1:] == (2, 2) else 0.9 * x

    scheduler, generator = DDPMScheduler(**SCHEDULER), seeded(0)
    scheduler.set_timesteps(10)
    x = torch.randn(shape, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.expand(len(x)), None), int(t), x, generator, return_dict=False)[0]
    for given in (scheduler, SCHEDULER):
        sample = asd_policy.accelerate_fn(denoise, given, "asd:window=1", num_inference_steps=10)
        torch.testing.assert_close(sample(shape, generator=seeded(0)).sample, x, rtol=0, atol=1e-5)


def test_a_sample_is_the_callers(mixture: MixtureDenoiser) -> None:
    """To write into, with nothing that comes of it in the next one."""
    results = []
    for value in (0.0, 5.0):
        sample = asd_policy.accelerate_fn(mixture, SCHEDULER, "asd:window=3", 12)
        first = sample((2, 2, 2), generator=seeded(0), executed=1).sample
        first += value
        second = sample((2, 2, 2), generator=seeded(1), executed=1)
        results.append((second.sample, second.stats.rounds, second.stats.refused))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_law_is_the_sequential_one_while_it_learns(mixture: MixtureDenoiser) -> None:
    sequential = asd_policy.accelerate_fn(mixture, SCHEDULER, "ddpm", 12)((20_000, 2, 2), generator=seeded(1)).sample
    fast = asd_policy.accelerate_fn(mixture, SCHEDULER, "asd:window=5", 12)
    calls = [fast((4000, 2, 2), generator=seeded(seed), executed=1) for seed in range(2, 7)]
    assert fast.experience.plans == 20_000
    assert calls[-1].stats.algorithmic_speedup > 1.5
    together = torch.cat([call.sample for call in calls]).double()
    assert mixture_p_value(together.flatten(1), sequential.flatten(1).double()) > LEVEL


def test_conditioning_and_held_values_reach_the_function(mixture: MixtureDenoiser) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        seen.append((x, cond))
        return mixture(x, timestep)

    sample = asd_policy.accelerate_fn(spy, SCHEDULER, "asd:window=3", 12)
    sample((2, 2, 2), torch.tensor([[1.0], [2.0]]))
    assert {float(value) for _, cond in seen[3:] for value in cond.flatten()} == {1.0, 2.0}
    mask = torch.tensor([[True, False], [False, False]]).expand(2, 2, 2)
    result = sample((2, 2, 2), torch.ones(2, 1), inpainting=Inpainting(mask, torch.full((2, 2, 2), 7.0)))
    assert (result.sample[:, 0, 0] == 7).all()
    assert (seen[-1][0][:, 0, 0] == 7).all()


def test_the_last_samples_begin_the_next_only_where_they_are_related(
    mixture: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    pasts: list[WarmStart] = []
    run = Asd.sample

    def spy(self: Asd, *arguments: Any, **options: Any) -> Any:
        pasts.append(options["warm_start"])
        return run(self, *arguments, **options)

    monkeypatch.setattr(Asd, "sample", spy)
    sample = asd_policy.accelerate_fn(mixture, SCHEDULER, "asd:window=3", 12)
    first = sample((2, 2, 2), executed=1).sample
    sample((2, 2, 2), executed=1)
    sample((2, 2, 2))
    sample.reset()
    sample((2, 2, 2), executed=1)
    none, moved, unrelated, fresh = (past.last_plan for past in pasts)
    assert none is None and unrelated is None and fresh is None
    assert moved is not None
    assert torch.equal(moved, torch.stack([first[:, 1], first[:, 1]], dim=1))
    with pytest.raises(SpecError, match="executed=3 is not in 0 … 2"):
        sample((2, 2, 2), executed=3)
    with pytest.raises(SpecError, match="the last call had 2 rows, this one 3"):
        sample((3, 2, 2), executed=1)


def test_another_event_begins_anew() -> None:
    """What was learned is of one shape; the function is looked at again."""
    sample = asd_policy.accelerate_fn(lambda x, t, cond: 0.9 * x, SCHEDULER, "asd:window=3", 12)
    sample((2, 4, 1))
    sample((2, 3, 2))
    assert sample.experience.plans == 2


@pytest.mark.parametrize(
    ("denoise", "message"),
    [
        (lambda x, t, c: SimpleNamespace(sample=x), "returned a SimpleNamespace, not a tensor"),
        (lambda x, t, c: x[:, :1], "returned shape (3, 1, 2) for an input of shape (3, 2, 2)"),
        (lambda x, t, c: x + torch.randn_like(x), "two equal calls of the network differ"),
        (lambda x, t, c: x - x.mean(0), "with and without other rows beside it"),
        (lambda x, t, c: x / 0, "returned NaN or infinity"),
    ],
)
def test_functions_without_a_law_are_refused_at_the_first_call(denoise: Any, message: str) -> None:
    sample = asd_policy.accelerate_fn(denoise, SCHEDULER)
    with pytest.raises(DenoiserError) as error:
        sample((1, 2, 2))
    assert message in str(error.value)


def test_a_function_that_mixes_the_conditioning_of_rows_is_refused() -> None:
    sample = asd_policy.accelerate_fn(lambda x, t, c: x + (0 if c is None else c.mean()), SCHEDULER)
    with pytest.raises(DenoiserError, match="with and without other rows beside it"):
        sample((2, 2, 2), torch.tensor([[0.0], [9.0]]))


def test_schedulers_and_specs_are_checked_before_a_call(mixture: MixtureDenoiser) -> None:
    with pytest.raises(ChainError, match="DDIMScheduler with eta=0"):
        asd_policy.accelerate_fn(mixture, DDIMScheduler())
    assert len(asd_policy.accelerate_fn(mixture, DDIMScheduler(), "asd", 20, eta=0.5).chain) == 20
    with pytest.raises(SpecError, match="window=13 is not in 1 … 12"):
        asd_policy.accelerate_fn(mixture, SCHEDULER, "asd:window=13", 12)
    with pytest.raises(ChainError, match="is no noise scheduler"):
        asd_policy.accelerate_fn(mixture, "DDPM")


def test_the_compiler_stays_out(mixture: MixtureDenoiser) -> None:
    graphs: list[Any] = []

    def compiled(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    own, other = (asd_policy.accelerate_fn(mixture, SCHEDULER, "asd:window=3", 12) for _ in range(2))
    run: Any = torch.compile(own, backend=compiled)
    for seed in range(3):
        assert torch.equal(
            run((2, 2, 2), generator=seeded(seed)).sample, other((2, 2, 2), generator=seeded(seed)).sample
        )
    assert not graphs
