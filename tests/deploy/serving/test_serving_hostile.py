"""What a server should not be sent: refused with a status that says why; it lives, and others notice nothing."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import asd_policy
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving import server, wire
from asd_policy.deploy.serving.server import Limits
from asd_policy.deploy.serving.sessions import NoPlace, Shares
from asd_policy.errors import ServingError
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from support.policy_servers import FIXED, OBSERVATION, Raw, Served, good_request, health, observation, serving

TOKEN = "correct-horse-battery-staple"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def served(small_checkpoint: Path) -> Iterator[Served]:
    """A server with a token that waits for nobody long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "HANDSHAKE", 1.0)
        with serving(small_checkpoint, limits=Limits(2, lease=1.0), token=TOKEN) as served:
            yield served


@pytest.fixture
def raw(served: Served) -> Iterator[Raw]:
    """A client that brings the token, and a check that the server has survived whatever the test did."""
    raw = Raw(served.address)
    yield raw
    raw.channel.close()
    with served.connect(token=TOKEN) as robot:
        assert robot.select_action(OBSERVATION).shape == (2,)


def authorized(raw: Raw, name: str, message: bytes, **options: Any) -> bytes:
    return raw.call(name, message, metadata=((wire.AUTHORIZATION, f"Bearer {TOKEN}"),), **options)


def open_session(raw: Raw) -> bytes:
    return pb.OpenReply.FromString(authorized(raw, "Open", b"")).session


def refused(raw: Raw, name: str, message: bytes, **options: Any) -> tuple[str, str]:
    """Return status and details of a call that must be refused."""
    with pytest.raises(grpc.RpcError) as error:
        authorized(raw, name, message, **options)
    return error.value.code().name, str(error.value.details())


def changed(session: bytes, **arrays: pb.Array) -> bytes:
    """Return a request that is good but for some features."""
    request = good_request(session)
    for name, array in arrays.items():
        request.history[{"state": STATE, "environment": ENVIRONMENT_STATE}.get(name, name)].CopyFrom(array)
    return request.SerializeToString()


FOUR = np.zeros((2, 4), "<f4")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (wire.to_array(np.zeros((2, 5))), "observation 'observation.state' has shape (2, 5), not (2, 4)"),
        (wire.to_array(np.zeros(8)), "observation 'observation.state' has shape (8,), not (2, 4)"),
        (pb.Array(), "observation 'observation.state' has shape (), not (2, 4)"),
        (pb.Array(shape=(2**31, 2**31), data=b""), "has shape (2147483648, 2147483648), not (2, 4)"),
        (pb.Array(shape=(1,) * 100), "has shape (1, 1, 1, 1, 1, 1, 1, 1), not (2, 4)"),
        (pb.Array(shape=(2, 4), data=FOUR.tobytes()[:-1]), "has 31 bytes, not the 32 of its shape (2, 4)"),
        (pb.Array(shape=(2, 4), data=FOUR.tobytes() + b"1"), "has 33 bytes, not the 32 of its shape (2, 4)"),
        (wire.to_array(np.full((2, 4), np.nan)), "observation 'observation.state' holds NaN or infinity"),
        (wire.to_array(np.full((2, 4), -np.inf)), "observation 'observation.state' holds NaN or infinity"),
        (
            wire.to_array([[0, 0, 0, 0], [0, 0, 3e38, 0]]),
            "observation 'observation.state' holds 3e+38, normalised 2.76923e+38, which is not in ±1e+12",
        ),
    ],
)
def test_arrays(array: pb.Array, says: str, raw: Raw) -> None:
    code, details = refused(raw, "Plan", changed(open_session(raw), state=array))
    assert code == "INVALID_ARGUMENT"
    assert says in details


