"""A policy that plans on a server acts as one that plans here; batches, places, queues and deadlines."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from grpc_health.v1 import health_pb2

import asd_policy
from asd_policy import ControlLoop, LoopOptions
from asd_policy.deploy.realtime.link import EpisodeEnded
from asd_policy.deploy.realtime.timebase import VirtualTime
from asd_policy.deploy.serving import RemotePolicy, requests, server, wire
from asd_policy.deploy.serving.client import RemotePlan
from asd_policy.deploy.serving.dispatcher import Dispatcher, Request, batch_sizes
from asd_policy.deploy.serving.metrics import Metrics
from asd_policy.deploy.serving.server import Limits, PolicyServer
from asd_policy.deploy.serving.sessions import Sessions, Shares
from asd_policy.errors import ObservationError, ServingError, SpecError
from asd_policy.policy.continuity import Prefix
from support.policy_servers import FIXED, OBSERVATION, Raw, Served, good_request, health, observation, serving

ROOT = Path(__file__).parents[3]
WARM = "asd:window=4,draft=warm,verify=block"
"""A sampler whose plans depend on the last one, too."""


@pytest.fixture(scope="module")
def served(small_checkpoint: Path) -> Iterator[Served]:
    with serving(small_checkpoint) as served:
        yield served


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_alone_it_acts_as_here_to_the_bit(served: Served, small_checkpoint: Path) -> None:
    """Two episodes with seeds, and a third that goes on with the noise of the second."""
    here = asd_policy.load_policy(small_checkpoint, FIXED)
    rng = np.random.default_rng(0)
    with served.connect() as there:
        assert there.observation_dims == here.observation_dims
        assert (there.action_dim, there.sampler, there.exact) == (here.action_dim, FIXED, True)
        assert there.horizons.executed == here.horizons.executed
        for seed in (3, 2**64 - 1, None):
            here.reset(seed)
            there.reset(seed)
            for _ in range(20):
                seen = {key: rng.normal(size=len(zeros)) for key, zeros in OBSERVATION.items()}
                assert there.select_action(seen).tolist() == here.select_action(seen).tolist()
            plan, record = there.last_plan, here.last_plan
            assert plan is not None and record is not None
            assert (plan.rounds, plan.nfe, plan.window, plan.batch) == (record.rounds, record.nfe, record.window, 1)
            assert (plan.at, plan.cut, plan.exact) == (record.at, record.cut, record.exact)
            assert plan.actions.shape == (15, 2)
            assert plan.seconds > plan.planned > 0 and plan.waited >= 0


@pytest.mark.parametrize("continuity", ["none", "inpaint", "soft"])
def test_a_control_loop_plans_there_as_here(continuity: str, small_checkpoint: Path) -> None:
    """To the bit, with what the robot goes on to do and the last plan as draft, in episodes that begin anew."""
    here = asd_policy.load_policy(small_checkpoint, WARM)
    here.reset(3)
    written: list[list[list[float]]] = []
    with serving(small_checkpoint, WARM) as served, served.connect() as there:
        there.reset(3)
        for planner in (here, there):
            actions: list[list[float]] = []

            def write(action: npt.NDArray[np.float32], actions: list[list[float]] = actions) -> None:
                actions.append(action.tolist())
                if len(actions) % 40 == 0:
                    raise EpisodeEnded

            def read(actions: list[list[float]] = actions) -> dict[str, Any]:
                return observation(0.01 * len(actions))

            options = LoopOptions(patience=60, ticks=100, continuity=continuity)
            told = ControlLoop(planner, read, write, 10.0, options, VirtualTime(0.25)).run()
            assert (told.episodes, told.stale, told.faults) == (2, 0, 0)
            written.append(actions)
        plan = there.last_plan
        assert plan is not None
        assert (plan.exact, plan.cut) == (continuity != "soft", False)
        assert 0 < served.policy.robots[0].records[-1].at < 40  # steps of the episode, not of the loop
    assert written[0] == written[1]


def test_a_robot_that_is_drawn_to_its_last_plan_marks_no_other(small_checkpoint: Path) -> None:
    """Its plan is approximate; that of the robot beside it is as alone."""
    rest = np.linspace(-0.5, 0.5, 20, dtype=np.float32).reshape(10, 2)
    with serving(small_checkpoint) as served, ThreadPoolExecutor(3) as pool:
        blocker, drawn, free = (served.connect() for _ in range(3))
        served.gate.clear()
        blocked = pool.submit(blocker.select_action, observation(-1))
        until(lambda: len(served.batches) == 1)
        free.reset(seed=7)
        asked = [
            pool.submit(drawn.plan, [observation(0)], 0, True, Prefix(rest, 2, soft=True)),
            pool.submit(free.plan, [observation(1)], 0, True),
        ]
        until(lambda: served.metric("queue") == 2)
        served.gate.set()
        found = [each.result().actions for each in asked]
        blocked.result()
        for robot, exact in ((drawn, False), (free, True)):
            assert robot.last_plan is not None
            assert (robot.last_plan.batch, robot.last_plan.exact) == (2, exact)
    np.testing.assert_allclose(found[0][:2], rest[:2], atol=1e-6)
    here = asd_policy.load_policy(small_checkpoint, FIXED)
    here.reset(seed=7)
    here.observe(0, observation(1))
    np.testing.assert_allclose(found[1], here.plan_for([0])[0], rtol=0, atol=1e-4)


def test_a_control_loop_survives_its_server(small_checkpoint: Path) -> None:
    """Safe actions while there is none; the policy again when there is one at the same address."""
    policy = asd_policy.load_policy(small_checkpoint, FIXED)
    options = LoopOptions(safe_action=[9.0, 9.0], recover=True, late_limit=10**9)
    first = PolicyServer(policy)
    with RemotePolicy(f"127.0.0.1:{first.start()}") as there:
        with ControlLoop(there, lambda: OBSERVATION, lambda action: None, 100.0, options) as loop:
            until(lambda: loop.telemetry().state == "running")
            first.stop()
            until(lambda: loop.telemetry().state == "safe")
            assert "cannot be reached" in str(loop.telemetry().fault)
            second = PolicyServer(policy)
            second.start(port=int(there.address.rpartition(":")[2]))
            until(lambda: loop.telemetry().state == "running")
        second.stop()
    assert loop.telemetry().fault is None


def test_a_control_loop_waits_for_a_busy_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the server says; not beyond the timeout."""
    with served.connect(timeout=5) as robot:
        plan, refusals = robot._plan, [ServingError("busy", "RESOURCE_EXHAUSTED", wait) for wait in (0.01, 0.01)]

        def busy(prefix: Prefix | None, end: float) -> RemotePlan:
            if refusals:
                raise refusals.pop()
            return plan(prefix, end)

        monkeypatch.setattr(robot, "_plan", busy)
        assert robot.plan([observation(0)], 0, True).actions.shape == (15, 2)
        for wait in (6.0, None):
            refusals.append(ServingError("busy", "RESOURCE_EXHAUSTED", wait))
            with pytest.raises(ServingError, match="busy"):
                robot.plan([observation(0)], 0, True)


