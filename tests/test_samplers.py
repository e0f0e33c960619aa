"""The samplers' law against the sequential one, with mutants that the same tests must catch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy.chain import GaussianChain, transition
from asd_policy.denoiser import Denoiser
from asd_policy.draft import DRAFTS, FrozenDraft, PicardDraft
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.models.analytic import MixtureDenoiser
from asd_policy.noise import NoiseTape
from asd_policy.samplers import SAMPLERS, asd, make_sampler
from asd_policy.samplers.asd import VERIFIERS, Asd

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
N = 40_000
EVENT = (2, 2)
LEVEL = 1e-6  # p-value below which a law counts as wrong; seeds are fixed
DTYPE = torch.float64

SETTINGS = [Asd(window, draft, verify) for draft in DRAFTS for verify in VERIFIERS for window in (1, 2, 3, 5, 8, 12)]
IDS = [setting.spec for setting in SETTINGS]

# Of every sampler, specs that fit the chain of twelve steps; what all samplers must do is tested on these.
EXAMPLES = {
    "ddpm": ("ddpm",),
    "ddim": ("ddim:10", "ddim:10,eta=0.5", "ddim:10,eta=0.1234567", "ddim:5,eta=1"),
    "dpmsolver": ("dpmsolver:10", "dpmsolver:5,order=3"),
    "paradigms": ("paradigms:window=4,tol=0.1", "paradigms:window=12,tol=1e-07", "paradigms:window=4,tol=2"),
    "asd": tuple(f"asd:window=4,draft={draft},verify={verify}" for draft in DRAFTS for verify in VERIFIERS),
}
SPECS = [spec for specs in EXAMPLES.values() for spec in specs]


def draw(sampler: Asd, denoiser: Denoiser, chain: GaussianChain, seed: int, count: int = N) -> Tensor:
    """Return samples [count, D] drawn in one batch."""
    tape = NoiseTape.draw((count, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)
    return sampler.sample(denoiser, chain, (count, *EVENT), tape=tape).sample.flatten(1)


def gaussian_law(denoiser: Denoiser, chain: GaussianChain) -> tuple[Tensor, Tensor]:
    """Return mean [D] and standard deviation [D] of the sequential sampler for a denoiser linear per coordinate.

    Each step is x ← (slope_k) x + offset_k + σ_k ξ; slope and offset are read off two evaluations.
    """
    mean, variance = torch.zeros(4, dtype=DTYPE), torch.ones(4, dtype=DTYPE)
    probes = torch.stack([torch.zeros(EVENT, dtype=DTYPE), torch.ones(EVENT, dtype=DTYPE)])
    tables = chain.tables(torch.device("cpu"), DTYPE)
    for k in range(len(chain)):
        output = denoiser(probes, tables.timesteps[k].expand(2), None)
        clean = chain.predict(probes, output, k)
        none = torch.zeros((), dtype=DTYPE)
        offset, reached = transition(tables.a[k], clean, none, none, tables.b[k], probes).flatten(1)
        slope = reached - offset
        mean, variance = slope * mean + offset, slope**2 * variance + tables.sigma[k] ** 2
    return mean, variance.sqrt()


def ks(values: Tensor, law: Any) -> float:
    """Return a Kolmogorov–Smirnov p-value against a law's name, distribution function or another sample."""
    result: Any = stats.kstest(values.numpy(), law, method="asymp")  # scipy's annotation hides the result's fields
    return float(result.pvalue)


def gaussian_p_value(sample: Tensor, mean: Tensor, deviation: Tensor) -> float:
    """Return a p-value for samples [N, D] being independent normals of that mean and deviation.

    Kolmogorov–Smirnov of each coordinate, of oblique projections and of the radius, with Bonferroni's correction.
    """
    z = (sample - mean) / deviation
    oblique = torch.linalg.qr(torch.randn((4, 4), generator=torch.Generator().manual_seed(7), dtype=DTYPE))[0]
    tests = [ks(column, "norm") for column in (*z.T, *(z @ oblique).T)]
    tests.append(ks(z.square().sum(1), stats.chi2(4).cdf))
    return min(1.0, len(tests) * min(tests))


