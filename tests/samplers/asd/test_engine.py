"""The engine: static and compact rounds, held coordinates, extreme gaps."""

import copy

import pytest
import torch
from torch import Tensor

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import DenoiserError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DISTANCE_POWER, DRAFTS, Window, roll_out
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.response import Response
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import Target
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
EVENT = (2, 2)
DTYPE = torch.float64
pairs = pytest.mark.parametrize(("draft", "verify"), [(draft, verify) for draft in DRAFTS for verify in VERIFIERS])


def make_tape(rows: int, chain: GaussianChain, seed: int = 0) -> NoiseTape:
    return NoiseTape.draw((rows, *EVENT), len(chain), torch.Generator().manual_seed(seed), dtype=DTYPE)


def make_round(
    draft: str, verify: str, window: int, mixture: MixtureDenoiser, chain: GaussianChain, rows: int
) -> tuple[Round, Path]:
    experience = Experience()
    Asd(4).sample(
        mixture, chain, (50, *EVENT), generator=make_tape(50, chain, 9), warm_start=WarmStart(None, experience)
    )
    response = experience.response(torch.device("cpu"), DTYPE) if DRAFTS[draft].responds else None
    target = Target(mixture, chain, (rows, *EVENT))
    path = Path.begin(None, make_tape(rows, chain), None)
    return Round(target, DRAFTS[draft], VERIFIERS[verify], response, window), path


