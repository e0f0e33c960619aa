"""The page of an evaluation: what it says, in words; and that a browser shows it, on a phone and on a desk."""

import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asd_policy import cli
from asd_policy._common.files import write_json
from asd_policy.errors import RunError
from asd_policy.evaluation.reports import page
from asd_policy.evaluation.reports.page_plots import Results
from asd_policy.evaluation.rollout.episodes import Episode
from support.run_files import SPECS, episodes, results, sampler, save

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[3]
PLOTS = ("success", "tradeoff", "latency", "window", "acceptance", "rounds", "modes")


def words(html: str) -> str:
    """Remove a page's line breaks."""
    return " ".join(html.split())


def test_what_it_says() -> None:
    html = words(page.build(results(), episodes()))
    for said in (
        "<strong>asd θ=32</strong> planned <strong>5.00×</strong> as fast as <strong>ddpm</strong> on this machine, in "
        "<strong>12.5×</strong> fewer sequential calls of the network. It succeeded in <strong>75 %</strong> [41, 93] "
        "of 8 episodes, ddpm in <strong>75 %</strong> [41, 93] of 8 on the same seeds. Its success is ddpm&#39;s "
        "within 10 points (p = 0.012).",
        "<li>ddim-10 ≈: success equivalent within 10 points (p = 0.012, 8 episodes)</li>",
        "1 failed episode<", "Not drawn: ddpm: always 100, ddim-10 ≈: always 10.",
        "Up to 2 plans were made together", "asd_policy 0.1.0, commit 0123456789abcdef; torch 2.13.0",
        "812 environment steps, 2.31 episodes", "75 [41, 93]", "12.5×",
    ):  # fmt: skip
        assert said in html, said
    assert 'id="incomplete"' not in html
    assert html.count("<svg") == len(PLOTS)


def test_what_it_says_of_a_clock() -> None:
    """What became of deadlines, in a table of its own; a sampler of which nothing came to its end has no figures."""
    timing = {
        "counted_latency_ms": {"mean": 123.0, "p50": 120.0, "p95": 187.0, "p99": 190.0, "max": 200.0},
        "delay_steps_mean": 6.5, "delay_steps_max": 10, "stale_steps_mean": 4.0, "stale_fraction": 0.125,
        "missed_deadlines": 8, "missed_fraction": 0.33, "control_frequency_hz": 43.75, "jitter_ms": 21.2,
        "seam_mean": 0.0625, "seam_p95": 0.5,
    }  # fmt: skip
    clock = {"clock": "async", "hz": 50.0, "env_hz": 20.0, "latency": "runs/$a$.txt", "latency_sha256": "ab"}
    first, *others = SPECS
    samplers = [sampler(first, timing=None), *(sampler(spec, timing=timing) for spec in others)]
    html = words(page.build(results(*samplers, **clock, continuity="soft"), episodes()))
    section = html.partition("<h2>In real time</h2>")[2].partition("</section>")[0]
    for said in (
        "clock async, 50 Hz, latency runs/$a$.txt, continuity soft", "<td>120</td><td>187</td><td>6.5</td>",
        "<td>12 %</td>", "<td>33 %</td>", "<td>43.8</td>", "<td>21</td>", "<td>0.062</td>",
        "asd/Avoid-v0 runs at 20 Hz, the clock at 50 Hz: a delay costs 2.5 times the steps",
    ):  # fmt: skip
        assert said in section, said
    assert section.count("<td>–</td>") == 8
    assert html.count("<svg") == len(PLOTS) + 1
    assert "--clock async \\ --hz 50.0 \\ --latency &#39;runs/$a$.txt&#39; \\ --continuity soft" in html
    waiting = page.build(results(*(sampler(spec, timing=None) for spec in SPECS), **clock, continuity="none"), [])
    assert "Left out: no episode came to a second plan." in waiting


def test_names_are_text() -> None:
    """Policies, modes and errors may hold any text, which no page may run."""
    html = page.build(results(), episodes())
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") == 6  # title, heading, error, mode, policy, command
    assert "--policy &#39;runs/&lt;script&gt;" in html  # quoted for a shell, too