@pytest.mark.parametrize(
    ("committed", "says"),
    [
        (pb.Committed(), "committed actions has shape (), not (0, 2)"),
        (pb.Committed(actions=wire.to_array(np.zeros((4, 3))), delay=1), "has shape (4, 3), not (4, 2)"),
        (pb.Committed(actions=wire.to_array(np.zeros((16, 2))), delay=1), "16 committed actions are more than the 15"),
        (pb.Committed(actions=pb.Array(shape=(2**31, 2)), delay=1), "2147483648 committed actions are more than the"),
        (pb.Committed(actions=pb.Array(shape=(4, 2)), delay=1), "has 0 bytes, not the 32 of its shape (4, 2)"),
        (pb.Committed(actions=wire.to_array(np.zeros((4, 2))), delay=5), "delay=5 is not in 0 … 4, the actions left"),
        (pb.Committed(actions=wire.to_array(np.full((4, 2), np.nan)), delay=1), "committed actions holds NaN"),
        (
            pb.Committed(actions=wire.to_array(np.full((4, 2), -3e38)), delay=1),
            "committed actions holds -3e+38, normalised -4e+38, which is not in ±1e+12",
        ),
    ],
)
def test_committed_actions(committed: pb.Committed, says: str, raw: Raw) -> None:
    request = good_request(open_session(raw))
    request.committed.CopyFrom(committed)
    code, details = refused(raw, "Plan", request.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert says in details


@pytest.mark.parametrize("value", [1e11, -1e11])
def test_the_largest_numbers(value: float, raw: Raw) -> None:
    """What is not refused is planned with."""
    request = good_request(open_session(raw), value)
    actions = wire.to_array(np.full((4, 2), value))
    request.committed.CopyFrom(pb.Committed(actions=actions, delay=1, soft=True))
    reply = pb.PlanReply.FromString(authorized(raw, "Plan", request.SerializeToString()))
    assert wire.from_array(reply.actions, (15, 2), "the plan")[0] == pytest.approx([value, value], rel=1e-5)


def test_features(raw: Raw) -> None:
    session = open_session(raw)
    code, details = refused(raw, "Plan", changed(session, **{"no\nsuch": wire.to_array(FOUR)}))
    assert code == "INVALID_ARGUMENT"
    assert details == (
        "the policy reads 'observation.state', 'observation.environment_state'; the request has 'no\\nsuch', "
        "'observation.environment_state', 'observation.state'"
    )
    code, details = refused(raw, "Plan", pb.PlanRequest(session=session).SerializeToString())
    assert (code, details.endswith("the request has none")) == ("INVALID_ARGUMENT", True)
    _, details = refused(raw, "Plan", changed(session, **{"x" * 3000: wire.to_array(FOUR)}))
    assert len(details) == wire.MAX_DETAILS


@pytest.mark.parametrize("seed", range(20))
def test_garbage_bytes(seed: int, raw: Raw) -> None:
    """Noise, and a good request with some bytes changed: a status of ours each time, or a plan of finite numbers."""
    rng = np.random.default_rng(seed)
    code, details = refused(raw, "Plan", b"\xff" + rng.bytes(200))
    assert (code, details) == ("INVALID_ARGUMENT", "the call's 201 bytes are no asd_policy.v1.PlanRequest")
    request = bytearray(good_request(open_session(raw)).SerializeToString())
    for place in rng.integers(len(request), size=3):
        request[place] = rng.integers(256)
    try:
        reply = pb.PlanReply.FromString(authorized(raw, "Plan", bytes(request)))
    except grpc.RpcError as error:
        assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"), error
    else:
        wire.from_array(reply.actions, (15, 2), "the plan")


def test_sessions_of_others(raw: Raw) -> None:
    for session in (b"", b"\0" * 16, os.urandom(16), b"x" * 1000):
        code, details = refused(raw, "Plan", good_request(session).SerializeToString())
        assert code == "NOT_FOUND"
        assert "no such session" in details
        authorized(raw, "Close", pb.CloseRequest(session=session).SerializeToString())


def test_oversized(raw: Raw) -> None:
    """Refused by the length that the message says it has, before there is memory for it."""
    code, details = refused(raw, "Plan", changed(open_session(raw), state=pb.Array(data=b"\0" * (1 << 20))))
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in details


def test_what_unpacks_to_more(raw: Raw) -> None:
    message = changed(open_session(raw), state=pb.Array(data=b"\0" * (8 << 20)))
    code, _ = refused(raw, "Plan", message, compression=grpc.Compression.Gzip)
    assert code == "UNIMPLEMENTED"


def test_no_message_and_slow_messages(raw: Raw, served: Served) -> None:
    """A call is given up when its message does not come; meanwhile others are served."""
    metadata = ((wire.AUTHORIZATION, f"Bearer {TOKEN}"),)
    call = raw.channel.stream_unary(wire.method("Plan"))
    with pytest.raises(grpc.RpcError) as error:
        call(iter(()), metadata=metadata, timeout=20)
    assert error.value.code().name == "INVALID_ARGUMENT"
    assert error.value.details() == "the call has no asd_policy.v1.PlanRequest"
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(30)
        yield b""

    slow = [call.future(silent(), metadata=metadata, timeout=20) for _ in range(8)]
    with served.connect(token=TOKEN) as robot:
        robot.select_action(OBSERVATION)
    for each in slow:
        assert each.code().name == "DEADLINE_EXCEEDED"
        assert each.details() == "the call's message did not come within 1 s"
    never.set()


def closed_after(connection: socket.socket) -> float:
    """Return how long it takes the server to close a connection [s]."""
    start = time.monotonic()
    connection.settimeout(20)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("sent", "within"),
    [
        (b"", 8.0),  # connects, and says nothing
        (PREFACE[:10], 8.0),  # begins to say something
        (PREFACE + SETTINGS, 12.0),  # a connection of HTTP/2 without a call
        (b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n", 8.0),
        (bytes(range(256)) * 40, 8.0),
    ],
)
def test_connections_that_say_nothing_or_nonsense(sent: bytes, within: float, raw: Raw, served: Served) -> None:
    """They are closed, and while thirty of them are open a robot is served."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port))) for _ in range(30)]
        for each in connections:
            each.sendall(sent)
        with served.connect(token=TOKEN) as robot:
            robot.select_action(OBSERVATION)
        with ThreadPoolExecutor(30) as pool:
            assert max(pool.map(closed_after, connections)) < within


def test_a_call_that_is_torn_off(raw: Raw, served: Served) -> None:
    """A robot loses its connection in the middle of a plan; its place is free when the lease ends."""
    session = open_session(raw)
    served.gate.clear()
    raw.channel.unary_unary(wire.method("Plan")).future(
        good_request(session).SerializeToString(), metadata=((wire.AUTHORIZATION, f"Bearer {TOKEN}"),)
    )
    time.sleep(0.2)
    raw.channel.close()
    served.gate.set()
    deadline = time.monotonic() + 30
    while served.metric("sessions"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    raw.channel = grpc.insecure_channel(served.address)


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """Return a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(data).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + data


def watch_health(port: int, service: str) -> socket.socket:
    """Ask to be told of a server's health, with a window of no bytes for the answer."""
    headers = {":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch", ":authority": "robot"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    words = [(name.encode(), value.encode()) for name, value in headers.items()]
    block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in words)
    message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    no_window = frame(4, 0, 0, (4).to_bytes(2) + (0).to_bytes(4))
    body = frame(0, 1, 1, b"\0" + len(message).to_bytes(4) + message)
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(PREFACE + no_window + frame(4, 1, 0, b"") + frame(1, 4, 1, block) + body)
    return connection


def test_who_watches_the_health_and_reads_nothing(small_checkpoint: Path) -> None:
    """Does not keep a server from ending."""
    ending = server.PolicyServer(asd_policy.load_policy(small_checkpoint, FIXED), Limits(1), token=TOKEN)
    port = ending.start()
    with contextlib.ExitStack() as stack:
        for service in ("", wire.SERVICE):
            stack.enter_context(watch_health(port, service))
        deadline = time.monotonic() + 30
        while len(ending._health._watcher_count_by_service) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)  # for it to write what is not read
        stop = threading.Thread(target=ending.stop, args=(1.0,), daemon=True)
        stop.start()
        stop.join(20)
        assert not stop.is_alive()


