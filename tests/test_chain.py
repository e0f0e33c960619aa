"""The chain against diffusers' own schedulers, over their configuration spaces."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asd_policy.chain import (
    BETA_SCHEDULES,
    MAX_TRAIN_TIMESTEPS,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    VARIANCE_TYPES,
    GaussianChain,
    transition,
)
from asd_policy.errors import ChainError

ROWS, EVENT = 2, (3, 2)


@st.composite
def configs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draw a value for every option of a scheduler."""
    train = draw(st.integers(2, 200))
    betas = st.lists(st.floats(1e-5, 0.5), min_size=train, max_size=train)
    options: dict[str, st.SearchStrategy[Any]] = {
        "beta_schedule": st.sampled_from(BETA_SCHEDULES[name]),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(2e-3, 0.5),
        "trained_betas": st.none() if train > 20 else st.none() | betas,
        "prediction_type": st.sampled_from(PREDICTION_TYPES),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.1, 5.0),
        "thresholding": st.booleans(),
        "dynamic_thresholding_ratio": st.floats(0, 1),
        "sample_max_value": st.floats(0.2, 5.0),
        "timestep_spacing": st.sampled_from(TIMESTEP_SPACINGS),
        "steps_offset": st.integers(0, 3),
        "rescale_betas_zero_snr": st.booleans(),
    }
    if name == "DDPMScheduler":
        options["variance_type"] = st.sampled_from(VARIANCE_TYPES)
    else:
        options["set_alpha_to_one"] = st.booleans()
    return {"num_train_timesteps": train} | {key: draw(value) for key, value in options.items()}


def make_chain(scheduler: Any, steps: int, eta: float | None = None) -> GaussianChain:
    """Return the chain of a scheduler that has its timesteps; skip the example where diffusers has no sound law."""
    # An offset can overrun the schedule at one end, trailing spacing at the other.
    sound = 0 <= int(scheduler.timesteps[-1]) and int(scheduler.timesteps[0]) < scheduler.config["num_train_timesteps"]
    try:
        chain = GaussianChain.from_scheduler(scheduler, steps, eta)
    except ChainError as error:
        reasons = ("gives timestep -1", "beyond") if not sound else ("signal of zero", "square root of")
        assert any(reason in str(error) for reason in reasons), error
        event(f"refused: {reasons}")
        assume(False)
        raise
    assert sound
    assert chain.timesteps.tolist() == scheduler.timesteps.tolist()
    return chain


def walk(chain: GaussianChain, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random points and network outputs [K, ROWS, *EVENT], and what `predict` makes of them in one call."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(chain), ROWS, *EVENT)
    x, output = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    steps = torch.arange(len(chain)).repeat_interleave(ROWS)
    clean = chain.predict(x.flatten(0, 1), output.flatten(0, 1), steps)
    return x, output, clean.view_as(x)


def advance(chain: GaussianChain, k: int, clean: Tensor, noise: Tensor, x: Tensor) -> Tensor:
    """Take step k in float64."""
    tables = chain.tables(torch.device("cpu"), torch.float64)
    return transition(tables.a[k], clean, tables.sigma[k], noise, tables.b[k], x)


FRACTIONS = st.floats(0, 1)
SEEDS = st.integers(0, 2**31)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(config=configs("DDPMScheduler"), fraction=FRACTIONS, seed=SEEDS)
def test_every_step_is_that_of_ddpm(config: dict[str, Any], fraction: float, seed: int) -> None:
    """Mean and noise of each step equal `DDPMScheduler.step` on random points and outputs."""
    steps = max(1, round(fraction * config["num_train_timesteps"]))
    scheduler = DDPMScheduler(**config)
    scheduler.set_timesteps(steps)
    chain = make_chain(scheduler, steps)
    x, output, clean = walk(chain, seed)
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        generator = torch.Generator().manual_seed(seed + k)
        expected = scheduler.step(output[k], timestep, x[k], generator=generator, return_dict=False)[0]
        noise = torch.randn((ROWS, *EVENT), generator=generator.manual_seed(seed + k), dtype=torch.float64)
        torch.testing.assert_close(advance(chain, k, clean[k], noise, x[k]), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    config=configs("DDIMScheduler"),
    fraction=FRACTIONS,
    eta=st.floats(0, 1, exclude_min=True) | st.just(1.0),
    seed=SEEDS,
)
def test_every_step_is_that_of_ddim(config: dict[str, Any], fraction: float, eta: float, seed: int) -> None:
    """Mean and noise of each step equal `DDIMScheduler.step` on random points and outputs."""
    steps = max(1, round(fraction * config["num_train_timesteps"]))
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    chain = make_chain(scheduler, steps, eta)
    x, output, clean = walk(chain, seed)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        expected = scheduler.step(output[k], timestep, x[k], eta=eta, variance_noise=noise[k], return_dict=False)[0]
        torch.testing.assert_close(advance(chain, k, clean[k], noise[k], x[k]), expected, rtol=1e-6, atol=1e-6)
