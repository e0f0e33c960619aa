"""The server: checks calls of gRPC and turns them into sessions and plans."""

import asyncio
import contextlib
import hmac
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from asd_policy._common.arrays import Array
from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving import wire
from asd_policy.deploy.serving.dispatcher import Dispatcher, Request
from asd_policy.deploy.serving.metrics import Metrics
from asd_policy.deploy.serving.requests import Refusal, RequestReader
from asd_policy.deploy.serving.sessions import NoPlace, Session, Sessions, Shares
from asd_policy.errors import AsdError, ServingError
from asd_policy.policy.policy import Policy

T = TypeVar("T")

HANDSHAKE = 5.0
"""How long a connection may take to begin, and a call to send its message [s]."""
MOST_FAILURES = 3
"""Plans in a row that fail for reasons other than their requests, such as a fault of the GPU, before the health check
fails."""
_OTHER_CALLS = 16  # of a connection at once, beside a plan for each robot
_LARGEST = 2**31 - 1  # largest number that an option of gRPC takes
_LOOK = 0.01  # [s] between looks whether calls still run
_FLUSH = 1.0  # [s] to send the last answers, those to health watchers too
_OTHER_VERSION = re.compile(r"asd_policy\.v[0-9]+\.\w+")


@dataclass(frozen=True)
class Limits:
    """Limits of a server."""

    max_batch: int = 8
    """Robots planned for at once."""
    max_queue: int = 32
    """Requests that wait, beside those that are planned."""
    max_clients: int = 64
    """Sessions at once."""
    lease: float = 60.0
    """How long a session lasts without a plan [s]."""
    max_per_peer: int | None = None
    """Sessions of one connection or host, and as many who watch the health; None as for `Shares`."""


class PolicyServer:
    """Plans for robots that ask over gRPC: an event loop for calls in one thread, plans in another."""

    def __init__(
        self,
        policy: Policy,
        limits: Limits | None = None,
        token: str | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Prepare to serve.

        Args:
            policy: Plans; belongs to the server from now on.
            limits: What to take on.
            token: That every call must bring; None to ask for none.
            credentials: For TLS; None for plain text.
        """
        self._limits = limits or Limits()
        self._credentials = credentials
        self.metrics = Metrics()
        self._dispatcher = Dispatcher(policy, self._limits.max_batch, self._limits.max_queue, self.metrics)
        shares = Shares(self._limits.max_clients, self._limits.max_per_peer)
        sessions = Sessions(shares, self._limits.lease)
        self.metrics.watch(self._dispatcher.__len__, sessions.__len__)
        self._health = _Health(shares)
        self._planner = _Planner(policy, sessions, self._dispatcher, _Fitness(self._health))
        self._calls = _Calls(self._planner.methods, token, self.metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asd-policy-server", daemon=True)

    def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Make plans of every size, then listen.

        Args:
            host: Name or address of the interface.
            port: 0 for one that is free.

        Returns:
            The port.

        Raises:
            AsdError: The policy cannot plan.
            ServingError: It cannot listen there.
        """
        self._dispatcher.start()
        self._thread.start()
        try:
            return self._wait(self._listen(host, port))
        except ServingError:
            self._end()
            raise

    def stop(self, grace: float = 10.0) -> None:
        """Finish the calls that run, refuse others, and end.

        Args:
            grace: How long the calls may take to finish [s].
        """
        self._wait(self._drain(grace))
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._dispatcher.stop()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self, host: str, port: int) -> int:
        idle = min(int(2e3 * self._limits.lease), _LARGEST)
        # gRPC checks these limits before it allocates memory.
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", min(self._planner.requests.most_bytes, _LARGEST)),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message may unpack to a huge one
                ("grpc.max_concurrent_streams", self._limits.max_clients + _OTHER_CALLS),  # all may share a connection
                ("grpc.so_reuseport", 0),  # a second server at the port is an error
                ("grpc.server_handshake_timeout_ms", int(1e3 * HANDSHAKE)),
                ("grpc.max_connection_idle_ms", idle),
                ("grpc.keepalive_time_ms", 20_000),  # finds connections whose other end is gone
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((self._calls,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._health.set(wire.SERVICE, health_pb2.HealthCheckResponse.SERVING)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise ServingError(f"cannot listen on {address}: {error}") from None
        await self._server.start()
        return port

    async def _drain(self, grace: float) -> None:
        self._calls.stopping = True
        end = time.monotonic() + grace
        with contextlib.suppress(TimeoutError):  # or a health watcher that reads nothing would be waited for
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), _FLUSH)
        while self._calls.running and time.monotonic() < end:
            await asyncio.sleep(_LOOK)
        await self._server.stop(_FLUSH)


