"""The client: a policy that plans on a server, with the methods of one that plans here."""

import math
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self, SupportsIndex, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from asd_policy._common.arrays import NUMPY, read_seed
from asd_policy._common.version import PACKAGE_VERSION
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving import wire
from asd_policy.deploy.serving.frames import pack
from asd_policy.deploy.serving.tokens import check_token
from asd_policy.errors import ObservationError, ServingError, SpecError, one_line
from asd_policy.policy.continuity import Prefix
from asd_policy.policy.episode_state import EpisodeState
from asd_policy.policy.observation import Shapes, is_frame, read_observation
from asd_policy.policy.plan import Horizons, PlanRecord
from asd_policy.policy.planner import Planned

T = TypeVar("T", bound=Message)

MAX_TIMEOUT = 86_400.0
"""Longest timeout [s]; gRPC treats a time that it cannot represent as over."""
MAX_STEPS = 4096
"""Most observations of a plan, features of an observation, and actions of a plan that a server may ask for."""
MAX_NUMBERS = 2**20
"""Most numbers of the observations, or of a plan: 4 MiB, the largest message that gRPC takes."""
MAX_PIXELS = 2**24
"""Most pixels of the frames that a plan is made from: 48 MiB."""
_NAME_BYTES = 64  # of a session at most


@dataclass(frozen=True, kw_only=True)
class RemotePlan(PlanRecord):
    """One plan of a server, and its cost. `seconds` is the latency as the robot sees it: request out, plan in.

    Which steps were refused or unjudged, and the time inside the network, stay on the server: they are None.
    """

    actions: npt.NDArray[np.float32]
    """[n, action_dim], from the action for the latest observation to the plan's end, in the environment's units."""
    sampler: str
    """Spec of the sampler as it ran."""
    waited: float
    """Time the request waited on the server [s]."""
    planned: float
    """Time the batch took to plan [s]."""