def two_sample_p_value(first: Tensor, second: Tensor) -> float:
    """Return a p-value for two samples [N, D] of a mixture sharing their joint law.

    Kolmogorov–Smirnov over coordinates, oblique projections and pairwise products, and a χ² test of the modes.
    """
    oblique = torch.randn((4, 6), generator=torch.Generator().manual_seed(8), dtype=DTYPE)

    def views(sample: Tensor) -> Tensor:
        pairs = torch.stack([sample[:, i] * sample[:, j] for i in range(4) for j in range(i)], dim=1)
        return torch.cat([sample, sample @ oblique, pairs], dim=1)

    tests = [ks(a, b.numpy()) for a, b in zip(views(first).T, views(second).T, strict=True)]

    def modes(sample: Tensor) -> list[int]:
        mode = torch.stack([sample[:, 0] < -0.5, sample[:, 0] > 0.6, sample[:, 1] < -0.5]).long().argmax(0)
        return torch.bincount(mode, minlength=3).tolist()

    contingency: Any = stats.chi2_contingency(np.array([modes(first), modes(second)]))
    tests.append(float(contingency.pvalue))
    return min(1.0, len(tests) * min(tests))


@pytest.fixture(scope="module")
def sequential(mixture: MixtureDenoiser, chain: GaussianChain) -> Tensor:
    """Samples of the reference sampler."""
    tape = NoiseTape.draw((N, *EVENT), len(chain), torch.Generator().manual_seed(100), dtype=DTYPE)
    return make_sampler("ddpm").sample(mixture, chain, (N, *EVENT), tape=tape).sample.flatten(1)


