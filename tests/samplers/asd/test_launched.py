"""The kernels of a round, in Triton's interpreter: the reference's samples, its law, and the number of launches."""

import gc
import math
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr, ndtri
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.chain.noise_tape import NoiseTape
from asd_policy.evaluation.reports.report import engine_of
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round, response_for
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.launched import form
from asd_policy.samplers.asd.rounds import RoundRecording
from asd_policy.samplers.asd.sampler import Asd
from asd_policy.samplers.base import Target
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.warm_start import WarmStart
from support.interpreted import Again, Recorded, evaluate, launched, normal
from support.known_laws import draw_speculatively, gaussian_law, normal_p_value
from support.launched_mutants import MUTANTS_LAUNCHED, mutated_launches

MOST_LAUNCHES = 12
"""Of a round, beside the network's own."""
STEPS = 16
Given = Callable[[GaussianChain, NoiseTape], Inpainting | None]


def chain_of(**options: Any) -> GaussianChain:
    kind = "DDIMScheduler" if "eta" in options else "DDPMScheduler"
    eta = options.pop("eta", None)
    config = {"_class_name": kind, "num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2", **options}
    return GaussianChain.from_scheduler(config, STEPS, eta)


def network(size: int) -> Any:
    """A network that is no Gaussian's, of outputs that move with the point and the time."""
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / size**0.5

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        flat = x.flatten(1)
        turned = torch.tanh(flat @ weights.to(x.dtype)) + torch.cos(timestep[:, None] / 9).to(x.dtype)
        shown = 0 if cond is None else cond[:, :1]
        return (0.8 * flat + 0.3 * turned + shown).reshape(x.shape)

    return denoise


def nothing(chain: GaussianChain, tape: NoiseTape) -> None:
    """Give no coordinates."""


def some(chain: GaussianChain, tape: NoiseTape) -> Inpainting:
    mask = torch.zeros(tape.initial.shape, dtype=torch.bool)
    mask[:, : mask.shape[1] // 2, 0] = True
    return Inpainting(mask, torch.full_like(tape.initial, 0.3))


def noised(chain: GaussianChain, tape: NoiseTape) -> Inpainting:
    """Give some, shown as noisy as the others, and guide what is not given."""
    held = some(chain, tape)
    return Inpainting.noised(held.mask, held.values, chain, tape, torch.full_like(tape.initial, 0.2))


@dataclass
class Case:
    """Plans to be made twice."""

    sampler: Asd
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    given: Given = nothing
    chain: GaussianChain = field(default_factory=lambda: chain_of(clip_sample=False, prediction_type="sample"))
    network: Any = None

    def plans(self, count: int = 2) -> list[Any]:
        """Plan several times, on one recording, each with what the plans before have taught and its own noise."""
        experience, last, made = Experience(), None, list[Any]()
        denoiser = Recorded(self.network or network(math.prod(self.shape[1:])))
        for seed in range(count):
            random = torch.Generator().manual_seed(seed)
            tape = NoiseTape.draw(self.shape, len(self.chain), random, dtype=self.dtype)
            cond = torch.linspace(0, 0.2, self.shape[0], dtype=self.dtype)[:, None]
            made.append(
                self.sampler.sample(
                    denoiser, self.chain, self.shape, cond, generator=tape, inpainting=self.given(self.chain, tape),
                    warm_start=WarmStart(last, experience),
                )
            )  # fmt: skip
            last = made[-1].sample
        return made

    def check(self, tolerance: float, rows: int = 8, count: int = 2, own_functions: bool = False) -> list[Any]:
        """Compare the kernels' plans with the reference's, decisions and all; give the latter."""
        with (
            launched(rows, own_functions),
            mock.patch.object(form.LaunchedRound, "__call__", _counted(form.LaunchedRound.__call__)),
        ):
            before = _calls[0]
            found = self.plans(count)
            assert _calls[0] > before
            assert not form._failed
        expected = self.plans(count)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.sample, theirs.sample, rtol=0, atol=tolerance)
            assert ours.stats.plans == theirs.stats.plans  # rounds, points, refusals
        return expected


_calls = [0]


