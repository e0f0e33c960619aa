"""Data whose law has a closed form, samples of it, and p-values for what samplers draw."""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness.law import PathRecorder, step_checks
from asd_policy.networks.analytic import MixtureDenoiser, MixtureFlow
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.warm_start import WarmStart

EVENT = (2, 2)
DTYPE = torch.float64
_EARLIER_PLANS = 500

_GAUSSIAN = (
    torch.tensor([[[0.5, -0.2], [0.1, 1.0]]], dtype=DTYPE),
    torch.tensor([[0.3, 1.0, 0.05, 2.0]], dtype=DTYPE),
)
_MIXTURE = (
    torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, -0.5], [0.2, -1.0, -1.0, 1.0]], dtype=DTYPE).view(3, *EVENT),
    torch.tensor([0.05, 0.1, 0.2], dtype=DTYPE),
    torch.tensor([0.5, 0.3, 0.2], dtype=DTYPE),
)


def short_chain() -> GaussianChain:
    """Make a chain of twelve steps, so coarse that drafts are often wrong."""
    return GaussianChain.from_scheduler(
        {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 12
    )


def gaussian_denoiser() -> MixtureDenoiser:
    """Denoise data from one Gaussian with a standard deviation of its own in each coordinate; events [2, 2]."""
    return MixtureDenoiser(full_chain(), *_GAUSSIAN)


def mixture_denoiser() -> MixtureDenoiser:
    """Denoise data from three unequal, narrow modes; events [2, 2]."""
    return MixtureDenoiser(full_chain(), *_MIXTURE)


def gaussian_flow() -> MixtureFlow:
    """Follow the flow to the data of `gaussian_denoiser`."""
    return MixtureFlow(*_GAUSSIAN)


def mixture_flow() -> MixtureFlow:
    """Follow the flow to the data of `mixture_denoiser`."""
    return MixtureFlow(*_MIXTURE)


def full_chain() -> GaussianChain:
    """Make the chain of every timestep of the short chain's noise schedule, which networks are trained on."""
    return GaussianChain.from_scheduler(short_chain().config)


def make_tape(count: int, chain: GaussianChain, seed: int) -> NoiseTape:
    """Draw the noise of `count` plans."""
    return NoiseTape.draw((count, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)


def draw_speculatively(
    sampler: Asd, denoiser: Denoiser, chain: GaussianChain, seed: int, count: int, recorder: PathRecorder | None = None
) -> Tensor:
    """Draw samples [count, D] in one batch, by plans that have a past: a last plan and an experience.

    Args:
        sampler: What to draw with.
        denoiser: Of events `EVENT`.
        chain: Its chain.
        seed: Of all noise.
        count: Of samples.
        recorder: A recorder of the denoiser, which is to watch.
    """
    experience, earlier_tape = Experience(), make_tape(_EARLIER_PLANS, chain, seed + 1000)
    shape = (_EARLIER_PLANS, *EVENT)
    earlier = Asd(5).sample(denoiser, chain, shape, generator=earlier_tape, warm_start=WarmStart(None, experience))
    experience.freeze()
    past = WarmStart(earlier.sample[torch.arange(count) % _EARLIER_PLANS], experience)
    tape = make_tape(count, chain, seed)
    cond = None if recorder is None else recorder.tag(torch.zeros((count, 0), dtype=DTYPE))
    watched = recorder or denoiser
    return sampler.sample(watched, chain, (count, *EVENT), cond, generator=tape, warm_start=past).sample.flatten(1)


def step_p_value(sampler: Asd, denoiser: Denoiser, chain: GaussianChain, seed: int, count: int) -> float:
    """Test that the steps of `count` plans are the chain's, conditional on what came before each: a p-value.

    The checks of `asd-policy verify`, with Bonferroni's correction. A broken coupling hardly moves a plan, see
    docs/theory/algorithm.md; it shows in the steps where drafts were wrong.
    """
    recorder = PathRecorder(denoiser, chain, count, math.prod(EVENT))
    sample = draw_speculatively(sampler, denoiser, chain, seed, count, recorder)
    checks = step_checks(chain, [(recorder, sample.numpy())])
    return min(1.0, len(checks) * min(check.p_value for check in checks))


def draw_sequentially(denoiser: Denoiser, chain: GaussianChain, seed: int, count: int) -> Tensor:
    """Draw samples [count, D] with the reference sampler."""
    return Ddpm().sample(denoiser, chain, (count, *EVENT), generator=make_tape(count, chain, seed)).sample.flatten(1)


def gaussian_law(denoiser: Denoiser, chain: GaussianChain) -> tuple[Tensor, Tensor]:
    """Compute mean [D] and standard deviation [D] of the sequential sampler, for a denoiser linear per coordinate.

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


# p-values.


def normal_p_value(sample: Tensor) -> float:
    """Test that vectors [N, …] are standard normal: a p-value.

    Kolmogorov–Smirnov of each coordinate, of as many oblique projections and of the radius, with Bonferroni's
    correction.
    """
    z = sample.double().flatten(1)
    dim = z.shape[1]
    oblique = torch.linalg.qr(torch.randn((dim, dim), generator=torch.Generator().manual_seed(7), dtype=DTYPE))[0]
    tests = [_ks(column, "norm") for column in (*z.T, *(z @ oblique).T)]
    tests.append(_ks(z.square().sum(1), stats.chi2(dim).cdf))
    return min(1.0, len(tests) * min(tests))


def mixture_p_value(first: Tensor, second: Tensor) -> float:
    """Test that two samples [N, D] of the mixture have one joint law: a p-value.

    Kolmogorov–Smirnov over coordinates, oblique projections and pairwise products, and a χ² test of the modes, with
    Bonferroni's correction.
    """
    oblique = torch.randn((4, 6), generator=torch.Generator().manual_seed(8), dtype=DTYPE)

    def views(sample: Tensor) -> Tensor:
        pairs = torch.stack([sample[:, i] * sample[:, j] for i in range(4) for j in range(i)], dim=1)
        return torch.cat([sample, sample @ oblique, pairs], dim=1)

    tests = [_ks(a, b.numpy()) for a, b in zip(views(first).T, views(second).T, strict=True)]
    counts = np.array([torch.bincount(mixture_modes(sample), minlength=3).tolist() for sample in (first, second)])
    contingency: Any = stats.chi2_contingency(counts[:, counts.any(0)])
    tests.append(float(contingency.pvalue))
    return min(1.0, len(tests) * min(tests))


def mixture_modes(sample: Tensor) -> Tensor:
    """Number the mode, of three, of each sample of the mixture [N, D]: [N]."""
    return torch.stack([sample[:, 0] < -0.5, sample[:, 0] > 0.6, sample[:, 1] < -0.5]).long().argmax(0)


def _ks(values: Tensor, law: Any) -> float:
    """Compute a Kolmogorov–Smirnov p-value against a law's name, distribution function or another sample."""
    result: Any = stats.kstest(values.numpy(), law, method="asymp")  # scipy's annotation hides the result's fields
    return float(result.pvalue)
