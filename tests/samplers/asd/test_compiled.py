"""The compiled form of a round: the reference's samples, whatever the shapes; and mutants that its law catches."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr, ndtri
from torch import Tensor

from asd_policy._common.arrays import NUMPY
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness.mutants import KERNEL_MUTANTS, mutated_kernels
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import compiled
from asd_policy.samplers.asd import kernels
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.records import SampleResult
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import draw_speculatively, gaussian_law, normal_p_value, step_p_value

SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2"}
CHAIN = GaussianChain.from_scheduler(SCHEDULER)
N, FEW, LEVEL = 40_000, 20_000, 1e-6


@contextmanager
def reference() -> Iterator[None]:
    """Run the text of `engine.Round` and of `ddpm.walk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "load_kernels", lambda _: None)
        yield


def network(size: int) -> Any:
    """A network that is no Gaussian's, of predictions that move with the point and the time."""
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / size**0.5

    def denoise(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        flat = x.flatten(1)
        turned = torch.tanh(flat @ weights.to(x.dtype)) + torch.cos(timestep[:, None] / 9).to(x.dtype)
        return (0.8 * flat + 0.3 * turned).reshape(x.shape)

    return denoise


def plans(sampler: Asd, shape: tuple[int, ...], dtype: torch.dtype, given: bool, count: int = 3) -> list[Any]:
    """Plan several times, each with what the plans before have taught and its own noise."""
    experience, last, made = Experience(), None, list[Any]()
    for seed in range(count):
        tape = NoiseTape.draw(shape, len(CHAIN), torch.Generator().manual_seed(seed), dtype=dtype)
        held = None
        if given:
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[:, : shape[1] // 2, 0] = True
            held = Inpainting(mask, torch.full(shape, 0.3, dtype=dtype))
        made.append(
            sampler.sample(
                network(math.prod(shape[1:])), CHAIN, shape, generator=tape, inpainting=held,
                warm_start=WarmStart(last, experience),
            )
        )  # fmt: skip
        last = made[-1].sample
    return made


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    ("shape", "window", "given"),
    [
        ((1, 16, 4), 8, False),
        ((5, 8, 3), 8, False),
        ((5, 8, 3), 8, True),
        ((2, 5, 1), 30, False),
        ((1, 1, 7), 2, False),
        ((256, 4, 2), 5, False),
    ],
    ids=str,
)
def test_samples_are_the_references(draft: str, verify: str, shape: tuple[int, ...], window: int, given: bool) -> None:
    """Rows that end at different times, a window of the whole chain, given coordinates, large batches."""
    sampler = Asd(window, draft, verify)
    found = plans(sampler, shape, torch.float64, given)
    with reference():
        expected = plans(sampler, shape, torch.float64, given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.sample, theirs.sample, rtol=0, atol=1e-8)
        assert ours.stats.plans == theirs.stats.plans  # rounds, points, refusals


def test_it_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host, for drafts and verifiers of this package; with arrays of NumPy's, too."""
    calls: list[str] = []

    def hold_rows(kept: Any) -> Callable[..., int]:
        advance = kernels.hold_rows(kept)
        return lambda *given: calls.append("x") or advance(*given)

    broken = SimpleNamespace(how_of=kernels.how_of, hold_rows=hold_rows)
    load = compiled.load_kernels
    monkeypatch.setattr(compiled, "load_kernels", lambda name: broken if name == compiled.ROUNDS else load(name))
    (plan,) = plans(Asd(8), (1, 4, 2), torch.float32, False, 1)
    assert len(calls) == 1 + plan.stats.rounds[0]  # the first has nothing to commit
    tape = NoiseTape.draw((1, 4, 2), len(CHAIN), np.random.default_rng(0), NUMPY)
    assert isinstance(tape.initial, np.ndarray)
    calls.clear()

    def denoise(x: Any, timestep: Any, _: Any) -> Any:
        return 0.8 * x

    result = Asd(8).sample(denoise, CHAIN, (1, 4, 2), generator=tape)
    assert len(calls) == 1 + result.stats.rounds[0]


def test_memory_goes_from_plan_to_plan_and_leaves_nothing_behind() -> None:
    """Plans of one shape share it; those that overlap, and those of a copy of the chain, do not."""
    chain = GaussianChain.from_scheduler(SCHEDULER)
    spaces: dict[Any, Any] = chain.keep("workspaces", dict)
    tape = NoiseTape.draw((2, 4, 2), len(chain), torch.Generator().manual_seed(1))
    other = NoiseTape.draw((2, 4, 2), len(chain), torch.Generator().manual_seed(2))

    def denoise(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        return 0.8 * x.tanh()

    def nested(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        plan(chain, other, denoise)
        return denoise(x, timestep, None)

    def plan(chain: GaussianChain, tape: NoiseTape, network: Any) -> SampleResult:
        return Asd(8).sample(network, chain, (2, 4, 2), generator=tape)

    first, between, again = (plan(chain, each, denoise) for each in (tape, other, tape))
    assert len(spaces) == 1 and torch.equal(first.sample, again.sample) and first.stats.plans == again.stats.plans
    assert not torch.equal(first.sample, between.sample)
    assert torch.equal(plan(chain, tape, nested).sample, first.sample)
    for copied in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert not copied.keep("workspaces", dict)
        assert torch.equal(plan(copied, tape, denoise).sample, first.sample)
    for horizon in range(1, 17):
        Asd(8).sample(denoise, chain, (1, horizon, 2))
    assert len(spaces) == 12


def test_large_memory_is_not_kept() -> None:
    chain, shape = GaussianChain.from_scheduler(SCHEDULER), (16, 64, 14)
    Asd(8).sample(lambda x, timestep, _: 0.8 * x, chain, shape)
    assert not chain.keep("workspaces", dict)


def test_equal_bits_where_nothing_was_guessed() -> None:
    """A draft that is the target to the bit gives the sequential plan, to the bit."""

    def denoise(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        return x * 0  # x̂0 moves along the chain, and is refused where its guess is another one

    shape = (1, 8, 2)
    tape = NoiseTape.draw(shape, len(CHAIN), torch.Generator().manual_seed(0))
    for verify in VERIFIERS:
        found = Asd(6, "picard", verify).sample(denoise, CHAIN, shape, generator=tape).sample
        with reference():
            expected = Asd(6, "picard", verify).sample(denoise, CHAIN, shape, generator=tape).sample
        assert torch.equal(found, expected) or verify == "block"


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clips", [False, True, 0.3])
@pytest.mark.parametrize("eta", [None, 0.5])
def test_the_sequential_sampler_to_the_bit(prediction: str, clips: float, eta: float | None) -> None:
    """The baseline, compiled: what it was, whatever the chain."""
    kind = {"_class_name": "DDPMScheduler" if eta is None else "DDIMScheduler", "num_train_timesteps": 30}
    range_ = {"clip_sample": bool(clips), "clip_sample_range": float(clips) or 1.0}
    chain = GaussianChain.from_scheduler({**kind, **range_, "prediction_type": prediction}, eta=eta)
    for dtype, shape in ((torch.float32, (1, 4, 3)), (torch.float64, (5, 2, 1))):
        tape = NoiseTape.draw(shape, len(chain), torch.Generator().manual_seed(0), dtype=dtype)
        found = Ddpm().sample(network(math.prod(shape[1:])), chain, shape, generator=tape).sample
        with reference():
            expected = Ddpm().sample(network(math.prod(shape[1:])), chain, shape, generator=tape).sample
        assert torch.equal(found, expected) and found.dtype == dtype


def test_what_a_network_was_called_on_stays() -> None:
    """It may keep its inputs, as one that records them does."""
    for sampler in (Ddpm(), Asd(6)):
        kept: list[tuple[Tensor, Tensor]] = []

        def denoise(x: Tensor, timestep: Tensor, _: Tensor | None, kept: Any = kept) -> Tensor:
            kept.append((x, x.clone()))
            return 0.8 * x

        tape = NoiseTape.draw((2, 3, 2), len(CHAIN), torch.Generator().manual_seed(0))
        before = tape.initial.clone(), tape.normals.clone()
        sampler.sample(denoise, CHAIN, (2, 3, 2), generator=tape)
        assert kept and all(torch.equal(*pair) for pair in kept)
        assert torch.equal(tape.initial, before[0]) and torch.equal(tape.normals, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e30, float("nan"), float("inf")])
def test_numbers_that_are_no_numbers(dtype: torch.dtype, scale: float) -> None:
    """Predictions that are tiny, huge or none at all: the reference's errors, or its samples."""

    def denoise(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        return torch.where(timestep[:, None, None] < 15, scale * torch.sign(x), 0.5 * x)

    def draw() -> Any:
        tape = NoiseTape.draw((2, 4, 2), len(CHAIN), torch.Generator().manual_seed(0), dtype=dtype)
        try:
            return Asd(8, "picard", "block").sample(denoise, CHAIN, (2, 4, 2), generator=tape).sample
        except Exception as error:
            return str(error)

    found = draw()
    with reference():
        expected = draw()
    if isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_compiled_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No numba, or one that does not fit: the reference runs."""
    compiled.load_kernels.cache_clear()
    try:
        monkeypatch.setitem(__import__("sys").modules, "asd_policy.samplers.asd.kernels", None)
        with pytest.warns(UserWarning, match="plans run uncompiled, which is slower: ModuleNotFoundError"):
            plans(Asd(8), (1, 4, 2), torch.float32, False, 1)
        plans(Asd(8), (1, 4, 2), torch.float32, False, 1)
    finally:
        compiled.load_kernels.cache_clear()


def test_special_functions() -> None:
    x = np.concatenate([np.linspace(-60, 9, 4001), [-11.999, -12.001, 0.0]])
    found = np.array([kernels._log_ndtr(each) for each in x])
    np.testing.assert_allclose(found, log_ndtr(x), rtol=2e-13, atol=1e-300)
    p = np.concatenate([10.0 ** -np.linspace(0.01, 300, 501), 1 - 10.0 ** -np.linspace(0.1, 15.9, 301)])
    np.testing.assert_allclose([kernels._ndtri(each) for each in p], ndtri(p), rtol=1e-12, atol=1e-13)


BROKEN = [
    ("accept-always", "picard", "reflection"),
    ("accept-always", "response", "block"),
    ("redraw", "frozen", "reflection"),
    ("redraw", "response", "block"),
    ("keep-noise", "picard", "reflection"),
    ("keep-noise", "response", "block"),
    ("keep-tape", "picard", "block"),
    ("peek", "frozen", "reflection"),
    ("peek", "picard", "block"),
]


def test_every_mutant_is_tried() -> None:
    assert {mutant for mutant, _, _ in BROKEN} == set(KERNEL_MUTANTS)


@pytest.mark.parametrize(("mutant", "draft", "verify"), BROKEN)
def test_mutants_fail(mutant: str, draft: str, verify: str, gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    """On a Gaussian, and in their steps; what passes the same tests is tests/samplers/asd/test_exactness.py."""
    with mutated_kernels(mutant):
        sample = draw_speculatively(Asd(5, draft, verify), gaussian, chain, 2, N)
        steps = step_p_value(Asd(5, draft, verify), gaussian, chain, 4, FEW)
    mean, deviation = gaussian_law(gaussian, chain)
    assert normal_p_value((sample - mean) / deviation) < LEVEL
    assert steps < LEVEL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("horizon", "width"), [(1, 1), (1, 9), (3, 2), (6, 5), (6, 6), (6, 7), (8, 40), (16, 3)])
def test_time_is_turned(horizon: int, width: int, dtype: type[np.floating[Any]]) -> None:
    """Vectors together and each alone, to the bit, as a row's plan must not depend on the rows beside it."""
    random = np.random.default_rng(horizon)
    matrix, values = (random.normal(size=size).astype(dtype) for size in ((horizon, horizon), (7, horizon * width)))
    found, alone = np.full_like(values, np.nan), np.full_like(values, np.nan)
    kernels._turn(matrix, values, found)
    for row in range(len(values)):
        kernels._turn(matrix, values[row : row + 1], alone[row : row + 1])
    expected = np.einsum("tp,nta->npa", matrix, values.reshape(7, horizon, width)).reshape(values.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found, alone)


@pytest.mark.parametrize("sampler", [Ddpm(), Asd(6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_another_precision(sampler: Ddpm | Asd, dtype: torch.dtype) -> None:
    """What they return is taken in the samples' own, as the reference does: NumPy has no bfloat16."""

    def denoise(x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
        return (0.8 * x).to(dtype)

    tape = NoiseTape.draw((2, 3, 2), len(CHAIN), torch.Generator().manual_seed(0))
    found = sampler.sample(denoise, CHAIN, (2, 3, 2), generator=tape).sample
    with reference():
        expected = sampler.sample(denoise, CHAIN, (2, 3, 2), generator=tape).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [Ddpm(), Asd(6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_that_takes_numpys_arrays_gets_them(sampler: Ddpm | Asd, dtype: torch.dtype) -> None:
    """As ONNX Runtime's does, whatever the tape's library: the same plan to the bit, in tensors as ever."""

    class Network:
        def __init__(self, takes_numpy: bool) -> None:
            self.takes_numpy = takes_numpy
            self.kinds: set[type] = set()

        def __call__(self, x: Any, timestep: Any, cond: Any) -> Any:
            self.kinds |= {type(x), type(timestep), type(cond)}
            return x * np.float32(0.8)

    tape = NoiseTape.draw((2, 3, 2), len(CHAIN), torch.Generator().manual_seed(0))
    ours, theirs = Network(True), Network(False)
    samples = [
        sampler.sample(each, CHAIN, (2, 3, 2), torch.ones(2, 5, dtype=dtype), tape).sample for each in (ours, theirs)
    ]
    assert theirs.kinds == {Tensor}
    assert ours.kinds == ({Tensor} if dtype == torch.bfloat16 else {np.ndarray})  # NumPy has no bfloat16
    assert torch.equal(*samples) and not samples[0].is_inference()
