"""Filters with fewer products compute what plain ones do."""

import numpy as np
import numpy.typing as npt
import pytest

from asd_policy.networks.backends.winograd import ONE, POINTS, make_filter

Doubles = npt.NDArray[np.float64]


def convolve(x: Doubles, kernel: Doubles, outputs: int, first: int) -> Doubles:
    """Sum the taps [O, C, taps] over the steps of x [T, C], zeros beyond, one by one."""
    made = np.zeros((outputs, kernel.shape[0]))
    for step in range(outputs):
        for tap in range(kernel.shape[2]):
            if 0 <= step + tap + first < len(x):
                made[step] += kernel[:, :, tap] @ x[step + tap + first]
    return made


def filtered(x: npt.NDArray[np.float32], kernel: npt.NDArray[np.float32], outputs: int, first: int) -> Doubles:
    """Compute the same in float32 as a filter's parts are used."""
    parts = make_filter(kernel, len(x), outputs, first)
    sums = np.einsum("ptk,kc->ptc", parts.before, x)
    products = sums @ parts.weights
    made = np.einsum("spt,pto->so", parts.after, products)
    assert made.dtype == np.float32
    return made.astype(np.float64)


@pytest.mark.parametrize("taps", sorted(POINTS))
@pytest.mark.parametrize(
    ("inputs", "outputs", "first"), [(8, 8, -2), (4, 4, -1), (6, 6, -1), (7, 5, 0), (20, 16, 0), (3, 9, -4), (5, 4, 3)]
)
def test_the_parts_come_to_the_convolution(taps: int, inputs: int, outputs: int, first: int) -> None:
    random = np.random.default_rng(taps)
    x, kernel = random.standard_normal((inputs, 3)), random.standard_normal((2, 3, taps))
    found = filtered(x.astype(np.float32), kernel.astype(np.float32), outputs, first)
    np.testing.assert_allclose(found, convolve(x, kernel, outputs, first), atol=2e-5)


@pytest.mark.parametrize(("taps", "times"), [(3, 2.5), (5, 4.0)])
def test_rounding_stays_near_that_of_a_plain_sum(taps: int, times: float) -> None:
    random, channels, steps = np.random.default_rng(0), 256, 64
    x = random.standard_normal((steps + taps - 1, channels)).astype(np.float32)
    kernel = (random.standard_normal((64, channels, taps)) / np.sqrt(taps * channels)).astype(np.float32)
    exact = convolve(x.astype(np.float64), kernel.astype(np.float64), steps, 0)
    rows = np.stack([x[step : step + taps].T.ravel() for step in range(steps)])
    plain = rows @ kernel.reshape(64, -1).T
    wrong = [float(np.sqrt(((made - exact) ** 2).mean())) for made in (filtered(x, kernel, steps, 0), plain)]
    assert wrong[0] < times * wrong[1]


@pytest.mark.parametrize("taps", sorted(POINTS))
def test_what_is_added_to_the_product_of_the_point_one_is_added_to_every_output(taps: int) -> None:
    parts = make_filter(np.zeros((1, 1, taps), np.float32), 8, 8, -1)
    np.testing.assert_array_equal(parts.after[:, ONE].sum(axis=1), 1)