def test_the_command_is_the_run() -> None:
    html = page.build(results(policy="my policy"), episodes())
    command = html.partition('<pre id="command">')[2].partition("</pre>")[0].replace("&#39;", "'").replace("\\\n", "")
    assert command.split() == [
        "asd-policy", "eval", "--policy", "'my", "policy'", "--env", "asd/Avoid-v0", "--samplers", *SPECS,
        "--episodes", "8", "--envs", "2", "--seed", "3", "--device", "cuda:1", "--backend", "onnx",
        "--margin", "0.1", "--workers", "2", "--out", "runs/again",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "done", "said"),
    [
        (results(complete=False), episodes(), "The run was interrupted"),
        (results(sampler("asd:window=8")), [], "ddpm was not measured: there is nothing to compare"),
        (results(sampler("ddpm"), sampler("ddim:10")), [], "No exact sampler but ddpm was measured"),
        (results(sampler("ddpm"), sampler("asd:window=8")), [], "Left out: only window 8 was measured"),
        (results(sampler("ddpm")), [], "Left out: no sampler with a window was measured"),
        (results(sampler("ddpm")), [], "Left out: it is drawn from episodes.jsonl, which has no plans here"),
        (results(sampler("ddpm")), [], "Left out: no sampler of this run verifies drafts"),
        (results(sampler("ddpm")), episodes(("ddpm",)), "same number of rounds; ddpm: always 100"),
        (results(sampler("ddpm", modes={}, mode_entropy=None)), [], "Left out: the environment reports no modes"),
        (results(sampler("ddpm"), sampler("asd:window=8", plans=0)), [], "No exact sampler but ddpm was"),
    ],
)
def test_what_is_missing_is_said(record: Results, done: list[Episode], said: str) -> None:
    assert said in words(page.build(record, done))


@pytest.mark.parametrize(
    ("power", "discordance", "said"),
    [
        (0.42, 0.1, "8 episodes do not show that its success is ddpm&#39;s within 5 points (p = 0.31, about 375 can)."),
        (0.0, 0.1, "8 episodes cannot show that success is ddpm&#39;s within 5 points: about 375 can."),
    ],
)
def test_a_verdict_that_was_not_reached(power: float, discordance: float, said: str) -> None:
    """The headline says how many episodes it takes."""
    verdict = {"margin": 0.05, "p_value": 0.31, "equivalent": False, "power": power, "discordance": discordance}
    html = words(page.build(results(sampler("ddpm"), sampler("asd:window=8", equivalence=verdict)), []))
    assert said in html.partition('id="headline"')[2].partition("</p>")[0]


def test_every_name_is_short() -> None:
    """But for the command line, which repeats the run."""
    html = page.build(results(), episodes())
    beside = html.partition('<pre id="command">')
    assert "draft=" not in beside[0] and "draft=response" in beside[2]
    assert html.count("paper&#39;s asd θ=8") + html.count("paper's asd θ=8") >= 5


def test_the_samplers_of_the_side_by_side_video() -> None:
    """The sequential one, the fastest of the others, and the fastest exact one on the right; fewer of fewer."""
    paper, best = SPECS[2:]
    fast = sampler("ddim:10", wall_clock_speedup=9.0)
    for samplers, chosen in (
        ((sampler("ddpm"), fast, sampler(paper), sampler(best)), {"ddpm": "ddpm", "ddim:10": "ddim-10 ≈"}),
        ((sampler(best), sampler(paper), sampler("ddpm")), {"ddpm": "ddpm", paper: "paper's asd θ=8"}),
        ((sampler("ddpm"), sampler(best)), {"ddpm": "ddpm"}),
    ):
        assert list(page.shown_beside(results(*samplers)).items()) == [*chosen.items(), (best, "asd θ=32")]
    assert list(page.shown_beside(results(sampler("ddpm")))) == ["ddpm"]
    assert list(page.shown_beside(results(sampler("ddpm"), fast))) == ["ddpm", "ddim:10"]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    html = page.build(results(), episodes())
    assert "<svg" not in html
    assert html.count("pip install &#39;asd-policy[plots]&#39;") == len(PLOTS)


