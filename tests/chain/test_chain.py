"""The chain against diffusers' own schedulers, over their configuration spaces."""

import json
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

from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.chain.scheduler_options import (
    BETA_SCHEDULES,
    MAX_TRAIN_TIMESTEPS,
)
from asd_policy.errors import ChainError
from asd_policy.samplers import make_sampler
from support.scheduler_configs import configs

ROWS, EVENT = 2, (3, 2)


def has_numbers(scheduler: Any, **options: Any) -> bool:
    """Return whether every step of a scheduler is finite."""
    x = torch.full((1, 2, 1), 0.5)
    steps = (scheduler.step(x, timestep, x, **options)[0] for timestep in scheduler.timesteps.tolist())
    return all(bool(step.isfinite().all()) for step in steps)


def make_chain(scheduler: Any, steps: int, eta: float | None = None) -> GaussianChain:
    """Return the chain of a scheduler that has its timesteps; drop the example where diffusers itself has no law."""
    # An offset can overrun the schedule at one end, trailing spacing at the other.
    sound = 0 <= int(scheduler.timesteps[-1]) and int(scheduler.timesteps[0]) < scheduler.config["num_train_timesteps"]
    try:
        chain = GaussianChain.from_scheduler(scheduler, steps, eta)
    except ChainError as error:
        if not sound:
            assert "gives timestep -1" in str(error) or "beyond" in str(error)
        elif "divides by a signal of zero" not in str(error):  # where clipping can make a number of the infinity
            assert not has_numbers(scheduler, **({} if eta is None else {"eta": eta})), error
        event(str(error)[:40])
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


@settings(max_examples=250, deadline=None, derandomize=True)
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


@settings(max_examples=250, deadline=None, derandomize=True)
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


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES["DDPMScheduler"])
def test_fixed_large_log_is_no_number_in_diffusers(beta_schedule: str, zero_snr: bool) -> None:
    """Pins a defect of diffusers: the day it is mended, this fails and the chain has to follow."""
    options: dict[str, Any] = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    scheduler = DDPMScheduler(20, prediction_type="sample", variance_type="fixed_large_log", **options)
    scheduler.set_timesteps(20)
    assert not has_numbers(scheduler)
    with pytest.raises(ChainError, match="'fixed_large_log' .* at timestep 1[89]; use fixed_large, "):
        GaussianChain.from_scheduler(scheduler)
    # Where no noise is added there is no logarithm either.
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0] and has_numbers(scheduler)
    assert GaussianChain.from_scheduler(scheduler, 1).sigma.tolist() == [0]


def test_full_noise_from_zero_snr_can_round_below_zero_in_ddim() -> None:
    options: dict[str, Any] = {
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "trailing",
        "prediction_type": "sample",
    }
    scheduler = DDIMScheduler(num_train_timesteps=100, rescale_betas_zero_snr=True, **options)
    scheduler.set_timesteps(5)
    assert not has_numbers(scheduler, eta=1.0)
    with pytest.raises(ChainError, match=r"^eta=1.0 makes .* at timestep 99; use an eta that is smaller by 1e-6"):
        GaussianChain.from_scheduler(scheduler, 5, eta=1.0)
    assert has_numbers(scheduler, eta=1 - 1e-6)
    assert len(GaussianChain.from_scheduler(scheduler, 5, eta=1 - 1e-6)) == 5


