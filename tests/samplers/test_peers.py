"""The approximate peers: ParaDiGMS against its published algorithm, few-step solvers against diffusers and the ODE."""

import sys
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import ChainError, DenoiserError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers import OF_STEPS, make_sampler
from asd_policy.samplers.ddim import Ddim, shortened
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.paradigms import Paradigms
from support.scheduler_configs import configs

EVENT = (2, 2)
DTYPE = torch.float64
LEVEL = 1e-6  # p-value below which two laws count as different; seeds are fixed
FEW = ("ddim", "dpmsolver")
SPECS = ("ddim:10", "ddim:7", "ddim:10,eta=1", "ddim:100")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
WINDOWS = pytest.mark.parametrize("window", [1, 2, 5, 12])


def draw_tape(chain: GaussianChain, batch: int, seed: int = 0, event: tuple[int, ...] = EVENT) -> NoiseTape:
    """Draw a tape in float64."""
    return NoiseTape.draw((batch, *event), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)


def row_of(tape: NoiseTape, row: int) -> NoiseTape:
    """Return the tape of one row."""
    at = slice(row, row + 1)
    return NoiseTape(tape.initial[at], tape.normals[at], tape.uniforms[at])


def test_only_two_samplers_are_exact() -> None:
    assert {name for name in OF_STEPS if make_sampler(name).exact} == {"ddpm", "asd"}


# ParaDiGMS.


class Recorder:
    """A network that keeps what it was called on."""

    def __init__(self, network: Denoiser) -> None:
        """Wrap a network."""
        self.network = network
        self.calls: list[tuple[Tensor, list[int]]] = []

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Call it."""
        self.calls.append((x, timestep.tolist()))
        return self.network(x, timestep, cond)


def published(
    network: Denoiser, scheduler: DDPMParallelScheduler, tape: NoiseTape, window: int, tol: float
) -> tuple[Tensor, list[tuple[Tensor, list[int]]]]:
    """Algorithm 1 of arXiv 2305.16317 for one plan, point by point, with the drift of diffusers' parallel scheduler.

    Returns:
        The plan [*event], and for each round the points that it evaluated and their timesteps.
    """
    timesteps = scheduler.timesteps.tolist()
    end = len(timesteps)
    deviation = [float(scheduler._get_variance(timestep) ** 0.5) for timestep in timesteps]
    deviation[-1] = 0.0  # where _get_variance has 1e-20
    x = [tape.initial[0]] * (end + 1)
    t, p, rounds = 0, window, []
    while t < end:
        rounds.append((torch.stack(x[t : t + p]), timesteps[t : t + p]))
        new = [x[t]]
        for j in range(p):
            timestep = torch.tensor([timesteps[t + j]])
            output = network(x[t + j][None], timestep, None)
            drift = scheduler.batch_step_no_noise(output, timestep, x[t + j][None])[0] - x[t + j]
            new.append(new[-1] + drift + deviation[t + j] * tape.normals[0, t + j])
        stride = p
        for j in range(1, p):
            error = float((new[j] - x[t + j]).square().sum()) / x[0].numel()
            if error > tol**2 * deviation[t + j] ** 2:
                stride = j
                break
        x[t : t + p + 1] = new
        for j in range(t + p + 1, min(t + p + stride, end) + 1):
            x[j] = x[t + p]
        t += stride
        p = min(window, end - t)
    return x[end], rounds


@WINDOWS
@pytest.mark.parametrize("tol", [0.01, 0.1, 0.5, 3.0])
def test_paradigms_is_the_published_algorithm(
    window: int, tol: float, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    """Equal rounds, equal iterates in each, equal plans."""
    options = {key: value for key, value in chain.config.items() if key != "_class_name"}
    scheduler = DDPMParallelScheduler(**options)
    scheduler.set_timesteps(len(chain))
    tape = draw_tape(chain, 5)
    together = Paradigms(window, tol).sample(mixture, chain, (5, *EVENT), generator=tape)
    for row in range(5):
        recorder = Recorder(mixture)
        own = row_of(tape, row)
        result = Paradigms(window, tol).sample(recorder, chain, (1, *EVENT), generator=own)
        plan, rounds = published(mixture, scheduler, own, window, tol)
        assert [timesteps for _, timesteps in recorder.calls] == [timesteps for _, timesteps in rounds]
        for (points, _), (expected, _) in zip(recorder.calls, rounds, strict=True):
            torch.testing.assert_close(points, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.sample[0], plan, rtol=1e-9, atol=1e-9)
        # In a batch a row is what it is alone: no row waits for another.
        torch.testing.assert_close(together.sample[row], plan, rtol=1e-9, atol=1e-9)
        assert together.stats.rounds[row] == result.stats.rounds[0] == len(rounds)
        assert together.stats.nfe[row] == result.stats.nfe[0] == sum(len(timesteps) for _, timesteps in rounds)


@WINDOWS
@pytest.mark.parametrize("tol", [0, 1e-9])
def test_no_tolerance_is_the_sequential_plan(
    window: int, tol: float, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    tape = draw_tape(chain, 6)
    reference = make_sampler("ddpm").sample(mixture, chain, (6, *EVENT), generator=tape).sample
    result = Paradigms(window, tol).sample(mixture, chain, (6, *EVENT), generator=tape)
    torch.testing.assert_close(result.sample, reference, rtol=0, atol=1e-7)
    if window == 1:
        assert result.stats.rounds == result.stats.nfe == (len(chain),) * 6


def test_no_tolerance_is_the_sequential_plan_of_ddim_with_noise() -> None:
    """A chain that clips, has noise in its last step and overshoots its clipped prediction."""
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 20, "set_alpha_to_one": False, "steps_offset": 1}
    chain = GaussianChain.from_scheduler(config, 10, eta=0.7)
    tape = draw_tape(chain, 3)

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return torch.sin(2 * x)

    reference = make_sampler("ddpm").sample(network, chain, (3, *EVENT), generator=tape).sample
    result = Paradigms(4, 0).sample(network, chain, (3, *EVENT), generator=tape).sample
    torch.testing.assert_close(result, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tol", [0, 0.1, 1e300])
@WINDOWS
def test_paradigms_counts(window: int, tol: float, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Counts agree with what the network saw; each round gains a step; what is done is not computed."""
    recorder = Recorder(mixture)
    result = Paradigms(window, tol).sample(recorder, chain, (7, *EVENT), generator=torch.Generator().manual_seed(7))
    sizes = [len(x) for x, _ in recorder.calls]
    assert sum(sizes) == sum(result.stats.nfe)
    assert len(sizes) == max(result.stats.rounds)
    assert max(sizes) <= 7 * window
    assert all(len(chain) / window <= rounds <= len(chain) for rounds in result.stats.rounds)


