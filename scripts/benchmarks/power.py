"""How small a difference would the tests of exactness see? Prints a table for docs/results/power.md.

python scripts/benchmarks/power.py --write docs/results/power.md
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy
import torch
import tyro
from torch import Tensor

import asd_policy
from asd_policy._common.files import atomic_file
from asd_policy._common.hardware import hardware
from asd_policy.evaluation import states
from asd_policy.evaluation.exactness import checks as exactness
from asd_policy.evaluation.exactness import law, mutants
from asd_policy.evaluation.reports import report
from asd_policy.samplers.asd.couplings import accepts, reflect
from asd_policy.samplers.asd.sampler import Asd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# The line above leads there.
from support import known_laws  # noqa: E402

BEGIN, END = "<!-- table: scripts/benchmarks/power.py -->", "<!-- /table -->"
POWERS = (0.8, 0.95)
LAW_LEVEL, VERIFIER_LEVEL = (
    1e-6,
    1e-5,
)  # of test_exactness.py and test_couplings.py in tests/samplers/asd
FINEST = 1.1  # the bisection ends when its bracket is this ratio wide
PATHS_RECORDED = 16  # plans of the checkpoint whose draft errors stand for all
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
]
GENTLE = [
    ("redraw", "response", "block"),
    ("keep-tape", "picard", "block"),
    ("smooth", "response", "block"),
    ("leak", "response", "reflection"),
    ("leak", "response", "block"),
]
"""Mutants that the mixture test of tests/samplers/asd/test_exactness.py is too small to detect."""


@dataclass(frozen=True)
class Options:
    """How small a difference would the tests of exactness see?"""

    sections: tuple[str, ...] = ("laws", "coupling", "mutants", "gentle", "plans", "steps")
    """What to measure: any of laws, coupling, mutants, gentle, plans, steps."""
    runs: int = 10
    """Repetitions of each test; half as many where the sampler itself runs."""
    samples: int = 40_000
    """Samples of the tests of laws."""
    coupled: int = 100_000
    """Samples of the tests of the verifiers."""
    plans: int = 256
    """Plans at each observation, as in `asd-policy verify`."""
    observations: int = 4
    """Observations, as there."""
    most: int = 640_000
    """Samples to stop at in looking for the gentle mutants."""
    checkpoint: Path = ROOT / "checkpoints/avoid"
    """For the tests of `asd-policy verify`."""
    write: Path | None = None
    """Markdown file to put the table into, between its markers; by default it is only printed."""


PValue = Callable[[float, int], float]
"""The p-value of a test for a difference of a size, on the noise of a seed."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    test: str
    count: str
    difference: str
    detected: tuple[str, ...]


def detectable(p_value: PValue, level: float, runs: int, start: float, most: float) -> list[str]:
    """Find the smallest difference that the share of runs detects, for each of `POWERS`, as text.

    Each run keeps its noise while its own threshold is bracketed and bisected on a logarithmic scale.

    Args:
        p_value: Of the test.
        level: Below which a difference counts as seen.
        runs: How many.
        start: Size to begin with.
        most: Largest meaningful size; a difference that is not detected there counts as never detected.
    """
    thresholds = []
    for seed in range(runs):
        low, high = 0.0, math.inf  # not seen, seen
        size = start
        while high > FINEST * low:
            if p_value(size, seed) < level:
                high = size
            else:
                low = size
                if size == most:
                    break
            size = min(most, 2 * low) if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
        thresholds.append(high)
        start = size if high < math.inf else most
    # The k-th smallest of n thresholds has k of n runs that see it.
    ordered = sorted(thresholds)
    found = [ordered[math.ceil(power * runs) - 1] for power in POWERS]
    return [f"{size:.2g}" if size < math.inf else f"> {most:g}" for size in found]


# The tests of laws: samples against a law that is known, and against other samples.


def shifted(z: Tensor, size: float) -> Tensor:
    """Move the first coordinate [..., D] by `size` of its standard deviations."""
    step = torch.zeros_like(z[:1])
    step[:, 0] = size * z[:, 0].std()
    return z + step


def stretched(z: Tensor, size: float) -> Tensor:
    """Make the first coordinate's deviations [..., D] longer by a fraction."""
    centred = z[:, :1] - z[:, :1].mean()
    return torch.cat([z[:, :1] + size * centred, z[:, 1:]], dim=1)


