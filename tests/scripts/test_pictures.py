"""The pictures of the front page show what docs/results has measured, and are small enough."""

import re
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
import pictures
import round_drawing

MEASURED = pictures.read_measured(pictures.MEASURED.read_text())
PAGE = (pictures.PICTURES / "README.md").read_text()


def test_the_tables_are_read() -> None:
    """By one line of the page: `ddpm` in PyTorch on Intercept."""
    (line,) = (
        each for each in MEASURED if (each.task, each.spec, each.backend) == (pictures.TASK, "ddpm", "torch-eager")
    )
    text = pictures.MEASURED.read_text().partition("## `asd/Intercept-v0`")[2]
    (row,) = (row for row in text.partition("## `asd/Avoid-v0`")[0].splitlines() if row.startswith("| `ddpm` | torch"))
    assert f"{line.p50_ms:.0f} / " in row
    low, high = line.success_ci95
    assert row.rstrip("| 0123456789").endswith(f"; {100 * line.success:.0f} % [{100 * low:.0f}, {100 * high:.0f}]")
    assert len(MEASURED) == 36
    with pytest.raises(ValueError, match="has no table of samplers"):
        pictures.read_measured("# nothing")


def test_the_page_has_the_numbers_that_were_measured() -> None:
    found = re.search(r"Episodes ([\d, ]+) of seed (\d+)", PAGE)
    assert found is not None
    episodes = [int(index) for index in found[1].split(", ")]
    assert PAGE == pictures.page(MEASURED, episodes, pictures.Options(seed=int(found[2])))
    assert len(episodes) == pictures.Options().episodes
    assert "283 ms" in PAGE or str(round(MEASURED[0].p50_ms)) in PAGE


@pytest.mark.parametrize("name", ["latency_success.svg", "round.svg"])
def test_the_drawings_are_those_that_the_script_makes(name: str, tmp_path: Path) -> None:
    """Their texts and the places of their points: what else is in a file depends on matplotlib's version."""
    if name == "round.svg":
        round_drawing.draw(tmp_path / name)
    else:
        pictures.draw_chart(MEASURED, tmp_path / name)
    made, kept = ((folder / name).read_text() for folder in (tmp_path, pictures.PICTURES))
    for pattern in (r"<text[^>]*>([^<]*)</text>", r'<use [^>]*x="([\d.]+)" y="([\d.]+)"'):
        assert re.findall(pattern, made) == re.findall(pattern, kept) != []


def test_the_chart_has_every_sampler_and_both_backends() -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (pictures.PICTURES / "latency_success.svg").read_text())
    for name in ("ddpm", "ddim-10 ≈", "paper's asd θ=8", "asd", "one law, on onnx", "Intercept", "Avoid"):
        assert texts.count(name) == 1, name


def test_the_moving_picture_is_small_and_in_real_time() -> None:
    path = pictures.PICTURES / "intercept.gif"
    assert path.stat().st_size <= pictures.MOST_BYTES
    with Image.open(path) as gif:
        assert gif.size[0] == 2 * pictures.SIZE and gif.info["loop"] == 0
        shown = []
        for index in range(gif.n_frames):  # pyright: ignore[reportAttributeAccessIssue]  # of a GIF
            gif.seek(index)
            shown.append(gif.info["duration"])
    assert all(duration % 50 == 0 for duration in shown)  # control steps of 20 Hz
    assert sum(shown) > 3 * 50 * pictures.HELD


def test_frames_that_are_alike_still_take_their_time(tmp_path: Path) -> None:
    """A GIF joins them."""
    frames = [np.full((32, 32, 3), level, np.uint8) for level in (10, 10, 200, 200, 200, 90)]
    pictures.write_gif(frames, 20, tmp_path / "some.gif")
    with Image.open(tmp_path / "some.gif") as gif:
        total = 0
        for index in range(gif.n_frames):  # pyright: ignore[reportAttributeAccessIssue]  # of a GIF
            gif.seek(index)
            total += gif.info["duration"]
    assert total == 6 * 50


class _FakeStudio:
    """Fails with `ddpm` in every second episode, and with `asd` in every third."""

    hz = 20

    def __init__(self, name: str, latency_ms: float, seed: int) -> None:
        self.name, self.latency_ms = name, latency_ms

    def film(self, index: int) -> tuple[bool, list[pictures.Frame]]:
        lasting = 2 if self.name == "ddpm" else 3
        return index % lasting > 0, [np.full((32, 32, 3), 10 * index, np.uint8)] * (lasting + index)


def test_the_episodes_shown_are_the_first_in_which_only_ddpm_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "Studio", _FakeStudio)
    frames: list[Any] = []
    monkeypatch.setattr(pictures, "write_gif", lambda shown, fps, path: (frames.extend(shown), path.write_bytes(b"x")))
    indices = pictures.film(MEASURED, pictures.Options(episodes=3), tmp_path / "some.gif")
    assert indices == [2, 4, 8]
    assert len(frames) == sum(3 + index + pictures.HELD for index in indices)
    assert {frame.shape for frame in frames} == {(32, 64, 3)}
    monkeypatch.setattr(pictures, "MOST_BYTES", 0)
    with pytest.raises(ValueError, match=r"some.gif has 1 bytes, more than 0"):
        pictures.film(MEASURED, pictures.Options(), tmp_path / "some.gif")


@pytest.mark.skipif(find_library("EGL") is None, reason="rendering without a screen needs the system library libEGL")
def test_pucks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert meets all of them; a paddle that stays at the end of its rails does not."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    from asd_envs import make_expert
    from asd_policy.evaluation.rollout.environments import make_env

    env = pictures.Filming(make_env(f"{pictures.TASK},width=320,height=320", pictures.RENDER_MODE), "title")
    expert = make_expert(env)
    for act in (expert.act, lambda _: np.array([-0.25])):
        expert.reset(np.random.default_rng(0))
        observation, info = env.reset(seed=0)
        ended, steps, counts = False, 0, []
        while not ended:
            observation, _, terminated, truncated, info = env.step(act(observation))
            ended, steps = terminated or truncated, steps + 1
            counts.append((env.met, env.missed))
        assert (env.met, env.missed) == (info["intercepted"], 3 - info["intercepted"])
        assert counts == sorted(counts) and len(env.frames) == steps + 1
    assert env.missed > 0
    env.close()
