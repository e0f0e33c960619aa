"""Frames on the wire: the numbers that were seen, each frame once, and every message that is refused."""

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest

import asd_policy
from asd_policy import ControlLoop, LoopOptions
from asd_policy.deploy.realtime.timebase import VirtualTime
from asd_policy.deploy.serving import planner_pb2 as pb
from asd_policy.deploy.serving import wire
from asd_policy.deploy.serving.dispatcher import Dispatcher, Request
from asd_policy.deploy.serving.frames import pack, unpack
from asd_policy.deploy.serving.requests import RequestReader
from asd_policy.deploy.serving.server import Limits
from asd_policy.errors import ObservationError
from asd_policy.policy.observation import STATE, as_floats
from support.policy_servers import FIXED, Raw, Served, serving

CAMERA = "observation.image"
SHAPE = (3, 40, 48)
Frame = npt.NDArray[Any]


def frame(seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)


def floats(bytes_: Frame) -> Frame:
    return np.moveaxis(bytes_, -1, 0).astype(np.float32) / 255


def seen(shown: Any) -> dict[str, Any]:
    return {STATE: [0.1, 0.2], CAMERA: shown}


@pytest.fixture(scope="module")
def served(camera_checkpoint: Path) -> Iterator[Served]:
    with serving(camera_checkpoint, limits=Limits(max_batch=2)) as served:
        yield served


FORMS: dict[str, list[Frame]] = {
    "bytes": [frame(1), frame(2)],
    "floats of bytes": [floats(frame(1)), frame(2)],
    "other floats": [np.float32(0.999) * floats(frame(1)), frame(2)],
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_frames_arrive_as_they_were(compress: bool, form: str) -> None:
    message = pb.Frames.FromString(pack(FORMS[form], compress).SerializeToString())
    for have, want in zip(unpack(message, SHAPE, 2, "frames"), FORMS[form], strict=True):
        assert np.array_equal(as_floats(have), as_floats(want))
    assert message.floats is (form == "other floats")


def test_a_frame_that_two_observations_show_is_sent_once() -> None:
    shown = frame()
    message = pack([shown, shown], compress=False)
    assert list(message.index) == [0, 0] and len(message.data) == shown.size
    first, second = unpack(message, SHAPE, 2, "frames")
    assert first is second


def test_compression_pays_for_smooth_frames() -> None:
    ramp: Frame = np.tile(np.arange(48, dtype=np.uint8)[None, :, None], (40, 1, 3))
    small, whole = (len(pack([ramp], compress).data) for compress in (True, False))
    assert small * 10 < whole == ramp.size


@pytest.mark.parametrize("compress", [False, True])
def test_a_robot_with_a_camera_gets_the_plans_that_it_would_make_itself(
    served: Served, camera_checkpoint: Path, compress: bool
) -> None:
    local = asd_policy.load_policy(camera_checkpoint, FIXED)
    with served.connect(compress=compress) as remote:
        assert remote.observation_shapes == local.observation_shapes
        assert remote.observation_dims == local.observation_dims == {STATE: 2}
        for robot in (local, remote):
            robot.reset(seed=3)
        for step in range(2 * local.horizons.n_action_steps):
            shown = frame(step) if step % 2 else floats(frame(step))
            np.testing.assert_allclose(remote.select_action(seen(shown)), local.select_action(seen(shown)), atol=1e-5)


def test_a_control_loop_plans_on_a_server_with_frames(served: Served) -> None:
    written: list[Any] = []
    options = LoopOptions(patience=60, ticks=6)
    with served.connect() as remote:
        loop = ControlLoop(remote, lambda: seen(frame(len(written))), written.append, 10.0, options, VirtualTime(0.1))
        told = loop.run()
    assert len(written) >= 5 and np.isfinite(written).all()
    assert (told.stale, told.faults) == (0, 0)


def test_what_is_no_frame_is_refused_before_it_is_sent(served: Served) -> None:
    with served.connect() as remote, pytest.raises(ObservationError, match=r"is uint8 \(3, 40, 48\), not uint8"):
        remote.select_action(seen(np.moveaxis(frame(), -1, 0)))


def broken(**changes: Any) -> pb.Frames:
    message = pack([frame(1), frame(2)], compress=changes.pop("compress", False))
    if "index" in changes:
        del message.index[:]
        message.index.extend(changes.pop("index"))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


SIZE = 40 * 48 * 3
PACKED = pack([frame(1), frame(2)], compress=True).data
NAN = np.full(2 * SIZE, np.nan, "<f4").tobytes()
BAD: dict[str, tuple[pb.Frames, str]] = {
    "no frames": (pb.Frames(), "has the indices none, not one of 0, 1, … for each of 2"),
    "one frame of two": (broken(index=[0]), "has the indices 0, not one of"),
    "too many": (broken(index=[0, 1, 1]), "has the indices 0, 1, 1, not one of"),
    "beyond": (broken(index=[0, 2**31]), "has the indices 0, 2147483648, not one of"),
    "a gap": (broken(index=[0, 2]), "has the indices 0, 2, not one of"),
    "cut": (broken(data=bytes(SIZE)), f"has {SIZE} bytes, not the {2 * SIZE} of 2 frames (3, 40, 48)"),
    "too long": (broken(data=bytes(3 * SIZE)), f"has {3 * SIZE} bytes, not the {2 * SIZE} of"),
    "bytes as floats": (broken(floats=True), f"has {2 * SIZE} bytes, not the {8 * SIZE} of"),
    "no number": (broken(floats=True, data=NAN), "is in nan … nan, not in 0 … 1"),
    "not compressed": (broken(compressed=True), "is no zlib stream: "),
    "corrupt": (broken(compress=True, data=PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:]), "observation"),
    "without an end": (broken(compress=True, data=PACKED[:-9]), "is a zlib stream without its end"),
    "a bomb": (broken(compress=True, data=zlib.compress(bytes(10**7))), f"has {2 * SIZE + 1} bytes, not the"),
    "more than its stream": (broken(compress=True, data=PACKED + bytes(3)), "has 3 bytes after its zlib stream"),
    "compressed floats": (broken(compress=True, floats=True), "has compressed floats; only bytes are compressed"),
    "too little": (broken(compress=True, data=zlib.compress(b"")), "has 0 bytes, not the"),
}