@pytest.mark.parametrize("freed", [True, False])
def test_a_control_loop_at_a_full_queue(freed: bool, small_checkpoint: Path) -> None:
    """It asks again until there is room for it, and has a plan then; no longer than its timeout."""
    with serving(small_checkpoint, limits=Limits(1, max_queue=1)) as served, ThreadPoolExecutor(3) as pool:
        robots = [served.connect(timeout=60) for _ in range(2)]
        late = served.connect(timeout=60 if freed else 1)
        served.server._dispatcher._seconds = 0.02
        served.gate.clear()
        asked = [pool.submit(robots[0].select_action, observation(0))]
        until(lambda: len(served.batches) == 1)
        asked.append(pool.submit(robots[1].select_action, observation(1)))
        until(lambda: served.metric("queue") == 1)
        start = time.monotonic()
        waits = pool.submit(late.plan, [observation(2)], 0, True)
        until(lambda: served.metric("refusals_total", status="RESOURCE_EXHAUSTED") >= 2)
        if freed:
            served.gate.set()
            assert waits.result().actions.shape == (15, 2)
        else:
            time.sleep(0.8 - (time.monotonic() - start))
            served.server._dispatcher._max_queue = 2  # room, though nobody plans
            with pytest.raises(ServingError, match="has not answered within 1 s"):
                waits.result()
            assert 0.9 < time.monotonic() - start < 1.5
            served.gate.set()
        for each in asked:
            each.result()


