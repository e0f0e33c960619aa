"""Frames: their two forms, each that is refused, and that a robot's features depend on its own frames alone."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy._common.clock import HostClock, Stopwatch
from asd_policy.errors import ObservationError
from asd_policy.evaluation import benchmark
from asd_policy.evaluation.states import States, histories, random_conditioning, random_states, recalling
from asd_policy.policy import sensors
from asd_policy.policy.observation import STATE
from asd_policy.policy.policy import Policy
from asd_policy.policy.sensors import encode_history
from support.small_checkpoints import camera_config, save_cameras

IMAGE = "observation.image"
SHAPE = (40, 48, 3)
CPU = torch.device("cpu")
FRAME = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
FLOATS = np.moveaxis(FRAME, -1, 0).astype(np.float32) / 255


@pytest.fixture(scope="module")
def loaded(camera_checkpoint: Path) -> Policy:
    return asd_policy.load_policy(camera_checkpoint)


@pytest.fixture
def policy(loaded: Policy) -> Policy:
    return loaded.with_sampler(loaded.sampler)


def seen(frame: Any) -> dict[str, Any]:
    return {STATE: [0.1, 0.2], IMAGE: frame}


def history(frames: Any) -> dict[str, Any]:
    return {STATE: np.zeros((len(frames), 2, 2)), IMAGE: frames}


def random_frames(rows: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (rows, 2, *SHAPE), np.uint8)


FORMS: dict[str, Any] = {
    "bytes": FRAME,
    "floats": FLOATS,
    "doubles": FLOATS.astype(np.float64),
    "tensor of bytes": torch.from_numpy(FRAME),
    "tensor of floats": torch.from_numpy(FLOATS),
    "strided": FRAME[:, ::-1].copy()[:, ::-1],
}


@pytest.mark.parametrize("frame", FORMS.values(), ids=FORMS)
def test_every_form_of_a_frame_gives_the_same_action(policy: Policy, frame: Any) -> None:
    policy.reset(seed=0)
    expected = policy.select_action(seen(FRAME))
    policy.reset(seed=0)
    np.testing.assert_allclose(policy.select_action(seen(frame)), expected, atol=1e-5)


@pytest.mark.parametrize("observation", [{"agent_pos": [0.1, 0.2], "pixels": FRAME, "reward": "none"}])
def test_environments_names(policy: Policy, observation: dict[str, Any]) -> None:
    policy.reset(seed=0)
    expected = policy.select_action(seen(FRAME))
    policy.reset(seed=0)
    assert np.array_equal(policy.select_action(observation), expected)


def test_several_cameras_by_their_names(tmp_path: Path) -> None:
    """As gym-aloha shows them: `pixels` is a mapping."""
    names = ["observation.images.top", "observation.images.side"]
    policy = asd_policy.load_policy(save_cameras(tmp_path / "two", camera_config(names)))
    policy.reset(seed=0)
    expected = policy.select_action({STATE: [0.1, 0.2], names[0]: FRAME, names[1]: FRAME[::-1]})
    policy.reset(seed=0)
    pixels = {"side": FRAME[::-1], "top": FRAME}
    assert np.array_equal(policy.select_action({"agent_pos": [0.1, 0.2], "pixels": pixels}), expected)
    wanted = "no 'observation.images.side' or 'pixels.side'; it has 'agent_pos', 'pixels', the policy reads"
    with pytest.raises(ObservationError, match=wanted):
        policy.select_action({"agent_pos": [0.1, 0.2], "pixels": {"top": FRAME}})
    with pytest.raises(
        ObservationError,
        match="not as many rows of each feature: 1 of 'observation.state', 1 of 'observation.images.top', 2 of",
    ):
        policy.plan({STATE: np.zeros((1, 2, 2)), names[0]: random_frames(1), names[1]: random_frames(2)})


def test_frames_are_copied_and_stay_bytes(policy: Policy) -> None:
    frame = FRAME.copy()
    policy.reset(seed=0)
    policy.observe(0, seen(frame))
    frame[:] = 0
    kept = policy.robots[0].history[0][IMAGE]
    assert kept.dtype == torch.uint8 and kept.device == CPU
    assert np.array_equal(kept.numpy(), FRAME)


def test_a_robot_may_change_the_form(policy: Policy) -> None:
    """Bytes and floats in one history."""
    actions = []
    for frame in (FRAME, FLOATS):
        policy.reset(seed=0)
        policy.robots[0].queue.clear()
        policy.observe(0, seen(FRAME))
        policy.observe(0, seen(frame))
        actions.append(policy.act([0])[0])
    np.testing.assert_allclose(*actions, atol=1e-5)


BAD_FRAMES: list[tuple[Any, str]] = [
    (np.moveaxis(FRAME, -1, 0), "is uint8 (3, 40, 48), not uint8 (40, 48, 3) in 0 … 255 or float (3, 40, 48) in 0 … 1"),
    (np.moveaxis(FLOATS, 0, -1), "is float32 (40, 48, 3), not uint8 (40, 48, 3)"),
    (FRAME[:20], "is uint8 (20, 48, 3), not"),
    (FRAME[..., :1], "is uint8 (40, 48, 1), not"),
    (FRAME[..., 0], "is uint8 (40, 48), not"),
    (FRAME[None], "is uint8 (1, 40, 48, 3), not"),
    (np.stack([FRAME, FRAME]), "is uint8 (2, 40, 48, 3), not"),
    (FRAME.astype(np.int64), "is int64 (40, 48, 3), not"),
    (FRAME > 9, "is bool (40, 48, 3), not"),
    (FLOATS * 255, "is float32 (3, 40, 48) in 0 … 255, not in 0 … 1"),
    (FLOATS * 2 - 1, "is float32 (3, 40, 48) in -1 … 1, not in 0 … 1"),
    (FLOATS * np.nan, "is float32 (3, 40, 48) in nan … nan, not in 0 … 1"),
    (None, "is an array of object, not of real numbers"),
    ({"top": FRAME}, "is an array of object, not of real numbers"),
    ("frame.png", "not of real numbers"),
]


@pytest.mark.parametrize(("frame", "message"), BAD_FRAMES, ids=[message[:40] for _, message in BAD_FRAMES])
def test_other_frames_are_refused_in_one_line(policy: Policy, frame: Any, message: str) -> None:
    with pytest.raises(ObservationError) as caught:
        policy.select_action(seen(frame))
    assert f"observation '{IMAGE}' {message}" in str(caught.value) or message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_camera_is_named(policy: Policy) -> None:
    with pytest.raises(ObservationError, match=r"no 'observation.image' or 'pixels'; it has 'agent_pos', the policy"):
        policy.select_action({"agent_pos": [0.1, 0.2]})
    with pytest.raises(ObservationError, match="is a ndarray; the policy reads a mapping of"):
        policy.select_action(np.zeros(2))
    with pytest.raises(ObservationError, match="the history has no 'observation.image'; it has 'observation.state'"):
        policy.plan({STATE: np.zeros((1, 2, 2))})


BAD_HISTORIES: list[tuple[Any, str]] = [
    (random_frames(1)[:, :1], "has 1 frames in each row, not 2: its shape is (1, 1, 40, 48, 3)"),
    (random_frames(1)[0], "is uint8 (B, 2) + (48, 3), not uint8 (B, 2) + (40, 48, 3) in 0 … 255 or float"),
    (np.moveaxis(random_frames(1), -1, 2), "is uint8 (B, 2) + (3, 40, 48), not"),
    (torch.full((1, 2, 3, 40, 48), 255.0), "is float32 (1, 2, 3, 40, 48) in 255 … 255, not in 0 … 1"),
]


@pytest.mark.parametrize(("frames", "message"), BAD_HISTORIES, ids=[message[:40] for _, message in BAD_HISTORIES])
def test_other_histories_are_refused_in_one_line(policy: Policy, frames: Any, message: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(f"the history of 'observation.image' {message}")):
        policy.plan({STATE: np.zeros((1, 2, 2)), IMAGE: frames})


def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on how many frames are encoded at once; with the statistics of batches as with those of groups."""
    for group_norm in (True, False):
        config = camera_config([IMAGE], use_group_norm=group_norm, crop_shape=(33, 41))
        encoder = asd_policy.load_policy(save_cameras(tmp_path / f"{group_norm}", config)).encoder
        frames = random_frames(3)
        expected = encode_history(encoder, history(frames), 2, CPU)
        assert torch.equal(encode_history(encoder, history(frames), 2, CPU), expected)
        for row in range(3):
            others = random_frames(3, seed=1)
            others[row] = frames[row]
            for batch, index in ((frames[row : row + 1], 0), (others, row)):
                found = encode_history(encoder, history(batch), 2, CPU)[index]
                torch.testing.assert_close(found, expected[row], rtol=1e-5, atol=1e-6)
        with monkeypatch.context() as patch:
            patch.setattr(sensors, "MOST_PIXELS", 1)
            torch.testing.assert_close(encode_history(encoder, history(frames), 2, CPU), expected, rtol=1e-5, atol=1e-6)


