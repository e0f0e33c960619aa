"""What plans teach: the response fitted to them, how it is kept, and what a damaged file is refused with."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy._common import arrays
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import CheckpointError, DenoiserError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.tuning import load_tuning, save_tuning
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.experience import CommittedPaths, Experience
from asd_policy.samplers.asd.response import Response, sines
from asd_policy.samplers.asd.trials import Setting, Trial
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart

CPU = torch.device("cpu")
DTYPE = torch.float64
PAIR = ("response", "block")
DIM = 6


@pytest.fixture(scope="module")
def data() -> Tensor:
    """The covariance of smooth data [D, D]: what is slow moves far."""
    basis = sines(DIM, CPU, DTYPE)
    return basis @ torch.diag(2.0 / 3.0 ** torch.arange(DIM, dtype=DTYPE)) @ basis.T


@pytest.fixture(scope="module")
def rough() -> Tensor:
    """The covariance of data that know nothing of time [D, D]."""
    factor = torch.randn((DIM, DIM), generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    return factor @ factor.T / DIM


def denoise(chain: GaussianChain, covariance: Tensor) -> tuple[Denoiser, Tensor]:
    """Return the perfect denoiser of N(0, covariance), and its Jacobians J_k = √ᾱ C (ᾱC + (1 − ᾱ)I)⁻¹, [K, D, D]."""
    variances, basis = torch.linalg.eigh(covariance)
    turned = MixtureDenoiser(chain, torch.zeros((1, DIM), dtype=DTYPE), variances.sqrt().unsqueeze(0))

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        return turned(x @ basis, timestep) @ basis.T

    alpha = torch.as_tensor(chain.input_scale**-2)[:, None]
    gains = alpha.sqrt() * variances / (alpha * variances + 1 - alpha)
    return network, basis @ torch.diag_embed(gains) @ basis.T


def learn(network: Denoiser, chain: GaussianChain, plans: int, window: int = 12) -> Experience:
    experience = Experience()
    tape = NoiseTape.draw((plans, DIM), len(chain), torch.Generator().manual_seed(1), dtype=DTYPE)
    make_sampler(f"asd:window={window}").sample(
        network, chain, (plans, DIM), generator=tape, warm_start=WarmStart(None, experience)
    )
    return experience


def jacobians(response: Response | None) -> Tensor:
    assert response is not None
    return response.basis @ torch.diag_embed(response.gain) @ response.basis.T


@pytest.mark.parametrize("covariance", ["data", "rough"])
def test_the_response_of_gaussian_data_is_found(covariance: str, request: pytest.FixtureRequest) -> None:
    """It is linear there, with a Jacobian by Tweedie's formula; of it what lies along the sines is found."""
    chain = GaussianChain.from_scheduler(
        {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 100
    )
    network, jacobian = denoise(chain, request.getfixturevalue(covariance))
    basis = sines(DIM, CPU, DTYPE)
    expected = basis @ torch.diag_embed((basis.T @ jacobian @ basis).diagonal(dim1=1, dim2=2)) @ basis.T
    if covariance == "data":
        torch.testing.assert_close(expected, jacobian)
    found = jacobians(learn(network, chain, 12_000, window=32).response(CPU, DTYPE))
    # The smoothing over neighbouring steps is a bias, largest at the end, where J rises steeply.
    assert (found - expected)[50:95].abs().max() < 0.1
    assert (found - expected)[50:].norm() < 0.12 * expected[50:].norm()


def test_a_known_response_saves_rounds(data: Tensor, chain: GaussianChain) -> None:
    network, _ = denoise(chain, data)
    experience = learn(network, chain, 1000)
    experience.freeze()
    tape = NoiseTape.draw((200, DIM), len(chain), torch.Generator().manual_seed(2), dtype=DTYPE)
    rounds = {}
    for draft in ("warm", "response"):
        sampler = make_sampler(f"asd:window=12,draft={draft}")
        result = sampler.sample(network, chain, (200, DIM), generator=tape, warm_start=WarmStart(None, experience))
        rounds[draft] = sum(result.stats.rounds)
    assert rounds["response"] < 0.8 * rounds["warm"]


def test_noise_alone_teaches_nothing(chain: GaussianChain) -> None:
    """Predictions that change without regard to the noise have no response; what is found by chance is small."""
    generator = torch.Generator().manual_seed(3)
    experience = Experience()
    points, clean = torch.randn((2, 50, len(chain), DIM), generator=generator, dtype=DTYPE)
    tables = chain.tables(CPU, DTYPE)
    for k in range(len(chain) - 1):
        noise = torch.randn((50, DIM), generator=generator, dtype=DTYPE)
        points[:, k + 1] = tables.a[k] * clean[:, k] + tables.b[k] * points[:, k] + tables.sigma[k] * noise
    nothing = torch.zeros((50, len(chain)), dtype=torch.bool)
    paths = CommittedPaths(points, clean, torch.full((50,), len(chain)), None, nothing, nothing)
    experience.learn(paths, chain, PAIR, DIM)
    response = experience.response(CPU, DTYPE)
    assert response is not None
    unshrunk = 1 / tables.sigma[:-1].min()
    assert response.gain.mean() < 0.05 * unshrunk


def test_early_steps_do_not_overrule_the_end(data: Tensor, chain: GaussianChain) -> None:
    """A network that is not trained to the end may answer noise by its opposite, where there is much of it."""
    network, jacobian = denoise(chain, data)
    tables, early = chain.tables(CPU, DTYPE), len(chain) * 2 // 3

    def unlearned(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        step = torch.searchsorted(-tables.timesteps, -timestep)[:, None]
        away = (-0.5 * x - tables.input_scale[step] * x) / tables.output_scale[step]
        return torch.where(step < early, away, network(x, timestep, cond))

    experience = learn(unlearned, chain, 1000)
    assert experience.moments["cross"].sum() < 0
    found = jacobians(experience.response(CPU, DTYPE))
    assert not found[: len(chain) // 2].any()
    assert found[-1].trace() > 0.5 * jacobian[-1].trace() > 1


@pytest.mark.parametrize("spec", [f"asd:window=4,draft={draft}" for draft in DRAFTS] + ["asd", "ddpm"])
def test_the_response_is_learned_where_it_may_be_read(spec: str, data: Tensor, chain: GaussianChain) -> None:
    """Other plans teach how often their drafts are refused, no more."""
    network, experience = denoise(chain, data)[0], Experience()
    tape = NoiseTape.draw((3, DIM), len(chain), dtype=DTYPE)
    make_sampler(spec).sample(network, chain, (3, DIM), generator=tape, warm_start=WarmStart(None, experience))
    assert bool(experience.moments) is (spec in ("asd:window=4,draft=response", "asd"))
    assert experience.responses == (3 if experience.moments else 0)
    assert experience.plans == (0 if spec == "ddpm" else 3)
    assert bool(experience.judgements) is (spec != "ddpm")


@pytest.mark.parametrize("event", [(64, 14), (16, 200), (300,), (4, 3, 5)])
def test_what_is_learned_grows_like_a_plan(event: tuple[int, ...], chain: GaussianChain, tmp_path: Path) -> None:
    """And so does its file: one number of a plan for each step, not the square of it."""
    experience, size = Experience(), math.prod(event)
    shape = (2, *event)
    for _ in range(2):
        make_sampler("asd:window=4").sample(
            lambda x, t, c: 0.3 * x, chain, shape, warm_start=WarmStart(None, experience)
        )
    response = experience.response(CPU, torch.float32)
    assert response is not None
    assert response.basis.shape == (event[0], event[0])
    assert response.gain.shape == (len(chain), size)
    numbers = sum(sums.numel() for sums in experience.moments.values())
    assert numbers == (len(chain) + 1) * size + 2 * len(chain)
    save_tuning(tmp_path / "tuning", experience, CPU, "torch-eager")
    assert (tmp_path / "tuning").stat().st_size < 4 * numbers + 2048
    found, _ = load_tuning(tmp_path / "tuning", chain, event, CPU)
    assert found.responses == experience.responses == 4


def test_given_coordinates_are_no_part_of_it(data: Tensor, chain: GaussianChain) -> None:
    """Plans beside which something is given teach, and cost, what they do alone."""
    network, generator = denoise(chain, data)[0], torch.Generator().manual_seed(5)

    def beside(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return torch.stack([network(x[:, :, 0], timestep, cond), 9 * x[:, :, 1]], dim=2)

    mask = torch.zeros((200, DIM, 2), dtype=torch.bool)
    mask[:, :, 1] = True
    held = Inpainting(mask, torch.rand(mask.shape, generator=generator, dtype=DTYPE))
    sampler, alone, given = make_sampler("asd:window=12"), Experience(), Experience()
    for _ in range(2):
        tape = NoiseTape.draw(mask.shape, len(chain), generator, dtype=DTYPE)
        single = NoiseTape(tape.initial[:, :, 0], tape.normals[:, :, :, 0], tape.uniforms)
        expected = sampler.sample(network, chain, (200, DIM), generator=single, warm_start=WarmStart(None, alone))
        found = sampler.sample(
            beside, chain, mask.shape, generator=tape, inpainting=held, warm_start=WarmStart(None, given)
        )
        torch.testing.assert_close(found.sample[:, :, 0], expected.sample)
        assert found.stats.rounds == expected.stats.rounds
    learned, own = (experience.response(CPU, DTYPE) for experience in (given, alone))
    assert learned is not None and own is not None
    gains = learned.gain.reshape(len(chain), DIM, 2)
    torch.testing.assert_close(gains[:, :, 0], own.gain)
    assert not gains[:, :, 1].any()


def test_a_discarded_plan_is_not_counted(chain: GaussianChain) -> None:
    points = torch.full((2, len(chain), DIM), math.nan)
    points[1] = 0
    nothing, experience = torch.zeros((2, len(chain)), dtype=torch.bool), Experience()
    paths = CommittedPaths(points, points, torch.full((2,), len(chain)), None, nothing, nothing)
    experience.learn(paths, chain, PAIR, DIM)
    assert (experience.plans, experience.responses) == (1, 1)


def test_without_plans_there_is_no_response() -> None:
    assert Experience().response(CPU, DTYPE) is None


def test_it_is_fitted_once_per_doubling() -> None:
    experience, made = Experience(), []
    for plans in range(9):
        experience.plans = plans
        experience.once_per_doubling("key", lambda plans=plans: made.append(plans))
    assert made == [0, 1, 2, 4, 8]


def test_frozen_it_stays(data: Tensor, chain: GaussianChain) -> None:
    network, _ = denoise(chain, data)
    experience = learn(network, chain, 5)
    experience.freeze()
    before = {name: sums.clone() for name, sums in experience.moments.items()}
    tape = NoiseTape.draw((3, DIM), len(chain), torch.Generator().manual_seed(2), dtype=DTYPE)
    make_sampler("asd:window=4").sample(
        network, chain, (3, DIM), generator=tape, warm_start=WarmStart(None, experience)
    )
    assert experience.plans == 5
    assert all(torch.equal(before[name], experience.moments[name]) for name in before)


def test_frozen_it_has_chosen(trial: Trial) -> None:
    """Which is the best is not asked again by every plan."""
    experience = Experience(trials={(1, None, None): trial})
    best = trial.best
    assert not trial.done
    experience.freeze()
    assert trial.done and trial.left == [best]


def test_a_copy_goes_its_own_way(data: Tensor, chain: GaussianChain) -> None:
    experience = learn(denoise(chain, data)[0], chain, 5)
    other = experience.copy()
    other.moments["noise"] += 1
    other.plans += 1
    other.latency[1] = 2.0
    assert experience.plans == 5
    assert not experience.latency
    assert not torch.equal(other.moments["noise"], experience.moments["noise"])


# On disk.


@pytest.fixture
def trial() -> Trial:
    """Of two settings, begun."""
    begun = Trial.of([Setting(8, "warm", "block"), Setting(4, "warm", "block")])
    for _ in range(5):
        begun.note(begun.turn(1), 3, 20, 0.125)
    return begun


@pytest.fixture
def saved(data: Tensor, chain: GaussianChain, trial: Trial, tmp_path: Path) -> Path:
    experience = learn(denoise(chain, data)[0], chain, 5)
    experience.latency = {1: 0.5, 4: 0.75}
    experience.trials = {(1, None, "block"): trial}
    save_tuning(tmp_path / "tuning", experience, CPU, "torch-eager")
    return tmp_path / "tuning"


def test_tuning_round_trips(saved: Path, trial: Trial, data: Tensor, chain: GaussianChain) -> None:
    experience, backend = load_tuning(saved, chain, (DIM,), CPU)
    expected = learn(denoise(chain, data)[0], chain, 5)
    assert (experience.plans, experience.latency, backend) == (5, {1: 0.5, 4: 0.75}, "torch-eager")
    assert experience.trials == {(1, None, "block"): replace(trial, running=None)}
    assert experience.learning
    for found, sums in zip(experience.judgements.values(), expected.judgements.values(), strict=True):
        torch.testing.assert_close(found, tuple(each.float() for each in sums))
    for name, sums in expected.moments.items():
        torch.testing.assert_close(experience.moments[name], sums.float())


def test_latencies_of_another_machine_are_left_out(
    saved: Path, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asd_policy.policy.tuning.hardware", lambda device: "another")
    experience, backend = load_tuning(saved, chain, (DIM,), CPU)
    assert (experience.latency, experience.trials, backend) == ({}, {}, None)
    assert experience.plans == 5


def test_tuning_of_another_policy_is_refused(saved: Path, chain: GaussianChain) -> None:
    with pytest.raises(CheckpointError, match=r"is of another policy: cross has shape \(12, 6, 1\), not \(12, 7, 1\)"):
        load_tuning(saved, chain, (DIM + 1,), CPU)


@pytest.mark.parametrize("cut", [0, 5, 100, -8])
def test_damaged_tuning_is_refused(cut: int, saved: Path, chain: GaussianChain) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tuning(saved, chain, (DIM,), CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plans", "-3"),
        ("plans", "many"),
        ("trials", "nan"),
        ("trials", "[[[1, 2], []]]"),
        ("trials", '[[1, null, null, [true, [[8, "warm", "block", true, [0], [], 1]]]]]'),
        ("trials", '[[1, null, null, [true, [[8, "warm", "block", true, [1], [NaN], 2]]]]]'),
        ("trials", '[[1, null, null, [true, [[8, "warm", "block", false, [1], [], 1]]]]]'),
        ("trials", '[[1, null, null, [true, [[800, "warm", "block", true, [1], [], 1]]]]]'),
        ("trials", '[[1, null, null, [true, [[8, "cold", "block", true, [1], [], 1]]]]]'),
        ("latency", "{"),
        ("latency", "[1]"),
        ("version", "2"),
        ("responses", "6"),
        ("responses", "-1"),
    ],
)
def test_odd_tuning_is_refused(key: str, value: str, saved: Path, chain: GaussianChain) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), key: value}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, saved, metadata)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tuning(saved, chain, (DIM,), CPU)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25, 1e3])
def test_what_has_no_sense_teaches_nothing(value: float, chain: GaussianChain) -> None:
    """Overflown, or far beyond all data; the other plans of the batch teach what they would have."""
    generator = torch.Generator().manual_seed(4)
    points, clean = torch.randn((2, 3, len(chain), DIM), generator=generator)
    judged, refused = torch.rand((2, 3, len(chain)), generator=generator) < 0.5
    free = torch.ones((3, DIM), dtype=torch.bool)
    learned = []
    for rows in (slice(0, 3), slice(0, 2)):
        points[2], clean[2, 3] = (value, value) if rows.stop == 3 else (0, 0)
        experience = Experience()
        flags = judged[rows], refused[rows]
        done = torch.full((3,), len(chain))[rows]
        paths = CommittedPaths(points[rows], clean[rows], done, free[rows], *flags)
        experience.learn(paths, chain, PAIR, DIM)
        learned.append((*experience.moments.values(), *experience.judgements[PAIR]))
    for whole, without in zip(*learned, strict=True):
        torch.testing.assert_close(whole, without)


