"""The benchmark's arithmetic and order, on a clock that moves only when a network is called."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from asd_policy import cli
from asd_policy._common.clock import STAGES, HostClock
from asd_policy.checkpoints import load_policy
from asd_policy.cli import bench as bench_command
from asd_policy.errors import AsdError, BackendError
from asd_policy.evaluation import benchmark, roofline
from asd_policy.evaluation.benchmark import Benchmark, Contender, TimedPlan, contenders
from asd_policy.evaluation.costs import network_limit
from asd_policy.evaluation.states import States, histories, random_states
from asd_policy.networks.backends import BACKENDS, Backend, Job
from asd_policy.networks.denoiser import Denoiser
from asd_policy.policy.plan import Plan
from asd_policy.policy.policy import Policy
from asd_policy.samplers import Sampler, make_sampler
from asd_policy.samplers.records import PlanCost, SpeculationStats, sequential_costs
from support.contract import CONTRACT, SAMPLER_CONTRACT, one_line

DDPM, ASD = make_sampler("ddpm"), make_sampler("asd:window=4")


class Hand:
    """A clock's hand."""

    now = 0.0

    def perf_counter(self) -> float:
        """Read it."""
        return self.now


HAND = Hand()


@dataclass(frozen=True)
class Eager(Backend):
    """A backend whose calls take three seconds, and one more for each point."""

    per_call = 3.0

    @property
    def spec(self) -> str:
        """As registered."""
        return "torch-eager"

    @property
    def dtype(self) -> str:
        """As PyTorch's."""
        return "float32"

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Wrap a network so that time passes."""

        def slow(x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
            HAND.now += self.per_call + len(x)
            return network(x, timestep, cond)

        return slow


class Fast(Eager):
    """A backend whose calls take a second, and one more for each point."""

    per_call = 1.0

    @property
    def spec(self) -> str:
        """As registered."""
        return "fast"


@dataclass(frozen=True)
class Broken(Eager):
    """A backend that cannot run here."""

    @property
    def spec(self) -> str:
        """As registered."""
        return "broken"

    def prepare(self, network: Denoiser, job: Job) -> Denoiser:
        """Refuse."""
        raise BackendError("there is no such device")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let time pass in networks alone, only backends of this file be there, and little be learned."""
    HAND.now = 0.0
    monkeypatch.setattr("time.perf_counter", HAND.perf_counter)
    monkeypatch.setattr(roofline, "matmul_rate", lambda *_: 1e9)  # their own time is none
    monkeypatch.setattr(roofline, "copy_rate", lambda *_: 1e9)
    monkeypatch.setattr(benchmark, "CALIBRATION_PLANS", 4)
    monkeypatch.setattr("asd_policy.policy.policy.TorchEager", Eager)
    # Which puts back what was there in its order, as monkeypatch does not.
    with mock.patch.dict(BACKENDS, {"torch-eager": Eager, "fast": Fast, "broken": Broken}, clear=True):
        yield


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    """A policy of ten steps."""
    return load_policy(checkpoint)


def quiet(doing: str, done: int, total: int) -> None:
    """Say nothing."""


def bench(
    policy: Policy, samplers: list[Sampler], backends: list[Backend], plans: int = 3, batch: int = 1
) -> Benchmark:
    states, other = random_states(policy, 8, 0), random_states(policy, 4, 1)
    return Benchmark(contenders(policy, samplers, backends), states, other, plans, batch)


def identities(found: list[Contender]) -> list[tuple[str, str, bool]]:
    return [(each.policy.sampler.spec, each.policy.backend.spec, each.asked) for each in found]


def test_baselines_are_entered_whether_asked_for_or_not(policy: Policy) -> None:
    assert identities(contenders(policy, [ASD, DDPM], [Eager(), Fast()])) == [
        (ASD.spec, "torch-eager", True),
        ("ddpm", "torch-eager", True),
        (ASD.spec, "fast", True),
        ("ddpm", "fast", True),
    ]
    assert identities(contenders(policy, [ASD, ASD], [Fast(), Fast()])) == [
        (ASD.spec, "fast", True),
        ("ddpm", "fast", False),
        ("ddpm", "torch-eager", False),
    ]


def test_a_backend_that_was_asked_for_must_run(policy: Policy) -> None:
    with pytest.raises(BackendError, match="no such device"):
        contenders(policy, [DDPM], [Fast(), Broken()])
    with mock.patch.dict(BACKENDS, {"torch-eager": Broken}):
        assert identities(contenders(policy, [DDPM], [Fast()])) == [("ddpm", "fast", True)]


