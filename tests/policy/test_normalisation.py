"""The map of a feature: by compiled loops and by operations on arrays, to the same bits."""

from typing import Any

import numpy as np
import pytest
import torch

from asd_policy._common.arrays import NUMPY
from asd_policy.policy.normalisation import Affine
from asd_policy.samplers import compiled
from asd_policy.samplers.compiled import all_finite

AFFINE = Affine(torch.tensor([0.1, -3.0, 1e-9]), torch.tensor([7.3, 1e-8, 3e7]), torch.tensor([-1.0, 0.2, 0.0]))
IN_NUMPY = AFFINE.to(NUMPY)


def read_only(values: np.ndarray[Any, Any]) -> Any:
    values = values.copy()
    values.flags.writeable = False
    return values


def points(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3), (0, 3), (6000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_of_tensors(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(shape).to(dtype)
    found = AFFINE.normalize(x), AFFINE.unnormalize(x)
    monkeypatch.setattr(compiled, "load_kernels", lambda _: None)
    for each, wanted in zip(found, (AFFINE.normalize(x), AFFINE.unnormalize(x)), strict=True):
        assert each.dtype == wanted.dtype and torch.equal(each, wanted)


@pytest.mark.parametrize("lay_out", [np.copy, read_only, np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2]])
def test_of_memory_of_any_kind(lay_out: Any) -> None:
    x: Any = lay_out(points((5, 3)).numpy())
    found: Any = IN_NUMPY.unnormalize(IN_NUMPY.normalize(x))
    assert isinstance(found, np.ndarray) and found.shape == x.shape
    origin, gain, shift = (np.asarray(each) for each in (IN_NUMPY.origin, IN_NUMPY.gain, IN_NUMPY.shift))
    np.testing.assert_array_equal(found, (((x - origin) * gain + shift) - shift) / gain + origin)


@pytest.mark.parametrize("compiles", [True, False])
def test_of_a_view_of_a_tensor(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silently, even where it overflows."""
    if not compiles:
        monkeypatch.setattr(compiled, "load_kernels", lambda _: None)
    x = torch.full((2, 3), 3e38)
    found: Any = AFFINE.normalize(x.numpy())  # pyright: ignore[reportArgumentType]  as `Policy.plan` does
    np.testing.assert_array_equal(found, AFFINE.normalize(x).numpy())
    assert np.isinf(found).any()


def test_the_loop_is_compiled_for_one_kind_of_memory() -> None:
    """Any other would be compiled when it comes, in the middle of a plan."""
    kernels: Any = compiled.load_kernels(compiled.STEPS)
    before = len(kernels.normalize_rows.signatures)
    for x in (points((4, 3)).numpy(), read_only(points((4, 3)).numpy()), points((3, 4)).numpy().T):
        IN_NUMPY.normalize(x)  # pyright: ignore[reportArgumentType]  an array of NumPy's
        all_finite(x)  # pyright: ignore[reportArgumentType]
    assert len(kernels.normalize_rows.signatures) == before
    assert len(kernels.finite_rows.signatures) == before


def test_of_frames() -> None:
    """Of a map [3, 1, 1] and frames [N, 3, height, width]."""
    x = points((2, 3, 4, 5))
    wide = Affine(*(each[:, None, None] for each in (AFFINE.origin, AFFINE.gain, AFFINE.shift)))
    wanted = AFFINE.normalize(x.movedim(1, 3).contiguous()).movedim(3, 1)
    assert torch.equal(wide.normalize(x), wanted)


def test_a_map_on_a_device_is_not_fetched() -> None:
    """Not for each frame, nor in a recording: a device of which nothing can be read stands for a GPU."""
    there = torch.device("meta")
    wide = Affine(*(each[:, None, None] for each in (AFFINE.origin, AFFINE.gain, AFFINE.shift))).to(there)
    x = torch.empty((2, 3, 4, 5), device=there)
    assert wide.unnormalize(wide.normalize(x)).shape == x.shape


def test_gradients_pass() -> None:
    x = points((4, 3)).requires_grad_()
    AFFINE.normalize(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, AFFINE.gain.expand(4, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_what_is_finite(dtype: torch.dtype, bad: float | None) -> None:
    """The largest finite numbers are: nothing is added up."""
    x = torch.full((2, 4, 5), torch.finfo(dtype).max, dtype=dtype)
    if bad is not None:
        x[1, 2, 3] = bad
    assert all_finite(x) is (bad is None)
    assert all_finite(x.swapaxes(0, 2)) is (bad is None)
