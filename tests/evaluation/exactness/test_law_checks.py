"""The tests of a sampler's law: false alarms as often as they promise, power, and mutants on a real checkpoint."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import asd_policy
from asd_policy import cli
from asd_policy.chain.gaussian import GaussianChain, transition
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import DenoiserError
from asd_policy.evaluation import states
from asd_policy.evaluation.exactness import checks as exactness
from asd_policy.evaluation.exactness import law
from asd_policy.evaluation.exactness.checks import Array, Check
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import check_deterministic
from asd_policy.networks.unet import ConditionalUnet1d
from asd_policy.policy.policy import Policy
from asd_policy.samplers import SAMPLERS, Sampler, make_sampler
from asd_policy.samplers.asd import autotune, trials
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.trials import Setting
from asd_policy.samplers.base import Samples, Target
from asd_policy.samplers.records import sequential_costs
from asd_policy.samplers.warm_start import WarmStart

ROOT = Path(__file__).parents[3]
FEW = 199  # permutations, where a p-value need not be small
ALPHA = 0.01


def two_modes(rng: np.random.Generator, count: int, share: float = 0.5) -> Array:
    """Draw plans [3, count, 4] of two modes, at three observations that differ much."""
    mode = np.where(rng.random((3, count, 1)) < share, 1.0, -1.0)
    where = np.array([0.0, 5.0, -20.0])[:, None, None]
    return where + mode + 0.2 * rng.standard_normal((3, count, 4))


def assert_uniform(p_values: list[float]) -> None:
    """Not more small p-values than a level allows: binomial bounds at 5 %, 20 % and 50 %."""
    for level in (0.05, 0.2, 0.5):
        alarms = sum(p <= level for p in p_values)
        assert stats.binomtest(alarms, len(p_values), level, "greater").pvalue > 1e-4, (level, alarms)


@pytest.mark.parametrize(
    ("check", "conservative"),
    [
        (lambda x, y, seed: exactness.energy_check(x, y, seed, FEW), False),
        (lambda x, y, seed: exactness.energy_check(*exactness.whiten(x, y), seed, FEW), False),
        (lambda x, y, seed: exactness.mode_check(x, y, seed, FEW), False),
        (lambda x, y, seed: exactness.marginal_check(x, y), True),
    ],
    ids=["energy", "whitened", "modes", "marginal"],
)
def test_plans_of_one_law(check: Callable[[Array, Array, int], Check], conservative: bool) -> None:
    rng = np.random.default_rng(1)
    p_values = [check(two_modes(rng, 24), two_modes(rng, 24), seed).p_value for seed in range(200)]
    assert_uniform(p_values)
    if not conservative:  # nor too few
        assert stats.binomtest(sum(p <= 0.5 for p in p_values), len(p_values), 0.5).pvalue > 1e-4


def random_steps(rng: np.random.Generator, pull: float = 0.0) -> exactness.Steps:
    """Draw steps of 8 plans whose errors follow from the step before, and pull the step along by a share `pull`."""
    residuals = rng.standard_normal((8, 20, 3))
    errors = np.full_like(residuals, np.nan)
    for k in range(1, 20):
        errors[:, k] = np.abs(residuals[:, k - 1 : k, 0]).T[0][:, None] * residuals[:, k - 1]
        residuals[:, k] += pull * errors[:, k]
    return exactness.Steps(residuals, {"draft": errors})


def test_steps_of_the_chain() -> None:
    rng = np.random.default_rng(2)
    runs = [exactness.residual_checks(random_steps(rng)) for _ in range(400)]
    assert [check.name for check in runs[0]] == [
        "step size",
        "step mean",
        "step shape",
        "bias along draft",
        "spread along draft",
    ]
    for p_values in zip(*[[check.p_value for check in run] for run in runs], strict=True):
        assert_uniform(list(p_values))


def test_family_wise_level() -> None:
    rng = np.random.default_rng(3)
    alarms = sum(not exactness.bonferroni(exactness.residual_checks(random_steps(rng)), 0.1).holds for _ in range(300))
    assert stats.binomtest(alarms, 300, 0.1, "greater").pvalue > 1e-4
    checks = [Check("one", 0.004), Check("two", 0.5)]
    assert exactness.bonferroni(checks, ALPHA) == exactness.Decision(False, 0.008, 0.005)


def test_steps_that_follow_their_draft() -> None:
    """A pull of a quarter of the error is seen along the error, and nowhere else."""
    checks = exactness.residual_checks(random_steps(np.random.default_rng(4), pull=0.25))
    by_name = {check.name: check for check in checks}
    assert by_name["bias along draft"].p_value < 1e-3
    assert by_name["bias along draft"].effects["mean_sd"] > 0
    assert min(by_name[name].p_value for name in ("step size", "step mean", "step shape")) > 1e-3


def test_power_on_plans() -> None:
    rng = np.random.default_rng(5)
    reference = two_modes(rng, 128)
    one_mode = two_modes(rng, 128, share=1.0)
    assert exactness.energy_check(one_mode, reference, 0, FEW).p_value == 1 / (FEW + 1)
    mode = exactness.mode_check(one_mode, reference, 0, FEW)
    assert mode is not None
    assert mode.p_value == 1 / (FEW + 1)
    assert mode.effects["largest_mode_difference"] == pytest.approx(0.5, abs=0.1)
    assert mode.effects["most_modes"] == 2
    shifted = two_modes(rng, 128)
    shifted[1, :, 2] += 1.0
    marginal = exactness.marginal_check(shifted, reference)
    assert marginal.p_value < 1e-4
    assert marginal.effects["largest_mean_shift_sd"] == pytest.approx(1.0, abs=0.3)


def test_whitening_shows_faint_directions() -> None:
    """A doubled ripple of a thousandth of the plans' size is invisible in their own units."""
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((2, 2, 100, 3)) * np.array([1.0, 1.0, 1e-3])
    y[..., 2] *= 2
    assert exactness.energy_check(x, y, 0, FEW).p_value > 0.05
    assert exactness.energy_check(*exactness.whiten(x, y), 0, FEW).p_value == 1 / (FEW + 1)
    flat = np.zeros((1, 20, 2))
    assert exactness.energy_check(*exactness.whiten(flat, flat), 0, FEW).p_value == 1


