"""Recorded sampling, driven on a CPU: what is recorded runs again on the same memory, as a CUDA graph does."""

import gc
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asd_policy.chain.gaussian import GaussianChain
from asd_policy.errors import BackendError, SpecError
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.networks.recording import Launcher, OutOfDeviceMemory
from asd_policy.samplers import make_sampler
from asd_policy.samplers.asd.couplings import VERIFIERS
from asd_policy.samplers.asd.draft import DRAFTS
from asd_policy.samplers.asd.engine import Round
from asd_policy.samplers.asd.experience import Experience
from asd_policy.samplers.asd.path import Path
from asd_policy.samplers.asd.rounds import RoundRecording
from asd_policy.samplers.base import Target
from asd_policy.samplers.ddpm import walk
from asd_policy.samplers.deadline import Budget
from asd_policy.samplers.inpainting import Inpainting
from asd_policy.samplers.recorded import Inputs, WalkRecording, shapes
from asd_policy.samplers.warm_start import WarmStart
from support.known_laws import DTYPE, EVENT, make_tape, short_chain

ROWS = 9
SPECS = [
    "ddpm",
    "parallel:window=4,tol=0.05,draft=picard,steps=6",
    *(f"asd:window=5,draft={draft},verify={verify}" for draft in DRAFTS for verify in VERIFIERS),
]


