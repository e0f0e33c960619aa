"""What the tests of serving share: a server in this process, and one whose plans wait until they may be made."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

import asd_policy
from asd_policy.deploy.serving import RemotePolicy, wire
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving.server import Limits, PolicyServer
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from asd_policy.policy.policy import Policy

FIXED = "asd:window=4,draft=picard,verify=reflection"
"""A sampler whose plans depend on observation and noise alone."""
SMALL = Limits(max_batch=4)
OBSERVATION = {"agent_pos": np.zeros(4), "environment_state": np.zeros(3)}


def observation(value: float) -> dict[str, Any]:
    return {key: np.full_like(zeros, value) for key, zeros in OBSERVATION.items()}


@dataclass
class Served:
    """A server, and the policy that plans for it."""

    server: PolicyServer
    policy: Policy
    port: int
    gate: threading.Event = field(default_factory=threading.Event)
    """Clear it, and plans wait until it is set."""
    batches: list[list[float]] = field(default_factory=list)
    """What was planned: of each robot of a batch the last number that it saw."""

    stopped: bool = False
    """Whether `stop` was called."""

    def stop(self) -> None:
        """End the server, if that has not been done."""
        if not self.stopped:
            self.stopped = True
            self.server.stop()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def connect(self, **options: Any) -> RemotePolicy:
        """Return a client."""
        return RemotePolicy(self.address, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return what Prometheus would be told."""
        return self.server.metrics.registry.get_sample_value(f"asd_policy_{name}", labels) or 0.0


@contextmanager
def serving(checkpoint: Path, sampler: str = FIXED, limits: Limits = SMALL, **options: Any) -> Iterator[Served]:
    """Serve a checkpoint in this process."""
    policy = asd_policy.load_policy(checkpoint, sampler)
    server = PolicyServer(policy, limits, **options)
    served = Served(server, policy, server.start())
    served.gate.set()
    plan_for = policy.plan_for

    def watched(rows: Any, prefixes: Any = None) -> Any:
        served.batches.append([float(robot.history[-1][STATE][0]) for robot in policy.robots])
        assert served.gate.wait(60)
        return plan_for(rows, prefixes)

    policy.plan_for = watched
    try:
        yield served
    finally:
        served.gate.set()
        served.stop()


class Raw:
    """A client that sends what it is told to."""

    def __init__(self, address: str, **options: Any) -> None:
        """Connect."""
        self.channel = grpc.insecure_channel(address, **options)

    def call(self, name: str, message: bytes, timeout: float = 20, **options: Any) -> bytes:
        """Call a method by its name, or by its whole path."""
        path = name if name.startswith("/") else wire.method(name)
        return self.channel.unary_unary(path)(message, timeout=timeout, **options)

    def open(self) -> bytes:
        """Return a session."""
        return pb.OpenReply.FromString(self.call("Open", b"")).session

    def plan(self, request: pb.PlanRequest, **options: Any) -> pb.PlanReply:
        """Ask for a plan."""
        return pb.PlanReply.FromString(self.call("Plan", request.SerializeToString(), **options))


def health(address: str) -> int:
    """Return what a server says of its health."""
    path = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/Check"
    ask, read = health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest(service=wire.SERVICE)
        return channel.unary_unary(path, ask, read)(asked, timeout=20).status


def good_request(session: bytes, value: float = 0.0) -> pb.PlanRequest:
    """Return a request for a plan as it should be."""
    history = {STATE: wire.to_array(np.full((2, 4), value)), ENVIRONMENT_STATE: wire.to_array(np.full((2, 3), value))}
    return pb.PlanRequest(session=session, history=history, begins=True)