def reweighted(sample: Tensor, size: float, others: Tensor) -> Tensor:
    """Move a share of all samples [N, D] of the mixture from its first mode to its second."""
    first = (known_laws.mixture_modes(sample) == 0).nonzero().squeeze(1)
    donors = others[known_laws.mixture_modes(others) == 1]
    moved = first[: round(size * len(sample))]
    changed = sample.clone()
    changed[moved] = donors[torch.arange(len(moved)) % len(donors)]
    return changed


def law_rows(options: Options) -> Iterator[Row]:
    """Yield the smallest changes of samples that test_exactness.py and test_couplings.py's chains detect."""
    differences = {"mean of a coordinate [sd]": shifted, "deviation of a coordinate, longer by a fraction": stretched}

    def normals(seed: int, dim: int, count: int) -> Tensor:
        return torch.randn((count, dim), generator=torch.Generator().manual_seed(seed), dtype=known_laws.DTYPE)

    for test, dim, count, level in (
        ("law on a Gaussian", 4, options.samples, LAW_LEVEL),
        ("verifier, chain of six steps", 12, options.coupled, VERIFIER_LEVEL),
    ):
        for name, change in differences.items():

            def p_normal(size: float, seed: int, change=change, dim: int = dim, count: int = count) -> float:
                return known_laws.normal_p_value(change(normals(seed, dim, count), size))

            yield Row(test, f"{count}", name, tuple(detectable(p_normal, level, options.runs, 0.02, 10.0)))

    chain, denoiser = known_laws.short_chain(), known_laws.mixture_denoiser()

    @lru_cache(maxsize=options.runs)
    def samples(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        first, second, third = (
            known_laws.draw_sequentially(denoiser, chain, 3 * seed + part, options.samples) for part in range(3)
        )
        return first, second, third

    def p_moved(size: float, seed: int, change: Callable[[Tensor, float], Tensor]) -> float:
        first, second, _ = samples(seed)
        return known_laws.mixture_p_value(change(first, size), second)

    def p_weight(size: float, seed: int) -> float:
        first, second, others = samples(seed)
        return known_laws.mixture_p_value(reweighted(first, size, others), second)

    tests: dict[str, PValue] = {
        name: lambda size, seed, change=change: p_moved(size, seed, change) for name, change in differences.items()
    }
    tests["share of plans that change their mode"] = p_weight
    for name, test in tests.items():
        found = detectable(test, LAW_LEVEL, options.runs, 0.02, 0.5 if test is p_weight else 10.0)
        yield Row("law on a mixture", f"2 · {options.samples}", name, tuple(found))


# Broken couplings in those tests: how rarely may they act and still be detected?


def mutant_rows(options: Options) -> Iterator[Row]:
    """Yield the share of rounds in which a mutant must be wrong for the Gaussian test to detect it."""
    chain, denoiser = known_laws.short_chain(), known_laws.gaussian_denoiser()
    mean, deviation = known_laws.gaussian_law(denoiser, chain)
    for mutant, draft, verify in MUTANTS:

        def p_value(size: float, seed: int, mutant=mutant, draft: str = draft, verify: str = verify) -> float:
            with mutants.mutated(mutant, size, seed):
                sample = known_laws.draw_speculatively(
                    Asd(5, draft, verify), denoiser, chain, 10 + seed, options.samples
                )
            return known_laws.normal_p_value((sample - mean) / deviation)

        name = f"`{mutant}` in `{draft}` × `{verify}`, " + ("noise seen / 10" if mutant == "peek" else "rounds")
        found = detectable(p_value, LAW_LEVEL, max(1, options.runs // 2), 0.3, 10.0 if mutant == "peek" else 1.0)
        yield Row("law on a Gaussian", f"{options.samples}", name, tuple(found))


def gentle_rows(options: Options) -> Iterator[Row]:
    """Yield the sample size, in doublings, from which the mixture test detects the gentlest mutants."""
    chain, denoiser = known_laws.short_chain(), known_laws.mixture_denoiser()
    part = options.samples
    reference = torch.empty(0, 4, dtype=known_laws.DTYPE)
    for mutant, draft, verify in GENTLE:
        sample, p_value = torch.empty(0, 4, dtype=known_laws.DTYPE), 1.0
        while p_value >= LAW_LEVEL and len(sample) < options.most:
            count = max(part, len(sample))
            for seed in range(len(sample) // part, (len(sample) + count) // part):
                with mutants.mutated(mutant, seed=seed):
                    drawn = known_laws.draw_speculatively(Asd(5, draft, verify), denoiser, chain, 10_000 + seed, part)
                sample = torch.cat([sample, drawn])
                if len(reference) < len(sample):
                    drawn = known_laws.draw_sequentially(denoiser, chain, 20_000 + seed, part)
                    reference = torch.cat([reference, drawn])
            p_value = known_laws.mixture_p_value(sample, reference[: len(sample)])
        seen = f"n = {len(sample)}" if p_value < LAW_LEVEL else f"n > {len(sample)}"
        name = f"`{mutant}` in `{draft}` × `{verify}`, always (one run, p = {p_value:.0e})"
        yield Row("law on a mixture", "doubled from " + str(part), name, (seen,) * len(POWERS))


# One coupling.


def couple(errors: Tensor, mutant: str, share: float, seed: int) -> Tensor:
    """Draw (x − m)/σ [N, D] of steps coupled to drafts that are off by v = `errors` [N, D], a share of them wrongly."""
    generator = torch.Generator().manual_seed(seed)
    noise, fresh = (torch.randn(errors.shape, generator=generator, dtype=errors.dtype) for _ in range(2))
    uniform, acts = 1 - torch.rand((2, len(errors)), generator=generator, dtype=errors.dtype)
    accepted = accepts(errors, torch.ones_like(uniform), noise, uniform)
    broken = acts <= share
    instead = {"redraw": fresh, "keep-noise": noise}.get(mutant, noise)
    refused = torch.where(broken.unsqueeze(1), instead, reflect(errors, noise))
    if mutant == "accept-always":
        accepted = accepted | broken
    return torch.where(accepted.unsqueeze(1), errors + noise, refused)


def coupling_rows(options: Options) -> Iterator[Row]:
    """Yield the share of steps in which a coupling may be wrong before the test of a single step detects it."""
    for mutant in ("accept-always", "redraw", "keep-noise"):
        for length in (0.1, 1.0):
            error = torch.tensor([length, 0.0, 0.0], dtype=known_laws.DTYPE).expand(options.coupled, -1)

            def p_value(size: float, seed: int, error: Tensor = error, mutant: str = mutant) -> float:
                return known_laws.normal_p_value(couple(error, mutant, size, seed))

            found = detectable(p_value, VERIFIER_LEVEL, options.runs, 0.1, 1.0)
            name = f"`{mutant}`, share of steps, draft off by {length:g} σ"
            yield Row("verifier, one step", f"{options.coupled}", name, tuple(found))


# `asd-policy verify`, on a bundled checkpoint.


@lru_cache(maxsize=1)
def recorded_errors(checkpoint: Path) -> Tensor:
    """Compute how far x̂0 of the step before is off as a draft [paths, K − 2, D], in σ: steps 1 to K − 2."""
    policy = asd_policy.load_policy(checkpoint)
    cond = states.random_conditioning(policy, 1, seed=0).expand(PATHS_RECORDED, -1)
    event = (policy.horizons.horizon, policy.action_dim)
    recorder = law.PathRecorder(policy.denoiser, policy.chain, PATHS_RECORDED, math.prod(event))
    generator = torch.Generator().manual_seed(0)
    law.reference_sampler().sample(recorder, policy.chain, (PATHS_RECORDED, *event), recorder.tag(cond), generator)
    noisy = policy.chain.sigma > 0
    scale = (policy.chain.a[noisy] / policy.chain.sigma[noisy])[:, None]
    errors = (recorder.earlier - recorder.predictions)[:, noisy] * scale
    return torch.as_tensor(errors[:, 1:], dtype=torch.float32)


def step_rows(options: Options) -> Iterator[Row]:
    """Yield what the tests of steps detect, in residuals simulated on the draft errors of real plans."""
    recorded = recorded_errors(options.checkpoint)
    plans = options.plans * options.observations
    _, steps, dim = recorded.shape
    checks_in_all = 12  # four of plans, eight of steps
    level = 0.01 / checks_in_all

    def p_value(size: float, seed: int, difference: str) -> float:
        errors = recorded[torch.randint(len(recorded), (plans,), generator=torch.Generator().manual_seed(seed))]
        mutant = difference if difference in ("accept-always", "redraw", "keep-noise") else "redraw"
        share = size if mutant == difference else 0.0
        z = couple(errors.flatten(0, 1), mutant, share, seed)
        if difference == "shift":
            z = shifted(z, size)
        elif difference == "stretch":
            z = stretched(z, size)
        watched = exactness.Steps(
            z.view(plans, steps, dim).double().numpy(), {"earlier prediction": errors.double().numpy()}
        )
        return min(check.p_value for check in exactness.residual_checks(watched))

    names = {
        "shift": "mean of a coordinate, of every step [sd]",
        "stretch": "deviation of a coordinate, of every step, longer by a fraction",
        "accept-always": "`accept-always`, share of steps",
        "redraw": "`redraw`, share of steps",
        "keep-noise": "`keep-noise`, share of steps",
    }
    for difference, name in names.items():

        def p_of(size: float, seed: int, difference: str = difference) -> float:
            return p_value(size, seed, difference)

        most = 10.0 if difference in ("shift", "stretch") else 1.0
        found = detectable(p_of, level, max(1, options.runs // 2), 0.02, most)
        yield Row("`verify`, steps", f"{plans} plans of {steps} steps", name, tuple(found))


def plan_rows(options: Options) -> Iterator[Row]:
    """Yield what the tests of plans detect, in plans of the checkpoint."""
    policy = asd_policy.load_policy(options.checkpoint)
    conds = states.random_conditioning(policy, options.observations, seed=0)
    first, second = (
        law.draw_plans(policy, law.reference_sampler(), conds, options.plans, seed, False, lambda count: None).plans
        for seed in (1, 2)
    )
    level = 0.01 / 12
    count = f"2 · {options.plans} at {options.observations} observations"
    moves = exactness.detectable_moves(first, second, level, 0, POWERS)
    names = {"mean_shift_sd": "mean of all coordinates [sd]", "scale": "all deviations, longer by a fraction"}
    for move, name in names.items():
        found = tuple("> 10" if size is None else f"{size:.2g}" for size in moves[move].values())
        yield Row("`verify`, energy distance", count, name, found)
    modes = exactness.mode_check(first, second, 0)
    if modes is not None:
        found = exactness.detectable_effects([modes], level, POWERS)[modes.name].values()
        yield Row(
            "`verify`, modes", count, "share of plans that change their mode",
            tuple(f"{size:.2g}" for size in next(iter(found)).values()),
        )  # fmt: skip


SECTIONS = {
    "laws": law_rows,
    "mutants": mutant_rows,
    "coupling": coupling_rows,
    "steps": step_rows,
    "plans": plan_rows,
    "gentle": gentle_rows,
}


def main() -> None:
    """Measure, print, and write if asked to."""
    options = tyro.cli(Options, description=__doc__)
    lines = [
        "| test | n | difference | " + " | ".join(f"seen with {100 * power:.0f} %" for power in POWERS) + " |",
        "|---|---|---|" + "---|" * len(POWERS),
    ]
    print("\n".join(lines))
    for section in options.sections:
        for row in SECTIONS[section](options):
            lines.append(f"| {row.test} | {row.count} | {row.difference} | " + " | ".join(row.detected) + " |")
            print(lines[-1], flush=True)
    commit = (report.git_commit() or "no commit")[:8]
    lines += [
        "",
        f"{options.runs} runs of each test, {max(1, options.runs // 2)} of `mutants` and `steps`; "
        f"{hardware(torch.device('cpu'))}; torch {torch.__version__}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}; asd_policy {asd_policy.__version__} at {commit}.",
    ]
    print(lines[-1])
    if options.write is not None:
        before, rest = options.write.read_text().split(BEGIN)
        after = rest.split(END, 1)[1]
        with atomic_file(options.write) as temporary:
            temporary.write_text("\n".join([before + BEGIN, *lines, END]) + after)


if __name__ == "__main__":
    main()