def test_paradigms_ends_on_a_network_without_numbers(chain: GaussianChain) -> None:
    """NaN is no error within the tolerance: the iteration goes on step by step, and the plan is refused."""
    recorder = Recorder(lambda x, timestep, cond: x * float("nan"))
    with pytest.raises(DenoiserError, match="NaN or infinity"):
        Paradigms(5, 0.1).sample(recorder, chain, (2, *EVENT))
    assert len(recorder.calls) == len(chain)


def test_lone_outliers_of_the_iteration_do_not_stay(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """A network that has no number at a guessed point only, far ahead, leaves the plan as it is."""
    seen: list[int] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        output = mixture(x, timestep, cond)
        output[len(seen) + 3 :] = float("nan")
        seen.append(len(x))
        return output

    tape = draw_tape(chain, 1)
    reference = make_sampler("ddpm").sample(mixture, chain, (1, *EVENT), generator=tape).sample
    result = Paradigms(12, 0).sample(network, chain, (1, *EVENT), generator=tape).sample
    torch.testing.assert_close(result, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spec", ["paradigms:window=12,tol=2", "ddim:5", "ddim:5,eta=1", "dpmsolver:5"])
def test_approximate_means_another_law(spec: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Another plan on the same tape, and another law: what the label says."""
    count = 20_000
    tape = draw_tape(chain, count)
    reference = make_sampler("ddpm").sample(mixture, chain, (count, *EVENT), generator=tape).sample.flatten(1)
    sample = make_sampler(spec).sample(mixture, chain, (count, *EVENT), generator=tape).sample.flatten(1)
    assert not torch.allclose(sample, reference, atol=0.01)
    pairs = zip(sample.T.numpy(), reference.T.numpy(), strict=True)
    results: list[Any] = [stats.ks_2samp(first, second, method="asymp") for first, second in pairs]
    assert min(result.pvalue for result in results) < LEVEL


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("paradigms:window=0", "window=0 is not in 1 … K, the number of steps of the chain"),
        ("paradigms:tol=-0.1", "tol=-0.1 is not a finite number from 0 up"),
        ("paradigms:tol=nan", "tol=nan is not a finite number from 0 up"),
        ("paradigms:tol=inf", "tol=inf is not a finite number from 0 up"),
        ("paradigms:tolerance=1", "no option 'tolerance' in 'paradigms:tolerance=1'; paradigms has window, tol"),
        ("dpmsolver:0", "dpmsolver steps 0 is not in 1 … K"),
        ("dpmsolver:5,order=4", "order=4 is not one of 1, 2, 3"),
        ("ddim:5,eta=nan", "eta=nan is not in 0 … 1"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        make_sampler(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# DDIM and DPM-Solver++.


def flow(x: Tensor, chain: GaussianChain, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return where the probability flow takes the chain's initial points, for independent normal data.

    The flow keeps (x − √ᾱ μ)/√(ᾱ s² + 1 − ᾱ), as it keeps the quantiles of each coordinate's marginal law.
    """
    alpha = float(chain.input_scale[0]) ** -2
    return mean + deviation * (x - alpha**0.5 * mean) / (alpha * deviation**2 + 1 - alpha) ** 0.5


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [  # largest error with 10, 50 and 200 steps of 1000
        ("ddim:{}", (0.5, 0.1, 0.03)),
        ("dpmsolver:{},order=1", (0.5, 0.1, 0.03)),
        ("dpmsolver:{}", (0.3, 0.02, 0.001)),
        ("dpmsolver:{},order=3", (0.3, 0.02, 0.005)),
    ],
)
def test_few_steps_converge_to_the_flow(spec: str, bounds: tuple[float, ...]) -> None:
    chain = GaussianChain.from_scheduler(
        {"num_train_timesteps": 1000, "timestep_spacing": "trailing", "clip_sample": False}
    )
    mean, deviation = torch.tensor([[0.5, -0.2]], dtype=DTYPE), torch.tensor([[0.3, 1.5]], dtype=DTYPE)
    network = MixtureDenoiser(chain, mean[None], deviation)
    tape = draw_tape(chain, 5, event=(1, 2))
    target = flow(tape.initial, chain, mean, deviation)
    for steps, bound in zip((10, 50, 200), bounds, strict=True):
        sample = make_sampler(spec.format(steps)).sample(network, chain, (5, 1, 2), generator=tape).sample
        assert float((sample - target).abs().max()) < bound


def test_order_one_is_ddim() -> None:
    """Up to the schedulers' float32, where both take the same timesteps."""
    config = {"num_train_timesteps": 60, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
    chain = GaussianChain.from_scheduler(config)
    network = MixtureDenoiser(chain, torch.zeros((1, *EVENT), dtype=DTYPE), torch.tensor([0.5], dtype=DTYPE))
    tape = draw_tape(chain, 4)
    first, second = (
        make_sampler(spec).sample(network, chain, (4, *EVENT), generator=tape).sample
        for spec in ("ddim:12", "dpmsolver:12,order=1")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def wave(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
    """Be a network of no meaning."""
    return torch.sin(2 * x) + 0.001 * timestep.view(-1, *[1] * (x.ndim - 1))


def drawn(data: st.DataObject, name: str) -> tuple[dict[str, Any], GaussianChain]:
    """Draw a scheduler's configuration that makes a chain, and the chain."""
    config = data.draw(configs(name))
    try:
        return config, GaussianChain.from_scheduler(
            {"_class_name": name, **config}, eta=1.0 if name[:4] == "DDIM" else None
        )
    except ChainError:
        assume(False)
        raise


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), fraction=st.floats(0, 1), order=st.sampled_from([1, 2, 3]), eta=st.sampled_from([0.0, 0.6]))
def test_few_steps_are_those_of_diffusers(
    name: str, data: st.DataObject, fraction: float, order: int, eta: float
) -> None:
    """On any chain: the plan of the scheduler that a user would make of its configuration, or one clear line."""
    config, chain = drawn(data, name)
    steps = max(1, round(fraction * len(chain)))
    named = config["beta_schedule"] in ("linear", "scaled_linear", "squaredcos_cap_v2") or config["trained_betas"]
    common = {key: value for key, value in config.items() if key != "variance_type"}
    ddim, solver = f"ddim:{steps},eta={eta}", f"dpmsolver:{steps},order={order}"
    peers: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        (ddim, DDIMScheduler, {}, {"eta": eta}),
        (solver, DPMSolverMultistepScheduler, {"solver_order": order}, {}),
    ]
    for spec, kind, more, options in peers:
        tape = draw_tape(chain, 2)
        try:
            sample = make_sampler(spec).sample(wave, chain, (2, *EVENT), generator=tape).sample
        except SpecError as error:
            assert "\n" not in str(error)
            continue
        assert bool(sample.isfinite().all())
        if spec == solver and ((config["clip_sample"] and not config["thresholding"]) or name == "DDIMScheduler"):
            continue  # options that DPMSolverMultistepScheduler does not have
        if named:
            scheduler = kind.from_config(common | more)
            scheduler.set_timesteps(steps)
            x = tape.initial
            for k, timestep in enumerate(scheduler.timesteps.tolist()):
                output = wave(x, torch.full((2,), timestep), None)
                noise = {"variance_noise": tape.normals[:, k]} if options else {}
                x = scheduler.step(output, timestep, x, return_dict=False, **options, **noise)[0]
            assert torch.equal(sample, x)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), fraction=st.floats(0, 1), eta=st.sampled_from([0.0, 0.6]))
