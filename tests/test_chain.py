"""The chain against diffusers' own scheduler, over its configuration space."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asd_policy.chain import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    VARIANCE_TYPES,
    GaussianChain,
    transition,
)
from asd_policy.errors import ChainError

CONFIGS = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.integers(2, 200),
        "beta_schedule": st.sampled_from(BETA_SCHEDULES),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(2e-3, 0.5),
        "prediction_type": st.sampled_from(PREDICTION_TYPES),
        "variance_type": st.sampled_from(VARIANCE_TYPES),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.1, 5.0),
        "timestep_spacing": st.sampled_from(TIMESTEP_SPACINGS),
        "steps_offset": st.integers(0, 1),
        "rescale_betas_zero_snr": st.booleans(),
    }
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(config=CONFIGS, fraction=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_every_step_is_the_schedulers(config: dict[str, Any], fraction: float, seed: int) -> None:
    """Mean and noise of each step equal `scheduler.step` on random points and outputs."""
    steps = max(1, round(fraction * config["num_train_timesteps"]))
    if config["rescale_betas_zero_snr"]:
        assume(config["prediction_type"] != "epsilon")
    scheduler = DDPMScheduler(**config)
    scheduler.set_timesteps(steps)
    # An offset can overrun the schedule at one end, trailing spacing at the other; both are refused, see below.
    assume(0 <= int(scheduler.timesteps[-1]) and int(scheduler.timesteps[0]) < config["num_train_timesteps"])
    chain = GaussianChain.from_scheduler(scheduler, steps)
    assert chain.timesteps.tolist() == scheduler.timesteps.tolist()
    tables = chain.tables(torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for k, timestep in enumerate(scheduler.timesteps):
        x, output = torch.randn((2, 3, 2), generator=generator, dtype=torch.float64)
        state = generator.get_state()
        expected = scheduler.step(output, int(timestep), x, generator=generator, return_dict=False)[0]
        generator.set_state(state)
        noise = torch.randn((3, 2), generator=generator, dtype=torch.float64)
        clean = chain.predict(x, output, tables.output_scale[k], tables.input_scale[k])
        found = transition(tables.a[k], clean, tables.sigma[k], noise, tables.b[k], x)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_json_and_object_give_the_same_chain() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    as_json = dict(scheduler.config)
    first, second = (GaussianChain.from_scheduler(s, 25) for s in (scheduler, as_json))
    for name in ("timesteps", "a", "b", "sigma", "output_scale", "input_scale"):
        assert getattr(first, name).tolist() == getattr(second, name).tolist()
    assert first.clip_range == second.clip_range == 1.0
    assert len(first) == 25


def test_defaults_are_those_of_diffusers() -> None:
    defaults = dict(DDPMScheduler().config)
    chain = GaussianChain.from_scheduler({})
    shared = {key: value for key, value in chain.config.items() if key in defaults}
    assert len(chain) == 1000
    assert shared == {key: defaults[key] for key in shared}


def test_trained_betas() -> None:
    betas = [0.1, 0.2, 0.3]
    scheduler = DDPMScheduler(num_train_timesteps=3, trained_betas=betas, clip_sample=False)
    chain = GaussianChain.from_scheduler(scheduler.config)
    scheduler.set_timesteps(3)
    x = torch.ones(1, 2, 2, dtype=torch.float64)
    expected = scheduler.step(0.5 * x, 0, x, return_dict=False)[0]

    def last(table: Any) -> Tensor:
        return torch.tensor(table[-1])

    clean = chain.predict(x, 0.5 * x, last(chain.output_scale), last(chain.input_scale))
    torch.testing.assert_close(transition(last(chain.a), clean, last(chain.sigma), x, last(chain.b), x), expected)
    with pytest.raises(ChainError, match=r"trained_betas has shape \(2,\), not \(3,\)"):
        GaussianChain.from_scheduler({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variance_type": "learned"}, "variance_type 'learned' depends on the network"),
        ({"variance_type": "learned_range"}, "use one of fixed_small"),
        ({"variance_type": "huge"}, "variance_type 'huge' is not one of"),
        ({"prediction_type": "flow"}, "prediction_type 'flow' is not one of epsilon, sample, v_prediction"),
        ({"beta_schedule": "cubic"}, "beta_schedule 'cubic' is not one of"),
        ({"timestep_spacing": "odd"}, "timestep_spacing 'odd' is not one of"),
        ({"thresholding": True}, "dynamic thresholding"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0 is not a positive integer"),
        ({"rescale_betas_zero_snr": True}, "divides by a signal of zero"),
        ({"steps_offset": 5, "timestep_spacing": "leading"}, "steps_offset 5 puts timestep 1004 beyond 999"),
        (dict(DDIMScheduler().config) | {"_class_name": "DDIMScheduler"}, "'DDIMScheduler' has no exact acceleration"),
    ],
)
def test_refusals_name_the_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ChainError) as error:
        GaussianChain.from_scheduler(config)
    assert message in str(error.value)


@pytest.mark.parametrize("steps", [0, 101])
def test_number_of_steps(steps: int) -> None:
    with pytest.raises(ChainError, match=f"num_inference_steps {steps} is not in 1 … 100"):
        GaussianChain.from_scheduler({"num_train_timesteps": 100}, steps)


def test_trailing_spacing_that_overruns_is_refused() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=61, timestep_spacing="trailing")
    scheduler.set_timesteps(46)
    assert int(scheduler.timesteps[-1]) == -1  # what diffusers does with it is not a law anyone wants
    with pytest.raises(ChainError, match="num_inference_steps 46 of 61 gives timestep -1"):
        GaussianChain.from_scheduler(scheduler.config, 46)


def test_no_scheduler() -> None:
    with pytest.raises(ChainError, match="int is no noise scheduler"):
        GaussianChain.from_scheduler(3)