def test_the_command_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "run", results(), episodes())
    assert cli.run(["report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().err
    assert (folder / "report.html").read_text(encoding="utf-8") == page.build(results(), episodes())
    assert cli.run(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (results() | {"command": "bench"}, "is of asd-policy bench"),
        (results({"spec": "ddpm", "exact": True}), "lacks 'success_ci95', which an asd-policy eval"),
        (results() | {"samplers": []}, "has no sampler: no episode had finished"),
    ],
)
def test_results_that_make_no_page(tmp_path: Path, record: Results, said: str) -> None:
    write_json(tmp_path / "results.json", record)
    with pytest.raises(RunError) as error:
        page.write(tmp_path)
    assert said in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_numbers_as_large_as_a_run_may_have_them(tmp_path: Path) -> None:
    """Seeds of any size, rewards of a careless unit, shares with a rounding."""
    record = results(sampler("ddpm", return_mean=1e30, success_ci95=[-1e-17, 1 + 1e-16]), seed=2**100)
    assert str(2**100) in page.write(save(tmp_path, record, episodes(("ddpm",)))).read_text(encoding="utf-8")


def test_episodes_beyond_those_that_were_enough(tmp_path: Path) -> None:
    """`--until-ci` counts fewer than may have finished."""
    folder = save(tmp_path, results(episodes=2), episodes())
    counted = episodes()[: 2 * len(SPECS)]
    assert page.write(folder).read_text(encoding="utf-8") == page.build(results(episodes=2), counted)


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts/maintenance")
        chromium = importlib.import_module("browser").find()
    if chromium is None:
        pytest.skip("no Chromium: make browser, or install your distribution's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from asd_policy.evaluation.reports import video

    folder = save(tmp_path_factory.mktemp("page"), results(), episodes())
    random = np.random.default_rng(0)
    with video.writing(folder / video.SIDE_BY_SIDE, 10) as write:
        for _ in range(10):
            write(random.integers(255, size=(96, 192, 3), dtype=np.uint8))
    return page.write(folder)


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def shown(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page on a phone's and on a desk's screen; nothing on it may complain, or ask for anything but itself."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    requests, complaints = [], []
    tab.on("request", lambda asked: requests.append(asked.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(report.as_uri())
    yield tab
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def pixels(shot: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=float)


def test_it_fits_the_screen(shown: Any) -> None:
    width = shown.viewport_size["width"]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("headline", "failures", "results", "verdicts", "video", *PLOTS, "run", "command"):
        element = shown.locator(f"#{name}")
        assert element.is_visible(), name
        box = element.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] > 20, name
    # The table scrolls inside itself where the screen is narrow, and its first column stays.
    assert shown.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('#results'))") is (width < 800)
    shown.evaluate("document.querySelector('#results').scrollLeft = 1000")
    assert shown.locator("#results tbody th").first.bounding_box()["x"] >= 0


def test_what_matters_is_there_before_anything_is_scrolled(shown: Any) -> None:
    """On a phone, too: success, speedup and latency, in the columns after the name."""
    width = shown.viewport_size["width"]
    heads = shown.locator("#results thead th")
    assert [heads.nth(place).inner_text().replace("\u00a0", " ") for place in range(4)] == [
        "sampler", "success % [95 %]", "wall-clock speedup", "mean ms",
    ]  # fmt: skip
    box = heads.nth(3).bounding_box()
    assert box["x"] + box["width"] <= width


def test_it_is_drawn(shown: Any) -> None:
    dark = shown.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for name in ("headline", "results", *PLOTS, "run", "command"):
        shot = pixels(shown.locator(f"#{name}").screenshot())
        paper = float(np.median(shot))
        assert (paper < 60) is dark, name
        inked = np.abs(shot - paper) > 60
        # Neither blank nor a blot, and not in a corner.
        assert 0.005 < inked.mean() < 0.5, name
        assert np.ptp(np.flatnonzero(inked.any(axis=0))) > 0.4 * shot.shape[1], name


def test_plots_can_be_read(shown: Any) -> None:
    """Labels have a legible size, and none is cut off, whatever font a browser has in the place of the plot's own."""
    for name in PLOTS:
        sizes, cut = shown.evaluate(
            """name => {
                const svg = document.querySelector(`#${name} svg`), frame = svg.getBoundingClientRect()
                const texts = [...svg.querySelectorAll("text")], scale = svg.getScreenCTM().a
                return [texts.map(text => scale * parseFloat(getComputedStyle(text).fontSize)), texts.filter(text => {
                    const box = text.getBoundingClientRect()
                    return box.left < frame.left - 2 || box.right > frame.right + 2
                        || box.top < frame.top - 2 || box.bottom > frame.bottom + 2
                }).map(text => text.textContent)]
            }""",
            name,
        )
        assert len(sizes) > 3 and min(sizes) >= 8, name
        assert cut == [], name


def test_the_video_plays(shown: Any) -> None:
    """Where the browser has H.264."""
    if not shown.evaluate("""document.createElement("video").canPlayType('video/mp4; codecs="avc1.42E01E"')"""):
        pytest.skip("this Chromium is built without H.264")
    shown.wait_for_function("document.querySelector('video').readyState >= 2")
    size = shown.evaluate("(e => [e.videoWidth, e.videoHeight, e.duration])(document.querySelector('video'))")
    assert size == [192, 96, 1]