def test_the_last_plan_begins_the_next(small_checkpoint: Path) -> None:
    """`warm` drafts depend on it: moved on by the actions that the robot has taken."""
    here = asd_policy.load_policy(small_checkpoint, WARM)
    here.reset(1)
    with serving(small_checkpoint, WARM) as served, served.connect() as there:
        there.reset(1)
        for step in range(33):
            seen = observation(0.01 * step)
            assert there.select_action(seen).tolist() == here.select_action(seen).tolist()
        assert there.last_plan is not None
        assert there.last_plan.rounds == here.robots[0].records[-1].rounds
        assert len(served.policy.robots[0].plans) == 2  # of an episode that lasts for days there is no more kept


def test_robots_in_one_batch_act_as_alone(served: Served, small_checkpoint: Path) -> None:
    """Up to the rounding of the batch, each with its own noise."""
    robots, batches = [served.connect() for _ in range(4)], len(served.batches)
    with ThreadPoolExecutor(4) as pool:
        for index, robot in enumerate(robots):
            robot.reset(seed=index)
        served.gate.clear()
        blocker = served.connect()
        blocked = pool.submit(blocker.select_action, observation(-1))
        until(lambda: len(served.batches) == batches + 1)
        asked = []
        for index, robot in enumerate(robots[:3]):
            asked.append(pool.submit(robot.select_action, observation(index)))
            until(lambda index=index: served.metric("queue") == index + 1)
        served.gate.set()
        found = [each.result() for each in asked]
        blocked.result()
    assert served.batches[-1] == [0.0, 1.0, 2.0]
    for index, action in enumerate(found):
        here = asd_policy.load_policy(small_checkpoint, FIXED)
        here.reset(seed=index)
        np.testing.assert_allclose(action, here.select_action(observation(index)), rtol=0, atol=1e-4)
        plan = robots[index].last_plan
        assert plan is not None and plan.batch == 3 and plan.waited > 0
    for robot in (*robots, blocker):
        robot.close()


def test_the_oldest_requests_come_first(small_checkpoint: Path) -> None:
    """With more robots than fit into a batch nobody is passed over."""
    with serving(small_checkpoint, limits=Limits(max_batch=2)) as served, ThreadPoolExecutor(8) as pool:
        robots = [served.connect() for _ in range(5)]
        served.gate.clear()
        asked = []
        for index, robot in enumerate(robots):
            asked.append(pool.submit(robot.select_action, observation(index)))
            until(lambda index=index: served.metric("queue") == index and len(served.batches) == 1)
        served.gate.set()
        for each in asked:
            each.result()
        assert served.batches == [[0.0], [1.0, 2.0], [3.0, 4.0]]
        assert (served.metric("plans_total"), served.metric("latency_seconds_count")) == (5, 5)
        assert (served.metric("batch_sum"), served.metric("batch_count")) == (5, 3)
        assert served.metric("rounds_total") >= 5


def test_robots_that_share_a_connection(small_checkpoint: Path) -> None:
    """As those behind a gateway do: each has a plan, though all ask at once."""
    with serving(small_checkpoint, limits=Limits(4, max_clients=40, max_queue=40, max_per_peer=40)) as served:
        raw = Raw(served.address)
        requests = [good_request(raw.open()) for _ in range(40)]
        with ThreadPoolExecutor(40) as pool:
            replies = list(pool.map(raw.plan, requests))
        assert sum(1 / reply.batch for reply in replies) == pytest.approx(len(served.batches))
        assert served.metric("plans_total") == 40


