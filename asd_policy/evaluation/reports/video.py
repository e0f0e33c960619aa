"""Episodes as H.264 videos that browsers and phones play: one for each sampler, and two of them side by side."""

import importlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from asd_policy._common.extras import needed
from asd_policy._common.files import atomic_file
from asd_policy.errors import EnvError
from asd_policy.evaluation.closed_loop import run_episode
from asd_policy.evaluation.rollout.environments import open_env
from asd_policy.policy.episode_state import Pilot
from asd_policy.policy.observation import Shapes, frames_seen

RENDER_MODE = "rgb_array"
"""Of environments that are filmed."""
SIDE_BY_SIDE = "side-by-side.mp4"
Frame = npt.NDArray[np.uint8]
"""RGB, shape [height, width, 3]."""

_FPS = 30  # where an environment does not say
_LEAST_WIDTH = 320  # [px]: smaller frames are enlarged, so that their label can be read
_BAR, _FONT, _MARGIN = 44, 14, 8  # [px]: above a frame, for the label
_NAME = 16  # [px]: above what a camera sees, for its name
_PAPER, _INK = (20, 24, 29), (235, 238, 241)
_RATE_FACTOR = "24"  # of x264: at 18 nothing is seen to be lost, at 28 much is


def check_video(env_id: str) -> None:
    """Refuse an environment that cannot be filmed here, before any work is done.

    Raises:
        EnvError: It takes no render mode or renders no frame, or imageio with ffmpeg is not installed.
    """
    ffmpeg()
    with open_env(env_id, RENDER_MODE) as env, _rendering(env_id):
        env.reset(seed=0)
        _frame(env)


def record(
    pilots: Mapping[str, Pilot],
    env_id: str,
    seed: int,
    folder: Path,
    beside: str | None = None,
    max_steps: int | None = None,
    reference: str = "ddpm",
    shapes: Shapes | None = None,
) -> list[Path]:
    """Write an mp4 of episode 0 for each sampler, and one with two of them side by side.

    Beside what the environment renders stands what the policy's cameras see.

    Args:
        pilots: The pilots, by the specs of their samplers as they were asked for. Their planners come from
            `closed_loop.prepare_planners`, so that the episode is the one that is evaluated.
        env_id: Gymnasium id of the environment.
        seed: Of the evaluation.
        folder: To write into.
        beside: Spec of the sampler to show beside the sequential one, if the pilots have both.
        max_steps: As for `make_env`.
        reference: Spec of the sequential one.
        shapes: Of the features that the policies observe; None for vectors alone.

    Raises:
        EnvError: The environment cannot render here, or imageio with ffmpeg is not installed.
    """
    ffmpeg()
    paths: dict[str, Path] = {}
    with open_env(env_id, RENDER_MODE, max_steps) as env:
        fps = env.metadata.get("render_fps", _FPS)
        for spec, pilot in pilots.items():
            paths[spec] = folder / f"{spec.replace(':', '-').replace(',', '-')}.mp4"
            with _rendering(env_id), writing(paths[spec], fps) as write:
                run_episode(pilot, _Filmed(env, spec, write, shapes or {}), 0, seed)
    written = list(paths.values())
    if reference in paths and beside in paths:
        written.append(folder / SIDE_BY_SIDE)
        side_by_side(paths[reference], paths[beside], written[-1])
    return written


def side_by_side(left: Path, right: Path, path: Path) -> None:
    """Write two videos of one environment as one; the shorter one stops at its last frame.

    Args:
        left: A video of `record`.
        right: Another, with frames of the same height.
        path: To write.
    """
    with closing(_frames(left)) as first, closing(_frames(right)) as second:
        fps = next(first)["fps"]
        next(second)
        shown: list[Any] = [None, None]
        with writing(path, fps) as write:
            for pair in zip_longest(first, second):
                shown = [last if new is None else new for last, new in zip(shown, pair, strict=True)]
                write(np.hstack(shown))


@contextmanager
def _rendering(env_id: str) -> Iterator[None]:
    """Name the environment in an error of its renderer."""
    try:
        yield
    except Exception as error:  # every renderer raises errors of its own
        raise EnvError(f"{env_id} cannot be rendered here: {error}; without a screen set MUJOCO_GL=egl") from error