def test_rounds_rotate_and_share_states_and_noise(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = contenders(policy, [DDPM, ASD], [Fast()])
    names = {id(contender.policy): index for index, contender in enumerate(entered)}
    seen: list[tuple[int, list[int], int]] = []

    def plan(policy: Policy, states: States, seed: int, clock: HostClock, staged: bool) -> TimedPlan:
        seen.append((names[id(policy)], states.episode.tolist(), seed))
        return timing(len(seen))

    monkeypatch.setattr(benchmark, "plan", plan)
    found = list(benchmark.interleave(entered, random_states(policy, 5, 0), 2, 4, 100, HostClock()))
    assert [which for which, _, _ in seen] == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert [seed for _, _, seed in seen[::3]] == [100, 101, 102, 103]
    assert [rows for _, rows, _ in seen[::3]] == [[0, 1], [2, 3], [4, 0], [1, 2]]  # and from the first again
    assert all(seen[index][1:] == seen[index - index % 3][1:] for index in range(12))
    # Whoever came first, the results are in the contenders' order.
    assert [[each.seconds for each in timings] for timings in found] == [[1, 2, 3], [6, 4, 5], [8, 9, 7], [10, 11, 12]]


def timing(seconds: float, rounds: int = 5, network: float = 0.0) -> TimedPlan:
    plans = (PlanCost(rounds=rounds, nfe=2 * rounds, window=2),)
    stats = SpeculationStats(plans=plans, steps=10, seconds=seconds, network_seconds=network)
    return TimedPlan(seconds, seconds, stats)


def test_latency_by_hand() -> None:
    timings = [timing(1e-3 * milliseconds) for milliseconds in range(1, 101)]
    found = benchmark.summarize_plans(timings, None, None)
    expected = {"mean": 50.5, "p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 100}
    assert found["latency_ms"] == pytest.approx(expected)
    assert found["wall_latency_ms"] == pytest.approx(expected)
    assert found["latencies_ms"] == [float(milliseconds) for milliseconds in range(1, 101)]
    assert found["wall_clock_speedup"] is found["wall_clock_speedup_ci95"] is found["speedup_over_eager"] is None


def test_counts_by_hand() -> None:
    timings = [timing(4.0, rounds=2, network=3.0), timing(6.0, rounds=3, network=3.0)]
    found = benchmark.summarize_plans(timings, timings, None)
    assert found["plans"] == 2
    assert found["rounds_mean"] == found["calls_mean"] == 2.5
    assert found["nfe_mean"] == 5
    assert found["algorithmic_speedup"] == found["acceptance_length_mean"] == 4
    assert found["overhead_fraction"] == pytest.approx(0.4)
    assert found["wall_clock_speedup"] == 1


def test_the_rows_of_a_batch_wait_for_the_slowest() -> None:
    plans = (PlanCost(rounds=2, nfe=4), PlanCost(rounds=6, nfe=12))
    stats = SpeculationStats(plans=plans, steps=10, seconds=1.0, network_seconds=1.0)
    found = benchmark.summarize_plans([TimedPlan(1.0, 1.0, stats)], None, None)
    assert found["rounds_mean"] == 4
    assert found["calls_mean"] == 6


def test_speedups_are_of_pairs() -> None:
    """A machine that slows down sixfold meanwhile leaves the ratio of every pair, and its interval, as they are."""
    drift = np.linspace(1, 6, 30)
    fast, slow = ([timing(float(factor * value)) for value in drift] for factor in (2, 5))
    found = benchmark.summarize_plans(fast, slow, slow[::-1])
    assert found["wall_clock_speedup"] == pytest.approx(2.5)
    assert found["wall_clock_speedup_ci95"] == pytest.approx([2.5, 2.5])
    assert found["wall_clock_speedup_of_medians"] == pytest.approx(2.5)
    low, high = found["speedup_over_eager_ci95"]  # pairs torn apart
    assert low < 2.2 < 2.5 < 2.8 < high
    assert benchmark.summarize_plans(fast[:1], slow[:1], None)["wall_clock_speedup_ci95"] is None


def test_the_baseline_is_the_fastest_sequential_one(policy: Policy) -> None:
    entered = contenders(policy, [DDPM, ASD], [Eager(), Fast()])  # ddpm, asd, ddpm, asd
    timings = [[timing(3.0)], [timing(1.0)], [timing(2.0)], [timing(1.0)]]
    measured = list(zip(entered, timings, strict=True))
    best, eager = benchmark.baselines(measured)
    assert best == measured[2]
    assert eager == measured[0]
    assert benchmark.baselines(measured[1:2]) == (None, None)
    assert benchmark.baselines([]) == (None, None)


def test_a_whole_run_adds_up(policy: Policy) -> None:
    run = bench(policy, [ASD], [Fast()], plans=3)
    run.measure_ceiling()
    run.warm_up(quiet)
    run.measure(quiet)
    found = run.results()
    asd, fast, eager = found["samplers"]
    assert found["plans"] == found["plans_asked"] == 3
    assert found["baseline"] == {"spec": "ddpm", "backend": "fast"}
    assert found["eager_baseline"] == {"spec": "ddpm", "backend": "torch-eager"}
    # Ten calls on one point: two seconds each on the fast backend, four on the eager one.
    assert fast["latencies_ms"] == [20_000] * 3
    assert eager["latencies_ms"] == [40_000] * 3
    assert (fast["wall_clock_speedup"], fast["speedup_over_eager"]) == (1, 2)
    assert eager["wall_clock_speedup"] == 0.5
    assert [fast["asked"], eager["asked"], asd["asked"]] == [False, False, True]
    # A plan of asd takes a second for each call and each point, all of it in the network.
    spent = [1e3 * (timing.stats.rounds[0] + timing.stats.nfe[0]) for timing in (row[0] for row in run._timings)]
    assert asd["latencies_ms"] == spent
    assert asd["wall_clock_speedup"] == pytest.approx(20_000 / np.mean(spent))
    for each in (asd, fast, eager):
        assert each["overhead_fraction"] == 0
        assert each["floor_ms"] == pytest.approx(each["latency_ms"]["mean"])
        assert each["outside_fraction"] == pytest.approx(0)
        assert 0 < each["limit_ms"]
        assert each["stages_ms"] == pytest.approx(dict.fromkeys(STAGES, 0.0) | {"network": each["latency_ms"]["mean"]})


def plan_of(refused: tuple[int, ...], unjudged: tuple[int, ...], spec: str = "asd:…") -> SpeculationStats:
    cost = PlanCost(rounds=3, nfe=9, window=4, refused=refused, unjudged=unjudged)
    return SpeculationStats(plans=(cost,), steps=4, seconds=1.0, network_seconds=None, spec=spec)


def test_the_limit_by_hand() -> None:
    """Of four steps the first has no draft; the second's is refused in one plan of two, the others' never."""
    plans = [plan_of((1,), (0,)), plan_of((), (0,))]
    # A round of all four, and one more of the last two when the second is refused.
    assert network_limit(plans, 1, lambda points: 1.0) == (pytest.approx(1.5), 4)
    # Where points cost, two rounds of two.
    assert network_limit(plans, 1, lambda points: 1 + points) == (pytest.approx(6), 2)
    # A row's point costs as much as the batch makes it.
    assert network_limit(plans, 10, lambda points: points) == (pytest.approx(40), 1)
    assert network_limit([plan_of((), (), "asd:window=4,draft=frozen,verify=block")], 1, lambda points: 1.0) is None
    stats = SpeculationStats(plans=tuple(sequential_costs([4])), steps=4, seconds=1.0, network_seconds=None)
    assert network_limit([stats], 1, lambda points: 1.0) is None


def test_the_ceiling_has_every_call_of_a_backend(policy: Policy) -> None:
    found = bench(policy, [DDPM], [Fast(), Eager()], batch=2).measure_ceiling().record()
    points = [2, 4, 8, 16]  # twice 1, 2, 4, 8; the chain has ten steps
    for backend, per_call in zip(found["backends"], (1.0, 3.0), strict=True):
        assert [point["points"] for point in backend["curve"]] == points
        assert [point["call_ms"] for point in backend["curve"]] == [1e3 * (per_call + count) for count in points]
        assert backend["call_ms"] == 1e3 * (per_call + 2)
        assert backend["sequential_ms"] == 10 * backend["call_ms"]


def test_what_was_learned_is_learned_before(policy: Policy) -> None:
    run = bench(policy, [make_sampler("asd:window=4"), DDPM], [Fast()], plans=2)
    run.warm_up(quiet)
    experience = run.entered[0].policy.experience
    assert experience.plans == benchmark.CALIBRATION_PLANS
    assert not experience.learning
    run.measure(quiet)
    assert experience.plans == benchmark.CALIBRATION_PLANS
    assert policy.experience.plans == 0


def test_a_contender_that_fails_is_said(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(policy, [DDPM, ASD], [Fast()])

    def plan(policy: Policy, states: States, seed: int, clock: HostClock) -> TimedPlan:
        if policy.sampler == ASD:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return timing(1.0)

    monkeypatch.setattr(benchmark, "plan", plan)
    with pytest.raises(BackendError, match=r"on fast at batch 1 is out of memory: CUDA .* 2 GiB\.; use a smaller"):
        run.warm_up(quiet)
    run.warm_up(quiet, keep_going=True)
    assert len(run.entered) == 2
    (failure,) = run.results()["failed"]
    assert (failure["spec"], failure["backend"]) == (ASD.spec, "fast")
    assert "out of memory" in failure["why"]


def test_an_error_of_a_compiler_leaves_the_others(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(policy, [DDPM, ASD], [Fast()])

    def plan(policy: Policy, states: States, seed: int, clock: HostClock) -> TimedPlan:
        if policy.sampler == ASD:
            raise RuntimeError("no kernel image is available")
        return timing(1.0)

    monkeypatch.setattr(benchmark, "plan", plan)
    with pytest.raises(RuntimeError, match="no kernel image"):
        run.warm_up(quiet)
    run.warm_up(quiet, keep_going=True)
    assert [str(error) for _, error in run.failed] == ["no kernel image is available"]
    assert ASD not in [contender.policy.sampler for contender in run.entered]


def test_rows_of_a_batch_have_noise_of_their_own(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As robots have, and not one source for all, which would draw each step by itself."""
    own, made = Policy.plan, list[Plan]()

    def plan(self: Policy, *given: Any) -> Plan:
        made.append(own(self, *given))
        return made[-1]

    monkeypatch.setattr(Policy, "plan", plan)
    policy = policy.with_sampler(DDPM)
    states = random_states(policy, 2, 0).rows(np.array([0, 0, 1]))
    benchmark.plan(policy, states, 3, HostClock())
    benchmark.plan(policy, states.first(1), 3, HostClock())
    first, second, _ = made[0].sample
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, made[1].sample[0], rtol=0, atol=1e-5)  # the same, whatever is beside it


def test_time_that_is_up_ends_a_run(policy: Policy) -> None:
    run = bench(policy, [DDPM], [Fast()], plans=5)
    run.warm_up(quiet)
    asked: list[bool] = []
    run.measure(quiet, lambda: bool(asked.append(True)) or len(asked) < 2)
    found = run.results()
    assert found["plans"] == found["samplers"][0]["plans"] == 2
    assert found["plans_asked"] == 5
    run = bench(policy, [DDPM], [Fast()])
    run.warm_up(quiet, lambda: False, keep_going=True)
    assert [failure["why"] for failure in run.results()["failed"]] == [
        f"ddpm on {backend} is left out: no time is left to warm it up" for backend in ("fast", "torch-eager")
    ]


def test_an_interruption_leaves_whole_rounds(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(policy, [DDPM], [Fast()], plans=5)
    calls: list[int] = []
    plan = benchmark.plan

    def interrupted(*args: Any) -> TimedPlan:
        calls.append(1)
        if len(calls) == 4:  # of rounds of two
            raise KeyboardInterrupt
        return plan(*args)

    monkeypatch.setattr(benchmark, "plan", interrupted)
    assert run.results()["samplers"] == []
    with pytest.raises(KeyboardInterrupt):
        run.measure(quiet)
    found = run.results()
    assert [each["plans"] for each in found["samplers"]] == [1, 1]
    assert found["samplers"][0]["stages_ms"] is None


def test_histories_are_what_the_conditioning_was_made_of(policy: Policy) -> None:
    cond = random_states(policy, 3, 0).cond
    plan = policy.plan(histories(policy, cond))
    torch.testing.assert_close(plan.cond, cond)


def words(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["bench", "--policy", str(checkpoint), "--plans", "2", "--out", str(out), *more]


def test_bench_writes_results(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    more = ("--samplers", "asd:window=4", "ddim:2", "--backends", "fast", "torch-eager", "--windows", "8")
    assert cli.run(words(checkpoint, out, *more, "--json")) == 0
    printed = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert json.loads(printed.out) == results
    assert set(results) >= CONTRACT
    assert results["command"] == "bench"
    assert results["backends"] == ["fast", "torch-eager"]
    assert results["states_from"] == "random"
    assert not results["interrupted"]
    assert {"load", "usable_cpus"} <= set(results["power_before"]) & set(results["power_after"])
    assert results["versions"]["torch"] == torch.__version__
    specs = [ASD.spec, "ddim:2", make_sampler("asd:window=8").spec, "ddpm"]
    found = [(each["spec"], each["backend"]) for each in results["samplers"]]
    assert found == [(spec, backend) for backend in ("fast", "torch-eager") for spec in specs]
    for sampler in results["samplers"]:
        assert set(sampler) >= SAMPLER_CONTRACT
        assert set(sampler["latency_ms"]) == {"mean", "p50", "p95", "p99", "max"}
        assert sampler["plans"] == 2
    assert "measured:" in printed.err and "where a plan's time goes" in printed.err
    for plot in ("latency.svg", "speedup.svg"):
        text = (out / plot).read_text()
        assert "fast" in text and "torch-eager" in text
        assert str(out / plot) in printed.err


def test_bench_in_closed_loop(checkpoint: Path, tmp_path: Path) -> None:
    assert cli.run(words(checkpoint, tmp_path, "--env", "asd/Avoid-v0", "--samplers", "ddpm")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["states_from"] == "episodes of asd/Avoid-v0"
    assert results["backend"] == "torch-eager"  # the checkpoint's own


def test_bench_without_matplotlib_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.run(words(checkpoint, tmp_path, "--samplers", "ddpm")) == 0
    assert "no plots: they need matplotlib; pip install 'asd-policy[plots]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["results.json"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--plans", "0"), "--plans 0 is not 1 or more"),
        (("--batch", "0"), "--batch 0 is not 1 or more"),
        (("--seed", "-1"), "--seed -1 is not 0 or more"),
        (("--samplers", "fast"), "no sampler 'fast' in 'fast'; there are ddpm"),
        (("--backends", "faster"), "no backend 'faster' in 'faster'; there are torch-eager, fast, broken"),
        (("--backends", "broken"), "there is no such device"),
        (("--windows", "0"), "window=0 is not in 1 … K"),
        (("--windows", "11"), "window=11 is not in 1 … 10"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--env", "asd/MetaWorld-reach-v0"), "the policy's actions have shape (2,)"),
        # Before a network is prepared for a backend, which may take a minute.
        (("--windows", "11", "--backends", "broken"), "window=11 is not in 1 … 10"),
        (("--env", "asd/MetaWorld-reach-v0", "--backends", "broken"), "the policy's actions have shape (2,)"),
    ],
)
def test_mistakes(
    more: tuple[str, ...], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert message in one_line(words(checkpoint, out, *more), capsys)
    assert not out.exists()


def test_a_folder_that_cannot_be_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in one_line(words(checkpoint, tmp_path / "file"), capsys)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, AsdError])
def test_what_was_measured_is_kept(
    stop: type[BaseException],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: Callable[..., Iterator[list[TimedPlan]]] = benchmark.interleave

    def cut_short(*args: Any) -> Iterator[list[TimedPlan]]:
        yield from list(rounds(*args))[:1]
        raise stop("it broke")

    monkeypatch.setattr(benchmark, "interleave", cut_short)
    assert cli.run(words(checkpoint, tmp_path, "--samplers", "ddpm")) == (130 if stop is KeyboardInterrupt else 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"]
    assert results["plans"] == results["samplers"][0]["plans"] == 1
    said = capsys.readouterr().err
    assert "interrupted: 1 of 2 plans are kept in" in said
    assert (said.splitlines()[-1] == "asd-policy: it broke") == (stop is AsdError)


def test_a_bench_that_nobody_ends_is_kept_up_to_then(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `kill -9`: what was written by then is whole rounds, and says that it is not the end."""
    rounds: Callable[..., Iterator[list[TimedPlan]]] = benchmark.interleave

    def killed(*args: Any) -> Iterator[list[TimedPlan]]:
        yield from list(rounds(*args))[:1]
        raise SystemError

    monkeypatch.setattr(benchmark, "interleave", killed)
    monkeypatch.setattr(bench_command, "KEPT_EVERY", 0.0)
    with pytest.raises(SystemError):
        cli.run(words(checkpoint, tmp_path, "--samplers", "ddpm"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["interrupted"], results["plans"], results["samplers"][0]["plans"]) == (True, 1, 1)


def test_no_plan_replaces_none(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before the first round, a bench leaves an earlier one as it was; alone, it keeps its ceiling."""

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Benchmark, "warm_up", ended)
    assert cli.run(words(checkpoint, tmp_path, "--samplers", "ddpm")) == 130
    path = tmp_path / "results.json"
    assert json.loads(path.read_text())["ceiling"]["backends"]
    path.write_text('{"command": "bench"}')
    assert cli.run(words(checkpoint, tmp_path, "--samplers", "ddpm")) == 130
    assert path.read_text() == '{"command": "bench"}'
    assert f"interrupted: 0 of 2 plans are there; {tmp_path} keeps the results of before" in capsys.readouterr().err
