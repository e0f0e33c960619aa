"""The law of each draft × verifier × window against the sequential one; mutants that the same tests must catch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy.chain import GaussianChain, transition
from asd_policy.denoiser import Denoiser
from asd_policy.draft import DRAFTS, Path, roll_out
from asd_policy.experience import Experience, Response
from asd_policy.models.analytic import MixtureDenoiser
from asd_policy.noise import NoiseTape
from asd_policy.samplers import asd, make_sampler
from asd_policy.samplers.asd import Asd
from asd_policy.samplers.base import Past
from asd_policy.samplers.target import Held
from asd_policy.verify import VERIFIERS, Judge, Verdict, Verifier, block, reflection

N = 40_000
EVENT = (2, 2)
LEVEL = 1e-6  # p-value below which a law counts as wrong; seeds are fixed
DTYPE = torch.float64

SETTINGS = [Asd(window, draft, verify) for draft in DRAFTS for verify in VERIFIERS for window in (2, 3, 5, 12)]
IDS = [setting.spec for setting in SETTINGS]


def draw(sampler: Asd, denoiser: Denoiser, chain: GaussianChain, seed: int, count: int = N) -> Tensor:
    """Return samples [count, D] drawn in one batch, by plans that have a past: a last plan and an experience."""
    experience = Experience()
    earlier = Asd(5).sample(
        denoiser, chain, (500, *EVENT), tape=make_tape(500, chain, seed + 1000), past=Past(None, experience)
    )
    experience.freeze()
    last_plan = earlier.sample[torch.arange(count) % 500]
    past = Past(last_plan, experience)
    tape = make_tape(count, chain, seed)
    return sampler.sample(denoiser, chain, (count, *EVENT), tape=tape, past=past).sample.flatten(1)


def make_tape(count: int, chain: GaussianChain, seed: int) -> NoiseTape:
    return NoiseTape.draw((count, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)


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


@pytest.mark.parametrize("setting", SETTINGS[::4], ids=IDS[::4])
def test_law_given_a_coordinate(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Inpainting: with one coordinate given, the others have the law of the sequential sampler with it given."""
    mask = torch.tensor([[False, False], [False, True]]).expand(N, *EVENT)
    held = Held(mask, torch.full((N, *EVENT), 0.3, dtype=DTYPE))
    samples = [
        sampler.sample(mixture, chain, (N, *EVENT), tape=make_tape(N, chain, seed), held=held).sample.flatten(1)
        for seed, sampler in enumerate((setting, make_sampler("ddpm")))
    ]
    assert (samples[0][:, 3] == 0.3).all()
    assert two_sample_p_value(*samples) > LEVEL


# Mutants: each breaks one thing that exactness rests on, and must be caught by the two tests above.


def broken_verifier(judge: Judge, name: str) -> Verifier:
    """Return a verifier that judges wrongly in the way that `name` says."""

    def broken(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor, live: Tensor) -> Verdict:
        verdict = judge(gap, scale, noise, uniform, live)
        at = (torch.arange(len(live)), verdict.last)
        if name == "accept-always":  # parallel sampling without verification
            return Verdict(live.sum(1) - 1, torch.zeros_like(verdict.rejected), noise, uniform)
        renewed = verdict.noise.clone()
        if name == "redraw":  # right at first sight, wrong because the refusal was selective
            fresh = torch.randn(noise[at].shape, generator=torch.Generator().manual_seed(live.numel()), dtype=DTYPE)
            renewed[at] = torch.where(verdict.rejected.unsqueeze(1), fresh, renewed[at])
        elif name == "keep-noise":  # the refused step leaves its target with the noise that led to the refusal
            renewed[at] = noise[at]
        elif name == "keep-tape":  # the noise after the refused step stays as it was, seen by the verdict
            renewed = noise.clone()
            renewed[at] = verdict.noise[at]
        return verdict._replace(noise=renewed)

    return Verifier(broken, renews_noise=True)