def test_each_step_of_ddim_without_diffusers_is_that_of_diffusers(
    name: str, data: st.DataObject, fraction: float, eta: float
) -> None:
    """On any chain, from the points of the plan through diffusers."""
    _, chain = drawn(data, name)
    sampler, recorder = Ddim(max(1, round(fraction * len(chain))), eta), Recorder(wave)
    tape = draw_tape(chain, 2)
    try:
        end = sampler.sample(recorder, chain, (2, *EVENT), generator=tape).sample
        own = shortened(sampler, chain)
    except SpecError as error:
        assert "\n" not in str(error)
        return
    points = [*(x for x, _ in recorder.calls), end]
    for k, (x, timesteps) in enumerate(recorder.calls):
        assert timesteps == [own.timesteps[k]] * 2
        x0_pred = own.predict(x, wave(x, torch.tensor(timesteps), None), k)
        following = transition(own.a[k], x0_pred, own.sigma[k], tape.normals[:, k], own.b[k], x)
        torch.testing.assert_close(following, points[k + 1], rtol=1e-6, atol=1e-6)


def test_ddim_without_diffusers(monkeypatch: pytest.MonkeyPatch, chain: GaussianChain) -> None:
    """Closely where predictions are clipped, as policies' are; and what needs diffusers says so."""
    long = GaussianChain.from_scheduler({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})
    tape = draw_tape(long, 3)
    plans = {spec: make_sampler(spec).sample(wave, long, (3, *EVENT), generator=tape).sample for spec in SPECS}
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for spec, plan in plans.items():
        found = make_sampler(spec).sample(wave, long, (3, *EVENT), generator=tape)
        torch.testing.assert_close(found.sample, plan, rtol=0, atol=2e-6)
        assert found.stats.rounds == (make_sampler(spec).steps,) * 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SpecError, match="ddim:5 with given coordinates, with a deadline or on NumPy's arrays runs"):
        make_sampler("ddim:5").sample(wave, chain, (1, *EVENT), budget=Budget(deadline_ms=1e6))
    with pytest.raises(SpecError, match=r"ddim steps 500 is not in 1 … 12"):
        make_sampler("ddim:500").sample(wave, chain, (1, *EVENT))
    offset = GaussianChain.from_scheduler({"num_train_timesteps": 20, "steps_offset": 3}, 12)
    with pytest.raises(SpecError, match=r"ddim:10: steps_offset 3 puts timestep 21 beyond 19"):
        make_sampler("ddim:10").sample(wave, offset, (1, *EVENT))