Answer = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Message]]


@dataclass(frozen=True)
class _Method:
    """One method of the service."""

    request: type[Message]
    answer: Answer


class _Calls(grpc.GenericRpcHandler):
    """Lets a call through to its method when its token, version and message are right."""

    def __init__(self, methods: Mapping[str, _Method], token: str | None, metrics: Metrics) -> None:
        self._methods, self._metrics = methods, metrics
        self.running = 0
        """Calls that are being answered."""
        self.stopping = False
        """Whether to refuse all others."""
        self._password = None if token is None else f"Bearer {token}".encode()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Find the handler of a call; None for a method that is not of this protocol."""
        service, _, name = handler_call_details.method.removeprefix("/").rpartition("/")
        if _OTHER_VERSION.fullmatch(service) is None:
            return None
        sent = dict(handler_call_details.invocation_metadata).get(wire.AUTHORIZATION, "")
        given = sent if isinstance(sent, bytes) else sent.encode()
        if self._password is not None and not hmac.compare_digest(given, self._password):
            why = "a token is needed, and this is not it" if given else "a token is needed"
            return self._refuse(Refusal(grpc.StatusCode.UNAUTHENTICATED, why))
        if self.stopping:
            return self._refuse(Refusal(grpc.StatusCode.UNAVAILABLE, "the server is stopping"))
        if service != wire.SERVICE:
            spoken = service.rpartition(".")[0]
            why = f"protocol {spoken} is not spoken here; this server speaks {wire.PACKAGE}"
            return self._refuse(Refusal(grpc.StatusCode.FAILED_PRECONDITION, why))
        return self._handler(self._methods[name]) if name in self._methods else None

    def _refuse(self, refusal: Refusal) -> grpc.RpcMethodHandler:
        async def call(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._abort(context, refusal)

        return grpc.stream_unary_rpc_method_handler(call)

    def _handler(self, method: _Method) -> grpc.RpcMethodHandler:
        """Make the handler of a method's calls.

        A call of one message is, on the wire, a stream of one. Read as a stream, it can be ended when the message does
        not come.
        """

        async def call(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            try:
                request = await self._read(method.request, context)
                self.running += 1
                try:
                    reply = await method.answer(request, context)
                finally:
                    self.running -= 1
            except Refusal as refusal:
                await self._abort(context, refusal)
                return None
            return reply.SerializeToString()

        return grpc.stream_unary_rpc_method_handler(call)

    async def _read(self, kind: type[Message], context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            raw = await asyncio.wait_for(context.read(), HANDSHAKE)
        except TimeoutError:
            why = f"the call's message did not come within {HANDSHAKE:g} s"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, why) from None
        if not isinstance(raw, bytes):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the call has no {kind.DESCRIPTOR.full_name}")
        try:
            return kind.FromString(raw)
        except DecodeError:
            why = f"the call's {len(raw)} bytes are no {kind.DESCRIPTOR.full_name}"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why) from None

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> None:
        self._metrics.refusals.labels(refusal.code.name).inc()
        wait = refusal.retry_after
        trailing = () if wait is None else ((wire.RETRY_AFTER, str(math.ceil(1e3 * wait))),)
        await context.abort(refusal.code, refusal.details, trailing)


class _Health(health.aio.HealthServicer):  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    """Answers health checks, and watchers of the health: as many of them as there are places for robots."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares
        self._watchers: list[str] = []

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802  # gRPC's name
        """Send a peer every change. One that does not read is dropped, because it would hold up the others."""
        peer = context.peer()
        try:
            self._shares.check(peer, self._watchers, "places to watch from")
        except NoPlace as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        self._watchers.append(peer)
        try:
            await super().Watch(request, _Prompt(context))
        except TimeoutError:
            why = f"the answer was not read within {HANDSHAKE:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, why)
        finally:
            self._watchers.remove(peer)


@dataclass(frozen=True)
class _Prompt:
    """A call's context whose messages have to be taken in time."""

    context: Any

    async def write(self, message: Message) -> None:
        """Write.

        Raises:
            TimeoutError: It is not taken.
        """
        await asyncio.wait_for(self.context.write(message), HANDSHAKE)