def test_ddim_step_that_only_clips() -> None:
    """Without set_alpha_to_one the last step returns x where nothing is clipped: a would be 0."""
    options: dict[str, Any] = {"num_train_timesteps": 10, "set_alpha_to_one": False, "prediction_type": "sample"}
    scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(10)
    chain = GaussianChain.from_scheduler(scheduler, eta=0.5)
    x = torch.tensor([[0.3, -0.4], [0.1, 0.2]], dtype=torch.float64)
    output = torch.tensor([[0.5, -0.5], [4.0, -0.5]], dtype=torch.float64)
    expected = scheduler.step(output, 0, x, eta=0.5, variance_noise=x, return_dict=False)[0]
    assert chain.sigma[-1] == 0 < chain.a[-1]
    torch.testing.assert_close(expected[0], x[0])
    torch.testing.assert_close(advance(chain, 9, chain.predict(x, output, 9), x, x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("maximum", [0.5, 1.0, 3.0])
def test_thresholding_is_that_of_the_scheduler(dtype: torch.dtype, maximum: float) -> None:
    """Bit by bit in every dtype, and the same for events that are flattened."""
    options: dict[str, Any] = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": maximum}
    scheduler = DDPMScheduler(num_train_timesteps=10, prediction_type="sample", **options)
    chain = GaussianChain.from_scheduler(scheduler)
    output = (3 * torch.randn((4, 5, 3), generator=torch.Generator().manual_seed(0))).to(dtype)
    found = chain.predict(torch.zeros_like(output), output, 3)
    assert found.dtype == dtype
    assert torch.equal(found, scheduler._threshold_sample(output))
    assert torch.equal(found.flatten(1), chain.predict(torch.zeros_like(output).flatten(1), output.flatten(1), 3))


LAWS = [
    ({}, None),
    ({"clip_sample": False}, None),
    ({"thresholding": True}, None),
    ({"_class_name": "DDIMScheduler"}, 0.7),
    ({"_class_name": "DDIMScheduler", "thresholding": True}, 0.7),
]


@pytest.mark.parametrize(("config", "eta"), LAWS)
@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2), (6, 2, 1, 2)])
def test_one_step_for_all_and_a_step_for_each(
    config: dict[str, Any], eta: float | None, shape: tuple[int, ...]
) -> None:
    """Predictions do not depend on the event's rank or on how the steps are given, to the bit."""
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 20, **config}, 10, eta)
    x, output = 2 * torch.randn((2, 6, 4), generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 9, 4, 4, 1, 7])
    found = chain.predict(x.view(shape), output.view(shape), steps)
    assert found.shape == shape
    for row, step in enumerate(steps.tolist()):
        alone = chain.predict(x[row : row + 1], output[row : row + 1], step)
        assert torch.equal(found[row].flatten(), alone.flatten())


@pytest.mark.parametrize(("config", "eta"), LAWS)
def test_predictions_never_wait_for_the_device(config: dict[str, Any], eta: float | None) -> None:
    """Tensors without values raise where a value is read or decides a shape, and so would a CUDA graph."""
    chain = GaussianChain.from_scheduler(config, 10, eta)
    x = torch.empty((6, 2, 2), device="meta")
    for step in (3, torch.empty(6, dtype=torch.int64, device="meta")):
        assert chain.predict(x, x, step).shape == x.shape


def test_overflow_is_clipped() -> None:
    """As by the scheduler: half precision overflows where the signal is small."""
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})
    x = torch.full((1, 2), 8.0, dtype=torch.float16)
    assert chain.predict(x, torch.zeros_like(x), 0).tolist() == [[1, 1]]


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_json_and_object_give_the_same_chain(scheduler: Any) -> None:
    made = scheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    eta = 0.5 if scheduler is DDIMScheduler else None
    first = GaussianChain.from_scheduler(made, 25, eta)
    for same in (made.config, dict(made.config), json.loads(made.to_json_string()), first.config):
        second = GaussianChain.from_scheduler(same, 25, eta)
        for name in ("timesteps", "a", "b", "sigma", "output_scale", "input_scale"):
            assert getattr(first, name).tolist() == getattr(second, name).tolist()
        assert first.clip_range == second.clip_range == 1.0
        assert first.config == second.config
        assert len(second) == 25


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_defaults_are_those_of_diffusers(scheduler: Any) -> None:
    defaults = {key: value for key, value in scheduler().config.items() if not key.startswith("_")}
    chain = GaussianChain.from_scheduler(
        {"_class_name": scheduler.__name__}, eta=1.0 if scheduler is DDIMScheduler else None
    )
    assert len(chain) == 1000
    assert chain.config == {"_class_name": scheduler.__name__} | defaults


