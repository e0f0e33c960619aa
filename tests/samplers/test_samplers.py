"""What all samplers must do: specs, counts, bits, rows, refusals. Their law is in test_exactness.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asd_policy._common import arrays
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.errors import DenoiserError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.denoiser import Meter
from asd_policy.samplers import OF_STEPS, SAMPLERS, make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS, Path
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.sampler import Asd, Round
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
EVENT = (2, 2)
DTYPE = torch.float64

SETTINGS = [Asd(window, draft, verify) for draft in DRAFTS for verify in VERIFIERS for window in (1, 2, 5, 12)]
IDS = [setting.spec for setting in SETTINGS]

# Of every sampler, specs that fit the chain of twelve steps; what all samplers must do is tested on these.
EXAMPLES = {
    "ddpm": ("ddpm",),
    "ddim": ("ddim:10", "ddim:10,eta=0.5", "ddim:10,eta=0.1234567", "ddim:5,eta=1"),
    "dpmsolver": ("dpmsolver:10", "dpmsolver:5,order=3"),
    "euler": ("euler:10", "euler:1"),
    "paradigms": ("paradigms:window=4,tol=0.1", "paradigms:window=12,tol=1e-07", "paradigms:window=4,tol=2"),
    "parallel": ("parallel:window=4,tol=0.1,draft=picard,steps=6", "parallel:window=auto,tol=0,draft=warm,steps=12"),
    "asd": tuple(f"asd:window=4,draft={draft},verify={verify}" for draft in DRAFTS for verify in VERIFIERS),
}
SPECS = [spec for specs in EXAMPLES.values() for spec in specs]


@pytest.fixture
def chain(request: pytest.FixtureRequest, chain: GaussianChain) -> GaussianChain:
    """The short chain; where the sampler follows flows alone, one of as many steps."""
    spec = request.node.callspec.params.get("spec", "") if hasattr(request.node, "callspec") else ""
    if not spec.startswith("euler"):
        return chain
    return GaussianChain.from_flow(len(chain), 1.0, "timestep", num_train_timesteps=100)


# Bit equality: the same tape gives the same plan where nothing was guessed wrong.


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_window_one_is_ddpm_bit_for_bit(
    draft: str, batch: int, dtype: torch.dtype, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    tape = NoiseTape.draw((batch, *EVENT), len(chain), torch.Generator().manual_seed(4), dtype=dtype)
    reference = make_sampler("ddpm").sample(mixture, chain, (batch, *EVENT), generator=tape)
    result = Asd(window=1, draft=draft).sample(mixture, chain, (batch, *EVENT), generator=tape)
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
    reference = make_sampler("ddpm").sample(constant, alone, (3, *EVENT), generator=tape)
    result = Asd(window, draft, "reflection").sample(constant, alone, (3, *EVENT), generator=tape)
    if draft == "frozen":  # one round to learn it, then whole windows
        assert torch.equal(result.sample, reference.sample)
        assert result.stats.rounds == (1 + -(-(len(chain) - 1) // window),) * 3
    else:  # its first guess is zero, so the first round may be rejected; from then on all is accepted
        assert max(result.stats.rounds) <= 2 + -(-(len(chain) - 1) // window)


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_rows_do_not_depend_on_their_neighbours(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Every row has a cursor of its own: alone or in a batch, its sample and its counts are the same."""
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(6), dtype=DTYPE)
    together = setting.sample(mixture, chain, (6, *EVENT), generator=tape)
    for row in range(6):
        own = NoiseTape(tape.initial[row : row + 1], tape.normals[row : row + 1], tape.uniforms[row : row + 1])
        alone = setting.sample(mixture, chain, (1, *EVENT), generator=own)
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
    assert stats_.window == setting.window
    assert max(calls) <= 7 * stats_.window
    assert all(len(chain) / stats_.window <= rounds <= len(chain) + 1 for rounds in stats_.rounds)
    assert stats_.steps == len(chain)
    assert 0 < (stats_.network_seconds or 0) < stats_.seconds
    assert 0 < (stats_.overhead_fraction or 0) < 1
    assert stats_.algorithmic_speedup == pytest.approx(7 * len(chain) / sum(stats_.rounds))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("euler")])  # all rows leave at once