def test_a_full_queue_refuses_at_once(small_checkpoint: Path) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_queue=1)) as served, ThreadPoolExecutor(4) as pool:
        robots = [served.connect() for _ in range(3)]
        served.gate.clear()
        first = pool.submit(robots[0].select_action, observation(0))
        until(lambda: len(served.batches) == 1)
        second = pool.submit(robots[1].select_action, observation(1))
        until(lambda: served.metric("queue") == 1)
        with pytest.raises(ServingError, match=r"refuses: 1 requests wait already; try again in \d") as refused:
            robots[2].select_action(observation(2))
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        assert refused.value.retry_after is not None and refused.value.retry_after >= 0
        assert served.metric("refusals_total", status="RESOURCE_EXHAUSTED") == 1
        served.gate.set()
        first.result()
        second.result()
        robots[2].select_action(observation(2))


def test_who_has_gone_is_not_planned_for(small_checkpoint: Path) -> None:
    """Neither after a deadline nor when a call was called off, and the robot can ask again."""
    with serving(small_checkpoint) as served, ThreadPoolExecutor(4) as pool:
        first, hasty = served.connect(), served.connect(timeout=0.3)
        served.gate.clear()
        planned = pool.submit(first.select_action, observation(0))
        until(lambda: len(served.batches) == 1)
        with pytest.raises(ServingError, match=r"has not answered within 0\.3 s") as late:
            hasty.select_action(observation(1))
        assert late.value.code == "DEADLINE_EXCEEDED"
        raw = Raw(served.address)
        session = raw.open()
        called: grpc.Future = raw.channel.unary_unary(wire.method("Plan")).future(
            good_request(session, 2.0).SerializeToString()
        )
        until(lambda: served.metric("queue") >= 1)
        called.cancel()
        until(lambda: served.metric("queue") == 0)
        assert served.metric("dropped_total") == 2
        served.gate.set()
        planned.result()
        hasty.select_action(observation(3))
        assert served.batches == [[0.0], [3.0]]
        assert len(raw.plan(good_request(session)).actions.data) == 4 * 15 * 2


def test_a_late_request_is_dropped_even_if_nobody_says_so(small_checkpoint: Path) -> None:
    """The dispatcher looks at the deadline itself: the event loop may be late."""
    policy = asd_policy.load_policy(small_checkpoint, FIXED)
    dispatcher = Dispatcher(policy, 2, 4, Metrics())
    session = Sessions(Shares(1), 60.0)
    opened = session.renew(session.open(policy.new_episode()))
    assert opened is not None
    late = Request(opened, [], 0, True, deadline=time.monotonic() - 1)
    dispatcher.submit(late)
    dispatcher.start()
    dispatcher.stop()
    assert late.answer.cancelled() and not opened.busy


def test_one_plan_at_a_time(small_checkpoint: Path) -> None:
    with serving(small_checkpoint) as served, ThreadPoolExecutor(2) as pool:
        raw = Raw(served.address)
        request = good_request(raw.open())
        served.gate.clear()
        first = pool.submit(raw.plan, request)
        until(lambda: len(served.batches) == 1)
        with pytest.raises(grpc.RpcError) as refused:
            raw.plan(request)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "still under way" in str(refused.value.details())
        served.gate.set()
        first.result()


def test_a_plan_that_was_given_up_is_waited_for(small_checkpoint: Path) -> None:
    """It is made on the server all the same; a robot that asks again has the next one, and asks as often as told."""
    with serving(small_checkpoint) as served, ThreadPoolExecutor(1) as pool:
        robot = served.connect(timeout=0.3)
        served.gate.clear()
        with pytest.raises(ServingError, match=r"has not answered within 0\.3 s"):
            robot.plan([observation(0)], 0, True)
        robot._timeout = 60
        served.server._dispatcher._seconds = 0.1
        asked = pool.submit(robot.plan, [observation(1)], 0, True)
        until(lambda: served.metric("refusals_total", status="FAILED_PRECONDITION") >= 2)
        served.gate.set()
        assert asked.result().actions.shape == (15, 2)
        assert served.batches == [[0.0], [1.0]]
        assert served.metric("refusals_total", status="FAILED_PRECONDITION") < 8


