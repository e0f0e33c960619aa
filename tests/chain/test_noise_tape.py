"""The noise tape: its law, its seeds, its rows."""

import pytest
import torch
from scipy import stats

from asd_policy.chain.noise_tape import NoiseTape


def test_shapes_and_law() -> None:
    tape = NoiseTape.draw((500, 3, 2), 7, torch.Generator().manual_seed(0))
    assert tape.initial.shape == (500, 3, 2)
    assert tape.normals.shape == (500, 7, 3, 2)
    assert tape.uniforms.shape == (500, 7)
    assert stats.kstest(torch.cat([tape.initial.flatten(), tape.normals.flatten()]).numpy(), "norm")[1] > 1e-3
    assert stats.kstest(tape.uniforms.flatten().numpy(), "uniform")[1] > 1e-3
    assert float(tape.uniforms.min()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeds_fix_it(dtype: torch.dtype) -> None:
    first, again, other = (
        NoiseTape.draw((2, 4), 5, torch.Generator().manual_seed(seed), dtype=dtype) for seed in (1, 1, 2)
    )
    assert first.normals.dtype == first.uniforms.dtype == dtype
    for name in ("initial", "normals", "uniforms"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_a_generator_per_row() -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    batch = NoiseTape.draw((2, 4), 5, [generator(1), generator(2)])
    row = NoiseTape.draw((1, 4), 5, [generator(2)])
    assert torch.equal(batch.normals[1], row.normals[0])
    assert torch.equal(batch.initial[1], row.initial[0])
    assert torch.equal(batch.uniforms[1], row.uniforms[0])


@pytest.mark.parametrize("event", [(4,), (3, 7), (16, 2)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_one_generator_draws_as_the_libraries_do(batch: int, event: tuple[int, ...], given: bool) -> None:
    """The start, if it is not given, then the noise of one step after the other; also from the global generator."""
    shape = (batch, *event)
    torch.manual_seed(0)
    start = torch.ones(shape) if given else torch.randn(shape)
    normals = [torch.randn(shape) for _ in range(5)]
    for generator in (torch.Generator().manual_seed(0), None):
        torch.manual_seed(0)
        tape = NoiseTape.draw(shape, 5, generator, initial=start if given else None)
        assert torch.equal(tape.initial, start)
        assert torch.equal(tape.normals, torch.stack(normals, dim=1))
    rows = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    assert torch.equal(NoiseTape.draw(shape, 5, rows, initial=start).initial, start)
