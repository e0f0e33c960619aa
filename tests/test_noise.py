"""The noise tape: its law, its seeds, its rows."""

import pytest
import torch
from scipy import stats

from asd_policy.noise import NoiseTape


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
    row = NoiseTape.draw((1, 4), 5, generator(2))
    assert torch.equal(batch.normals[1], row.normals[0])
    assert torch.equal(batch.initial[1], row.initial[0])
    assert torch.equal(batch.uniforms[1], row.uniforms[0])