@pytest.mark.parametrize(("message", "said"), BAD.values(), ids=BAD)
def test_other_frames_are_refused_in_one_line(served: Served, message: pb.Frames, said: str) -> None:
    raw = Raw(served.address)
    request = pb.PlanRequest(
        session=raw.open(), history={STATE: wire.to_array(np.zeros((2, 2)))}, frames={CAMERA: message}, begins=True
    )
    with pytest.raises(grpc.RpcError) as caught:
        raw.plan(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = str(caught.value.details())
    assert details.startswith(f"the request's observation '{CAMERA}'") and said in details and "\n" not in details
    raw.channel.close()


def test_a_camera_that_is_sent_as_numbers_is_refused(served: Served) -> None:
    raw = Raw(served.address)
    numbers = {STATE: wire.to_array(np.zeros((2, 2))), CAMERA: wire.to_array(np.zeros((2, *SHAPE)))}
    with pytest.raises(grpc.RpcError, match="cameras as `frames` and others as `history`; the request has"):
        raw.plan(pb.PlanRequest(session=raw.open(), history=numbers, begins=True))
    with pytest.raises(
        grpc.RpcError, match="the policy reads 'observation.state', 'observation.image'; the request has"
    ):
        raw.plan(pb.PlanRequest(session=raw.open(), begins=True))
    raw.channel.close()


def test_reading_frames_takes_of_the_time_that_a_robot_waits(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    read, submit, slow, timeout = RequestReader.history, Dispatcher.submit, 0.5, 20.0
    deadlines: list[float] = []

    def slowly(reader: RequestReader, request: pb.PlanRequest) -> Any:
        time.sleep(slow)
        return read(reader, request)

    def noted(dispatcher: Dispatcher, request: Request) -> bool:
        deadlines.append(request.deadline)
        return submit(dispatcher, request)

    monkeypatch.setattr(RequestReader, "history", slowly)
    monkeypatch.setattr(Dispatcher, "submit", noted)
    raw = Raw(served.address)
    history = {STATE: wire.to_array(np.zeros((2, 2)))}
    request = pb.PlanRequest(session=raw.open(), history=history, frames={CAMERA: broken()}, begins=True)
    end = time.monotonic() + timeout
    raw.plan(request, timeout=timeout)
    assert abs(deadlines[0] - end) < slow / 2
    raw.channel.close()


def test_a_policy_of_huge_frames_is_served(camera_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though gRPC takes no limit beyond 31 bits."""
    monkeypatch.setattr(RequestReader, "most_bytes", 2**33)
    with serving(camera_checkpoint, limits=Limits(max_batch=1)) as served, served.connect() as remote:
        assert remote.select_action(seen(frame())).shape == (2,)


def test_a_request_longer_than_frames_can_be_is_not_read(served: Served) -> None:
    raw = Raw(served.address)
    message = broken(data=bytes(10 * SIZE))
    with pytest.raises(grpc.RpcError) as caught:
        raw.plan(pb.PlanRequest(session=raw.open(), frames={CAMERA: message}, begins=True))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    raw.channel.close()