def _counted(own: Any) -> Any:
    def call(self: form.LaunchedRound) -> None:
        _calls[0] += 1
        own(self)

    return call


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    ("shape", "window", "given"),
    [((3, 8, 3), 6, nothing), ((3, 6, 3), 6, noised), ((2, 5, 1), STEPS, some), ((1, 1, 7), 2, nothing)],
    ids=["rows", "noised", "window K", "one time"],
)
def test_samples_are_the_references(draft: str, verify: str, shape: tuple[int, ...], window: int, given: Given) -> None:
    """Rows that end at different times, given coordinates, a window of the whole chain, odd sizes."""
    plans = Case(Asd(window, draft, verify), shape, given=given).check(1e-8)
    assert shape[0] < 3 or any(len(set(plan.stats.rounds)) > 1 for plan in plans)


@pytest.mark.parametrize(("draft", "shape"), [("frozen", (1, 18, 9)), ("response", (1, 17, 2))])
def test_tiles_of_a_gpu(draft: str, shape: tuple[int, ...]) -> None:
    """One row a program, more coordinates and vectors than fit one, and special functions of the kernels' own."""
    Case(Asd(STEPS, draft, "block"), shape).check(1e-8, rows=1, count=1, own_functions=True)


def test_sums_in_parts() -> None:
    Case(Asd(3, "picard", "block"), (1, 4, 700), network=lambda x, t, c: 0.9 * torch.tanh(x)).check(1e-8, count=1)


@pytest.mark.parametrize("verify", VERIFIERS)
def test_a_large_batch(verify: str) -> None:
    Case(Asd(5, "response", verify), (256, 4, 2)).check(1e-8, rows=256, count=1)


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("draft", ["frozen", "response"])
def test_float32(draft: str, verify: str) -> None:
    """To its rounding: 16 steps of sums of 24 numbers of size 1, each good to 6e-8, and as many rounds as there are."""
    Case(Asd(6, draft, verify), (3, 8, 3), torch.float32).check(1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon", "clip_sample": True},
        {"prediction_type": "v_prediction", "clip_sample": True, "clip_sample_range": 0.7},
        {"prediction_type": "sample", "thresholding": True, "clip_sample": False},
        {"prediction_type": "epsilon", "clip_sample": True, "eta": 0.8},
    ],
    ids=str,
)
def test_chains(options: dict[str, Any]) -> None:
    Case(Asd(5, "response", "block"), (2, 4, 2), chain=chain_of(**options), given=some).check(1e-8, count=1)


def test_outputs_in_another_layout_and_precision() -> None:
    """Of a network that computes in bfloat16, its channels before time."""

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return (0.7 * x).to(torch.bfloat16).transpose(1, 2).contiguous().transpose(1, 2)

    Case(Asd(5, "picard", "block"), (2, 4, 3), torch.float32, network=denoise).check(1e-5, count=1)


