"""NumPy in the place of PyTorch: the same text, so the same numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch._dynamo.utils import counters

from asd_policy._common import arrays, normal
from asd_policy._common.arrays import NUMPY
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.policy.function import AcceleratedFn
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import EVENT, make_tape

ROWS = 40
SPECS = [
    "ddpm",
    "paradigms:window=4,tol=0.1",
    *(f"asd:window=5,draft={draft},verify={verify}" for draft in DRAFTS for verify in VERIFIERS),
]


def denoise(x: Any, timestep: Any, cond: Any) -> Any:
    """A smooth network of either library."""
    xp = arrays.namespace(x)
    return xp.tanh(3 * x + cond[:, None, None]) - 0.3 * x


def plain(x: Any, timestep: Any, cond: Any) -> Any:
    """A network of NumPy alone."""
    return np.tanh(x)


def to_numpy(tape: NoiseTape) -> NoiseTape:
    return NoiseTape(*(arrays.asarray(part, NUMPY) for part in (tape.initial, tape.normals, tape.uniforms)))


@pytest.mark.parametrize("given", [False, True], ids=["free", "given"])
@pytest.mark.parametrize("spec", SPECS)
def test_samplers_are_the_same(spec: str, given: bool, chain: GaussianChain) -> None:
    """Over plans that teach, and that start from the one before."""
    sampler, found = make_sampler(spec), {}
    for device in (torch.device("cpu"), NUMPY):
        experience, last, plans = Experience(), None, []
        cond = arrays.asarray(np.linspace(-1, 1, ROWS), device)
        mask = arrays.asarray(np.broadcast_to(np.eye(2, dtype=bool) & given, (ROWS, *EVENT)).copy(), device)
        held = Inpainting(mask, arrays.asarray(np.full((ROWS, *EVENT), 0.3), device))
        for seed in range(4):
            tape = make_tape(ROWS, chain, seed)
            tape = to_numpy(tape) if device == NUMPY else tape
            past = WarmStart(last, experience)
            result = sampler.sample(
                denoise, chain, (ROWS, *EVENT), cond, generator=tape, inpainting=held, warm_start=past
            )
            last = result.sample
            stats_ = result.stats
            plans.append((arrays.to_numpy(last), stats_.rounds, stats_.nfe, stats_.refused, stats_.unjudged))
        found[device] = plans
    for ours, theirs in zip(*found.values(), strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-9)
        assert ours[1:] == theirs[1:]


def test_a_generator_of_numpy_draws_the_tape(chain: GaussianChain) -> None:
    shape = (3, *EVENT)
    tapes = [NoiseTape.draw(shape, len(chain), np.random.default_rng(1), NUMPY) for _ in range(2)]
    assert isinstance(tapes[0].initial, np.ndarray)
    assert tapes[0].initial.dtype == np.float32
    np.testing.assert_array_equal(tapes[0].normals, tapes[1].normals)
    rows = NoiseTape.draw(shape, len(chain), [np.random.default_rng(seed) for seed in range(3)], NUMPY)
    alone = NoiseTape.draw((1, *EVENT), len(chain), np.random.default_rng(2), NUMPY)
    np.testing.assert_array_equal(rows.normals[2], alone.normals[0])
    assert float(tapes[0].uniforms.min()) > 0


def test_a_function_of_numpy_is_accelerated(chain: GaussianChain) -> None:
    sample = AcceleratedFn(plain, chain, make_sampler("asd:window=4"), NUMPY)
    result = sample((2, *EVENT), generator=np.random.default_rng(0))
    assert isinstance(result.sample, np.ndarray)
    with pytest.raises(DenoiserError, match="returned a Tensor, not a NumPy array"):
        AcceleratedFn(lambda x, t, c: torch.tensor(x), chain, make_sampler("asd"), NUMPY)((2, *EVENT))


def test_what_needs_pytorch_says_so(schedule: GaussianChain) -> None:
    with pytest.raises(SpecError, match="ddim:10 runs through diffusers' schedulers, which need PyTorch"):
        AcceleratedFn(plain, schedule, make_sampler("ddim"), NUMPY)((2, *EVENT))


@pytest.mark.parametrize("low", [-60.0, -25.0, -19.99, -1.0, 5.0])
def test_the_normal_law(low: float) -> None:
    x = np.linspace(low, low + 8, 2001)
    np.testing.assert_allclose(normal.log_cdf(x), special.log_ndtr(x), rtol=1e-12, atol=1e-16)
    p = np.concatenate([[0.0, 1.0], 10.0 ** np.linspace(-300, -1, 300), np.linspace(0.001, 0.999, 999)])
    np.testing.assert_allclose(normal.quantile(p), special.ndtri(p), rtol=1e-12, atol=1e-15)


class Planned:
    """Something with a method that is not for the compiler, and one that leads there."""

    @arrays.uncompiled
    def plan(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        return 2 * x

    def ask(self, x: torch.Tensor) -> torch.Tensor:
        """Have it computed."""
        return self.plan(x)

    def ask_again(self, x: torch.Tensor) -> torch.Tensor:
        """Have it computed, too."""
        return self.plan(x)


def test_the_compiler_does_not_even_look_at_what_is_left_alone() -> None:
    arrays.leave_alone(Planned.ask, Planned.plan)
    planned, x = Planned(), torch.ones(2)
    for asked, looked in ((planned.ask, 0), (planned.ask_again, 1)):
        counters.clear()
        assert torch.equal(torch.compile(asked, backend="eager")(x), 2 * x)
        assert (counters["frames"]["total"], counters["stats"]["unique_graphs"]) == (looked, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16, 2), (3, 16, 1), (16,), (1, 5, 3), (7, 8, 14)])
def test_numbers_drawn_at_once_are_those_drawn_in_turn(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """To the bit, and what is drawn after them, too: plans of a seed stay what they are in the libraries' loops."""
    for count in (1, 2, 101):
        one, other = (torch.Generator().manual_seed(3) for _ in range(2))
        found = arrays.normals_in_turn(count, shape, one, torch.device("cpu"), dtype)
        assert torch.equal(found, torch.stack([torch.randn(shape, generator=other, dtype=dtype) for _ in range(count)]))
        assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))
        first, second = (np.random.default_rng(3) for _ in range(2))
        drawn = np.stack([second.standard_normal(shape, np.float32) for _ in range(count)])
        np.testing.assert_array_equal(arrays.normals_in_turn(count, shape, first, NUMPY), drawn)