@pytest.mark.parametrize("schedule", ["laplace", "sigmoid"])
@pytest.mark.parametrize("name", FEW)
def test_schedules_that_only_ddpm_knows_by_name(name: str, schedule: str) -> None:
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 40, "beta_schedule": schedule})
    sample = make_sampler(f"{name}:8").sample(wave, chain, (2, *EVENT), generator=draw_tape(chain, 2)).sample
    assert bool(sample.isfinite().all())


@pytest.mark.parametrize("name", FEW)
def test_clipping_bounds_the_plan(name: str) -> None:
    """The last step ends at the clipped prediction."""
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 40, "prediction_type": "sample"})
    sample = (
        make_sampler(f"{name}:8")
        .sample(lambda x, timestep, cond: 3 * x, chain, (5, *EVENT), generator=draw_tape(chain, 5))
        .sample
    )
    assert float(sample.abs().max()) == 1


@pytest.mark.parametrize("name", FEW)
def test_last_noise_level_of_ddim(name: str) -> None:
    """Without set_alpha_to_one the plan ends at the noise level of timestep 0, so it keeps a part of its point."""
    plans = []
    for to_one in (True, False):
        config = {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 40,
            "prediction_type": "sample",
            "set_alpha_to_one": to_one,
        }
        chain = GaussianChain.from_scheduler(config, eta=1.0)
        tape = draw_tape(chain, 3)
        plans.append(
            make_sampler(f"{name}:8").sample(lambda x, timestep, cond: x * 0, chain, (3, *EVENT), generator=tape).sample
        )
    assert not plans[0].any()
    assert bool(plans[1].all())


