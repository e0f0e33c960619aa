"""What a client should not be told: one line says so, before it costs memory or time; the robot goes on."""

import math
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from asd_policy.deploy.serving import RemotePolicy, wire
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.errors import MAX_MESSAGE, ServingError
from asd_policy.policy.observation import ENVIRONMENT_STATE, STATE
from support.fuzzing import SCALE
from support.policy_servers import OBSERVATION

MOST_MEMORY = 64 * 2**20  # [bytes] of a client at any time
MOST_SECONDS = 5.0  # on a machine that is busy
ROUNDS = 300 * SCALE


@dataclass
class Liar:
    """A server that answers with given bytes."""

    port: int
    open: bytes = b""
    plan: bytes = b""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def answer(self, method: str) -> bytes:
        """Return what a call is answered with."""
        return {"Open": self.open, "Plan": self.plan}.get(method.rpartition("/")[2], b"")


@pytest.fixture(scope="module")
def running() -> Iterator[Liar]:
    liar = Liar(0)

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            answer = liar.answer(handler_call_details.method)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    server = grpc.server(ThreadPoolExecutor(2), [Handler()])
    liar.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield liar
    server.stop(None)


@pytest.fixture
def liar(running: Liar) -> Liar:
    """One that has not lied yet."""
    running.open, running.plan = opened().SerializeToString(), planned().SerializeToString()
    return running


def opened(**changes: Any) -> pb.OpenReply:
    """Return what a server says of the small policy, but for some changes."""
    features = [pb.Feature(name=STATE, dim=4), pb.Feature(name=ENVIRONMENT_STATE, dim=3)]
    policy = {"action_dim": 2, "n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "first_action": 1}
    reply = {"session": b"0" * 16, "lease": 60.0}
    reply |= {name: changes.pop(name) for name in list(changes) if name in reply}
    told = {"observation": features, **policy, **changes}
    return pb.OpenReply(policy=pb.PolicyIdentity(**told), **reply)


def planned(**changes: Any) -> pb.PlanReply:
    """Return a plan of the small policy, but for some changes."""
    actions = wire.to_array(np.zeros((15, 2)))
    told = {"actions": actions, "rounds": 3, "nfe": 9, "batch": 1, "waited": 0.1, "planned": 0.1}
    return pb.PlanReply(**{**told, **changes})


def frugally(work: Callable[[], Any]) -> Any:
    """Return what work comes to: a result, or one line; in little memory and time."""
    start = time.monotonic()
    tracemalloc.start()
    try:
        return work()
    except ServingError as error:
        assert str(error).isprintable() and len(str(error)) <= MAX_MESSAGE
        return str(error)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < MOST_MEMORY
        assert time.monotonic() - start < MOST_SECONDS


def act(address: str) -> Any:
    """Return a first action."""
    with RemotePolicy(address) as robot:
        return robot.select_action({name: np.zeros(dim) for name, dim in robot.observation_dims.items()})


def test_the_truth(liar: Liar) -> None:
    assert act(liar.address).tolist() == [0, 0]


MANY = 2**32 - 1
LONG = "x" * 3_000_000


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"n_obs_steps": MANY}, "n_obs_steps=4294967295 is not in 1 … 4096"),
        ({"n_obs_steps": 0}, "n_obs_steps=0 is not in 1 … 4096"),
        ({"n_action_steps": 0}, "n_action_steps=0 is not in 1 … 15"),
        ({"n_action_steps": 16}, "n_action_steps=16 is not in 1 … 15"),
        ({"horizon": 0}, "horizon=0 is not in 1 … 4096"),
        ({"horizon": MANY}, "horizon=4294967295 is not in 1 … 4096"),
        ({"first_action": 16}, "first_action=16 is not in 0 … 15"),
        ({"first_action": MANY}, "first_action=4294967295 is not in 0 … 15"),
        ({"action_dim": 0}, "action_dim=0 is not in 1 … 65536"),
        ({"action_dim": MANY}, "action_dim=4294967295 is not in 1 … 65536"),
        ({"observation": []}, "features=0 is not in 1 … 4096"),
        ({"observation": [pb.Feature()] * 1_000_000}, "features=1000000 is not in 1 … 4096"),
        ({"observation": [pb.Feature(name="a")]}, "dim of 'a'=0 is not in 1 … 1048576"),
        ({"observation": [pb.Feature(name="a", shape=[3])]}, "axes of 'a'=1 is not in 2 … 3"),
        ({"observation": [pb.Feature(name="a", shape=[1, 8, 8])]}, "colours of 'a'=1 is not in 3 … 3"),
        ({"observation": [pb.Feature(name="a", shape=[3, 0, 8])]}, "an axis of 'a'=0 is not in 1 …"),
        ({"observation": [pb.Feature(name="a", shape=[3, 8192, 8192])]}, "pixels of the frames="),
        ({"observation": [pb.Feature(name="a", shape=[2**20, 2])]}, "numbers of the observations="),
        ({"observation": [pb.Feature(name="a", dim=MANY)]}, "dim of 'a'=4294967295 is not in 1 … 1048576"),
        (
            {"observation": [pb.Feature(name=name, dim=2**18) for name in "abc"]},
            "numbers of the observations=1572864 is not in 1 … 1048576",
        ),
        ({"observation": [pb.Feature(name="a", dim=1)] * 2}, "two features have one name"),
        ({"observation": [pb.Feature(name=LONG, dim=0)]}, "dim of 'xxxx"),
        ({"observation": [pb.Feature(name="a\n\x1b[2J", dim=0)]}, "dim of 'a\\n\\x1b[2J'=0 is not in"),
        ({"session": b""}, "bytes of the session's name=0 is not in 1 … 64"),
        ({"session": bytes(3_000_000)}, "bytes of the session's name=3000000 is not in 1 … 64"),
        ({"lease": math.nan}, "lease=nan is not in 0 … "),
        ({"lease": math.inf}, "lease=inf is not in 0 … "),
        ({"lease": -1.0}, "lease=-1.0 is not in 0 … "),
    ],
)
def test_policies_that_there_cannot_be(lie: dict[str, Any], says: str, liar: Liar) -> None:
    liar.open = opened(**lie).SerializeToString()
    said = frugally(lambda: act(liar.address))
    assert said.startswith(f"the server at {liar.address} describes no policy: {says}")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (pb.PlanReply(), "sent no plan: the plan has shape (), not (15, 2)"),
        (
            planned(actions=pb.Array(shape=(MANY, MANY))),
            "sent no plan: the plan has shape (4294967295, ",
        ),
        (planned(actions=pb.Array(shape=(15, 2), data=b"1")), "sent no plan: the plan has 1 bytes, not the 120 of"),
        (
            planned(actions=wire.to_array(np.full((15, 2), np.inf))),
            "sent no plan: the plan holds NaN or infinity: inf",
        ),
        (planned(waited=math.nan), "sent no plan: waited=nan is no time [s]"),
        (planned(planned=-1.0), "sent no plan: planned=-1.0 is no time [s]"),
        (b"\xff" * 100, "sent no asd_policy.v1.PlanReply"),
        (planned(sampler=LONG * 2), "refuses: "),
    ],
)
def test_plans_that_are_none(reply: Any, says: str, liar: Liar, caplog: pytest.LogCaptureFixture) -> None:
    """The robot has its place still, and acts when there is a plan again."""
    with RemotePolicy(liar.address) as robot:
        good, liar.plan = liar.plan, reply if isinstance(reply, bytes) else reply.SerializeToString()
        assert frugally(lambda: robot.select_action(OBSERVATION)).startswith(f"the server at {liar.address} {says}")
        liar.plan = good
        assert robot.select_action(OBSERVATION).tolist() == [0, 0]
    assert not caplog.records