def watch(raw: Raw, service: str = "") -> Any:
    """Return a call that is told of a server's health, and what it is told first."""
    path = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/Watch"
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    call = raw.channel.unary_stream(path)(request, timeout=60)
    return call, health_pb2.HealthCheckResponse.FromString(next(call)).status


def own_connection(address: str) -> Raw:
    return Raw(address, options=[("grpc.use_local_subchannel_pool", 1)])


def test_one_connection_does_not_take_all_places(small_checkpoint: Path) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_clients=8)) as served:
        greedy = own_connection(served.address)
        for _ in range(2):
            greedy.open()
        with pytest.raises(grpc.RpcError) as error:
            greedy.open()
        assert error.value.code().name == "RESOURCE_EXHAUSTED"
        assert str(error.value.details()).startswith(
            "this connection has 2 places, the most that one may have; one is free when"
        )
        with contextlib.ExitStack() as stack:
            for _ in range(6):  # who comes from this machine may have come through a tunnel
                robot = stack.enter_context(served.connect())
                robot.select_action(OBSERVATION)
            with pytest.raises(ServingError, match="refuses: all 8 places are taken; one is free when"):
                served.connect()
        greedy.channel.close()


def test_one_connection_does_not_watch_from_all_places(small_checkpoint: Path) -> None:
    with serving(small_checkpoint, limits=Limits(1, max_clients=8)) as served:
        greedy, others = own_connection(served.address), [own_connection(served.address) for _ in range(4)]
        watching = [watch(greedy, service) for service in ("", "no such service")]
        assert [status for _, status in watching] == [1, 3]  # SERVING, SERVICE_UNKNOWN
        with pytest.raises(grpc.RpcError) as error:
            watch(greedy)
        assert error.value.code().name == "RESOURCE_EXHAUSTED"
        assert error.value.details() == "this connection has 2 places to watch from, the most that one may have"
        calls = [watch(other)[0] for other in others[:3] for _ in range(2)]
        with pytest.raises(grpc.RpcError) as error:
            watch(others[3])
        assert error.value.details() == "all 8 places to watch from are taken"
        assert health(served.address) == health_pb2.HealthCheckResponse.SERVING
        for call in calls:  # who goes away frees a place
            call.cancel()
        until = time.monotonic() + 30
        while len(served.server._health._watchers) > 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert watch(others[3])[1] == health_pb2.HealthCheckResponse.SERVING
        for raw in (greedy, *others):
            raw.channel.close()