def test_ambient_precision_changes_no_features(policy: Policy) -> None:
    frames = random_frames(1)
    expected = encode_history(policy.encoder, history(frames), 2, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_history(policy.encoder, history(frames), 2, CPU), expected)


def test_encoding_is_a_stage_of_its_own(policy: Policy) -> None:
    stopwatch = Stopwatch(HostClock())
    policy.plan(history(random_frames(1)), stopwatch=stopwatch)
    assert stopwatch.stop()["encode"] > 0


@pytest.mark.parametrize("continuity", ["none", "inpaint"])
def test_warm_up_continuity_and_deadlines(policy: Policy, continuity: str) -> None:
    fast = asd_policy.accelerate(policy, "asd:window=4").with_deadline(10_000)
    assert fast.warm_up(robots=2).calls > 0
    assert np.isfinite(fast.select_action(seen(FRAME))).all()


def test_states_at_random_are_states_that_cameras_see(policy: Policy) -> None:
    cond = random_conditioning(policy, 20, seed=0)
    assert cond.shape == (20, policy.cond_dim) and cond.isfinite().all()
    assert torch.equal(cond, random_conditioning(policy, 20, seed=0))
    first, second = cond.unflatten(1, (2, -1)).unbind(1)
    assert torch.equal(first, second)  # at rest
    features = first[:, 2:]
    assert torch.equal(features[16:], features[:4]) and not torch.equal(features[0], features[1])
    assert len(first[:, :2].unique(dim=0)) == 20


