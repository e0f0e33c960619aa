"""PushT's own promises: coverage, start, walls, image observations, and an expert that solves it."""

from ctypes.util import find_library
from math import pi

import gymnasium
import numpy as np
import pytest

from asd_envs.dubins import Pose
from asd_envs.pusht import CORNERS, GOAL_POSE, PUSHER_RADIUS, REACH, PushTEnv, coverage, rotation
from asd_envs.pusht_expert import MUJOCO, PushTExpert, drive

CONTACT_Y = MUJOCO.contact_y


def moved(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Pose:
    """Return the goal's pose, displaced along the T's own axes [m] and turned [rad]."""
    offset = rotation(GOAL_POSE[2]) @ (x, y)
    return GOAL_POSE[0] + offset[0], GOAL_POSE[1] + offset[1], GOAL_POSE[2] + yaw


def place(env: PushTEnv, block: Pose, pusher: tuple[float, float]) -> None:
    """Put block and pusher somewhere, at rest."""
    env.data.ctrl[:] = pusher
    env.set_state(np.array([*block, *pusher]), np.zeros(5))


def inside(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Return which points [N, 2] the T at a pose covers, by what a T is."""
    x, y = ((points - pose[:2]) @ rotation(pose[2])).T
    y = y - CORNERS[:, 1].min()
    return (y > 0) & np.where(y < 0.03, abs(x) < 0.06, (abs(x) < 0.015) & (y < 0.12))


# Coverage


@pytest.mark.parametrize("shift", [0.0, 0.002, 0.01, 0.03])
def test_coverage_of_a_shifted_block(shift: float) -> None:
    """Any shift along or across the stem uncovers 0.12 m times the shift, of 0.0063 m²."""
    expected = 1 - 0.12 * shift / 0.0063
    for pose in (moved(x=shift), moved(x=-shift), moved(y=shift), moved(y=-shift), moved(x=shift, yaw=2 * pi)):
        assert coverage(pose) == pytest.approx(expected)


def test_the_expert_knows_the_coverage() -> None:
    for pose in (moved(), moved(x=0.01, yaw=0.1), moved(y=-0.02, yaw=-0.3), moved(x=0.2)):
        assert MUJOCO.coverage(pose) == pytest.approx(coverage(pose))


def test_coverage_of_a_block_upside_down() -> None:
    """Two squares where stems cross bars, and what two opposite stems share about the centre of mass."""
    shared = 2 * CORNERS[2, 1]
    assert coverage(moved(yaw=pi)) == pytest.approx((2 * 0.03**2 + 0.03 * abs(shared)) / 0.0063)


def test_coverage_far_away_is_none() -> None:
    assert coverage(moved(x=0.2)) == 0.0


def test_coverage_against_counted_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.15, 0.15, (200_000, 2))
    goal = inside(points, GOAL_POSE)
    for _ in range(10):
        pose = moved(*rng.uniform([-0.03, -0.03, -1], [0.03, 0.03, 1]))
        assert coverage(pose) == pytest.approx(inside(points, pose)[goal].mean(), abs=0.015)


# Simulation


def test_the_simulation_has_the_same_shapes() -> None:
    model = PushTEnv().model
    corners = []
    for name in ("bar", "stem"):
        geom = model.geom(name)
        corners += [geom.pos[:2] + geom.size[:2] * sign for sign in [(-1, -1), (1, -1), (1, 1), (-1, 1)]]
    assert {tuple(np.round(corner, 6)) for corner in CORNERS} == {tuple(np.round(corner, 6)) for corner in corners}
    block = model.body("block")
    assert block.ipos == pytest.approx(0, abs=1e-6)  # the frame's origin is the centre of mass
    goal = model.body("goal")
    assert (*goal.pos[:2], 2 * np.arctan2(goal.quat[3], goal.quat[0])) == pytest.approx(GOAL_POSE)
    assert model.geom("pusher").size[0] == PUSHER_RADIUS
    damping = [model.joint(name).damping[0] for name in ("block_x", "block_y", "block_yaw")]
    assert damping[0] == damping[1]
    assert damping[2] / damping[0] == pytest.approx(MUJOCO.gyration**2, rel=0.01)


def test_start_reward_and_end() -> None:
    env = gymnasium.make("asd/PushT-v0")
    bare = env.unwrapped
    assert isinstance(bare, PushTEnv)
    starts = []
    for seed in range(200):
        observation, info = env.reset(seed=seed)
        x, y, cosine, sine, *relative = observation["environment_state"]
        assert np.linalg.norm(relative) >= 0.11
        assert rotation(np.arctan2(sine, cosine)) @ relative + (x, y) == pytest.approx(observation["agent_pos"])
        assert info == {"success": False, "coverage": pytest.approx(coverage((x, y, np.arctan2(sine, cosine))))}
        starts.append([x, y, np.arctan2(sine, cosine)])
    assert abs(np.array(starts)).max(0) == pytest.approx([0.1, 0.1, pi], rel=0.05)
    far = (0.2, -0.2)
    for shift, success in [(0.005, True), (0.0055, False)]:  # 0.90476 and 0.895 of the goal
        place(bare, moved(y=shift), far)
        _, reward, terminated, truncated, info = env.step(np.array(far))
        assert reward == info["coverage"] == pytest.approx(1 - 0.12 * shift / 0.0063)
        assert terminated == info["success"] == success
        assert not truncated


def test_the_block_stops_when_it_is_not_pushed() -> None:
    env = PushTEnv()
    place(env, (0.0, 0.0, 0.0), (0.0, CONTACT_Y))
    env.step(np.array([0.0, CONTACT_Y + 0.02]))
    pushed = env.data.qpos[:3].copy()
    assert pushed == pytest.approx([0, 0.02, 0], abs=0.003)
    env.step(np.array([0.0, CONTACT_Y]))
    stopped = env.data.qpos[:3].copy()
    assert stopped == pytest.approx(pushed, abs=0.002)
    env.step(np.array([0.0, CONTACT_Y]))
    assert env.data.qpos[:3] == pytest.approx(stopped, abs=1e-4)


@pytest.mark.parametrize("beside", [-0.04, 0.0, 0.02, 0.05])
def test_the_quasi_static_model_foresees_the_simulation(beside: float) -> None:
    env = PushTEnv()
    block = (0.05, -0.03, 1.0)
    place(env, block, tuple(block[:2] + rotation(block[2]) @ (beside, CONTACT_Y)))
    for _ in range(10):
        block, beside = drive(block, beside, 0.007, beside, MUJOCO.gyration)
        env.step(block[:2] + rotation(block[2]) @ (beside, CONTACT_Y))
    assert env.data.qpos[:2] == pytest.approx(block[:2], abs=0.003)  # of 0.07 m; the servo lags behind by 2 mm
    assert env.data.qpos[2] == pytest.approx(block[2], abs=0.05)


def test_walls_keep_the_block_on_the_table() -> None:
    env = PushTEnv()
    place(env, (0.15, 0.0, -pi / 2), (0.0, 0.0))
    for _ in range(20):
        env.step(np.array([0.24, 0.0]))
    corners = CORNERS @ rotation(env.data.qpos[2]).T + env.data.qpos[:2]
    assert corners[:, 0].max() == pytest.approx(0.256, abs=0.003)


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_image_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = gymnasium.make("asd/PushT-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    env.reset(seed=0)
    bare = env.unwrapped
    assert isinstance(bare, PushTEnv)
    place(bare, GOAL_POSE, (0.2, 0.2))
    observation, *_ = env.step(np.array([0.2, 0.2]))
    assert env.observation_space.contains(observation)
    image = observation["pixels"].astype(int)
    assert image.std() > 10
    red, green, blue = image.reshape(-1, 3).T
    assert not (green > blue + 30).any()  # the block hides the green goal
    where = np.argwhere(blue.reshape(image.shape[:2]) > red.reshape(image.shape[:2]) + 80).mean(0)
    assert where == pytest.approx([10, 86], abs=6)  # the blue pusher, in the upper right
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    pooled = frame.reshape(96, 5, 96, 5, 3).mean((1, 3))
    assert abs(pooled - image).mean() < 5  # the same view, in another size
    env.close()


# Expert


def test_the_expert_recovers_from_noise() -> None:
    """Twice the noise of the demonstrations of the bundled checkpoint."""
    env = gymnasium.make("asd/PushT-v0")
    expert = PushTExpert()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        expert.reset(rng)
        observation, info = env.reset(seed=seed)
        done = False
        while not done:
            action = expert.act(observation)
            assert env.action_space.contains(action)
            observation, _, terminated, truncated, info = env.step(
                np.clip(action + 0.02 * REACH * rng.standard_normal(2), -REACH, REACH)
            )
            done = terminated or truncated
        assert info["success"], f"seed {seed}"


@pytest.mark.parametrize("angle", np.arange(0, 2 * pi, pi / 8))
def test_the_expert_walks_around_the_block(angle: float) -> None:
    """The block stands where it stood until the pusher is behind its bar, from wherever the pusher starts."""
    env = PushTEnv()
    block = (0.02, 0.01, 0.4)
    place(env, block, (0.02 + 0.11 * np.cos(angle), 0.01 + 0.11 * np.sin(angle)))
    observation, *_ = env.step(env.data.qpos[3:].copy())
    expert = PushTExpert()
    for _ in range(30):
        if observation["environment_state"][5] < CONTACT_Y:
            break
        assert env.data.qpos[:3] == pytest.approx(block, abs=1e-6)
        observation, *_ = env.step(expert.act(observation))
    assert observation["environment_state"][5] < CONTACT_Y
