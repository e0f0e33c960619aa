"""What tests and studies of exactness share: laws known in closed form, p-values, couplings broken on purpose.

Of no use for planning; nothing else in the package imports it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.exactness.law import PathRecorder, step_checks
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import Denoiser
from asd_policy.samplers.asd import draft, engine
from asd_policy.samplers.asd.couplings import VERIFIERS, Judge, Verdict, Verifier
from asd_policy.samplers.asd.draft import Follow, Window, follow_window, roll_out
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.ddpm import Ddpm
from asd_policy.samplers.warm_start import WarmStart

EVENT = (2, 2)
DTYPE = torch.float64
_EARLIER_PLANS = 500


def short_chain() -> GaussianChain:
    """Return twelve steps, so coarse that drafts are often wrong."""
    return GaussianChain.from_scheduler(
        {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 12
    )


def gaussian_denoiser() -> MixtureDenoiser:
    """Return data from one Gaussian with a standard deviation of its own in each coordinate; events [2, 2]."""
    means = torch.tensor([[[0.5, -0.2], [0.1, 1.0]]], dtype=DTYPE)
    return MixtureDenoiser(full_chain(), means, torch.tensor([[0.3, 1.0, 0.05, 2.0]], dtype=DTYPE))


def mixture_denoiser() -> MixtureDenoiser:
    """Return data from three unequal, narrow modes; events [2, 2]."""
    means = torch.tensor([[-1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 0.0, -0.5], [0.2, -1.0, -1.0, 1.0]], dtype=DTYPE)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=DTYPE)
    scales = torch.tensor([0.05, 0.1, 0.2], dtype=DTYPE)
    return MixtureDenoiser(full_chain(), means.view(3, *EVENT), scales, weights)


def full_chain() -> GaussianChain:
    """Return every timestep of the short chain's noise schedule: what networks know."""
    return GaussianChain.from_scheduler(short_chain().config)