def test_conditioning_follows_its_row(spec: str, chain: GaussianChain) -> None:
    """Rows leave the batch at different times; each point must keep its own row's conditioning."""
    alone = GaussianChain.from_scheduler({**chain.config, "prediction_type": "sample"}, len(chain))
    cond = torch.arange(5.0)[:, None]

    def own(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return cond[:, :, None].expand_as(x) + 0.3 * torch.tanh(x)

    sample = make_sampler(spec).sample(own, alone, (5, *EVENT), cond, torch.Generator().manual_seed(1)).sample
    assert ((sample - cond[:, :, None]).abs() < 0.31).all()


@dataclass
class Counted:
    """A network that counts its calls and their points."""

    network: MixtureDenoiser
    calls: int = 0
    points: int = 0

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict."""
        self.calls, self.points = self.calls + 1, self.points + len(x)
        return self.network(x, timestep, cond)


@pytest.mark.parametrize("deadline", [None, 1e5, 1e-1])
@pytest.mark.parametrize("spec", [*SPECS, "asd"])
def test_every_network_call_is_counted(
    spec: str, deadline: float | None, mixture: MixtureDenoiser, chain: GaussianChain
) -> None:
    """Those that time it as well, apart from those of the algorithm; a second plan needs none of them."""
    network, known = Counted(mixture), WarmStart(None, Experience())
    trials = []
    for _ in range(2):
        network.calls = network.points = 0
        try:
            result = make_sampler(spec).sample(
                network, chain, (3, *EVENT), warm_start=known, budget=Budget(deadline_ms=deadline)
            )
        except SpecError:  # no call here is as short as that
            assert deadline == 1e-1
            return
        assert (result.stats.all_calls, result.stats.all_points) == (network.calls, network.points)
        trials.append(result.stats.trial_calls)
    assert (trials[0] > 0) == (spec == "asd" or deadline is not None)
    assert trials[1] == 0


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("spec", SPECS)
def test_samples_are_ordinary_tensors(spec: str, held: bool, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """They can be written into and be part of a loss, and so can what is made of them."""
    values = torch.zeros(3, *EVENT)
    given = Inpainting(values == 1, values) if held else None
    sample = make_sampler(spec).sample(mixture, chain, (3, *EVENT), inpainting=given).sample
    assert not sample.is_inference() and not sample.requires_grad
    sample[:, 0] = 1
    loss = torch.nn.Linear(2, 1)(sample).sum()
    loss.backward()


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


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_static_shapes_change_nothing(
    setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes finished rows and points beyond the end as well, and must take no notice of them."""
    tape = NoiseTape.draw((6, *EVENT), len(chain), torch.Generator().manual_seed(9), dtype=DTYPE)
    compact = setting.sample(mixture, chain, (6, *EVENT), generator=tape)
    advance = Round.__call__

    def advance_all(round_: Round, path: Path, rows: Tensor, compact: bool) -> None:
        advance(round_, path, torch.arange(len(path.x)), False)

    monkeypatch.setattr(Round, "__call__", advance_all)
    static = setting.sample(mixture, chain, (6, *EVENT), generator=tape)
    torch.testing.assert_close(static.sample, compact.sample, rtol=0, atol=1e-9)
    assert static.stats.rounds == compact.stats.rounds


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_what_is_passed_in_is_left_alone(setting: Asd, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """Tape and last plan are the caller's."""
    tape = NoiseTape.draw((3, *EVENT), len(chain), torch.Generator().manual_seed(8), dtype=DTYPE)
    given = [tape.initial, tape.normals, tape.uniforms, torch.ones((3, *EVENT), dtype=DTYPE)]
    before = [tensor.clone() for tensor in given]
    setting.sample(mixture, chain, (3, *EVENT), generator=tape, warm_start=WarmStart(last_plan=given[-1]))
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


def test_ddim_is_approximate_and_deterministic(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    sampler = make_sampler("ddim:5")
    assert not sampler.exact
    tape = NoiseTape.draw((4, *EVENT), len(chain), torch.Generator().manual_seed(1), dtype=DTYPE)
    result = sampler.sample(mixture, chain, (4, *EVENT), generator=tape)
    assert torch.equal(result.sample, sampler.sample(mixture, chain, (4, *EVENT), generator=tape).sample)
    assert result.stats.rounds == (5,) * 4
    noisy = make_sampler("ddim:5,eta=1").sample(mixture, chain, (4, *EVENT), generator=tape)
    assert not torch.allclose(noisy.sample, result.sample)


def test_every_sampler_has_examples() -> None:
    assert EXAMPLES.keys() == set(OF_STEPS)


@pytest.mark.parametrize("spec", SPECS)
def test_specs_round_trip(spec: str) -> None:
    assert make_sampler(spec).spec == spec
    assert make_sampler(make_sampler(spec).spec) == make_sampler(spec)


def test_defaults_are_spelled_out() -> None:
    assert make_sampler("asd").spec == "asd:window=auto,draft=auto,verify=auto"
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
        ("asd:window=x", "window=x in 'asd:window=x' is not of type int or auto"),
        ("asd:draft=frosen", f"draft=frosen is not one of auto, {', '.join(DRAFTS)}"),
        ("asd:verify=no", "verify=no is not one of auto, reflection, block"),
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
        make_sampler("ddpm").sample(mixture, chain, (2, *EVENT), generator=tape)
    with pytest.raises(ValueError, match="conditioning for 3 rows, but a batch of 2"):
        make_sampler("ddpm").sample(mixture, chain, (2, *EVENT), cond=torch.zeros(3, 1))
    half = NoiseTape.draw((2, *EVENT), len(chain), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"the tape is of torch\.bfloat16: couplings are computed in float32"):
        make_sampler("asd:window=4").sample(mixture, chain, (2, *EVENT), generator=half)
    with pytest.raises(ValueError, match="a batch of 0 plans"):
        make_sampler("ddpm").sample(mixture, chain, (0, *EVENT))
    mask = torch.ones((2, *EVENT), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the inpainting's mask is of torch\.uint8, not bool"):
        make_sampler("ddpm").sample(mixture, chain, (2, *EVENT), inpainting=Inpainting(mask, mask.double()))


def test_counts_are_whole_numbers(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    for wrong in (4.0, "4", True):
        with pytest.raises(SpecError, match=f"window={wrong} is not a whole number"):
            Asd(wrong)  # pyright: ignore[reportArgumentType]  # what this is about
    window: Any = np.int64(4)  # of an array of windows
    assert Asd(window).sample(mixture, chain, (2, *EVENT)).stats.window == 4


def test_autocast_is_for_the_network(chain: GaussianChain) -> None:
    """The network runs in the precision that is asked for, and the chain in that of the samples."""
    seen: list[torch.dtype] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        output = x.flatten(1) @ torch.eye(4)
        seen.append(output.dtype)
        return 0.1 * output.view_as(x)

    experience = Experience()
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(2):  # the second draws on what the first has taught
            generator = torch.Generator().manual_seed(seed)
            result = Asd(5).sample(
                network, chain, (3, *EVENT), generator=generator, warm_start=WarmStart(None, experience)
            )
            assert result.sample.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


class Ticks:
    """A device's clock, a second further at each look; what it has measured is known once the device is waited for."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.now, self.waited = 0, 0

    def tick(self) -> int:
        """Go on by a second."""
        self.now += 1
        return self.now

    def seconds(self, ticks: tuple[int, int]) -> list[float]:
        """Wait."""
        self.waited += 1
        return [float(ticks[1] - ticks[0])]


def test_a_call_does_not_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is read by the device's own clock, once somebody asks."""
    monkeypatch.setattr("asd_policy.networks.denoiser.DeviceClock", Ticks)
    meter = Meter(torch.device("cuda"))
    for _ in range(3):
        meter.stop(meter.start())
    clock: Any = meter._clock
    assert clock.now == 6 and clock.waited == 0
    assert meter.seconds == 3.0 and clock.waited == 3


@pytest.mark.parametrize("deadline_ms", [None, 10_000.0])
def test_a_deadline_waits_for_each_call(
    deadline_ms: float | None, mixture: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the host would queue calls far beyond it, on a GPU."""
    waited: list[object] = []
    monkeypatch.setattr(arrays, "synchronize", waited.append)
    result = make_sampler("ddpm").sample(mixture, chain, (1, *EVENT), budget=Budget(deadline_ms))
    assert not any(result.stats.cut)
    assert len(waited) == (0 if deadline_ms is None else result.stats.all_calls)