def test_judgements_go_along_to_another_library(chain: GaussianChain) -> None:
    """As to another device: a live policy that was moved goes on."""
    generator = torch.Generator().manual_seed(4)
    points, clean = torch.randn((2, 3, len(chain), DIM), generator=generator)
    judged = torch.rand((3, len(chain)), generator=generator) < 0.5
    parts = points, clean, torch.full((3,), len(chain)), torch.ones((3, DIM), dtype=torch.bool), judged, judged
    once, twice = Experience(), Experience()
    once.learn(CommittedPaths(*parts), chain, PAIR, DIM)
    for own in (parts, tuple(arrays.asarray(each, arrays.NUMPY) for each in parts)):
        twice.learn(CommittedPaths(*own), chain, PAIR, DIM)
    for first, both in zip(once.judgements[PAIR], twice.judgements[PAIR], strict=True):
        assert isinstance(both, np.ndarray) and np.array_equal(both, 2 * first.numpy())


def test_a_policy_survives_an_observation_without_sense(small_checkpoint: Path) -> None:
    """The plan for it fails; those after it are drafted as well as before."""
    policy = asd_policy.load_policy(small_checkpoint, "asd:window=8")
    rounds: list[int] = []
    for plan in range(70):
        policy.reset(seed=plan)
        if plan == 34:
            with pytest.raises(DenoiserError):
                policy.select_action(np.full(7, 3e38))
        else:
            policy.select_action(np.linspace(0, 0.5, 7))
            rounds.append(policy.plans[-1].stats.rounds[0])
    assert all(bool(sums.isfinite().all()) for sums in policy.experience.moments.values())
    assert np.mean(rounds[40:]) < np.mean(rounds[:4]) + 1


def test_of_a_plan_that_was_stopped_only_committed_steps_are_learned(chain: GaussianChain) -> None:
    """What lies beyond is a draft, or nothing."""
    generator = torch.Generator().manual_seed(4)
    points, clean = torch.randn((2, 3, len(chain), DIM), generator=generator, dtype=DTYPE)
    nothing = torch.zeros((3, len(chain)), dtype=torch.bool)
    learned = []
    for beyond in (0.0, 1e6):
        points[:, 4:], clean[:, 4:] = beyond, beyond
        experience = Experience()
        paths = CommittedPaths(points, clean, torch.full((3,), 4), None, nothing, nothing)
        experience.learn(paths, chain, PAIR, DIM)
        learned.append(experience.moments)
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])
    assert (learned[0]["noise"][1:4] > 0).all()
    assert not learned[0]["noise"][4:].any()