def _frame(env: gymnasium.Env[Any, Any]) -> Frame:
    """Render a frame of an environment.

    Raises:
        EnvError: What it renders is no picture.
    """
    frame = np.asarray(env.render())
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise EnvError(f"it renders an array of {frame.dtype} {frame.shape}, and not one of uint8 (height, width, 3)")
    return frame


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose frames go into a video, under a title, the step, and the success."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], title: str, write: Callable[[Frame], None], shapes: Shapes
    ) -> None:
        super().__init__(env)
        self._title, self._write, self._shapes = title, write, shapes
        self._steps = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._steps = 0
        self._show(observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._steps += 1
        self._show(result[0], result[-1])
        return result

    def _show(self, observation: Any, info: dict[str, Any]) -> None:
        success = ", success" if info.get("success") else ""
        scene = beside(enlarged(_frame(self.env)), frames_seen(observation, self._shapes))
        self._write(labelled(scene, self._title, f"step {self._steps}{success}"))


def enlarged(frame: Frame) -> Frame:
    """Enlarge a small frame a whole number of times, so that its label can be read."""
    times = -(-_LEAST_WIDTH // frame.shape[1])
    return frame.repeat(times, axis=0).repeat(times, axis=1)


def beside(scene: Frame, seen: Mapping[str, Frame]) -> Frame:
    """Put what cameras see beside a scene, one below the other, each under its name and as high as there is room."""
    from PIL import Image, ImageDraw, ImageFont

    if not seen:
        return scene
    rows = np.array_split(np.arange(scene.shape[0]), len(seen))
    parts = []
    for rows_of_one, frame in zip(rows, seen.values(), strict=True):
        height = max(1, len(rows_of_one) - _NAME)
        size = max(1, round(frame.shape[1] * height / frame.shape[0])), height
        parts.append(Image.fromarray(frame).resize(size, Image.Resampling.NEAREST))
    image = Image.new("RGB", (scene.shape[1] + max(part.width for part in parts), scene.shape[0]), _PAPER)
    image.paste(Image.fromarray(scene))
    draw = ImageDraw.Draw(image)
    for rows_of_one, part, name in zip(rows, parts, seen, strict=True):
        corner = scene.shape[1], int(rows_of_one[0])
        draw.text((corner[0] + 4, corner[1] + 2), name, _INK, ImageFont.load_default(_FONT - 3))
        image.paste(part, (corner[0], corner[1] + _NAME))
    return np.asarray(image)


def labelled(frame: Frame, *lines: str) -> Frame:
    """Put two lines of text above a frame; enlarge it if it is small, and make its sides even, as H.264 needs."""
    from PIL import Image, ImageDraw, ImageFont

    frame = enlarged(frame)
    height, width = (side + side % 2 for side in frame.shape[:2])
    image = Image.new("RGB", (width, height + _BAR), _PAPER)
    image.paste(Image.fromarray(frame), (0, _BAR))
    ImageDraw.Draw(image).text((_MARGIN, 4), "\n".join(lines), _INK, ImageFont.load_default(_FONT))
    return np.asarray(image)


@contextmanager
def writing(path: Path, fps: float) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that writes frames to a video. The video is there after a block that ends without an error."""
    with atomic_file(path) as temporary:
        writers: list[Any] = []

        def write(frame: Frame) -> None:
            if not writers:
                height, width = frame.shape[:2]
                options = ["-crf", _RATE_FACTOR, "-movflags", "+faststart", "-f", "mp4"]
                writers.append(
                    ffmpeg().write_frames(
                        str(temporary),
                        (width, height),
                        fps=fps,
                        codec="libx264",
                        quality=None,
                        macro_block_size=2,
                        output_params=options,
                    )
                )
                writers[0].send(None)
            writers[0].send(np.ascontiguousarray(frame))

        try:
            yield write
        finally:
            for writer in writers:
                writer.close()


def _frames(path: Path) -> Generator[Any, None, None]:
    """Yield what ffmpeg says of a video, then its frames."""
    frames = ffmpeg().read_frames(str(path))
    about = next(frames)
    yield about
    width, height = about["size"]
    for frame in frames:
        yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)


def ffmpeg() -> Any:
    """Import imageio_ffmpeg, after a check that videos can be written.

    Raises:
        EnvError: It, or pillow, is not installed.
    """
    with needed("--video", "eval", EnvError):
        importlib.import_module("PIL")
        return importlib.import_module("imageio_ffmpeg")