@pytest.mark.parametrize("rows", [1, 3, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_in_a_row_in_either_library(rows: int, dtype: torch.dtype) -> None:
    """Few numbers or many, of a type that NumPy has or not."""
    parts = [torch.randn((rows, width), dtype=dtype) for width in (1, 2, 5)]
    found, wanted = arrays.in_a_row(parts), torch.cat(parts, dim=-1)
    assert found.dtype == dtype and torch.equal(found, wanted)
    if dtype != torch.bfloat16:
        alike: Any = arrays.in_a_row([part.numpy() for part in parts])
        np.testing.assert_array_equal(alike, wanted.numpy())
    assert arrays.in_a_row(parts[:1]) is parts[0]


def test_gradients_pass_through_a_row() -> None:
    x = torch.ones((2, 3), requires_grad=True)
    arrays.in_a_row([2 * x, torch.zeros((2, 1))]).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((2, 3), 2.0))


@pytest.mark.parametrize("shape", [(1, 4), (1, 2, 3), (1, 0)])
def test_a_row_is_repeated_in_memory(shape: tuple[int, ...]) -> None:
    row = torch.randn(shape)
    found: Any = arrays.repeated(row, 5)
    assert found.is_contiguous() and torch.equal(found, torch.cat([row] * 5))
    alike: Any = arrays.repeated(row.numpy(), 5)
    assert alike.flags.c_contiguous
    np.testing.assert_array_equal(alike, found.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_what_is_finite(bad: float | None, dtype: torch.dtype) -> None:
    """The largest finite numbers are: nothing is added up."""
    x = torch.full((4, 5), torch.finfo(dtype).max, dtype=dtype)
    if bad is not None:
        x[2, 3] = bad
    assert arrays.is_finite(x) is (bad is None)
    if dtype == torch.float32:
        assert arrays.is_finite(x.numpy()) is (bad is None)