def test_one_mode_is_no_modes() -> None:
    rng = np.random.default_rng(6)
    assert exactness.mode_check(rng.standard_normal((2, 60, 4)), rng.standard_normal((2, 60, 4)), 0, FEW) is None
    assert not exactness.modes(np.zeros((20, 3))).any()
    plans = rng.standard_normal((100, 3)) * 0.1 + np.repeat(np.arange(4.0), 25)[:, None]
    labels = exactness.modes(plans)
    assert sorted(np.bincount(labels)) == [25] * 4
    assert len({labels[25 * mode] for mode in range(4)}) == 4


def test_plans_that_are_all_one() -> None:
    same = np.ones((1, 20, 2))
    assert exactness.energy_check(same, same, 0, FEW).p_value == 1
    assert exactness.marginal_check(same, same).p_value == 1
    assert exactness.energy_check(same + 1, same, 0, FEW).p_value == 1 / (FEW + 1)


def test_detectable_moves_are_detected() -> None:
    """A shift of the size said to be seen four times in five is seen about that often."""
    rng = np.random.default_rng(7)
    draws = rng.standard_normal((2, 2, 64, 3))
    said = exactness.detectable_moves(draws[0], draws[1], 0.05, 0)
    size = said["mean_shift_sd"]["80"]
    assert size is not None
    assert 0.1 < size < 0.6
    seen = 0
    for seed in range(100):
        x, y = rng.standard_normal((2, 2, 64, 3))
        seen += exactness.energy_check(x + size, y, seed, FEW).p_value <= 0.05
    assert stats.binomtest(seen, 100, 0.8).pvalue > 1e-3
    far = said["mean_shift_sd"]["90"]
    assert far is not None
    assert far > size


