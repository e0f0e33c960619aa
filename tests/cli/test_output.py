"""What commands print in a terminal of any width, and to a pipe."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from asd_policy import cli
from asd_policy.cli.common import make_console, progress_bar
from asd_policy.cli.eval_options import EvalOptions, episodes_for
from asd_policy.errors import SpecError
from asd_policy.evaluation.equivalence import USUAL_DISCORDANCE, WANTED_POWER, equivalence_power


@pytest.mark.parametrize("width", [60, 80, 160])
def test_progress_keeps_its_counter(width: int) -> None:
    """However much there is to say of what is done."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=True, color_system=None)
    with progress_bar(console) as progress:
        task = progress.add_task("warming up a long name on onnx:provider=cpu,threads=auto; " * 3, total=12000)
        progress.update(task, completed=11999)
    lines = re.sub(r"\x1b\[[?\d]*[a-zA-Z]|\r", "", written.getvalue()).splitlines()
    assert "left" in lines[0] and "warming" in lines[0]
    assert lines[0].startswith("    0/12000 ") and len(lines[0]) <= width
    assert any("11999/12000 " in line for line in lines[1:]) and "…" not in written.getvalue()


def test_a_pipe_has_room_and_no_terminal_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a terminal is as wide as that, as in 2>&1 | tee log; COLUMNS has the last word."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.isatty", lambda _: False)
    assert make_console().width == 140
    monkeypatch.setattr("os.isatty", lambda stream: stream == 0)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (93, 20))
    assert make_console().width == 93
    monkeypatch.setenv("COLUMNS", "80")
    assert make_console().width == 80


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_run_that_is_piped(
    width: int, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Tables fit, there is no colour, and the verdict is one line."""
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["eval", "--policy", str(small_checkpoint), "--env", "asd/Avoid-v0", "--episodes", "2", "--max-steps", "3"]
    samplers = ["--samplers", "ddpm", "asd:window=8,draft=frozen,verify=reflection", "ddim:2"]
    assert cli.run([*words, *samplers, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "\x1b" not in said and "…" not in said
    table = said[said.index("asd/Avoid-v0, seed 0") : said.index("verdict: ")]
    assert max(map(len, table.splitlines())) <= width
    assert "paper's asd θ=8" in table and "ddim-2 ≈" in table
    assert ("nfe" in table.partition("no room")[0]) is (width == 160)
    (verdict,) = [line for line in said.splitlines() if line.startswith("verdict: ")]
    assert "2 episodes cannot show that success is ddpm's within 10 points: about" in verdict


def options(**given: float | int) -> EvalOptions:
    return EvalOptions("policy", "env", Path("out"), **given)  # pyright: ignore[reportArgumentType]  # as parsed


def test_the_default_is_as_many_episodes_as_show_what_is_asked() -> None:
    """With the wanted power, where so many pairs differ as with a good policy."""
    for margin, said in ((0.1, 71), (0.05, 213)):
        assert options(margin=margin).most == episodes_for(margin) == said  # the help says these
        assert equivalence_power(said, USUAL_DISCORDANCE, margin) >= WANTED_POWER
    assert options(margin=0.1, episodes=3).most == 3
    assert options(margin=0.1, until_ci=0.1).most == 1000


def test_a_margin_that_no_number_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asd_policy.cli.eval_options.pairs_needed", lambda *_: None)
    with pytest.raises(SpecError, match="--margin 0.001 takes more than 32,768 episodes to show: give --episodes"):
        options(margin=0.001).check()
    options(margin=0.001, episodes=5).check()