def test_steps_that_go_back(served: Served) -> None:
    raw = Raw(served.address)
    request = good_request(raw.open())
    request.step = 8
    raw.plan(request)
    request.begins, request.step = False, 7
    with pytest.raises(grpc.RpcError) as refused:
        raw.plan(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "step 7 is before step 8" in str(refused.value.details())
    request.step = 2**64 - 1
    raw.plan(request)


def test_a_robot_that_goes_away_frees_its_place(small_checkpoint: Path) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_clients=1, lease=0.5)) as served:
        gone = served.connect()
        gone.reset(seed=1)
        expected = gone.select_action(OBSERVATION).tolist()
        with pytest.raises(ServingError, match="refuses: all 1 places are taken") as full:
            served.connect()
        assert (full.value.code, full.value.retry_after) == ("RESOURCE_EXHAUSTED", 0.5)
        until(lambda: served.metric("sessions") == 0)
        served.connect().close()
        assert served.metric("sessions") == 0
        with pytest.raises(ServingError, match=r"no such session: it has ended, as 0\.5 s without a plan do"):
            for _ in range(8):
                gone.select_action(OBSERVATION)
        gone.reset(seed=1)  # takes a place again
        assert gone.select_action(OBSERVATION).tolist() == expected


def test_a_plan_under_way_keeps_its_place(small_checkpoint: Path) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_clients=1, lease=0.5)) as served, ThreadPoolExecutor(1) as pool:
        robot = served.connect()
        served.gate.clear()
        slow = pool.submit(robot.select_action, OBSERVATION)
        until(lambda: len(served.batches) == 1)
        time.sleep(0.7)
        with pytest.raises(ServingError, match="all 1 places are taken"):
            served.connect()
        served.gate.set()
        slow.result()
        batches = len(served.batches)
        while len(served.batches) == batches:  # its lease begins when it has its plan
            robot.select_action(OBSERVATION)