def test_an_answer_that_is_none(liar: Liar) -> None:
    liar.open = b"\xff" * 100
    assert frugally(lambda: act(liar.address)) == f"the server at {liar.address} sent no asd_policy.v1.OpenReply"


NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 255, 4095, 4096, 4097, 2**16, 2**20, 2**31, MANY)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(3))
def test_answers_at_random(seed: int, liar: Liar) -> None:
    """Numbers of any size, and bytes that are changed, cut and added: one line, or an action of finite numbers."""
    rng, refused = random.Random(seed), 0
    for _ in range(ROUNDS // 3):
        names = ("n_obs_steps", "horizon", "n_action_steps", "first_action", "action_dim")
        changes: dict[str, Any] = {name: rng.choice(NUMBERS) for name in rng.sample(names, rng.randrange(3))}
        dims = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))] if rng.random() < 0.3 else [4, 3]
        changes["observation"] = [pb.Feature(name=f"f{place}", dim=dim) for place, dim in enumerate(dims)]
        told = opened(**changes)
        rows, dim = told.policy.horizon - told.policy.first_action, told.policy.action_dim
        actions = np.zeros((rows, dim)) if 0 < rows * dim < 2**16 else np.zeros((15, 2))
        plan = planned(actions=wire.to_array(actions))
        liar.open, liar.plan = (damaged(reply.SerializeToString(), rng) for reply in (told, plan))
        found = frugally(lambda: act(liar.address))
        if isinstance(found, str):
            refused += 1
        else:
            assert np.isfinite(found).all() and found.dtype == np.float32
    assert ROUNDS // 9 < refused < ROUNDS // 3


def damaged(reply: bytes, rng: random.Random) -> bytes:
    """Return an answer with some bytes changed, cut or added, or as it was."""
    content, action = bytearray(reply), rng.choice(["none", "none", "none", "flip", "cut", "add"])
    if action == "flip":
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del content[rng.randrange(len(content)) :]
    elif action == "add":
        content += rng.randbytes(rng.randrange(1, 20))
    return bytes(content)
