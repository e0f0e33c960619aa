"""Operations and bytes by hand, and what the bounds make of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from asd_policy._common.clock import HostClock
from asd_policy.checkpoints import load_policy
from asd_policy.errors import BackendError
from asd_policy.evaluation import roofline
from asd_policy.evaluation.roofline import Ceiling, Network, Work, measure_network, measure_work
from support.replays import Replays


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_work_of_a_linear_layer() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    numbers = 3 * 5 + 5 * 7 + 7 + 3 * 7  # input, weight, bias, output
    assert measure_work(lambda: layer(x), 3) == Work(3, 2 * 3 * 5 * 7, 4 * numbers)


def test_work_of_a_convolution() -> None:
    layer, x = nn.Conv1d(2, 4, 3, padding=1, bias=False), torch.randn(5, 2, 8)
    numbers = 5 * 2 * 8 + 4 * 2 * 3 + 5 * 4 * 8
    assert measure_work(lambda: layer(x), 5) == Work(5, 2 * 5 * 8 * 4 * 2 * 3, 4 * numbers)


def test_views_move_nothing_and_copies_do() -> None:
    x = torch.randn(3, 5)
    assert measure_work(lambda: x.t()[1:].unsqueeze(0), 1).bytes == 0
    assert measure_work(lambda: x + 1, 1).bytes == 2 * 4 * 15
    assert measure_work(lambda: x.half(), 1).bytes == (4 + 2) * 15


def test_an_operation_in_place_reads_and_writes() -> None:
    x, y = torch.zeros(3, 5), torch.ones(3, 5)
    assert measure_work(lambda: x.add_(y), 1).bytes == 3 * 4 * 15


def test_a_network_without_modules_has_no_work(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    found = measure_network(policy, (1, 4))
    assert found is not None
    assert found.weight_bytes == 4 * found.parameters
    assert found.work[1].flops == 4 * found.work[0].flops
    policy.network = lambda x, timestep, cond: x
    assert measure_network(policy, (1, 4)) is None


def test_bounds_by_hand() -> None:
    network = Network(parameters=100, weight_bytes=400, work=(Work(2, 6000, 1000), Work(4, 60_000, 1200)))
    ceiling = Ceiling(
        steps=50,
        calls={"torch": {2: [5.0, 1.0, 2.0], 4: [4.0, 8.0, 12.0]}, "half": {2: [1.0], 4: [2.0]}},
        dtypes={"torch": "float32", "half": "float16"},
        network=network,
        flops_per_second={"float32": 6000.0, "float16": 60_000.0},
        bytes_per_second=250.0,
    )
    torch_, half = ceiling.record()["backends"]
    assert (torch_["call_ms"], torch_["sequential_ms"]) == (2000, 100_000)
    assert torch_["curve"] == [
        {"points": 2, "call_ms": 2000, "call_min_ms": 1000, "n": 3,
         "compute_ms": 1000, "weights_ms": 1600, "traffic_ms": 4000, "of_limit": 0.8},
        {"points": 4, "call_ms": 8000, "call_min_ms": 4000, "n": 3,
         "compute_ms": 10_000, "weights_ms": 1600, "traffic_ms": 4800, "of_limit": 1.25},
    ]  # fmt: skip
    # Half the bytes in half precision.
    assert half["curve"][0] | {"compute_ms": 100, "weights_ms": 800, "traffic_ms": 2000} == half["curve"][0]
    assert ceiling.call_seconds("torch", 3) == 5
    assert [ceiling.call_seconds("torch", points) for points in (1, 2, 9)] == [2, 2, 8]  # no further than measured


def test_calls_are_timed_in_a_row(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As plans make them: the first ten after calls on other points find caches full of those, and take longer."""
    policy, now = load_policy(checkpoint), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    sizes: list[int] = []

    def network(x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(x))
        now[0] += 0.001 if sizes[-10:] == [len(x)] * 10 else 0.004
        return x

    policy.denoiser = network
    told: list[tuple[str, int, int]] = []
    (took,) = roofline.time_calls([policy], (1, 2, 4), HostClock(), lambda *what: told.append(what)).values()
    assert list(took) == [1, 2, 4]
    turns = 3 * roofline.BLOCKS
    assert told == [("measuring the ceiling", turn, turns) for turn in range(turns)]
    for seconds in took.values():
        assert seconds == pytest.approx([0.001] * roofline.BLOCKS * roofline.CALLS)
    turn = sizes[: len(sizes) // roofline.BLOCKS]
    assert turn == sorted(turn) and sizes == turn * roofline.BLOCKS  # in turns, so that a busy moment meets all


def test_calls_that_plans_replay_are_replayed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called one by one, a network on a GPU takes as long as Python needs to launch it."""
    monkeypatch.setattr(roofline, "_WARM_UP_SECONDS", float("inf"))
    policy = load_policy(checkpoint)

    class Launched:
        """A network whose calls can be recorded."""

        launcher = Replays()

        def __call__(self, x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
            """Return the points."""
            return x

    policy.denoiser = Launched()
    took = roofline.time_calls([policy], (1, 2), HostClock())[policy.backend.spec]
    assert [len(each) for each in took.values()] == [roofline.BLOCKS * roofline.CALLS] * 2
    assert Launched.launcher.log[:2] == ["record"] * 2
    made = 2 * roofline.BLOCKS * (roofline._WARM_UP_CALLS + roofline.CALLS)
    assert Launched.launcher.log.count("replay") == Launched.launcher.log.count("settle") == made
    Launched.launcher = Replays(room=-1)
    with pytest.raises(BackendError, match="no memory to record a network call"):
        roofline.time_calls([policy], (1, 2), HostClock())


def test_conditioning_that_is_taken_in_once_is_no_part_of_a_call(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    seen: list[torch.Size] = []

    class Encoding:
        """A denoiser that reads what it encoded."""

        def encode(self, cond: torch.Tensor) -> torch.Tensor:
            """Make it short."""
            return cond[:, :3]

        def __call__(self, x: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
            assert cond is not None
            seen.append(cond.shape)
            return x

    policy.denoiser = Encoding()
    roofline.time_calls([policy], (2,), HostClock())
    assert set(seen) == {torch.Size((2, 3))}


def test_rates_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) / 4)  # a quarter of a second for everything
    monkeypatch.setattr(roofline, "_MATRIX", {"cpu": 10})
    monkeypatch.setattr(roofline, "_COPIED", {"cpu": 100})
    cpu = torch.device("cpu")
    assert roofline.matmul_rate(cpu, "float32", HostClock()) == 2 * 10**3 * 4
    assert roofline.copy_rate(cpu, HostClock()) == 2 * 100 * 4