@pytest.mark.parametrize("name", FEW)
def test_events_of_one_axis_can_be_thresholded(name: str) -> None:
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 40, "thresholding": True, "sample_max_value": 2.0})
    plans = [
        make_sampler(f"{name}:8").sample(wave, chain, (3, *event), generator=draw_tape(chain, 3, event=event)).sample
        for event in ((4,), (2, 2))
    ]
    assert torch.equal(plans[0], plans[1].flatten(1))


@pytest.mark.parametrize("name", FEW)
def test_plans_do_not_share_a_scheduler(name: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """A multistep solver remembers predictions: of its own plan alone, even if another begins in its middle."""
    sampler, tape = make_sampler(f"{name}:6"), draw_tape(chain, 2)
    alone = sampler.sample(mixture, chain, (2, *EVENT), generator=tape).sample

    def nested(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        sampler.sample(wave, chain, (2, *EVENT), generator=tape)
        return mixture(x, timestep, cond)

    assert torch.equal(sampler.sample(nested, chain, (2, *EVENT), generator=tape).sample, alone)
    assert torch.equal(sampler.sample(mixture, chain, (1, *EVENT), generator=row_of(tape, 1)).sample[0], alone[1])


REFUSALS = [
    ("dpmsolver:5", {"clip_sample_range": 2.0}, "cannot clip to ±2 (clip_sample_range)"),
    ("dpmsolver:20", {}, "dpmsolver:20 through DPMSolverMultistepScheduler has no 20 timesteps in 0 … 19"),
    ("ddim:20", {"steps_offset": 1, "num_inference_steps": 19}, "is not in 1 … 19"),
    ("ddim:10", {"steps_offset": 3, "num_inference_steps": 12}, "ddim:10 through DDIMScheduler has no 10 timesteps"),
    (
        "dpmsolver:5",
        {"trained_betas": [0.1] * 19 + [1.0], "prediction_type": "sample", "timestep_spacing": "trailing"},
        "dpmsolver:5 through DPMSolverMultistepScheduler is not finite at timestep 19",
    ),
]


@pytest.mark.parametrize(("spec", "config", "message"), REFUSALS)
def test_refusals_name_the_option(spec: str, config: dict[str, Any], message: str) -> None:
    steps = config.pop("num_inference_steps", None)
    chain = GaussianChain.from_scheduler({"num_train_timesteps": 20, **config}, steps)
    with pytest.raises(SpecError) as error:
        make_sampler(spec).sample(wave, chain, (1, *EVENT))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
