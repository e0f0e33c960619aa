"""Episodes as H.264 videos that browsers and phones play: one for each sampler, and some side by side in real time."""

import importlib
import importlib.util
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
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
from asd_policy.evaluation.rollout.clocks import ClockedPilot
from asd_policy.evaluation.rollout.environments import open_env
from asd_policy.evaluation.rollout.episodes import Episode
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
_REAL_TIME_FPS = 30
_HOLD = 1.0  # [s] at the end
_LARGE = 0.1  # of a frame's width: text of a label that stands beside others, to be read on a phone
_SPELT = {"θ": "window", "η": "eta", "≈": "(approximate)"}  # Pillow's own font has no sign for them


@dataclass(frozen=True)
class Film:
    """A video of one episode, and the time that its frames stood for."""

    path: Path
    """The video, of `record`."""
    title: str
    waits: tuple[float, ...]
    """What the robot waited for a plan at each frame [s]: 0 where none was made, or time went on meanwhile."""
    hz: float
    """Control steps in a second."""
    success: bool

    @classmethod
    def of(cls, path: Path, title: str, episode: Episode, hz: float) -> "Film":
        """Describe the film of an episode."""
        waited = {plan.at: plan.seconds for plan in episode.plans if plan.timing is None}
        return cls(path, title, tuple(waited.get(step, 0.0) for step in range(episode.steps)), hz, episode.success)

    @property
    def seconds(self) -> float:
        """How long the episode took."""
        return sum(self.waits) + len(self.waits) / self.hz


def check_video(env_id: str) -> None:
    """Refuse an environment that cannot be filmed here, before any work is done.

    Raises:
        EnvError: It takes no render mode or renders no frame, or imageio with ffmpeg is not installed.
    """
    ffmpeg()
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")  # its LLVM after that of Mesa's renderer ends the process
    with open_env(env_id, RENDER_MODE) as env, _rendering(env_id):
        env.reset(seed=0)
        _frame(env)


def record(
    pilots: Mapping[str, Pilot],
    env_id: str,
    seed: int,
    folder: Path,
    beside: Mapping[str, str] | None = None,
    max_steps: int | None = None,
    shapes: Shapes | None = None,
) -> list[Path]:
    """Write an mp4 of episode 0 for each sampler, and one with some of them side by side, in real time.

    Beside what the environment renders stands what the policy's cameras see.

    Args:
        pilots: The pilots, by the specs of their samplers as they were asked for. Their planners come from
            `closed_loop.prepare_planners`, so that the episode is the one that is evaluated.
        env_id: Gymnasium id of the environment.
        seed: Of the evaluation.
        folder: To write into.
        beside: Specs of the samplers to show side by side, from left to right, and their titles; with less than two
            of them there is no such video.
        max_steps: As for `make_env`.
        shapes: Of the features that the policies observe; None for vectors alone.

    Raises:
        EnvError: The environment cannot render here, or imageio with ffmpeg is not installed.
    """
    ffmpeg()
    films: dict[str, Film] = {}
    with open_env(env_id, RENDER_MODE, max_steps) as env:
        fps = env.metadata.get("render_fps", _FPS)
        for spec, pilot in pilots.items():
            path = folder / f"{spec.replace(':', '-').replace(',', '-')}.mp4"
            with _rendering(env_id), writing(path, fps) as write:
                episode = run_episode(pilot, _Filmed(env, spec, write, shapes or {}), 0, seed)
            hz = pilot.clock.hz if isinstance(pilot, ClockedPilot) else fps
            films[spec] = Film.of(path, (beside or {}).get(spec, spec), episode, hz)
    written = [film.path for film in films.values()]
    shown = [films[spec] for spec in beside or {}]
    if len(shown) > 1:
        written.append(folder / SIDE_BY_SIDE)
        side_by_side(shown, written[-1])
    return written


def side_by_side(films: Sequence[Film], path: Path) -> None:
    """Write some films of one environment as one, in real time: a robot that waits for a plan stands still.

    Args:
        films: From left to right, with frames of the same height. One that has ended stops at its last frame.
        path: To write.
    """
    font = min(map(_fitting, films))
    with ExitStack() as opened:
        parts = [opened.enter_context(closing(_in_real_time(film, font))) for film in films]
        shown: list[Any] = [None] * len(films)
        with writing(path, _REAL_TIME_FPS) as write:
            for moment in zip_longest(*parts):
                shown = [last if new is None else new for last, new in zip(shown, moment, strict=True)]
                write(np.hstack(shown))
            for _ in range(round(_HOLD * _REAL_TIME_FPS)):
                write(np.hstack(shown))


def _in_real_time(film: Film, font: int) -> Generator[Frame, None, None]:
    """Yield what a film shows at each moment of real time, under a label of its own, and what it ends with."""
    with closing(_frames(film.path)) as frames:
        next(frames)
        tick, begun = 0, 0.0
        for wait, frame in zip(film.waits, frames, strict=False):
            scene, ended = frame[_BAR:], begun + wait + 1 / film.hz
            while (now := tick / _REAL_TIME_FPS) < ended:
                doing = ", planning" if now < begun + wait else ""
                yield labelled(scene, _spelt(film.title), f"{now:.1f} s{doing}", font=font)
                tick += 1
            begun = ended
        outcome = "success" if film.success else "failure"
        end = f"{outcome} at {film.seconds:.1f} s"
        yield labelled(next(frames)[_BAR:], _spelt(film.title), end, font=font)


def _fitting(film: Film) -> int:
    """Choose the size of a label that has room above a film and, if it can, is read on a phone [px]."""
    with closing(_frames(film.path)) as frames:
        width = next(frames)["size"][0]
    most = round(_LARGE * width)
    return min(most, int(most * (width - 2 * _MARGIN) / _font(most).getlength(_spelt(film.title))))


def _spelt(title: str) -> str:
    if _has_signs():
        return title
    return "".join(_SPELT.get(sign, sign) for sign in title)


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
    from PIL import Image, ImageDraw

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
        draw.text((corner[0] + 4, corner[1] + 2), name, _INK, _font(_FONT - 3))
        image.paste(part, (corner[0], corner[1] + _NAME))
    return np.asarray(image)


def labelled(frame: Frame, *lines: str, font: int = _FONT) -> Frame:
    """Put two lines of text above a frame; enlarge it if it is small, and make its sides even, as H.264 needs.

    Args:
        frame: The frame.
        *lines: The text.
        font: Size of the text [px].
    """
    from PIL import Image, ImageDraw

    frame = enlarged(frame)
    height, width = (side + side % 2 for side in frame.shape[:2])
    bar = 2 * (_BAR * font // (2 * _FONT))
    image = Image.new("RGB", (width, height + bar), _PAPER)
    image.paste(Image.fromarray(frame), (0, bar))
    ImageDraw.Draw(image).text((_MARGIN, 4), "\n".join(lines), _INK, _font(font))
    return np.asarray(image)


@lru_cache
def _font(size: int) -> Any:
    """Load the font of labels, a file that every frame would read: matplotlib's, with all signs, or Pillow's own."""
    from PIL import ImageFont

    return ImageFont.truetype(_signs(), size) if _has_signs() else ImageFont.load_default(size)


def _signs() -> Path:
    spec = importlib.util.find_spec("matplotlib")
    return Path(spec.origin if spec and spec.origin else "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"


@lru_cache
def _has_signs() -> bool:
    return _signs().exists()


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