@pytest.mark.parametrize("spec", ["ddim:5", "ddim:5,eta=1"])
def test_approximate_samplers_run_on_a_chain_of_ddim(spec: str) -> None:
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 20, "set_alpha_to_one": False}
    chain = GaussianChain.from_scheduler(config, 10, eta=1.0)
    result = make_sampler(spec).sample(lambda x, timestep, cond: 0.1 * x, chain, (2, 3, 2))
    assert bool(result.sample.isfinite().all())


def test_exact_samplers_walk_a_chain_of_ddim() -> None:
    """The reference is the loop of a diffusers pipeline; a window of one is the reference, to the bit."""
    scheduler = DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(10)
    chain = GaussianChain.from_scheduler(scheduler, 10, eta=0.8)
    tape = NoiseTape.draw((4, 3, 2), 10, torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return torch.sin(3 * x) + 0.01 * timestep.view(-1, 1, 1)

    x = tape.initial
    for k, timestep in enumerate(scheduler.timesteps):
        output = network(x, timestep.expand(4), None)
        x = scheduler.step(output, int(timestep), x, eta=0.8, variance_noise=tape.normals[:, k], return_dict=False)[0]
    reference = make_sampler("ddpm").sample(network, chain, (4, 3, 2), generator=tape).sample
    torch.testing.assert_close(reference, x, rtol=1e-5, atol=1e-5)
    assert torch.equal(make_sampler("asd:window=1").sample(network, chain, (4, 3, 2), generator=tape).sample, reference)


REFUSALS = [
    ({"variance_type": "learned"}, "variance_type 'learned' depends on the network"),
    ({"variance_type": "learned_range"}, "use one of fixed_small"),
    ({"variance_type": "huge"}, "variance_type 'huge' is not one of"),
    ({"prediction_type": "flow"}, "prediction_type 'flow' is not one of epsilon, sample, v_prediction"),
    ({"prediction_type": ["epsilon"]}, "prediction_type ['epsilon'] is not one of"),
    (
        {"beta_schedule": "cubic"},
        "beta_schedule 'cubic' is not one of linear, scaled_linear, squaredcos_cap_v2, laplace",
    ),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, "beta_schedule 'laplace' is not one of"),
    ({"timestep_spacing": "odd"}, "timestep_spacing 'odd' is not one of"),
    ({"num_train_timesteps": 0}, f"num_train_timesteps 0 is not an integer in 1 … {MAX_TRAIN_TIMESTEPS}"),
    ({"num_train_timesteps": MAX_TRAIN_TIMESTEPS + 1}, "num_train_timesteps 20001 is not"),
    ({"num_train_timesteps": 10.0}, "num_train_timesteps 10.0 is not"),
    ({"num_train_timesteps": True}, "num_train_timesteps True is not"),
    ({"beta_start": 0}, "beta_start 0 is not a number in (0, 1]"),
    ({"beta_start": "0.1"}, "beta_start '0.1' is not"),
    ({"beta_end": math.nan}, "beta_end nan is not"),
    ({"beta_end": 10**400}, "is not a number in (0, 1]"),
    ({"beta_start": 1e-12, "beta_end": 1e-11}, "ᾱ rounds to 1"),
    ({"beta_end": 1.0, "prediction_type": "sample", "num_train_timesteps": 5000}, "or to 0 in float32"),
    ({"clip_sample": 1}, "clip_sample 1 is not True or False"),
    ({"clip_sample_range": 0.0}, "clip_sample_range 0.0 is not a finite number above 0"),
    ({"clip_sample_range": math.inf}, "clip_sample_range inf is not"),
    ({"clip_sample_range": 1e-300}, "clip_sample_range 1e-300 is not a finite number above 0, in 1e-6 … 1e6"),
    ({"clip_sample_range": 1e29}, "clip_sample_range 1e+29 is not"),
    ({"sample_max_value": 1e29}, "sample_max_value 1e+29 is not a finite number above 0, in 1e-6 … 1e6"),
    ({"num_train_timesteps": 100_000}, "num_train_timesteps 100000 is not an integer in 1 … 20000"),
    (
        {"_class_name": "DDPMScheduler", "num_train_timestep": 100},
        "the noise scheduler's configuration has 'num_train_timestep', which is not known; did you mean "
        "'num_train_timesteps'?",
    ),
    (
        {"_class_name": "DDPMScheduler", "beta_schedule2": "linear"},
        "'beta_schedule2', which is not known; did you mean",
    ),
    ({"_class_name": "DDPMScheduler", "Clip_Sample": False}, "did you mean 'clip_sample'?"),
    ({"_class_name": "DDPMScheduler", "predict_epsilon": 0}, "predict_epsilon 0 is not True or False"),
    ({"thresholding": None}, "thresholding None is not True or False"),
    ({"dynamic_thresholding_ratio": 1.1}, "dynamic_thresholding_ratio 1.1 is not a number in 0 … 1"),
    ({"sample_max_value": -1}, "sample_max_value -1 is not a finite number above 0"),
    ({"_class_name": "DDIMScheduler", "set_alpha_to_one": "yes"}, "set_alpha_to_one 'yes' is not True or False"),
    ({"steps_offset": -1}, "steps_offset -1 is not an integer in 0 …"),
    ({"steps_offset": 5, "timestep_spacing": "leading"}, "steps_offset 5 puts timestep 1004 beyond 999"),
    ({"rescale_betas_zero_snr": True}, "divides by a signal of zero"),
    ({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2]}, "trained_betas has 2 entries, not 3"),
    ({"num_train_timesteps": 2, "trained_betas": 0.1}, "trained_betas 0.1 is not a list of 2 numbers"),
    ({"num_train_timesteps": 2, "trained_betas": [0.1, math.nan]}, "trained_betas holds nan, which is not a number in"),
    ({"num_train_timesteps": 2, "trained_betas": np.ones((2, 2))}, "trained_betas holds [1.0, 1.0], which is not"),
    ({"beta_shedule": "linear"}, "'beta_shedule' is no option of a DDPMScheduler"),
    (dict(PNDMScheduler().config), "'skip_prk_steps' is no option of a DDIMScheduler"),
    ({"_class_name": None}, "scheduler None is no chain of Gaussian steps"),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS)