def make_tape(count: int, chain: GaussianChain, seed: int) -> NoiseTape:
    """Return the noise of `count` plans."""
    return NoiseTape.draw((count, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)


def draw(
    sampler: Asd, denoiser: Denoiser, chain: GaussianChain, seed: int, count: int, recorder: PathRecorder | None = None
) -> Tensor:
    """Return samples [count, D] drawn in one batch, by plans that have a past: a last plan and an experience.

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
    """Return a p-value for the steps of `count` plans being the chain's, given all that was known before each.

    The checks of `asd-policy verify`, with Bonferroni's correction. A broken coupling hardly moves a plan, see
    docs/theory/architecture.md; it shows in the steps where drafts were wrong.
    """
    recorder = PathRecorder(denoiser, chain, count, math.prod(EVENT))
    sample = draw(sampler, denoiser, chain, seed, count, recorder)
    checks = step_checks(chain, [(recorder, sample.numpy())])
    return min(1.0, len(checks) * min(check.p_value for check in checks))


def draw_sequentially(denoiser: Denoiser, chain: GaussianChain, seed: int, count: int) -> Tensor:
    """Return samples [count, D] of the reference sampler."""
    return Ddpm().sample(denoiser, chain, (count, *EVENT), generator=make_tape(count, chain, seed)).sample.flatten(1)


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


# p-values.


def normal_p_value(sample: Tensor) -> float:
    """Return a p-value for vectors [N, …] being standard normal.

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
    """Return a p-value for two samples [N, D] of the mixture sharing their joint law.

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
    """Return which of the three modes each sample of the mixture [N, D] is in [N]."""
    return torch.stack([sample[:, 0] < -0.5, sample[:, 0] > 0.6, sample[:, 1] < -0.5]).long().argmax(0)


def _ks(values: Tensor, law: Any) -> float:
    """Return a Kolmogorov–Smirnov p-value against a law's name, distribution function or another sample."""
    result: Any = stats.kstest(values.numpy(), law, method="asymp")  # scipy's annotation hides the result's fields
    return float(result.pvalue)


# Mutants: each breaks one thing that exactness rests on.


@contextmanager
def mutated(mutant: str, size: float = 1.0, seed: int = 0) -> Iterator[None]:
    """Break the sampler `asd` in one way, a key of `MUTANTS`, for as long as the context lasts.

    Args:
        mutant: Its name.
        size: How much. Of a verdict, the share of rounds in which it is wrong; of the draft `peek`, how much of the
            noise gets through, in units of a tenth. The other drafts are wrong or not.
        seed: Of what is random about it.
    """
    if mutant in _VERDICTS:
        verifiers = {
            name: _broken(verifier.judge, _VERDICTS[mutant], size, seed) for name, verifier in VERIFIERS.items()
        }
        with mock.patch.dict(VERIFIERS, verifiers):
            yield
    else:
        broken = _peek(0.1 * size) if mutant == "peek" else {"smooth": _smooth, "leak": _leak}[mutant]
        with mock.patch.object(engine, "roll_out", broken):
            yield


def _broken(judge: Judge, change: Callable[..., Verdict], share: float, seed: int) -> Verifier:
    """Return a verifier that judges wrongly in a share of the rounds."""
    generator = torch.Generator().manual_seed(seed)

    def broken(gap: Tensor, scale: Tensor, noise: Tensor, uniform: Tensor, live: Tensor) -> Verdict:
        right = judge(gap, scale, noise, uniform, live)
        wrong = change(right, noise, uniform, live, generator)
        acts = torch.rand(len(live), generator=generator) < share
        parts = zip(wrong, right, strict=True)
        return Verdict(*(torch.where(acts.view(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in parts))

    return Verifier(broken, renews_noise=True)


def _accept_always(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Accept every draft: parallel sampling without verification."""
    return Verdict(live.sum(1) - 1, torch.zeros_like(right.rejected), noise, uniform)


def _redraw(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, generator: torch.Generator) -> Verdict:
    """Take a refused step with fresh noise: right at first sight, wrong because the refusal was selective."""
    fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
    return right._replace(noise=torch.where(_refused(right, live).unsqueeze(2), fresh, right.noise))


def _keep_noise(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Let a refused step leave its target with the noise that led to the refusal."""
    return right._replace(noise=torch.where(_refused(right, live).unsqueeze(2), noise, right.noise))


def _keep_tape(right: Verdict, noise: Tensor, uniform: Tensor, live: Tensor, _: torch.Generator) -> Verdict:
    """Leave the noise after a refused step as it was, seen by the verdict."""
    after = torch.arange(live.shape[1]) > right.last.unsqueeze(1)
    return right._replace(noise=torch.where(after.unsqueeze(2), noise, right.noise))


def _refused(verdict: Verdict, live: Tensor) -> Tensor:
    """Return which slots [R, n] hold a refused step."""
    return (torch.arange(live.shape[1]) == verdict.last.unsqueeze(1)) & verdict.rejected.unsqueeze(1)


Drafted = tuple[Tensor, Tensor, Tensor]
"""What `roll_out` returns."""


def _peek(size: float) -> Callable[..., Drafted]:
    """Draft with guesses that know a little of the noise of the very step they are for."""

    def broken(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
        own = path.normals[torch.arange(len(path.x)), path.cursor]
        normals = path.normals if response is None else response.turn(path.normals)
        seen = replace(path, x0_pred=path.x0_pred + size * normals, latest=path.latest + size * own)
        return roll_out(seen, window, known, chain, response)

    return broken


@dataclass(frozen=True)
class _Smoothed:
    """A `Follow` whose guesses are averaged with what was seen at the next step."""

    follow: Follow
    after: Tensor
    """That, in the response's basis, [R, S, D]."""
    both: Tensor
    """For which steps there is such [R, S, 1]."""

    @property
    def drift(self) -> Sequence[Tensor]:
        """As it was."""
        return self.follow.drift

    def __call__(self, slot: int, *known: Tensor) -> Tensor:
        """Return the smoothed guess [R, D]."""
        return _halfway(self.follow(slot, *known), self.after[:, slot], self.both[:, slot])


def _halfway(values: Tensor, others: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, (values + others) / 2, values)


def _smooth(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
    """Draft with guesses that are averaged with what this plan saw at the next step."""
    rows = window.rows.unsqueeze(1)
    at, after = (rows, window.steps), (rows, window.steps + 1)
    both = (path.seen[at] & path.seen[after]).unsqueeze(2)
    if response is None:
        x0_pred = path.x0_pred.clone()
        x0_pred[at] = _halfway(x0_pred[at], x0_pred[after], both)
        return roll_out(replace(path, x0_pred=x0_pred), window, known, chain, None)
    seen = path.x0_pred[after]

    def follow(*arguments: Any) -> Any:
        return _Smoothed(follow_window(*arguments), seen, both)

    with mock.patch.object(draft, "follow_window", follow):
        return roll_out(path, window, known, chain, response)


@dataclass(frozen=True)
class _LeakyGain:
    """A response of each plan's own, in the place of one learned from plans before it."""

    table: Tensor
    rows: Tensor

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the gains at `steps` [R, S] of the rows: [R, S, 1]."""
        return self.table[self.rows.unsqueeze(1), steps].unsqueeze(2)


def _leak(path: Path, window: Window, known: Tensor, chain: GaussianChain, response: Response | None) -> Drafted:
    """Draft with J_k fitted to how this plan's own prediction changed from x_k to x_{k+1}, which has ξ_k in it."""
    dx, dy = path.points.diff(dim=1), path.x0_pred.diff(dim=1)
    gain = (dx * dy).sum(2) / dx.square().sum(2).clamp(min=1e-12)
    gain = torch.where(path.seen[:, :-1] & path.seen[:, 1:], gain, 0).clamp(0, 2)
    leaky: Any = _LeakyGain(gain, window.rows)
    basis = torch.eye(path.x.shape[1], dtype=path.x.dtype) if response is None else response.basis
    return roll_out(path, window, known, chain, Response(basis, leaky))


_VERDICTS: dict[str, Callable[..., Verdict]] = {
    "accept-always": _accept_always,
    "redraw": _redraw,
    "keep-noise": _keep_noise,
    "keep-tape": _keep_tape,
}
MUTANTS = (*_VERDICTS, "peek", "smooth", "leak")