@pytest.mark.parametrize(
    ("shares", "peers", "peer", "says"),
    [
        (
            Shares(8),
            ["ipv4:10.0.0.7:1", "ipv4:10.0.0.7:1"],
            "ipv4:10.0.0.7:1",
            "this connection has 2 places",
        ),
        (Shares(8), [f"ipv4:10.0.0.7:{n}" for n in range(3)], "ipv4:10.0.0.7:9", None),
        (Shares(8), [f"ipv4:10.0.0.7:{n}" for n in range(4)], "ipv4:10.0.0.7:9", "this host has 4 places, the most"),
        (Shares(8), [f"ipv4:10.0.0.7:{n}" for n in range(4)], "ipv4:10.0.0.8:9", None),
        (Shares(8), [f"ipv6:%5Bfd::7%5D:{n}" for n in range(4)], "ipv6:%5Bfd::7%5D:9", "this host has 4 places"),
        (Shares(8), [f"ipv6:%5B::1%5D:{n}" for n in range(7)], "ipv6:%5B::1%5D:9", None),
        (Shares(8), [f"ipv4:127.0.0.1:{n}" for n in range(8)], "ipv4:127.0.0.1:9", "all 8 places are taken"),
        (Shares(8, 5), ["ipv4:10.0.0.7:1"] * 4, "ipv4:10.0.0.7:1", None),
        (
            Shares(8, 5),
            ["ipv4:10.0.0.7:1"] * 5,
            "ipv4:10.0.0.7:2",
            "this host has 5 places, the most that one may",
        ),
        (Shares(1), [], "ipv4:10.0.0.7:1", None),
    ],
)
def test_shares(shares: Shares, peers: list[str], peer: str, says: str | None) -> None:
    with pytest.raises(NoPlace, match=f"^{says}") if says else contextlib.nullcontext():
        shares.check(peer, peers, "places")