def test_refusals_name_the_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ChainError) as error:
        GaussianChain.from_scheduler(config, eta=0.5 if config.get("_class_name") == "DDIMScheduler" else None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler]
)
def test_other_schedulers_are_refused_by_name(scheduler: Any) -> None:
    made = scheduler()
    for form in (made, json.loads(made.to_json_string())):
        with pytest.raises(ChainError, match=f"'{scheduler.__name__}' is no chain .* a DDPMScheduler .* ddim:n"):
            GaussianChain.from_scheduler(form)


def test_flow_matching_is_refused_by_name() -> None:
    with pytest.raises(
        ChainError, match="'FlowMatchEulerDiscreteScheduler' follows a flow .* the scheduler's own sampler"
    ):
        GaussianChain.from_scheduler(FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    ("scheduler", "eta", "message"),
    [
        (DDIMScheduler(), None, "DDIMScheduler with eta=0, its default, adds no noise"),
        (
            DDIMScheduler().config,
            0,
            "a DDPMScheduler with the same betas and, for few approximate steps, the sampler ddim",
        ),
        (DDIMScheduler(), 1.5, "eta=1.5 is not a number in (0, 1]"),
        (DDIMScheduler(), -0.5, "eta=-0.5 is not"),
        (DDIMScheduler(), math.nan, "eta=nan is not"),
        (DDIMScheduler(), True, "eta=True is not"),
        (DDIMScheduler(), "1", "eta='1' is not"),
        (DDPMScheduler(), 0.5, "eta=0.5 is DDIMScheduler's; a DDPMScheduler's noise is set by its variance_type"),
        ({}, 1.0, "eta=1.0 is DDIMScheduler's"),
    ],
)
def test_eta_is_an_option_of_ddim(scheduler: Any, eta: Any, message: str) -> None:
    with pytest.raises(ChainError) as error:
        GaussianChain.from_scheduler(scheduler, eta=eta)
    assert message in str(error.value)


@pytest.mark.parametrize("steps", [0, 101, 10.0, True, "10"])
def test_number_of_steps(steps: Any) -> None:
    with pytest.raises(ChainError, match=f"num_inference_steps {steps!r} is not in 1 … 100"):
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