@dataclass
class Replays(Launcher):
    """Records the operations on tensors, and no Python, as a CUDA graph does, and runs them on the same memory."""

    room: int = 10**9
    """Points of a call that there is memory for."""
    recorded: int = 0
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin without recordings."""
        super().__init__()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Trace the work."""

        def traced() -> Tensor:
            work()
            return torch.empty(0)

        for _ in range(2):
            work()
        graph = make_fx(traced)()
        self.recorded += 1

        def replay() -> None:
            self.log.append("launch")
            graph()

        return replay

    def queue(self) -> Any:
        """Return nothing to enter: a CPU has one queue."""
        return nullcontext()

    def settle(self) -> None:
        """Note it."""
        self.log.append("settle")

    def fetch(self, sample: Tensor, counts: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Copy at once, and note when it is waited for."""
        copies = sample.clone(), counts.clone()

        def wait() -> tuple[Tensor, Tensor]:
            self.log.append("wait")
            return copies

        return wait


@dataclass
class Launched:
    """A network whose calls are recorded."""

    network: MixtureDenoiser
    launcher: Replays = field(default_factory=Replays)

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Predict, if there is room."""
        if len(x) > self.launcher.room:
            raise OutOfDeviceMemory
        return self.network(x, timestep, cond)


@pytest.fixture
def launched(mixture: MixtureDenoiser) -> Launched:
    return Launched(mixture)


@pytest.mark.parametrize("given", [False, True], ids=["free", "given"])
@pytest.mark.parametrize("spec", SPECS)
def test_recorded_plans_are_the_plans(spec: str, given: bool, launched: Launched, chain: GaussianChain) -> None:
    """Plan after plan on one recording, with last plans and what was learned."""
    sampler = make_sampler(spec)
    mask = torch.eye(2, dtype=torch.bool).expand(ROWS, *EVENT) & given
    held = Inpainting(mask, torch.full((ROWS, *EVENT), 0.3, dtype=DTYPE)) if given else None
    pasts, results = (Experience(), Experience()), []
    last: tuple[Tensor | None, Tensor | None] = (None, None)
    for seed in range(4):
        results = [
            sampler.sample(
                denoiser,
                chain,
                (ROWS, *EVENT),
                generator=make_tape(ROWS, chain, seed),
                inpainting=held,
                warm_start=WarmStart(plan, known),
            )
            for denoiser, plan, known in zip((launched.network, launched), last, pasts, strict=True)
        ]
        eager, recorded = results
        torch.testing.assert_close(recorded.sample, eager.sample, rtol=0, atol=1e-9)
        assert recorded.stats.rounds == eager.stats.rounds
        assert recorded.stats.refused == eager.stats.refused
        assert recorded.stats.unjudged == eager.stats.unjudged
        assert recorded.stats.network_seconds is None
        assert recorded.stats.overhead_fraction is None
        last = (eager.sample, recorded.sample)
    assert pasts[0].plans == pasts[1].plans
    for name, sums in pasts[0].moments.items():
        torch.testing.assert_close(pasts[1].moments[name], sums)
    assert launched.launcher.recorded == (1 if spec == "ddpm" else 2)  # once, whatever the number of plans


@pytest.mark.parametrize("spec", ["ddim:5", "ddim:5,eta=0.5"])
def test_ddim_is_one_recording(launched: Launched, chain: GaussianChain, spec: str) -> None:
    shape = (ROWS, *EVENT)
    for seed in range(3):
        eager, recorded = (
            make_sampler(spec).sample(network, chain, shape, generator=make_tape(ROWS, chain, seed))
            for network in (launched.network, launched)
        )
        torch.testing.assert_close(recorded.sample, eager.sample, rtol=0, atol=2e-6)
        assert recorded.stats.rounds == eager.stats.rounds == (5,) * ROWS
        assert recorded.stats.network_seconds is None
    make_sampler(spec.replace("5", "6", 1)).sample(launched, chain, shape, generator=make_tape(ROWS, chain, 0))
    assert launched.launcher.recorded == 2  # another number of steps is another recording


def test_the_host_waits_one_round_late(launched: Launched, chain: GaussianChain) -> None:
    """And not at all while no plan can be done."""
    result = make_sampler("asd:window=4").sample(launched, chain, (1, *EVENT), generator=make_tape(1, chain, 0))
    rounds, log = result.stats.rounds[0], launched.launcher.log
    assert log[:4] == ["launch"] * 4  # the start, and as many rounds as the shortest plan has: 12 steps, 4 a round
    assert log[4:6] == ["launch", "wait"]
    assert log.count("launch") == 1 + rounds + 1
    assert log.count("wait") == rounds - 2


def test_what_is_learned_can_be_read_outside_of_the_queue(launched: Launched, chain: GaussianChain) -> None:
    experience = Experience()
    for learning in (True, False):
        experience.learning = learning
        make_sampler("asd:window=4").sample(
            launched, chain, (1, *EVENT), generator=make_tape(1, chain, 0), warm_start=WarmStart(None, experience)
        )
        assert (launched.launcher.log[-1] == "settle") is learning
        launched.launcher.log.clear()


def test_the_result_is_the_callers(launched: Launched, chain: GaussianChain) -> None:
    sampler = make_sampler("asd:window=4")
    first = sampler.sample(launched, chain, (2, *EVENT), generator=make_tape(2, chain, 0)).sample
    before = first.clone()
    sampler.sample(launched, chain, (2, *EVENT), generator=make_tape(2, chain, 1))
    assert torch.equal(first, before)


def test_recordings_are_made_for_each_shape_and_bounded(
    launched: Launched, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asd_policy.networks.recording.MOST_RECORDINGS", 2)
    recorded = []
    for rows in (1, 2, 3, 2, 1):
        make_sampler("ddpm").sample(launched, chain, (rows, *EVENT), generator=make_tape(rows, chain, 0))
        recorded.append(launched.launcher.recorded)
    assert recorded == [1, 2, 3, 3, 4]  # that of one row was forgotten


def test_a_recording_keeps_its_chain(mixture: MixtureDenoiser) -> None:
    """By its key: a new chain cannot come to lie where that of a recording was, and be taken for it."""
    chain, other = short_chain(), short_chain()
    keys = [shapes(Target(mixture, each, (2, *EVENT)), make_tape(2, chain, 0)) for each in (chain, chain, other)]
    assert keys[0] == keys[1] != keys[2]
    known, alive = {keys[0]: "recording"}, weakref.ref(chain)
    del chain, keys
    gc.collect()
    assert alive() is not None
    known.clear()
    gc.collect()
    assert alive() is None


def test_a_recording_is_of_one_autocast(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """What was recorded within it computes in its precision."""
    tape = make_tape(2, chain, 0)
    modes = [None, torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.float16)]
    targets = [Target(mixture, chain, (2, *EVENT), autocast=mode) for mode in modes]
    assert len({shapes(target, tape) for target in targets}) == 3


def test_a_paths_arrays_are_apart(chain: GaussianChain) -> None:
    """Kernels are compiled for addresses of one alignment, which parts of a block have or have not by the batch."""
    path = Path.begin(None, make_tape(3, chain, 0), None)
    apart = vars(path.apart())
    assert len({each.untyped_storage().data_ptr() for each in apart.values()}) == len(apart)
    assert all(torch.equal(each, vars(path)[name]) for name, each in apart.items())


def test_inputs_are_kept_in_the_order_of_their_axes(mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """As kernels read them, whatever the order in the caller's memory."""
    tape = make_tape(2, chain, 0)
    values = torch.randn(2, *EVENT[::-1]).to(DTYPE).transpose(1, 2)
    given = Inpainting(values > 0, values)
    kept = Inputs.like(Target(mixture, chain, (2, *EVENT), inpainting=given), tape).inpainting
    assert kept is not None and not values.is_contiguous()
    assert kept.values.is_contiguous() and kept.mask.is_contiguous() and torch.equal(kept.values, values)


class Writes(TorchDispatchMode):
    """Refuses numbers of the program's text where an index says what is written.

    PyTorch copies such a number to the GPU, for which the host waits: so it cannot be captured there.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        if "index_put" in str(func):
            assert args[2].ndim > 0
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", SPECS)
def test_no_number_of_the_host_is_written_by_an_index(
    spec: str, mixture: MixtureDenoiser, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asd_policy.samplers.asd.sampler.loops_of", lambda *_: None)
    monkeypatch.setattr(Path, "compact", False)  # as on a GPU
    tape = make_tape(2, chain, 0)
    with Writes():
        make_sampler(spec).sample(mixture, chain, (2, *EVENT), generator=tape)
    with Writes(), pytest.raises(AssertionError):
        torch.zeros(3)[torch.tensor([1])] = 1


class Reads(TorchDispatchMode):
    """Notes the memory that operations read and that was there before them, without keeping it."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.found: dict[int, StorageWeakRef] = {}
        self._made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        made = {each.untyped_storage()._cdata for each in self._made}
        numbers = func is torch.ops.aten.lift_fresh.default  # of the program's text
        for each in () if numbers else tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in made:
                self.found[each.untyped_storage()._cdata] = StorageWeakRef(each.untyped_storage())
        results = func(*args, **(kwargs or {}))
        self._made += [each for each in tree_leaves(results) if isinstance(each, Tensor)]
        return results


class Addresses(Replays):
    """Knows of what it records no more than where the memory is, as a CUDA graph does."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Look what the work reads; nothing is replayed."""
        work()
        with (reads := Reads()):
            work()
        self.memory = {**getattr(self, "memory", {}), **reads.found}
        return lambda: None


@pytest.mark.parametrize("kind", ["walk", "rounds"])
def test_what_a_recording_reads_is_kept(kind: str, mixture: MixtureDenoiser, chain: GaussianChain) -> None:
    """By what replays it: a graph holds nothing but addresses."""
    launcher, tape, held = Addresses(), make_tape(3, chain, 0), torch.zeros((3, *EVENT), dtype=DTYPE)
    draft, verifier = DRAFTS["response"], VERIFIERS["block"]
    target = Target(mixture, chain, (3, *EVENT), None, Inpainting(held > 0, held), launcher)
    kept: Any = (
        WalkRecording(launcher, target, tape, lambda *own: walk(*own)[0])
        if kind == "walk"
        else RoundRecording(launcher, Round(target, draft, verifier, None, 4), tape)
    )
    if kind == "rounds":
        kept._x0_pred = torch.zeros_like(kept.path.x)
        launcher.record(kept._predict)
    del target, tape, held
    gc.collect()
    assert len(launcher.memory) > 5
    assert not [each for each in launcher.memory.values() if each.expired()]
    del kept
    gc.collect()
    assert [each for each in launcher.memory.values() if each.expired()]  # and by nothing else


def test_without_memory_the_window_shrinks_and_says_so(launched: Launched, chain: GaussianChain) -> None:
    launched.launcher.room = 7
    sampler, tape = make_sampler("asd:window=12"), make_tape(2, chain, 0)
    with pytest.warns(UserWarning, match="window=12 at batch 2 needs more memory than the device has: .* window=6"):
        result = sampler.sample(launched, chain, (2, *EVENT), generator=tape)
    assert result.stats.window == 3
    assert result.stats.spec == "asd:window=3,draft=response,verify=block"
    recorded = launched.launcher.recorded
    assert sampler.sample(launched, chain, (2, *EVENT), generator=tape).stats.window == 3
    assert launched.launcher.recorded == recorded  # not tried again at every plan
    launched.launcher.room = 1
    with pytest.raises(BackendError, match="no memory for a batch of 3"):
        make_sampler("ddpm").sample(launched, chain, (3, *EVENT), generator=make_tape(3, chain, 0))
    with pytest.raises(BackendError, match="no memory for a batch of 3"), pytest.warns(UserWarning, match="window=1$"):
        make_sampler("asd:window=2").sample(launched, chain, (3, *EVENT), generator=make_tape(3, chain, 0))


def test_auto_times_recordings(launched: Launched, chain: GaussianChain) -> None:
    """Of calls, for the settings to try; and each that is tried is recorded once."""
    known, windows = Experience(), list[int | None]()
    for seed in range(30):
        sampler, tape = make_sampler("asd"), make_tape(1, chain, seed)
        result = sampler.sample(launched, chain, (1, *EVENT), generator=tape, warm_start=WarmStart(None, known))
        windows.append(result.stats.window)
    assert set(known.latency) == {1, 4, 12}
    tried = list(known.trials[1, None, None].tried)
    settings, sequential = [each for each in tried if each.window > 1], any(each.window == 1 for each in tried)
    # The calls, what is tried, each of its start and its round, or the sequential sampler's chain for a window of 1,
    # whatever the draft, and the default, if that is not among what is tried.
    assert launched.launcher.recorded - 3 - 2 * len(settings) - sequential in (0, 2)
    changes = sum(one != other for one, other in zip(windows, windows[1:], strict=False))
    assert changes <= 8  # in blocks


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_deadline_stops_recorded_rounds(
    draft: str, launched: Launched, chain: GaussianChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are done are those without a deadline; the others jump, by one recording more."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    replay = launched.launcher.record

    def slow(work: Callable[[], object]) -> Callable[[], None]:
        recorded = replay(work)

        def run() -> None:
            now[0] += 0.01
            recorded()

        return run

    monkeypatch.setattr(launched.launcher, "record", slow)
    sampler, tape, known = make_sampler(f"asd:window=4,draft={draft}"), make_tape(ROWS, chain, 5), Experience()
    known.freeze()
    full = sampler.sample(launched, chain, (ROWS, *EVENT), generator=tape, warm_start=WarmStart(None, known))
    stopped = [
        sampler.sample(
            launched,
            chain,
            (ROWS, *EVENT),
            generator=tape,
            warm_start=WarmStart(None, known),
            budget=Budget(deadline_ms=10 * calls + 5),
        )
        for calls in (20, *range(4, 20))
    ]
    for calls, result in zip(range(4, 20), stopped[1:], strict=True):
        assert result.stats.seconds <= 0.01 * calls + 0.005
        cut = torch.tensor(result.stats.cut)
        assert torch.equal(result.sample[~cut], full.sample[~cut])
        for row in range(ROWS):
            assert result.stats.rounds[row] <= min(full.stats.rounds[row] + 1, calls)
    counts = [sum(result.stats.cut) for result in stopped[1:]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == ROWS
    assert counts[-1] == 0


def test_one_recording_cannot_be_cut(launched: Launched, chain: GaussianChain) -> None:
    with pytest.raises(SpecError, match="ddpm is one recording on this backend, which no deadline can cut"):
        make_sampler("ddpm").sample(launched, chain, (1, *EVENT), budget=Budget(deadline_ms=1000))