@pairs
@pytest.mark.parametrize("window", [2, 5, 12])
def test_a_round_ends_at_a_step_that_was_refused_or_not_judged(
    draft: str, verify: str, window: int, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    """And commits exactly one such step, so that they count the rounds."""
    sampler = Asd(window, draft, verify)
    stats = sampler.sample(mixture, chain, (9, *EVENT), generator=make_tape(9, chain)).stats
    assert stats.refused is not None and stats.unjudged is not None
    assert any(stats.refused)
    for rounds, refused, unjudged in zip(stats.rounds, stats.refused, stats.unjudged, strict=True):
        assert len(refused) + len(unjudged) == rounds
        assert set(refused).isdisjoint(unjudged)
        assert set(refused) | set(unjudged) <= set(range(len(chain)))


@pytest.mark.parametrize("spec", ["ddpm", "ddim:3", "asd:window=1", "paradigms:window=4"])
def test_samplers_without_drafts_judge_none(spec: str, mixture: MixtureDenoiser, schedule: GaussianChain) -> None:
    stats = make_sampler(spec).sample(mixture, schedule, (2, *EVENT)).stats
    assert stats.refused is stats.unjudged is None


@pairs
@pytest.mark.parametrize("window", [2, 5, 12])
def test_static_rounds_are_compact_ones(
    draft: str, verify: str, window: int, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    """Computing rows and points that nobody needs changes nothing that anybody reads."""
    round_, static = make_round(draft, verify, window, mixture, chain, rows=9)
    compact = copy.deepcopy(static)
    every = torch.arange(9)
    for _ in range(len(chain) + 1):
        round_(static, every, compact=False)
        going = (compact.cursor < len(chain)).nonzero().squeeze(1)
        if len(going):
            round_(compact, going, compact=True)
        for name in ("x", "cursor", "rounds", "rejected"):
            torch.testing.assert_close(getattr(static, name), getattr(compact, name), rtol=0, atol=1e-12)
        for name in ("points", "x0_pred", "seen", "shift", "change", "refused", "judged", "normals", "uniforms"):
            found, expected = (getattr(path, name)[:, : len(chain)] for path in (static, compact))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (static.cursor == len(chain)).all()


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_slope_is_followed_along_the_way_it_was_seen_on(
    gain: float, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    """For a linear network that is the true value, across the way it is the average response, beyond it no more.

    What is carried on from the step before, here zero, counts the more the further the point is from what was seen.
    """
    generator = torch.Generator().manual_seed(0)
    slope, turn = torch.randn((2, 4, 4), generator=generator, dtype=DTYPE)
    before, here = torch.randn((2, 1, 4), generator=generator, dtype=DTYPE)
    path = Path.begin(None, make_tape(1, chain), None)
    response = Response(torch.linalg.qr(turn).Q, torch.full((len(chain), 4), gain, dtype=DTYPE))
    path.points[:, 0], path.x0_pred[:, 0], path.seen[:, 0] = response.turn(here), response.turn(here @ slope), True
    first = torch.zeros((1, 1), dtype=torch.int64)

    def guess(x: Tensor) -> Tensor:
        path.x = x
        return roll_out(path, Window(first[0], first, compact=False), path.seen[:, :1], chain, response)[1][:, 0]

    def check(move: Tensor, own: Tensor) -> None:
        distance = move.square().mean() / chain.sigma[0] ** 2
        torch.testing.assert_close(guess(here + move), own / (1 + distance**DISTANCE_POWER))

    way = 0.5 * float(chain.sigma[0]) * (here - before)  # the point moves by about its step's noise
    path.shift[:, 0], path.change[:, 0] = response.turn(way), response.turn(way @ slope)
    for share in (-1.0, 0.0, 0.4, 1.0):
        check(share * way, (here + share * way) @ slope)
    side = torch.randn((1, 4), generator=generator, dtype=DTYPE) * float(chain.sigma[0])
    side -= way * (way * side).sum() / way.square().sum()
    check(side, here @ slope + gain * side)
    check(3 * way, here @ slope + way @ slope + 2 * gain * way)


@pairs
def test_a_static_round_waits_for_nothing(draft: str, verify: str, chain: GaussianChain) -> None:
    """On tensors without data there is nothing to branch on, to read, or to take a shape from: as in a CUDA graph."""
    chain.tables(torch.device("meta"), DTYPE)
    tape = NoiseTape(*(torch.empty(size, dtype=DTYPE, device="meta") for size in ((3, 2, 2), (3, 12, 2, 2), (3, 12))))
    held = Inpainting(torch.empty((3, *EVENT), dtype=torch.bool, device="meta"), tape.initial)
    target = Target(lambda x, timestep, cond: x * timestep.view(-1, 1, 1), chain, (3, *EVENT), None, held)
    response = Response(*(torch.empty(size, dtype=DTYPE, device="meta") for size in ((4, 4), (12, 4))))
    path = Path.begin(target.inpainting, tape, None)
    round_ = Round(target, DRAFTS[draft], VERIFIERS[verify], response if DRAFTS[draft].responds else None, 5)
    round_(path, torch.arange(3, device="meta"), compact=False)
    assert path.x.shape == (3, 4)
    with pytest.raises((RuntimeError, NotImplementedError)):  # leaving out what is done does wait
        round_(path, torch.arange(3, device="meta"), compact=True)


# Inpainting coordinates.


@pytest.fixture
def held() -> Inpainting:
    mask = torch.tensor([[True, False], [False, True]]).expand(6, *EVENT)
    values = torch.linspace(-1, 1, 24, dtype=DTYPE).view(6, *EVENT)
    return Inpainting(mask, values)


@pairs
@pytest.mark.parametrize("window", [1, 2, 5, 12])
def test_held_coordinates_are_given(
    draft: str, verify: str, window: int, held: Inpainting, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        owner = cond[:, 0].long()
        assert torch.equal(x[held.mask[owner]], held.values[owner][held.mask[owner]])
        seen.append(x)
        return mixture(x, timestep)

    cond = torch.arange(6.0)[:, None]
    past = WarmStart(torch.zeros((6, *EVENT), dtype=DTYPE), Experience())
    result = Asd(window, draft, verify).sample(
        network, chain, (6, *EVENT), cond, generator=make_tape(6, chain), inpainting=held, warm_start=past
    )
    assert seen
    assert torch.equal(result.sample[held.mask], held.values[held.mask])
    assert result.sample[~held.mask].isfinite().all()


@pytest.mark.parametrize("spec", ["ddpm", "ddim:5", "dpmsolver:5", "paradigms:window=4", "asd:window=4"])
def test_holding_everything_leaves_nothing_to_sample(spec: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    values = torch.rand((3, *EVENT), dtype=DTYPE)
    held = Inpainting(torch.ones((3, *EVENT), dtype=torch.bool), values)
    result = make_sampler(spec).sample(mixture, chain, (3, *EVENT), generator=make_tape(3, chain), inpainting=held)
    assert torch.equal(result.sample, values)


@pairs
def test_held_coordinates_cost_nothing(draft: str, verify: str, chain: GaussianChain) -> None:
    """Whatever the network says of them, drafts are judged by the others: here they are right from the start."""
    alone = GaussianChain.from_scheduler({**chain.config, "prediction_type": "sample"}, len(chain))
    mask = torch.tensor([[True, False], [False, True]]).expand(3, *EVENT)
    held = Inpainting(mask, torch.full((3, *EVENT), 0.3, dtype=DTYPE))

    def wild(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return torch.where(mask[:1], 100 * timestep.view(-1, 1, 1).double().sin(), 0)

    result = Asd(12, draft, verify).sample(wild, alone, (3, *EVENT), generator=make_tape(3, chain), inpainting=held)
    assert max(result.stats.rounds) <= 2


def test_what_does_not_fit_is_refused(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    wrong = torch.zeros((3, 2), dtype=torch.bool)
    with pytest.raises(ValueError, match=r"inpainting's mask has shape \(3, 2\), the samples \(3, 2, 2\)"):
        Asd(4).sample(mixture, chain, (3, *EVENT), inpainting=Inpainting(wrong, torch.zeros(3, *EVENT)))
    with pytest.raises(ValueError, match="last plan has shape"):
        Asd(4).sample(mixture, chain, (3, *EVENT), warm_start=WarmStart(torch.zeros(1, *EVENT)))


# Extremes.


@pairs
@pytest.mark.parametrize("size", [1e3, 1e15, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_a_gap_that_overflows_commits_the_target(
    draft: str, verify: str, size: float, dtype: torch.dtype, chain: GaussianChain
) -> None:
    """A prediction of another sign at every step is never guessed; the sample must still be its last one."""
    alone = GaussianChain.from_scheduler({**chain.config, "prediction_type": "sample"}, len(chain))
    last = int(alone.timesteps[-1])

    def jumping(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        value = torch.where(timestep == last, 1.0, torch.where(timestep % 16 == 0, size, -size))
        return value.view(-1, 1, 1).to(x).expand_as(x)

    tape = NoiseTape.draw((4, *EVENT), len(chain), torch.Generator().manual_seed(0), dtype=dtype)
    result = Asd(5, draft, verify).sample(jumping, alone, (4, *EVENT), generator=tape)
    torch.testing.assert_close(result.sample, torch.ones_like(result.sample), rtol=0, atol=size * 1e-5)


@pytest.mark.parametrize("spec", ["ddpm", "asd:window=4"])
def test_odd_outputs_are_named(spec: str, chain: GaussianChain) -> None:
    for output, message in (("text", "returned a str"), (torch.ones((1, *EVENT), dtype=torch.int64), "torch.int64")):
        with pytest.raises(DenoiserError, match=message):
            make_sampler(spec).sample(lambda *_, output=output: output, chain, (1, *EVENT))  # pyright: ignore[reportArgumentType]  # the mistake under test