class _Fitness:
    """Sets the server's health by whether plans succeed."""

    def __init__(self, servicer: Any) -> None:
        """Begin healthy.

        Args:
            servicer: The health servicer.
        """
        self._servicer, self._failures = servicer, 0
        self._telling: set[asyncio.Task[None]] = set()

    def note(self, failed: bool) -> None:
        """Note whether a plan succeeded."""
        was_fit = self._failures < MOST_FAILURES
        self._failures = self._failures + 1 if failed else 0
        is_fit = self._failures < MOST_FAILURES
        if is_fit == was_fit:
            return
        kinds = health_pb2.HealthCheckResponse
        for service in ("", wire.SERVICE):  # each a task: a health watcher that reads nothing holds it up
            task = asyncio.create_task(self._servicer.set(service, kinds.SERVING if is_fit else kinds.NOT_SERVING))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)


class _Planner:
    """The methods of the service."""

    def __init__(self, policy: Policy, sessions: Sessions, dispatcher: Dispatcher, fitness: _Fitness) -> None:
        self._policy, self._sessions, self._dispatcher, self._fitness = policy, sessions, dispatcher, fitness
        self.requests = RequestReader(policy)
        """Reads what robots ask for."""
        self.methods = {
            "Open": _Method(pb.OpenRequest, self._open),
            "Plan": _Method(pb.PlanRequest, self._plan),
            "Close": _Method(pb.CloseRequest, self._close),
        }

    async def _open(self, request: pb.OpenRequest, context: Any) -> pb.OpenReply:
        policy, horizons = self._policy, self._policy.horizons
        try:
            session = self._sessions.open(policy.new_episode(), context.peer())
        except NoPlace as error:
            why = f"{error}; one is free when a robot closes, or its lease ends"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, why, self._sessions.lease) from None
        identity = pb.PolicyIdentity(
            observation=self.requests.features,
            action_dim=policy.action_dim,
            n_obs_steps=horizons.n_obs_steps,
            horizon=horizons.horizon,
            n_action_steps=horizons.n_action_steps,
            first_action=horizons.executed.start,
            sampler=policy.sampler.spec,
            backend=policy.backend.spec,
            exact=policy.sampler.exact,
        )
        return pb.OpenReply(session=session, lease=self._sessions.lease, policy=identity, package=PACKAGE_VERSION)

    async def _close(self, request: pb.CloseRequest, context: Any) -> pb.CloseReply:
        self._sessions.close(request.session)
        return pb.CloseReply()

    async def _plan(self, request: pb.PlanRequest, context: Any) -> pb.PlanReply:
        session = self._sessions.renew(request.session)
        if session is None:
            why = f"no such session: it has ended, as {self._sessions.lease:g} s without a plan do, or was never open"
            raise Refusal(grpc.StatusCode.NOT_FOUND, why)
        left = context.time_remaining()
        deadline = float("inf") if left is None else time.monotonic() + left  # now: reading frames takes some of it
        asked = Request(
            session,
            await self._read_history(request),
            self._step(request, session),  # after the wait, or two requests of a session could both find it free
            request.begins,
            request.seed if request.begins and request.HasField("seed") else None,
            self.requests.prefix(request),
            deadline,
        )
        if not self._dispatcher.submit(asked):
            delay = self._dispatcher.delay
            why = f"{len(self._dispatcher)} requests wait already; try again in {delay:.2f} s"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, why, delay)
        try:
            answer = await asyncio.wrap_future(asked.answer)
        except AsdError as error:
            self._fitness.note(failed=False)
            raise Refusal(grpc.StatusCode.INTERNAL, str(error)) from None
        except Exception as error:  # the server's log has the rest
            self._fitness.note(failed=True)
            raise Refusal(grpc.StatusCode.INTERNAL, f"the plan failed: {type(error).__name__}") from None
        self._fitness.note(failed=False)
        record = answer.record
        return pb.PlanReply(
            actions=wire.to_array(answer.actions),
            rounds=record.rounds,
            nfe=record.nfe,
            window=record.window,
            batch=record.batch,
            waited=answer.waited,
            planned=record.seconds,
            sampler=answer.sampler,
            cut=record.cut,
            exact=record.exact,
        )

    async def _read_history(self, request: pb.PlanRequest) -> list[dict[str, Array]]:
        """Read a request's observations: beside the event loop where there are frames, which take milliseconds."""
        if not request.frames:
            return self.requests.history(request)
        return await asyncio.to_thread(self.requests.history, request)

    def _step(self, request: pb.PlanRequest, session: Session) -> int:
        """Read how many actions a robot has taken, which must fit what it has planned and have no plan under way."""
        if session.busy:
            why = "the session's plan before is still under way; a robot has one at a time"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why, self._dispatcher.delay)
        planned = session.robot.records
        if not request.begins and planned and request.step < planned[-1].at:
            why = f"step {request.step} is before step {planned[-1].at}, at which the session has planned"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{why}; `begins` begins an episode")
        return request.step