def test_who_watches_and_reads_nothing_does_not_keep_others_from_being_told(raw: Raw, served: Served) -> None:
    """It is let go in time."""
    told = served.server._health
    with watch_health(served.port, wire.SERVICE):
        until = time.monotonic() + 30
        while not told._watchers:
            assert time.monotonic() < until
            time.sleep(0.01)
        call, status = watch(raw, wire.SERVICE)
        assert status == health_pb2.HealthCheckResponse.SERVING
        for kind in (health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING):
            served.server._wait(told.set(wire.SERVICE, kind))
            assert health_pb2.HealthCheckResponse.FromString(next(call)).status == kind
        assert len(told._watchers) == 1
        call.cancel()


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ((), "a token is needed"),
        (((wire.AUTHORIZATION, ""),), "a token is needed"),
        (((wire.AUTHORIZATION, TOKEN),), "a token is needed, and this is not it"),
        (((wire.AUTHORIZATION, f"Bearer {TOKEN[:-1]}"),), "a token is needed, and this is not it"),
        (((wire.AUTHORIZATION, f"Bearer {TOKEN}!"),), "a token is needed, and this is not it"),
        (((f"{wire.AUTHORIZATION}-bin", f"Bearer {TOKEN}".encode()),), "a token is needed"),
    ],
)
@pytest.mark.parametrize("name", ["Open", "Plan", "Close"])
def test_without_the_token(name: str, metadata: Any, says: str, raw: Raw, served: Served) -> None:
    """Refused before the message is looked at, and health is told to anyone."""
    with pytest.raises(grpc.RpcError) as error:
        raw.call(name, b"\xff" * 100, metadata=metadata)
    assert (error.value.code().name, error.value.details()) == ("UNAUTHENTICATED", says)
    assert health(served.address) == health_pb2.HealthCheckResponse.SERVING


def test_a_client_without_the_token(served: Served) -> None:
    with pytest.raises(ServingError, match=r"refuses: a token is needed$") as error:
        served.connect()
    assert error.value.code == "UNAUTHENTICATED"
    with pytest.raises(ServingError, match="a token is needed, and this is not it"):
        served.connect(token="guess")


def test_another_version(raw: Raw, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Open", "Plan", "Anything"):
        code, details = refused(raw, f"/asd_policy.v2.Planner/{name}", b"what version 2 would send")
        assert code == "FAILED_PRECONDITION"
        assert details == "protocol asd_policy.v2 is not spoken here; this server speaks asd_policy.v1"
    with monkeypatch.context() as patch:
        patch.setattr(wire, "method", lambda name: f"/asd_policy.v12.Planner/{name}")
        with pytest.raises(
            ServingError, match=r"protocol asd_policy\.v12 is not spoken here; .* speaks asd_policy\.v1$"
        ):
            served.connect(token=TOKEN)


@pytest.mark.parametrize(
    "path", ["/asd_policy.v1.Planner/Reboot", "/other.Service/Open", "/", "/asd_policy.v1.Planner/"]
)
def test_methods_that_are_none(path: str, raw: Raw) -> None:
    assert refused(raw, path, b"")[0] == "UNIMPLEMENTED"


def test_others_are_unaffected(served: Served, small_checkpoint: Path) -> None:
    """A robot's actions are, to the bit, those of a policy alone, while all sorts of nonsense come in beside it."""
    here = asd_policy.load_policy(small_checkpoint, FIXED)
    here.reset(seed=5)
    done = threading.Event()

    def disturb() -> int:
        raw, sent = Raw(served.address), 0
        while not done.is_set():
            for message in (b"\xff" * 50, good_request(b"").SerializeToString(), b"\0" * 100_000):
                with contextlib.suppress(grpc.RpcError):
                    authorized(raw, "Plan", message)
                with contextlib.suppress(grpc.RpcError):
                    raw.call("Open", message)
                sent += 2
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                connection.sendall(os.urandom(100))
        raw.channel.close()
        return sent

    with ThreadPoolExecutor(2) as pool, served.connect(token=TOKEN) as robot:
        disturbing = [pool.submit(disturb) for _ in range(2)]
        robot.reset(seed=5)
        for step in range(64):
            seen = observation(0.01 * step)
            assert robot.select_action(seen).tolist() == here.select_action(seen).tolist()
        done.set()
        assert sum(each.result() for each in disturbing) >= 12