class RemotePolicy:
    """A robot's policy that plans on a server; history and queue are kept here, and only plans go over the wire.

    A `ControlLoop` takes it in the place of a policy.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        root_certificates: str | PathLike[str] | None = None,
        timeout: float = 10.0,
        compress: bool = False,
    ) -> None:
        """Take a place on a server.

        Args:
            address: "host:port".
            token: That the server asks for; None for none.
            root_certificates: File of the certificates (PEM) that the server's must descend from, for TLS; None for
                plain text.
            timeout: How long a plan, or another call, may take [s], in total, at most `MAX_TIMEOUT`. A late plan is
                given up, on the server too.
            compress: Whether to compress cameras' frames, without loss, before they are sent: it pays on slow networks
                (docs/results/serving.md).

        Raises:
            OSError: The certificates cannot be read.
            ServingError: The server cannot be reached, refuses, has another version of the protocol, or describes no
                policy that there can be.
            SpecError: The timeout is not positive, or too long, or the token not one word.
        """
        if not 0 < timeout <= MAX_TIMEOUT:
            raise SpecError(f"timeout {timeout} is not above 0 s and at most {MAX_TIMEOUT:g} s")
        if token is not None:
            check_token(token, "token")
        self.address, self._timeout, self._compress = address, timeout, compress
        self._metadata = () if token is None else ((wire.AUTHORIZATION, f"Bearer {token}"),)
        own = [("grpc.use_local_subchannel_pool", 1)]  # otherwise the robots of one process share one
        if wire.is_loopback(wire.host_of(address)):
            own.append(("grpc.enable_http_proxy", 0))  # a proxy would look on its own machine
        if root_certificates is None:
            self._channel = grpc.insecure_channel(address, own)
        else:
            trusted = grpc.ssl_channel_credentials(Path(root_certificates).read_bytes())
            self._channel = grpc.secure_channel(address, trusted, own)
        self._identity: pb.PolicyIdentity | None = None
        try:
            self._open(self._end())
        except ServingError:
            self._channel.close()
            raise
        self.last_plan: RemotePlan | None = None
        """The latest plan since the last reset."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def observation_dims(self) -> dict[str, int]:
        """Length of each observation feature that is a vector; others are in `observation_shapes` alone."""
        return {feature.name: feature.dim for feature in self._policy.observation if not feature.shape}

    @property
    def observation_shapes(self) -> Shapes:
        """Shape of each observation feature, as of a `Policy`."""
        return {each.name: tuple(each.shape) or (each.dim,) for each in self._policy.observation}

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return self._policy.action_dim

    @property
    def horizons(self) -> Horizons:
        """The policy's horizons."""
        known = self._policy
        return Horizons(known.n_obs_steps, known.horizon, known.n_action_steps, known.first_action)

    @property
    def sampler(self) -> str:
        """Spec of the server's sampler."""
        return self._policy.sampler

    @property
    def exact(self) -> bool:
        """Whether plans have exactly the law of the sequential sampler."""
        return self._policy.exact

    def reset(self, seed: SupportsIndex | None = None) -> None:
        """Begin an episode: forget observations, queued actions and the last plan.

        Args:
            seed: Fixes the planning noise of the episode, 0 … 2⁶⁴ − 1; None goes on with the noise stream.

        Raises:
            SpecError: The seed is not one.
        """
        self._seed = None if seed is None else read_seed(seed)
        self._robot = EpisodeState(None, deque(maxlen=self.horizons.n_obs_steps))
        self._begins = True
        self._first = 0  # step of a control loop at which the episode began
        self.last_plan = None

    def select_action(self, observation: Any) -> npt.NDArray[np.float32]:
        """Give the next action; the server plans when the queue is empty.

        Args:
            observation: As for `Policy.select_action`.

        Returns:
            The action [action_dim], float32, in the environment's units.

        Raises:
            ObservationError: A key is missing, a shape is wrong, or a value is no finite real number; nothing was sent.
            ServingError: The server cannot be reached, is late, or refuses. The observation is noted: go on with the
                next one.
        """
        robot = self._robot
        robot.observe(read_observation(observation, self.observation_shapes, NUMPY))
        if not robot.queue:
            self.last_plan = self._plan(None, self._end())
            # A copy, so that a caller who changes it does not change the plan.
            robot.queue.extend(self.last_plan.actions[: self.horizons.n_action_steps].copy())
        robot.steps += 1
        return robot.queue.popleft()

    def plan(self, observations: Sequence[Any], step: int, begins: bool, prefix: Prefix | None = None) -> Planned:
        """Plan for a `ControlLoop`; the arguments are those of `realtime.planner.Planner.plan`.

        A busy server, perhaps with a plan of this robot that was given up, is asked again after the time that it names,
        until the timeout. Then the plan is late, and the loop handles that.

        Raises:
            ObservationError: As `select_action`.
            ServingError: The server cannot be reached, is late, or refuses.
        """
        end = self._end()
        if begins:
            self.reset(self._seed)
            self._first = step
        for observation in observations:
            self._robot.observe(read_observation(observation, self.observation_shapes, NUMPY))
        self._robot.steps = step - self._first
        while True:
            try:
                plan = self.last_plan = self._plan(prefix, end)
                return Planned(plan.actions, plan.rounds, plan.cut)
            except ServingError as error:
                if error.retry_after is None or time.monotonic() + error.retry_after > end:
                    raise
                time.sleep(error.retry_after)

    def close(self) -> None:
        """Give the place back, if the server can be reached, and end the connection."""
        self._give_back(self._session, self._end())
        self._channel.close()

    @property
    def _policy(self) -> pb.PolicyIdentity:
        assert self._identity is not None, "set by the first `_open`"
        return self._identity

    def _end(self) -> float:
        """Compute when something that begins now has to end, on the clock `time.monotonic` [s]."""
        return time.monotonic() + self._timeout

    def _open(self, end: float) -> None:
        """Begin a session.

        Raises:
            ServingError: The server cannot be reached, refuses, describes no policy, or another than before.
        """
        opened = self._call("Open", pb.OpenRequest(package=PACKAGE_VERSION), pb.OpenReply, end)
        wrong = _wrong(opened)
        if wrong is None and self._identity not in (None, opened.policy):
            wrong = "has another policy or sampler than before"
        if wrong is not None:
            self._give_back(opened.session, end)
            raise ServingError(f"the server at {self.address} {wrong}")
        self._session, self._identity = opened.session, opened.policy

    def _give_back(self, session: bytes, end: float) -> None:
        """End a session, if the server can be reached."""
        with suppress(ServingError):  # its lease will end
            self._call("Close", pb.CloseRequest(session=session), pb.CloseReply, end)

    def _plan(self, prefix: Prefix | None, end: float) -> RemotePlan:
        """Ask for a plan for what the robot sees now."""
        start = time.perf_counter()
        try:
            reply = self._call("Plan", self._request(prefix), pb.PlanReply, end)
        except ServingError as error:
            if error.code != grpc.StatusCode.NOT_FOUND.name or not self._begins:
                raise
            self._open(end)  # the session's lease has ended; an episode that begins loses nothing by a new one
            reply = self._call("Plan", self._request(prefix), pb.PlanReply, end)
        horizons = self.horizons
        shape = horizons.horizon - horizons.executed.start, self.action_dim
        try:
            actions = wire.from_array(reply.actions, shape, "the plan")
            for name, seconds in (("waited", reply.waited), ("planned", reply.planned)):
                if not 0 <= seconds < math.inf:
                    raise ObservationError(f"{name}={seconds} is no time [s]")
        except ObservationError as error:
            raise ServingError(f"the server at {self.address} sent no plan: {error}") from None
        self._begins, self._seed = False, None
        return RemotePlan(
            actions=actions,
            sampler=reply.sampler,
            rounds=reply.rounds,
            nfe=reply.nfe,
            window=reply.window,
            at=self._robot.steps,
            batch=reply.batch,
            waited=reply.waited,
            planned=reply.planned,
            cut=reply.cut,
            exact=reply.exact,
            seconds=time.perf_counter() - start,
            network_seconds=None,
        )

    def _request(self, prefix: Prefix | None) -> pb.PlanRequest:
        history, frames = {}, {}
        for name, shape in self.observation_shapes.items():
            steps: list[Any] = [step[name] for step in self._robot.history]
            if is_frame(shape):
                frames[name] = pack(steps, self._compress)
            else:
                history[name] = wire.to_array(steps)
        message = prefix and pb.Committed(actions=wire.to_array(prefix.actions), delay=prefix.delay, soft=prefix.soft)
        return pb.PlanRequest(
            session=self._session,
            history=history,
            step=self._robot.steps,
            begins=self._begins,
            seed=self._seed,
            committed=message,
            frames=frames,
        )

    def _call(self, name: str, request: Message, reply: type[T], end: float) -> T:
        """Call a method of the server, with a time by which it has to answer."""
        call = self._channel.unary_unary(wire.method(name))
        try:
            left = max(end - time.monotonic(), 0.0)
            return reply.FromString(call(request.SerializeToString(), timeout=left, metadata=self._metadata))
        except grpc.RpcError as error:
            raise self._error(error) from None
        except DecodeError:
            raise ServingError(f"the server at {self.address} sent no {reply.DESCRIPTOR.full_name}") from None

    def _error(self, error: grpc.RpcError) -> ServingError:
        """Translate a call's status to an error."""
        # What a call of one message raises is also a call, though its type does not say so.
        code, details = error.code(), error.details() or ""
        wait = next((sent.value for sent in error.trailing_metadata() or () if sent.key == wire.RETRY_AFTER), None)
        if code is grpc.StatusCode.UNAVAILABLE:
            said = "cannot be reached"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            said = f"has not answered within {self._timeout:g} s"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            said = f"does not speak {wire.PACKAGE}"
        else:
            said = "refuses"
        message = one_line(f"the server at {self.address} {said}: {details}", wire.MAX_DETAILS)
        # In gRPC a number below 0 means not to try again; anything that is no number is ignored.
        hint = re.fullmatch(r"[0-9]{1,15}", str(wait))
        return ServingError(message, code.name, int(hint[0]) / 1e3 if hint else None)