def test_a_row_that_spoils_a_batch_spoils_no_other(
    served: Served, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers so large that the network overflows; the robot beside it gets the plan that it gets alone."""
    monkeypatch.setattr(requests, "MAX_NORMALIZED", np.inf)
    good, bad, blocker = served.connect(), served.connect(), served.connect()
    good.reset(seed=4)
    with ThreadPoolExecutor(3) as pool:
        served.gate.clear()
        batches = len(served.batches)
        first = pool.submit(blocker.select_action, OBSERVATION)
        until(lambda: len(served.batches) == batches + 1)
        spoilt = pool.submit(bad.select_action, observation(3e38))
        until(lambda: served.metric("queue") == 1)
        fine = pool.submit(good.select_action, OBSERVATION)
        until(lambda: served.metric("queue") == 2)
        served.gate.set()
        first.result()
        with pytest.raises(ServingError, match="refuses: the network returned NaN or infinity"):
            spoilt.result()
        action = fine.result()
    assert [len(batch) for batch in served.batches[-3:]] == [2, 1, 1]
    here = asd_policy.load_policy(small_checkpoint, FIXED)
    here.reset(seed=4)
    assert action.tolist() == here.select_action(OBSERVATION).tolist()
    assert good.last_plan is not None and good.last_plan.batch == 1
    bad.reset()
    bad.select_action(OBSERVATION)
    for robot in (good, bad, blocker):
        robot.close()


def test_a_fault_of_the_server_is_said_and_survived(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: object, prefixes: object) -> None:
        raise RuntimeError("out of memory at 0xdeadbeef")

    with served.connect() as robot:
        with monkeypatch.context() as patch:
            patch.setattr(served.policy, "plan_for", broken)
            for failed in range(3):  # health says so after as many in a row
                assert health(served.address) == health_pb2.HealthCheckResponse.SERVING, failed
                with pytest.raises(ServingError, match="refuses: the plan failed: RuntimeError$") as fault:
                    robot.select_action(OBSERVATION)
                assert fault.value.code == "INTERNAL"
            until(lambda: health(served.address) == health_pb2.HealthCheckResponse.NOT_SERVING)
        robot.select_action(OBSERVATION)
        until(lambda: health(served.address) == health_pb2.HealthCheckResponse.SERVING)


def test_every_size_was_planned_with_before_the_first_request(small_checkpoint: Path) -> None:
    """`asd` has its timings, and has learned nothing."""
    with serving(small_checkpoint, "asd", Limits(max_batch=3)) as served:
        assert {batch for batch, _, _ in served.policy.experience.trials} == {1, 2, 3}
        assert served.policy.experience.plans == 0
        with served.connect() as robot:
            robot.select_action(OBSERVATION)
            assert robot.last_plan is not None and robot.last_plan.sampler.startswith("asd:window=")


@pytest.mark.parametrize(
    ("most", "on_cpu", "sizes"),
    [(3, True, (1, 2, 3)), (1, False, (1,)), (6, False, (1, 2, 4, 6)), (8, False, (1, 2, 4, 8))],
)
def test_sizes_of_batches(most: int, on_cpu: bool, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most, on_cpu) == sizes


def test_on_a_gpu_batches_are_filled_up(small_checkpoint: Path) -> None:
    """With rows that nobody waits for, to a size that was recorded; what robots get stays the same."""
    with serving(small_checkpoint, limits=Limits(max_batch=4)) as served, ThreadPoolExecutor(4) as pool:
        served.server._dispatcher.sizes = (1, 4)
        robots = [served.connect() for _ in range(3)]
        served.gate.clear()
        asked = []
        for index, robot in enumerate(robots):
            robot.reset(seed=index)
            asked.append(pool.submit(robot.select_action, observation(index)))
            until(lambda index=index: served.metric("queue") == index and len(served.batches) == 1)
        served.gate.set()
        actions = [each.result() for each in asked]
        assert served.batches == [[0.0], [1.0, 2.0, 2.0, 2.0]]
        assert served.metric("plans_total") == 3
    for index, action in enumerate(actions):
        here = asd_policy.load_policy(small_checkpoint, FIXED)
        here.reset(seed=index)
        np.testing.assert_allclose(action, here.select_action(observation(index)), rtol=0, atol=1e-4)


def test_stopping_finishes_what_is_under_way(small_checkpoint: Path) -> None:
    """Health says so at once, and new calls are refused."""
    with serving(small_checkpoint) as served, ThreadPoolExecutor(3) as pool:
        robots = [served.connect() for _ in range(3)]
        assert health(served.address) == health_pb2.HealthCheckResponse.SERVING
        served.gate.clear()
        asked = []
        for index, robot in enumerate(robots[:2]):
            asked.append(pool.submit(robot.select_action, observation(index)))
            until(lambda index=index: served.metric("queue") == index and len(served.batches) == 1)
        stopping = pool.submit(served.stop)
        until(lambda: health(served.address) == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(ServingError, match="cannot be reached: the server is stopping"):
            robots[2].select_action(observation(2))
        assert not stopping.done()
        served.gate.set()
        stopping.result()
        assert [each.result().shape for each in asked] == [(2,), (2,)]
        with pytest.raises(ServingError, match="cannot be reached"):
            robots[2].select_action(observation(2))


def test_bad_input_of_the_client(served: Served) -> None:
    with served.connect() as robot:
        batches = len(served.batches)
        with pytest.raises(ObservationError, match=r"'agent_pos' has shape \(5,\), not \(4,\)"):
            robot.select_action(OBSERVATION | {"agent_pos": np.zeros(5)})
        with pytest.raises(SpecError, match="seed -1 is not a whole number in 0 … 18446744073709551615"):
            robot.reset(seed=-1)
        assert len(served.batches) == batches
    for timeout in (0, -1, float("nan"), float("inf"), 1e10):  # the last two would be over at once
        with pytest.raises(SpecError, match=f"timeout {timeout} is not above 0 s and at most 86400 s"):
            served.connect(timeout=timeout)
    with pytest.raises(SpecError, match=r"^token does not hold one word of printable ASCII characters$"):
        served.connect(token="two words")
    with pytest.raises(ServingError, match=r"^the server at 127\.0\.0\.1:1 cannot be reached: ") as nobody:
        RemotePolicy("127.0.0.1:1")
    assert nobody.value.code == "UNAVAILABLE"
    assert "\n" not in str(nobody.value)
    with pytest.raises(ServingError):
        RemotePolicy("not an address")


def test_what_a_robot_does_with_its_memory(served: Served) -> None:
    """Neither observations in buffers that are used again, nor actions that are changed, change a plan."""
    buffer, actions = {key: np.zeros(len(zeros), np.float32) for key, zeros in OBSERVATION.items()}, []
    with served.connect() as robot:
        for own in (True, False):
            robot.reset(seed=np.int64(3))
            actions.append([])
            for step in range(20):
                for values in buffer.values():
                    values[:] = 0.01 * step
                action = robot.select_action(observation(0.01 * step) if own else buffer)
                actions[-1].append(action.tolist())
                action *= 100
                assert robot.last_plan is not None
                if own:
                    assert robot.last_plan.actions[step % 8].tolist() == actions[-1][-1]
                else:
                    robot.last_plan.actions[:] = 100
    assert actions[0] == actions[1]


def test_a_proxy_is_not_asked_for_this_machine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for host in ("127.0.0.1", "localhost", "ipv4:127.0.0.1", "dns:///localhost"):
        with RemotePolicy(f"{host}:{served.port}", timeout=60) as robot:
            assert robot.select_action(OBSERVATION).shape == (2,)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("gpu.lab:8470", "gpu.lab"),
        ("gpu.lab", "gpu.lab"),
        ("[::1]:8470", "::1"),
        ("ipv6:%5B::1%5D:8470", "::1"),
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("dns:///localhost:8470", "localhost"),
        ("dns:localhost", "localhost"),
    ],
)
def test_hosts_of_addresses(address: str, host: str) -> None:
    assert wire.host_of(address) == host


def test_a_server_that_has_another_policy_now(small_checkpoint: Path) -> None:
    with serving(small_checkpoint) as first:
        robot = first.connect()
    with serving(small_checkpoint, "ddpm") as second:
        other = second.connect()
        robot.address, robot._channel = other.address, other._channel
        robot.reset()
        for _ in range(2):  # the place that it was given is given back
            with pytest.raises(ServingError, match="has another policy or sampler than before"):
                robot.select_action(OBSERVATION)
            assert second.metric("sessions") == 1


@pytest.mark.parametrize("hint", ["soon", "-1", "1e3", "", "9" * 400])
def test_a_hint_that_is_no_time(hint: str, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_clients=1)) as served, served.connect():
        monkeypatch.setattr(server, "str", lambda number: hint, raising=False)
        with pytest.raises(ServingError, match="all 1 places are taken") as refused:
            served.connect()
        assert refused.value.retry_after is None


def test_a_server_that_sends_nonsense(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.connect() as robot:
        monkeypatch.setattr(wire, "to_array", lambda values, to_array=wire.to_array: to_array(np.asarray(values)[:2]))
        with pytest.raises(ServingError, match=r"sent no plan: the plan has shape \(2, 2\), not \(15, 2\)"):
            robot.select_action(OBSERVATION)


def test_the_generated_code_is_that_of_the_protocol(tmp_path: Path) -> None:
    words = ["-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, *words, "asd_policy/deploy/serving/planner.proto"], cwd=ROOT, check=True)
    for name in ("planner_pb2.py", "planner_pb2.pyi"):
        made = tmp_path / "asd_policy/deploy/serving" / name
        assert made.read_text() == (ROOT / "asd_policy/deploy/serving" / name).read_text(), "make proto"


def test_ctrl_c_before_it_listens_waits_for_the_plan_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cannot end beside a thread that is within a network: the process would be aborted."""
    begun, warmed = threading.Event(), list[int]()

    def warm_up(size: int) -> Any:
        begun.set()
        time.sleep(0.2)
        warmed.append(size)
        return SimpleNamespace(plan_seconds=0.2)

    def interrupt(self: Any) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    dispatcher = Dispatcher(cast(Any, SimpleNamespace(device=torch.device("cpu"), warm_up=warm_up)), 8, 8, Metrics())
    before = set(threading.enumerate())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("concurrent.futures.Future.result", interrupt)
        dispatcher.start()
    assert warmed == [1] and set(threading.enumerate()) <= before