def test_a_benchmark_encodes_frames_and_plans_at_its_states(policy: Policy) -> None:
    states: States = random_states(policy, 3, 0)
    running = recalling(policy, states.cond)
    frames = histories(policy, states.cond)
    assert frames[IMAGE].dtype == torch.uint8
    plan = running.plan(frames, torch.Generator().manual_seed(0))
    assert torch.equal(plan.cond, states.cond)
    timed = benchmark.plan(policy, states.first(1), 0, HostClock(), staged=True)
    assert timed.stages is not None and timed.stages["encode"] > 0
    assert timed.encode_seconds is not None and timed.encode_seconds <= timed.wall_seconds
    summary = benchmark.summarize_plans([timed], None, None)
    assert summary["encode_fraction"] == pytest.approx(timed.encode_seconds / timed.wall_seconds)
    network = timed.stats.network_seconds
    assert network is not None
    outside = 1 - (network + timed.encode_seconds) / timed.wall_seconds
    assert summary["overhead_fraction"] == pytest.approx(outside)


def test_a_control_loop_hands_frames_on(policy: Policy) -> None:
    """What its history keeps is what the planner reads again."""
    from asd_policy.deploy.realtime.history import History
    from asd_policy.deploy.realtime.planner import PolicyPlanner, shapes_of

    planner = PolicyPlanner(policy)
    kept = History(2, shapes_of(planner))
    for frame in (FRAME, FLOATS):
        kept.add({"agent_pos": [0.1, 0.2], "pixels": frame})
    planned = planner.plan(kept.hand_over(), 0, begins=True)
    assert np.isfinite(planned.actions).all()
    with pytest.raises(ObservationError, match="observation 'pixels' is uint8"):
        kept.add({"agent_pos": [0.1, 0.2], "pixels": FRAME[:5]})


@pytest.mark.parametrize(("shared", "most", "calls"), [(True, 512, [6]), (False, 512, [3, 3]), (True, 4, [3, 3])])
def test_cameras_that_share_a_network_share_its_call(
    shared: bool, most: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a normalisation of its own; where all frames at once are too many, camera by camera."""
    monkeypatch.setattr(sensors, "MOST_ROWS", most)
    rows: list[int] = []

    class Network(torch.nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            rows.append(len(frames))
            return frames.mean(dim=(-2, -1))

    one, names = Network(), ("observation.images.top", "observation.images.side")
    colours = {
        name: sensors.Affine(torch.zeros(3), torch.full((3,), gain), torch.zeros(3))
        for name, gain in zip(names, (1.0, 5.0), strict=True)
    }
    cameras = {
        name: sensors.Sensor((3, 40, 48), affine, one if shared else Network(), 3) for name, affine in colours.items()
    }
    frames = {name: random_frames(3, seed=seed)[:, 0] for seed, name in enumerate(names)}
    found = sensors.SensorEncoder(cameras).look(frames, CPU)
    assert rows == calls
    means = [torch.from_numpy(frames[name]).float().mean(dim=(1, 2)) / 255 for name in names]
    torch.testing.assert_close(found, torch.cat([means[0], 5 * means[1]], dim=1))
