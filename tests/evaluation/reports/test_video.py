"""Videos: what browsers and phones play, labelled, and two beside each other."""

import os
import subprocess
import sys
from collections.abc import Sequence
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asd_policy import load_policy
from asd_policy.errors import EnvError
from asd_policy.evaluation import closed_loop
from asd_policy.evaluation.reports import video
from asd_policy.evaluation.rollout.environments import make_env
from asd_policy.evaluation.rollout.episodes import Episode
from asd_policy.policy.plan import PlanRecord, Timing
from asd_policy.samplers import make_sampler
from support.small_checkpoints import camera_config, save_cameras

ffmpeg = pytest.importorskip("imageio_ffmpeg")
RED, BLUE = (200, 0, 0), (0, 0, 200)


def read(path: Path) -> tuple[dict[str, Any], list[video.Frame]]:
    about, *frames = ffmpeg.read_frames(str(path))
    width, height = about["size"]
    return about, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]


@pytest.mark.parametrize("shape", [(5, 7), (100, 321), (480, 480)])
def test_a_label_leaves_the_frame_as_it_is(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(100, 256, (*shape, 3), dtype=np.uint8)
    one, other = (video.labelled(frame, "ddpm", text) for text in ("step 1", "step 2"))
    height, width = one.shape[:2]
    assert width >= 320 and width % 2 == height % 2 == 0
    times = width // shape[1]
    bar = height - times * shape[0] - times * shape[0] % 2
    assert (one[bar::times, ::times][: shape[0], : shape[1]] == frame).all()
    assert (one[:bar] != other[:bar]).any()


def filmed(path: Path, colours: Sequence[tuple[int, int, int]], waits: tuple[float, ...], success: bool) -> video.Film:
    """Film an episode at 10 Hz: a frame of a colour for each step, and one for its end."""
    with video.writing(path, 10) as show:
        for colour in colours:
            show(video.labelled(np.full((320, 320, 3), colour, np.uint8), "name", "step"))
    return video.Film(path, path.stem, waits, 10, success)


def test_side_by_side_is_in_real_time(tmp_path: Path) -> None:
    """The left robot waits 0.5 s for its plan, and comes to its second frame after 0.6 s; the others wait for none."""
    slow = filmed(tmp_path / "ddpm.mp4", [RED, BLUE, RED], (0.5, 0.0), True)
    fast = filmed(tmp_path / "asd.mp4", [RED, BLUE, BLUE], (0.0, 0.0), False)
    assert slow.seconds == pytest.approx(0.7) and fast.seconds == pytest.approx(0.2)
    video.side_by_side([slow, fast, fast], tmp_path / "all.mp4")
    about, frames = read(tmp_path / "all.mp4")
    assert (about["codec"], about["fps"], about["size"][0]) == ("h264", 30, 960)
    assert about["pix_fmt"].startswith("yuv420p")
    assert len(frames) == 30 * 0.7 + 1 + 30  # the end is held for a second

    def colours(place: int) -> list[str]:
        middles = [frame[-100, 320 * place + 160] for frame in frames]
        return ["red" if middle[0] > middle[2] else "blue" for middle in middles]

    assert colours(0) == ["red"] * 18 + ["blue"] * 3 + ["red"] * 31
    assert colours(1) == colours(2) == ["red"] * 3 + ["blue"] * 49  # its end, held

    assert about["size"][1] == 320 + 2 * (44 * 32 // 28)  # all labels are of one size, as large as they can be

    def bar(tick: int) -> np.ndarray[Any, Any]:
        return frames[tick][8:48, :320].astype(int)

    assert np.abs(bar(14) - bar(16)).max() > 100  # "planning" goes


@pytest.mark.parametrize("signs", [True, False])
def test_a_label_has_room_and_its_signs_are_in_the_font(
    signs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are those of every table where matplotlib has brought its font, and spelt out where not."""
    monkeypatch.setattr(video, "_has_signs", lambda: signs)
    video._font.cache_clear()
    short, long = (filmed(tmp_path / f"{name}.mp4", [RED, RED], (0.0,), True) for name in ("a", "b"))
    named = [replace(short, title="asd θ=8"), replace(long, title="asd θ=32 picard, reflection, and more ≈")]
    video.side_by_side(named, tmp_path / "all.mp4")
    about, frames = read(tmp_path / "all.mp4")
    assert about["size"][1] < 320 + 2 * (44 * 32 // 28)
    bar = frames[0][: about["size"][1] - 320].min(axis=2).max(axis=0) > 100  # columns with white in them
    lit = bar[:320], bar[320:]
    assert all(row[8:40].any() and not row[-6:].any() for row in lit)
    name = "asd θ=8, ddim-10 ≈"
    assert video._spelt(name) == (name if signs else "asd window=8, ddim-10 (approximate)")
    signs_drawn = {bytes(video._font(20).getmask(sign)) for sign in "θη≈"}
    assert len(signs_drawn) == (3 if signs else 1)  # a font draws all that it lacks alike
    video._font.cache_clear()


def test_only_a_robot_that_waits_stands_still() -> None:
    """By a clock time goes on while a plan is made, so its film has no pause for it."""
    costs = {"rounds": 5, "nfe": 9, "window": 2, "batch": 1, "network_seconds": None, "refused": None, "unjudged": None}
    waited = PlanRecord(at=2, seconds=0.25, **costs)
    clocked = replace(waited, timing=Timing(latency=0.25, delay=3, stale=1, seam=None))
    waits = [
        video.Film.of(Path("a.mp4"), "ddpm", Episode("ddpm", 0, True, 1.0, 4, None, None, (plan,)), 10).waits
        for plan in (waited, clocked)
    ]
    assert waits == [(0, 0, 0.25, 0), (0, 0, 0, 0)]


def test_a_video_that_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), video.writing(tmp_path / "half.mp4", 10) as show:
        show(np.zeros((64, 64, 3), np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_the_evaluated_episode_is_filmed(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = make_env("asd/Avoid-v0")
    samplers = [make_sampler(spec) for spec in ("ddpm", "ddim:2", "asd:window=5")]
    found = closed_loop.prepare_planners(load_policy(small_checkpoint), env, samplers)
    steps = [closed_loop.run_episode(planner, env, 0, seed=3).steps for planner in found]
    planners = {planner.sampler.spec: planner for planner in found}
    beside = {sampler.spec: sampler.spec for sampler in (samplers[0], samplers[2])}
    paths = video.record(planners, "asd/Avoid-v0", 3, tmp_path, beside)
    assert [path.name for path in paths] == [
        "ddpm.mp4", "ddim-2.mp4", "asd-window=5-draft=response-verify=block.mp4", "side-by-side.mp4",
    ]  # fmt: skip
    *counts, together = (len(read(path)[1]) for path in paths)
    assert counts == [count + 1 for count in steps]
    assert together > 30 * (max(steps[0], steps[2]) / 10 + 1)  # at 10 Hz, with the time that plans took, and a second


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_the_cameras_see_stands_beside_the_scene(count: int) -> None:
    scene = np.full((300, 400, 3), 200, np.uint8)
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)][:count]
    seen = {f"camera {index}": np.full((48, 64, 3), colour, np.uint8) for index, colour in enumerate(colours)}
    both = video.beside(scene, seen)
    assert (both[:, :400] == scene).all() and both.shape[0] == 300 and both.shape[1] > 400
    for index, colour in enumerate(colours):
        part = both[index * 300 // count : (index + 1) * 300 // count, 400:]
        assert (part[40:-2, 2:40] == colour).all()
    assert video.beside(scene, {}) is scene


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_frames_that_a_policy_sees_are_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env_id = "asd/Avoid-v0,obs_type=pixels_agent_pos"
    folder = save_cameras(tmp_path / "checkpoint", camera_config(["observation.image"], (96, 96), state=4))
    planner = load_policy(folder, "ddim:2")
    shapes = planner.observation_shapes
    (path,) = video.record({"ddim:2": planner}, env_id, 3, tmp_path, max_steps=3, shapes=shapes)
    about, frames = read(path)
    (alone,) = video.record({"ddim:2": planner}, env_id, 3, tmp_path, max_steps=3)
    assert len(frames) == 4 and about["size"][0] > read(alone)[0]["size"][0]


def test_without_ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(EnvError, match=r"--video needs imageio_ffmpeg: pip install 'asd-policy\[eval\]'"):
        video.record({}, "asd/Avoid-v0", 0, tmp_path)


def test_an_environment_that_cannot_be_rendered(small_checkpoint: Path, tmp_path: Path) -> None:
    planner = load_policy(small_checkpoint)
    with pytest.raises(EnvError, match="no environment 'asd/None-v0'"):
        video.record({"ddpm": planner}, "asd/None-v0", 0, tmp_path)


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_a_check_of_the_renderer_leaves_pytorch_s_compiler_usable() -> None:
    """In a process of its own: Triton's LLVM, loaded after that of Mesa, ends one."""
    pytest.importorskip("triton")
    code = "from asd_policy.evaluation.reports import video; video.check_video('asd/Avoid-v0'); import torch._dynamo"
    environment = os.environ | {"MUJOCO_GL": "egl"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]