def test_reference_has_the_computed_law(gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    tape = NoiseTape.draw((N, *EVENT), len(chain), torch.Generator().manual_seed(1), dtype=DTYPE)
    sample = make_sampler("ddpm").sample(gaussian, chain, (N, *EVENT), tape=tape).sample.flatten(1)
    assert gaussian_p_value(sample, *gaussian_law(gaussian, chain)) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_on_a_gaussian(setting: Asd, gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    assert gaussian_p_value(draw(setting, gaussian, chain, seed=2), *gaussian_law(gaussian, chain)) > LEVEL


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_law_on_a_mixture(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain, sequential: Tensor) -> None:
    assert two_sample_p_value(draw(setting, mixture, chain, seed=3), sequential) > LEVEL


# Mutants: each breaks the coupling in one place, and must be caught by the two tests above.


def accept_always(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
    """Take every draft for right: parallel sampling without verification."""
    return torch.ones_like(uniform, dtype=torch.bool)


def redraw(gap: Tensor, noise: Tensor) -> Tensor:
    """On a rejection, draw the target afresh: right at first sight, wrong because acceptance was selective."""
    return torch.randn(noise.shape, generator=torch.Generator().manual_seed(noise.numel()), dtype=noise.dtype)


def keep_noise(gap: Tensor, noise: Tensor) -> Tensor:
    """On a rejection, keep the noise that led to it."""
    return noise


class Peek:
    """A draft that has seen the noise of the step it guesses, as one corrected by this plan's later points would."""

    tape: NoiseTape

    def propose(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Shift the honest guess by the step's own noise."""
        honest = super().propose(rows, steps)  # pyright: ignore[reportAttributeAccessIssue]  # mixed into a draft
        return honest + 0.1 * self.tape.normals[rows.unsqueeze(1), steps].flatten(2)


def mutate(name: str, patch: pytest.MonkeyPatch, draft: str, seed: int, chain: GaussianChain) -> None:
    """Put a mutant in place; `seed` is that of the tape which the peeking draft will look at."""
    if name == "accept-always":
        patch.setattr(asd, "accepts", accept_always)
    elif name in ("redraw", "keep-noise"):
        patch.setattr(asd, "reflect", redraw if name == "redraw" else keep_noise)
    else:
        tape = NoiseTape.draw((N, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)
        honest = {"frozen": FrozenDraft, "picard": PicardDraft}[draft]
        patch.setitem(DRAFTS, draft, type("Peeking", (Peek, honest), {"tape": tape}))


MUTANTS = pytest.mark.parametrize("mutant", ["accept-always", "redraw", "keep-noise", "peek"])


@MUTANTS
@pytest.mark.parametrize("draft", ["frozen", "picard"])
def test_mutants_fail_on_a_gaussian(
    mutant: str, draft: str, gaussian: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(mutant, monkeypatch, draft, 2, chain)
    assert gaussian_p_value(draw(Asd(5, draft), gaussian, chain, seed=2), *gaussian_law(gaussian, chain)) < LEVEL


@MUTANTS
@pytest.mark.parametrize("draft", ["frozen", "picard"])
def test_mutants_fail_on_a_mixture(
    mutant: str,
    draft: str,
    mixture: MixtureDenoiser,
    chain: GaussianChain,
    sequential: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(mutant, monkeypatch, draft, 3, chain)
    assert two_sample_p_value(draw(Asd(5, draft), mixture, chain, seed=3), sequential) < LEVEL


# Bit equality: the same tape gives the same plan where nothing was guessed wrong.


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_window_one_is_ddpm_bit_for_bit(
    draft: str, batch: int, dtype: torch.dtype, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    tape = NoiseTape.draw((batch, *EVENT), len(chain), torch.Generator().manual_seed(4), dtype=dtype)
    reference = make_sampler("ddpm").sample(mixture, chain, (batch, *EVENT), tape=tape)
    result = Asd(window=1, draft=draft).sample(mixture, chain, (batch, *EVENT), tape=tape)
    assert torch.equal(result.sample, reference.sample)
    assert result.stats.rounds == result.stats.nfe == (len(chain),) * batch


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("window", [2, 7, 12])
def test_perfect_drafts_commit_the_drafted_points(draft: str, window: int, chain: GaussianChain) -> None:
    """A network that always predicts the same x̂0 is guessed to the bit after its first prediction."""
    target = torch.tensor([[0.3, -0.7], [0.1, 0.9]], dtype=torch.float32)
    alone = GaussianChain.from_scheduler({**chain.config, "prediction_type": "sample"}, len(chain))

    def constant(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return target.expand_as(x)

    tape = NoiseTape.draw((3, *EVENT), len(chain), torch.Generator().manual_seed(5))
    reference = make_sampler("ddpm").sample(constant, alone, (3, *EVENT), tape=tape)
    result = Asd(window, draft).sample(constant, alone, (3, *EVENT), tape=tape)
    if draft == "frozen":  # one round to learn it, then whole windows
        assert torch.equal(result.sample, reference.sample)
        assert result.stats.rounds == (1 + -(-(len(chain) - 1) // window),) * 3
    else:  # its first guess is zero, so the first round may be rejected; from then on all is accepted
        assert max(result.stats.rounds) <= 2 + -(-(len(chain) - 1) // window)


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_rows_do_not_depend_on_their_neighbours(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Every row has a cursor of its own: alone or in a batch, its sample and its counts are the same."""
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(6), dtype=DTYPE)
    together = setting.sample(mixture, chain, (6, *EVENT), tape=tape)
    for row in range(6):
        own = NoiseTape(tape.initial[row : row + 1], tape.normals[row : row + 1], tape.uniforms[row : row + 1])
        alone = setting.sample(mixture, chain, (1, *EVENT), tape=own)
        torch.testing.assert_close(alone.sample[0], together.sample[row], rtol=0, atol=1e-9)
        assert alone.stats.rounds[0] == together.stats.rounds[row]
        assert alone.stats.nfe[0] == together.stats.nfe[row]


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_counts(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Counts agree with the calls the network saw; finished rows are not computed."""
    calls: list[int] = []

    def counted(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        calls.append(len(x))
        return mixture(x, timestep, cond)

    result = setting.sample(counted, chain, (7, *EVENT), generator=torch.Generator().manual_seed(7))
    stats_ = result.stats
    assert sum(calls) == sum(stats_.nfe)
    assert len(calls) == max(stats_.rounds)
    assert max(calls) <= 7 * setting.window
    assert all(len(chain) / setting.window <= rounds <= len(chain) + 1 for rounds in stats_.rounds)
    assert stats_.steps == len(chain)
    assert 0 < stats_.network_seconds < stats_.seconds
    assert 0 < stats_.overhead_fraction < 1
    assert stats_.algorithmic_speedup == pytest.approx(7 * len(chain) / sum(stats_.rounds))


@pytest.mark.parametrize("spec", SPECS)
def test_conditioning_follows_its_row(spec: str, chain: GaussianChain) -> None:
    """Rows leave the batch at different times; each point must keep its own row's conditioning."""
    alone = GaussianChain.from_scheduler({**chain.config, "prediction_type": "sample"}, len(chain))
    cond = torch.arange(5.0)[:, None]

    def own(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return cond[:, :, None].expand_as(x) + 0.3 * torch.tanh(x)

    sample = make_sampler(spec).sample(own, alone, (5, *EVENT), cond, torch.Generator().manual_seed(1)).sample
    assert ((sample - cond[:, :, None]).abs() < 0.31).all()


@pytest.mark.parametrize("spec", SPECS)
def test_generator_per_row(spec: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """A row with its own generator is the same in any batch."""
    sampler = make_sampler(spec)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    batch = sampler.sample(mixture, chain, (3, *EVENT), generator=generators).sample
    single = sampler.sample(mixture, chain, (1, *EVENT), generator=[torch.Generator().manual_seed(2)]).sample
    torch.testing.assert_close(single[0], batch[1])
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        sampler.sample(mixture, chain, (2, *EVENT), generator=generators)


def test_ddim_is_approximate_and_deterministic(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    sampler = make_sampler("ddim:5")
    assert not sampler.exact
    tape = NoiseTape.draw((4, *EVENT), len(chain), torch.Generator().manual_seed(1), dtype=DTYPE)
    result = sampler.sample(mixture, chain, (4, *EVENT), tape=tape)
    assert torch.equal(result.sample, sampler.sample(mixture, chain, (4, *EVENT), tape=tape).sample)
    assert result.stats.rounds == (5,) * 4
    noisy = make_sampler("ddim:5,eta=1").sample(mixture, chain, (4, *EVENT), tape=tape)
    assert not torch.allclose(noisy.sample, result.sample)


def test_every_sampler_has_examples() -> None:
    assert EXAMPLES.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("spec", SPECS)
def test_specs_round_trip(spec: str) -> None:
    assert make_sampler(spec).spec == spec
    assert make_sampler(make_sampler(spec).spec) == make_sampler(spec)


def test_defaults_are_spelled_out() -> None:
    assert make_sampler("asd").spec == "asd:window=32,draft=picard,verify=reflection"
    assert make_sampler("ddim").spec == "ddim:10"
    assert make_sampler("dpmsolver:order=2").spec == "dpmsolver:10"
    assert make_sampler("paradigms").spec == "paradigms:window=16,tol=0.1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dddpm", f"no sampler 'dddpm' in 'dddpm'; there are {', '.join(SAMPLERS)}"),
        ("", "no sampler ''"),
        ("asd:windw=3", "no option 'windw' in 'asd:windw=3'; asd has window, draft, verify"),
        ("asd:window=3,", "no option ''"),
        ("asd:window=3,window=4", "'window' is given twice"),
        ("asd:window=x", "window=x in 'asd:window=x' is not of type int"),
        ("asd:draft=frosen", f"draft=frosen is not one of {', '.join(DRAFTS)}"),
        ("asd:verify=no", "verify=no is not one of reflection"),
        ("asd:window=0", "window=0 is not in 1"),
        ("ddpm:5", "no option '5' in 'ddpm:5'; ddpm has none"),
        ("ddim:0", "ddim steps 0 is not in 1"),
        ("ddim:10,eta=2", "eta=2 is not in 0 … 1"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        make_sampler(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("spec", ["asd:window=13", "ddim:13", "dpmsolver:13", "paradigms:window=13"])
def test_more_than_the_chain_has(spec: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    with pytest.raises(SpecError, match="13 is not in 1 … 12"):
        make_sampler(spec).sample(mixture, chain, (1, *EVENT))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: x * float("nan"), "NaN or infinity"),
        (lambda x: x + float("inf"), "NaN or infinity"),
        (lambda x: x[:, :1], "returned shape"),
    ],
    ids=["nan", "inf", "shape"],
)
def test_broken_networks_are_named(
    spec: str, broken: Callable[[Tensor], Tensor], message: str, chain: GaussianChain
) -> None:
    with pytest.raises(DenoiserError, match=message):
        make_sampler(spec).sample(lambda x, timestep, cond: broken(x), chain, (2, *EVENT))


def test_tape_and_conditioning_must_fit(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    tape = NoiseTape.draw((2, *EVENT), len(chain) + 1)
    with pytest.raises(ValueError, match="the tape has noise of shape"):
        make_sampler("ddpm").sample(mixture, chain, (2, *EVENT), tape=tape)
    with pytest.raises(ValueError, match="conditioning for 3 rows, but a batch of 2"):
        make_sampler("ddpm").sample(mixture, chain, (2, *EVENT), cond=torch.zeros(3, 1))