def test_equal_bits_where_nothing_was_guessed() -> None:
    """A draft that is the target to the bit is the sequential plan, to the bit."""
    for verify in VERIFIERS:
        Case(Asd(6, "frozen", verify), (1, 8, 2), torch.float32, network=lambda x, t, c: x * 0).check(0.0, count=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("draft", ["picard", "response"])
def test_numbers_that_are_no_numbers(dtype: torch.dtype, scale: float, draft: str) -> None:
    """Predictions that are tiny, huge or none at all: the reference's errors, or its samples."""

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        return torch.where(timestep[:, None, None] < 15, scale * torch.sign(x), 0.5 * x)

    def draw() -> Any:
        try:
            return Case(Asd(5, draft, "block"), (2, 4, 2), dtype, network=denoise).plans(1)[0].sample
        except Exception as error:
            return str(error)

    with launched(8):
        found = draw()
        assert not form._failed
    expected = draw()
    if isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Counting(TorchDispatchMode):
    """Counts the operations that a GPU has a kernel for: all but views and empty memory."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.names: list[str] = []
        self.on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        alias = [result.alias_info for result in func._schema.returns]
        free = "empty" in str(func) or (alias and alias[0] is not None and not alias[0].is_write)
        if self.on and not free:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [nothing, some, noised])
@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_round_is_few_launches(draft: str, verify: str, given: Given) -> None:
    """All that is recorded, but the network's own; the reference has a hundred and more."""
    counting, shape = Counting(), (2, 8, 3)
    chain = chain_of(prediction_type="epsilon")
    tape = NoiseTape.draw(shape, len(chain), torch.Generator().manual_seed(0))

    def denoise(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        assert len(cond) == len(timestep) == len(x)
        counting.on = False
        output = x.to(torch.bfloat16)
        counting.on = True
        return output

    def launch(name: str) -> Any:
        return mock.MagicMock(__getitem__=lambda self, grid: lambda *_, **__: counting.names.append(name))

    names = ("reuse", "turn_in", "respond", "turn_back", "compare", "judge", "commit")
    stubs = SimpleNamespace(**{name: launch(name) for name in names})
    target = Target(denoise, chain, shape, torch.zeros((2, 5)), given(chain, tape), Again())
    response = response_for(DRAFTS[draft], chain, tape, None)
    round_ = Round(target, DRAFTS[draft], VERIFIERS[verify], response, 6)
    counted = []
    for ours in (True, False):
        with launched() if ours else nullcontext(), mock.patch.object(form, "load_launched", lambda: stubs):
            recording = RoundRecording(Again(), round_, tape)
            counting.names.clear()
            with counting:
                recording.advance()
        counted.append(list(counting.names))
    assert len(counted[0]) == (4 if response is None else 6) <= MOST_LAUNCHES
    assert len(counted[1]) > 80


def test_a_recording_keeps_its_kernels_memory() -> None:
    """What replays a graph has to: it holds addresses alone."""
    tape = NoiseTape.draw((1, 4, 2), STEPS, torch.Generator().manual_seed(0))
    target = Target(network(8), chain_of(), (1, 4, 2), torch.zeros((1, 5)))
    round_ = Round(target, DRAFTS["picard"], VERIFIERS["block"], None, 4)
    with launched(8):
        recording = RoundRecording(Forgetful(), round_, tape)
    gc.collect()
    assert isinstance(recording._round, form.LaunchedRound)
    memory = [weakref.ref(each) for each in vars(recording._round).values() if isinstance(each, Tensor)]
    assert len(memory) >= 4  # the conditioning, the scale, the counts, the mask
    assert all(each() is not None for each in memory)


class Forgetful(Again):
    """Keeps nothing of what it records, as a CUDA graph."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Do it once."""
        work()
        return lambda: None


def test_special_functions() -> None:
    x = np.concatenate([np.linspace(-60, 9, 4093), [-0.0, 1e-17, -1e-17]])
    np.testing.assert_allclose(evaluate(normal.tile_log_ndtr, x), log_ndtr(x), rtol=3e-14, atol=1e-300)
    p = np.concatenate([10.0 ** -np.linspace(0.01, 300, 512), 1 - 10.0 ** -np.linspace(0.1, 15.9, 512)])
    np.testing.assert_allclose(evaluate(normal.tile_ndtri, p), ndtri(p), rtol=1e-12, atol=1e-13)
    tiny = np.concatenate([-(10.0 ** np.linspace(-300, 3, 511)), [0.0]])
    np.testing.assert_allclose(evaluate(normal.expm1, tiny), np.expm1(tiny), rtol=1e-15)
    # A level that rounds to 1 is the largest number below it, which float32 does not tell from 1.
    level = np.array([0.0, -1e-17, -1e-12, -1.0])
    np.testing.assert_allclose(evaluate(normal.tile_renew, level), -ndtri(np.minimum(np.exp(level), 1 - 2.0**-53)))


# The law, and mutants that it catches.

LEVEL, ROWS = 1e-6, 8192
BROKEN = [
    ("accept-always", "picard", "reflection", 5_000),
    ("redraw", "frozen", "reflection", 5_000),
    ("keep-noise", "response", "block", 8_000),
    ("keep-tape", "picard", "block", 40_000),
    ("peek", "picard", "block", 8_000),
]


def gaussian_p_value(sampler: Asd, count: int, gaussian: MixtureDenoiser, chain: GaussianChain) -> float:
    """Return a p-value for `count` samples having the law of the sequential sampler."""
    with launched(ROWS):
        sample = draw_speculatively(sampler, Recorded(gaussian), chain, 2, count)
        assert not form._failed
    mean, deviation = gaussian_law(gaussian, chain)
    return normal_p_value((sample - mean) / deviation)


@pytest.mark.parametrize(("draft", "verify"), [("picard", "reflection"), ("response", "block")])
def test_law(draft: str, verify: str, gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    assert gaussian_p_value(Asd(5, draft, verify), 8_000, gaussian, chain) > LEVEL


def test_every_mutant_is_tried() -> None:
    assert {mutant for mutant, *_ in BROKEN} == set(MUTANTS_LAUNCHED)


@pytest.mark.parametrize(("mutant", "draft", "verify", "count"), BROKEN)
def test_mutants_fail(
    mutant: str, draft: str, verify: str, count: int, gaussian: MixtureDenoiser, chain: GaussianChain
) -> None:
    with mutated_launches(mutant):
        assert gaussian_p_value(Asd(5, draft, verify), count, gaussian, chain) < LEVEL


# What is said where it does not run.


def test_what_cannot_be_imported_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Triton, or one that does not fit: the reference runs."""
    form.load_launched.cache_clear()
    try:
        with launched(), monkeypatch.context() as patch:
            patch.setitem(sys.modules, "asd_policy.samplers.asd.launched.kernels", None)
            with pytest.warns(UserWarning, match="asd's rounds run in PyTorch's kernels, .*: ModuleNotFoundError"):
                found = Case(Asd(4), (1, 4, 2)).plans(1)
            Case(Asd(3), (1, 4, 2)).plans(1)  # where warnings are errors
            assert not form.launches(torch.device("cpu"))
    finally:
        form.load_launched.cache_clear()
    assert torch.equal(found[0].sample, Case(Asd(4), (1, 4, 2)).plans(1)[0].sample)


def test_what_cannot_be_compiled_is_said_once() -> None:
    """A cache that cannot be written, or a compiler that is missing: the reference runs, and a plan is no mixture."""
    broken = mock.MagicMock()
    broken.commit.__getitem__.side_effect = PermissionError(13, "Permission denied: '/root/.triton/cache'")
    with launched(), mock.patch.object(form, "load_launched", lambda: broken):
        with pytest.warns(UserWarning, match="PermissionError: .*Permission denied: '/root/.triton/cache'.*; Triton"):
            found = Case(Asd(4), (1, 4, 2)).plans(1)
        Case(Asd(3), (1, 4, 2)).plans(1)
        assert not form.launches(torch.device("cpu"))
    assert torch.equal(found[0].sample, Case(Asd(4), (1, 4, 2)).plans(1)[0].sample)


def test_a_device_without_memory_says_nothing_of_the_kernels() -> None:
    """The window shrinks, and the kernels go on to run."""
    own, tried = form.LaunchedRound.attempt, list[int]()

    def attempt(self: form.LaunchedRound) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        own(self)

    with launched(), mock.patch.object(form.LaunchedRound, "attempt", attempt):
        with pytest.warns(UserWarning, match="planning with window=2"):
            found = Case(Asd(4), (1, 4, 2)).plans(1)
        assert form.launches(torch.device("cpu"))
    assert found[0].stats.window == 2


def test_it_is_compiled_before_the_first_plan() -> None:
    """For each draft and verifier that may be chosen; the network is not called for it."""
    compiled: list[Any] = []

    def never(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        raise AssertionError

    network, chain = Recorded(never), chain_of()
    network.launcher.device = torch.device("cpu")
    own = form.LaunchedRound.attempt
    with launched(), mock.patch.object(form.LaunchedRound, "attempt", lambda self: compiled.append(self) or own(self)):
        Asd(4, "picard", "block").prepare_recordings(network, chain, (3, 2))
        assert [(each.reference.draft, each.reference.verifier) for each in compiled] == [
            (DRAFTS["picard"], VERIFIERS["block"])
        ]
        Asd(4).prepare_recordings(never, chain, (3, 2))  # nothing is recorded
        assert len(compiled) == 1
        assert engine_of(network.launcher.device, network) == "compiled"  # of the host, whose plans are not recorded
    with mock.patch.object(form, "is_launched", lambda device: True), mock.patch.object(form, "_failed", []):
        assert engine_of(torch.device("meta"), network) == "triton"
        assert engine_of(torch.device("meta"), never) == "arrays"
        form._failed.append("no compiler")
        assert engine_of(torch.device("meta"), network) == "arrays"


def test_code_for_a_gpu(tmp_path: Path) -> None:
    """Every kernel compiles for one, for odd sizes and large ones: no GPU is needed for that."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    program = [sys.executable, str(root / "tests/support/compile_kernels.py"), "5x1", "64x14"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    kernels = ["turn_in", "respond", "turn_back", "compare", "commit"]
    found = Counter((name, kind) for name, kind, *_ in lines)
    # Once for each type and shape of a plan, whatever the window; `judge` does not see the shape.
    expected = {(name, kind): 2 for name in kernels for kind in ("float32", "float64")}
    assert found == expected | {("judge", "float32"): 1, ("judge", "float64"): 1}
    assert all(int(shared) <= 48 * 1024 for _, _, _, shared, _ in lines)