def test_detectable_effects() -> None:
    """For a normal effect, the textbook's (z_α/2 + z_power) standard errors."""
    found = exactness.detectable_effects([Check("bias", 0.5, {"mean": 0.1}, 2.0), Check("other", 0.5)], 0.01)
    expected = 2 * (stats.norm.isf(0.005) + stats.norm.ppf(0.8))
    assert found.keys() == {"bias"}
    assert found["bias"]["mean"]["80"] == pytest.approx(expected, rel=1e-3)


# Watching a sampler.


@dataclass(frozen=True)
class Drafted(Sampler):
    """Couples each step to one drafted from the last prediction; what is exact in it can be broken by name."""

    broken: str = ""

    @property
    def spec(self) -> str:
        """Its name."""
        return f"drafted:{self.broken}"

    @property
    def exact(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken

    def check(self, chain: GaussianChain) -> None:
        """Accept every chain."""

    def run(self, target: Target, tape: NoiseTape, warm_start: WarmStart) -> Samples:
        """Walk the chain, every step by way of its draft."""
        chain, x, held = target.chain, tape.initial, torch.zeros_like(tape.initial)
        tables = chain.tables(x.device, x.dtype)
        for k in range(len(chain)):
            clean = target.predict(x, torch.full((len(x),), k))
            noise, sigma = tape.normals[:, k], tables.sigma[k]
            guess = held + 0.1 * noise if self.broken == "peek" else held
            gap = tables.a[k] * (guess - clean) / sigma if sigma > 0 else torch.zeros_like(x)  # [B, *event]
            v, flat = gap.flatten(1), noise.flatten(1)
            length = v.norm(dim=1, keepdim=True).clamp(min=1e-12)
            accepted = tape.uniforms[:, k].log() <= -(flat * v).sum(1) - v.square().sum(1) / 2
            mirrored = flat - 2 * (flat * v).sum(1, keepdim=True) / length * v / length
            instead = {
                "keep-noise": flat,
                "redraw": torch.randn(flat.shape, generator=torch.Generator().manual_seed(k)),
            }
            taken = accepted | (self.broken == "accept-always")
            step = torch.where(taken[:, None], flat + v, instead.get(self.broken, mirrored)).view_as(x)
            x = transition(tables.a[k], clean, sigma, step, tables.b[k], x)
            held = clean
        return Samples(x, sequential_costs([len(chain)] * len(x)))


@pytest.fixture(scope="module")
def avoid() -> tuple[Policy, Tensor]:
    policy = asd_policy.load_policy(ROOT / "checkpoints/avoid")
    return policy, states.random_conditioning(policy, 1, seed=0)


def step_checks(avoid: tuple[Policy, Tensor], sampler: Sampler, plans: int = 32) -> list[Check]:
    """Test the steps of plans at one observation."""
    policy, conds = avoid
    return law.draw_plans(policy, sampler, conds, plans, seed=1, watch=True, advance=lambda count: None).checks


@pytest.mark.parametrize(
    "sampler", [Drafted(), *map(make_sampler, ("ddpm", "asd", "asd:window=5,draft=frozen"))], ids=lambda s: s.spec
)
def test_exact_samplers_pass_on_a_real_network(sampler: Sampler, avoid: tuple[Policy, Tensor]) -> None:
    checks = step_checks(avoid, sampler)
    assert len(checks) >= 6
    assert exactness.bonferroni(checks, ALPHA).holds, checks


@pytest.mark.parametrize(
    ("mutant", "plans"), [("accept-always", 32), ("redraw", 128), ("keep-noise", 32), ("peek", 32)]
)
def test_mutants_fail_on_a_real_network(mutant: str, plans: int, avoid: tuple[Policy, Tensor]) -> None:
    verdict = exactness.bonferroni(step_checks(avoid, Drafted(mutant), plans), ALPHA)
    assert not verdict.holds
    assert verdict.p_value < 1e-4


def test_the_recorded_path_is_the_path_taken(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """On one tape, sequential and speculative with window 1 take the same points, and the recorder sees them."""

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        assert cond.shape[1] == 2  # the row's number is not the network's business
        return mixture(x.double(), timestep).float()

    tape = NoiseTape.draw((3, 2, 2), len(chain), torch.Generator().manual_seed(0))
    found = []
    for sampler in (make_sampler("ddpm"), make_sampler("asd:window=1"), make_sampler("asd:window=6")):
        recorder = law.PathRecorder(network, chain, rows=3, dim=4)
        sampler.sample(recorder, chain, (3, 2, 2), recorder.tag(torch.zeros(3, 2)), generator=tape)
        found.append(recorder)
        np.testing.assert_allclose(recorder.points[:, 0], tape.initial.flatten(1))
        assert np.isfinite(recorder.predictions).all()
    np.testing.assert_array_equal(found[0].points, found[1].points)
    np.testing.assert_array_equal(found[0].earlier[:, 1:], found[0].predictions[:, :-1])
    assert np.isnan(found[0].earlier[:, 0]).all()


def test_false_alarms_about_speculation(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Where rounds end depends on the noise; what was known before a step must not, or the tests would cry wolf."""
    sampler, coefficients = make_sampler("asd:window=6"), (chain.a, chain.b, chain.sigma)

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return mixture(x, timestep)

    recorder = law.PathRecorder(network, chain, rows=3200, dim=4)
    tape = NoiseTape.draw((3200, 2, 2), len(chain), torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = recorder.tag(torch.zeros((3200, 1), dtype=torch.float64))
    sample = sampler.sample(recorder, chain, (3200, 2, 2), cond, generator=tape).sample.flatten(1).numpy()
    points = np.concatenate([recorder.points, sample[:, None]], axis=1)
    p_values = []
    for part in np.split(np.arange(3200), 200):
        guesses = {"earlier": recorder.earlier[part], "start": recorder.start[part]}
        steps = exactness.residual_steps(points[part], recorder.predictions[part], *coefficients, guesses)
        p_values.append([check.p_value for check in exactness.residual_checks(steps)])
    for one_check in zip(*p_values, strict=True):
        assert_uniform(list(one_check))


def test_a_step_without_noise_goes_to_its_mean(chain: GaussianChain) -> None:
    points, predictions = np.zeros((2, len(chain) + 1, 3)), np.zeros((2, len(chain), 3))
    coefficients = (chain.a, chain.b, chain.sigma)
    assert exactness.noiseless_check(points, predictions, *coefficients, 1e-3).p_value == 1
    points[:, -1] += 0.01
    assert exactness.noiseless_check(points, predictions, *coefficients, 1e-3).p_value == 0


# The network.


def test_networks_that_cannot_be_sampled() -> None:
    x, timestep = torch.randn((3, 4, 2), generator=torch.Generator().manual_seed(0)), torch.arange(3)
    check_deterministic(lambda x, timestep, cond: 0.5 * x, x, timestep, None)
    cases: list[tuple[Any, str]] = [
        (lambda x, timestep, cond: x * math.nan, "NaN or infinity: 24 of 24"),
        (lambda x, timestep, cond: x[:, :1], "returned shape (3, 1, 2)"),
        (lambda x, timestep, cond: x.long(), "torch.int64, not floating-point"),
        (lambda x, timestep, cond: (x,), "a tuple, not a tensor"),
        (lambda x, timestep, cond: torch.dropout(x, 0.1, train=True), "is dropout left on?"),
        (lambda x, timestep, cond: x - x.mean(0), "is batch normalisation in training mode?"),
        (lambda x, timestep, cond: x * (1 + timestep[0]), "does it take one timestep for all rows?"),
        (lambda x, timestep, cond: x * (1 + timestep[-1]), "does it take one timestep for all rows?"),
    ]
    for network, message in cases:
        with pytest.raises(DenoiserError) as error:
            check_deterministic(network, x, timestep, None)
        assert message in str(error.value)


# The command.


def words(checkpoint: Path, *more: str) -> list[str]:
    fitting = () if "--sampler" in more else ("--sampler", "asd:window=4")
    return ["verify", "--policy", str(checkpoint), "--samples", "16", "--observations", "2", *fitting, *more]


def test_verify(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--sampler", "asd:window=4", "--out", str(tmp_path / "out"), "--json")
    assert cli.run(words(checkpoint, *more)) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    shared = {
        "version",
        "command",
        "policy",
        "env",
        "seed",
        "device",
        "backend",
        "package",
        "commit",
        "torch",
        "started",
    }
    assert results.keys() >= shared | {"sampler", "samples", "observations", "holds", "p_value", "alpha", "checks"}
    assert results["command"] == "verify"
    assert results["holds"]
    assert results["steps_tested"]
    assert results["observations_from"] == "random in the normalisation's range"
    assert {"energy distance", "bias along earlier prediction"} <= results["detectable"].keys()
    assert "no difference from ddpm found" in printed.err


def test_verify_in_closed_loop_fails_an_approximate_sampler(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--sampler", "ddim:2", "--env", "asd/Avoid-v0", "--samples", "64", "--json")
    assert cli.run(words(checkpoint, *more)) == 1
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert not results["holds"]
    assert not results["steps_tested"]
    assert results["observations_from"] == "episodes of asd/Avoid-v0"
    assert "NOT the law of ddpm" in printed.err


def test_verify_fails_a_mutant(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SAMPLERS, "drafted", Drafted)
    assert cli.run(words(checkpoint, "--sampler", "drafted:accept-always", "--samples", "64")) == 1
    assert cli.run(words(checkpoint, "--sampler", "drafted", "--samples", "64")) == 0
    assert "NOT the law of ddpm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--samples", "15"), "--samples 15 is not in 16 … 4096"),
        (("--observations", "0"), "--observations 0 is not 1 or more"),
        (("--alpha", "1"), "--alpha 1.0 is not between 0 and 1"),
        (("--seed", "-1"), "--seed -1 is not 0 or more"),
        (("--sampler", "fast"), "no sampler 'fast'"),
        (("--sampler", "asd:window=11"), "window=11 is not in 1 … 10"),
        (("--env", "asd/Nothing-v0"), "no environment 'asd/Nothing-v0'"),
        (("--env", "asd/MetaWorld-reach-v0"), "the policy's actions have shape (2,)"),
    ],
)
def test_mistakes(
    more: tuple[str, str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words(checkpoint, *more, "--out", str(tmp_path / "out"))) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert len(printed.err.strip().splitlines()) == 1
    assert message in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["verify", "eval"])
def test_a_random_network_is_refused(
    command: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    modulated = ConditionalUnet1d.modulated

    def dropped(self: ConditionalUnet1d, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        return torch.dropout(modulated(self, x, modulations), 0.1, train=True)

    monkeypatch.setattr(ConditionalUnet1d, "modulated", dropped)
    sampler = {"verify": "--sampler", "eval": "--samplers"}[command]
    options = ["--policy", str(checkpoint), "--env", "asd/Avoid-v0", "--out", str(tmp_path), sampler, "ddpm"]
    assert cli.run([command, *options]) == 2
    assert "is dropout left on?" in capsys.readouterr().err


def test_interrupted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(law, "compare_laws", interrupt)
    assert cli.run(words(checkpoint)) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_verified_is_what_plans_come_to(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the first setting that is tried, which may be the sequential sampler itself."""
    policy, settings = (
        asd_policy.load_policy(small_checkpoint),
        [Setting(window, "picard", "block") for window in (1, 6)],
    )
    monkeypatch.setattr(autotune, "shortlist", lambda *_: settings)
    # The longest window is the best, and the shortest is tried last.
    monkeypatch.setattr(trials.Trial, "costs", lambda self, tried: {each: 1.0 / each.window for each in tried})
    monkeypatch.setattr(
        trials.Trial,
        "turn",
        lambda self, block: min(self.left, key=lambda each: (self.tried[each].plans, -each.window)),
    )
    tried: list[Setting] = []
    own = Experience.note
    monkeypatch.setattr(Experience, "note", lambda self, *given: tried.append(given[0]) or own(self, *given))
    conds = states.random_conditioning(policy, 2, 0)
    found = law.resolve_for_one_plan(policy, make_sampler("asd"), conds)
    assert set(tried) == set(settings)
    assert found.spec == "asd:window=6,draft=picard,verify=block"
    assert not policy.experience.trials and policy.experience.plans == 0  # on a copy