def peek(path: Path, rows: Tensor, steps: Tensor, known: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Draft with guesses that know a little of the noise of the very step they are for."""
    own = path.normals[torch.arange(len(path.x)), path.cursor]
    seen = replace(path, clean=path.clean + 0.1 * path.normals, latest=path.latest + 0.1 * own)
    return roll_out(seen, rows, steps, known, *rest)


def smooth(path: Path, rows: Tensor, steps: Tensor, known: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Draft with predictions of this plan averaged over neighbouring steps, the next one included."""
    clean = path.clean.clone()
    both = path.seen[:, 1:-2] & path.seen[:, 2:-1]
    clean[:, 1:-2] = torch.where(both.unsqueeze(2), (path.clean[:, 1:-2] + path.clean[:, 2:-1]) / 2, clean[:, 1:-2])
    return roll_out(replace(path, clean=clean), rows, steps, known, *rest)


@dataclass(frozen=True)
class LeakyGain:
    """A response of each plan's own, in the place of one learned from plans before it."""

    table: Tensor
    rows: Tensor

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the gains at `steps` [R, S] of the rows: [R, S, 1]."""
        return self.table[self.rows.unsqueeze(1), steps].unsqueeze(2)


def leak(path: Path, rows: Tensor, steps: Tensor, known: Tensor, chain: GaussianChain, _: Any) -> tuple[Tensor, Tensor]:
    """Draft with J_k fitted to how this plan's own prediction changed from x_k to x_{k+1}, which has ξ_k in it."""
    dx, dy = path.points.diff(dim=1), path.clean.diff(dim=1)
    gain = (dx * dy).sum(2) / dx.square().sum(2).clamp(min=1e-12)
    gain = torch.where(path.seen[:, :-1] & path.seen[:, 1:], gain, 0).clamp(0, 2)
    response: Any = Response(torch.eye(path.x.shape[1], dtype=path.x.dtype), LeakyGain(gain, rows))  # type: ignore[arg-type]
    return roll_out(path, rows, steps, known, chain, response)


MUTANTS = [
    ("accept-always", "picard", "reflection"),
    ("accept-always", "response", "block"),
    ("redraw", "frozen", "reflection"),
    ("redraw", "response", "block"),
    ("keep-noise", "picard", "reflection"),
    ("keep-noise", "response", "block"),
    ("keep-tape", "picard", "block"),
    ("peek", "frozen", "reflection"),
    ("peek", "picard", "block"),
    ("smooth", "picard", "reflection"),
    ("smooth", "response", "block"),
    ("leak", "response", "reflection"),
    ("leak", "response", "block"),
]
# The Gaussian's law is known in closed form, a mixture's is sampled too: the gentlest mutants show in the first alone.
GENTLE = [
    ("redraw", "response", "block"),
    ("keep-tape", "picard", "block"),
    ("smooth", "response", "block"),
    ("leak", "response", "reflection"),
    ("leak", "response", "block"),
]


def mutate(patch: pytest.MonkeyPatch, mutant: str, verify: str) -> None:
    """Put a mutant in place."""
    drafts = {"peek": peek, "smooth": smooth, "leak": leak}
    if mutant in drafts:
        patch.setattr(asd, "roll_out", drafts[mutant])
    else:
        judge = {"reflection": reflection, "block": block}[verify]
        patch.setitem(VERIFIERS, verify, broken_verifier(judge, mutant))


@pytest.mark.parametrize(("mutant", "draft", "verify"), MUTANTS)
def test_mutants_fail_on_a_gaussian(
    mutant: str,
    draft: str,
    verify: str,
    gaussian: MixtureDenoiser,
    chain: GaussianChain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch, mutant, verify)
    sample = draw(Asd(5, draft, verify), gaussian, chain, seed=2)
    assert gaussian_p_value(sample, *gaussian_law(gaussian, chain)) < LEVEL


@pytest.mark.parametrize(("mutant", "draft", "verify"), [mutant for mutant in MUTANTS if mutant not in GENTLE])
def test_mutants_fail_on_a_mixture(
    mutant: str,
    draft: str,
    verify: str,
    mixture: MixtureDenoiser,
    chain: GaussianChain,
    sequential: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch, mutant, verify)
    assert two_sample_p_value(draw(Asd(5, draft, verify), mixture, chain, seed=3), sequential) < LEVEL