def _wrong(opened: pb.OpenReply) -> str | None:
    """Explain why a server's description of its policy is refused: memory and loops here follow its numbers."""
    for name, value, least, most in _numbers(opened):
        if not least <= value <= most:
            return f"describes no policy: {name}={value} is not in {least} … {most}"
    names = [feature.name for feature in opened.policy.observation]
    return "describes no policy: two features have one name" if len(set(names)) < len(names) else None


def _numbers(opened: pb.OpenReply) -> Iterator[tuple[str, float, int, int]]:
    """Yield each number of a server's description, its least and its most; those before it have been checked."""
    policy = opened.policy
    yield "n_obs_steps", policy.n_obs_steps, 1, MAX_STEPS
    yield "horizon", policy.horizon, 1, MAX_STEPS
    yield "first_action", policy.first_action, 0, policy.horizon - 1
    yield "n_action_steps", policy.n_action_steps, 1, policy.horizon - policy.first_action
    yield "action_dim", policy.action_dim, 1, MAX_NUMBERS // policy.horizon
    yield "features", len(policy.observation), 1, MAX_STEPS
    numbers = pixels = 0
    for feature in policy.observation:
        if not feature.shape:
            yield f"dim of {feature.name!r}", feature.dim, 1, MAX_NUMBERS
            numbers += feature.dim
            continue
        yield f"axes of {feature.name!r}", len(feature.shape), 2, 3
        for size in feature.shape:
            yield f"an axis of {feature.name!r}", size, 1, MAX_NUMBERS
        if is_frame(tuple(feature.shape)):
            yield f"colours of {feature.name!r}", feature.shape[0], 3, 3
            pixels += math.prod(feature.shape[1:])
        else:
            numbers += math.prod(feature.shape)
    yield "numbers of the observations", policy.n_obs_steps * numbers, 0 if pixels else 1, MAX_NUMBERS
    yield "pixels of the frames", policy.n_obs_steps * pixels, 0, MAX_PIXELS
    yield "bytes of the session's name", len(opened.session), 1, _NAME_BYTES
    yield "lease", opened.lease, 0, 2**63
