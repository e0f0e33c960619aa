"""From words to a command: the version, what was meant by a misspelt word, and whose help explains it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asd_policy
from asd_policy import cli
from asd_policy.checkpoints import inspection
from asd_policy.cli.parsing import SHELLS, parse
from support.contract import one_line

EVAL = ("eval", "--policy", "a", "--env", "asd/Avoid-v0", "--out", "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no command is given; there are eval, report, "),
        (("evl",), "no command 'evl' (did you mean 'eval'?); there are eval, "),
        (("xyz",), "no command 'xyz'; there are eval, "),
        (("--verion",), "asd-policy has no option --verion (did you mean '--version'?); see asd-policy --help"),
        (("eval",), "Missing from asd-policy eval: --policy --env --out; see asd-policy eval --help"),
        (("compare", "a"), "Missing from asd-policy compare: PATH; see asd-policy compare --help"),
        (("compare", "a", "b", "c"), "not known: c; see asd-policy compare --help"),
        ((*EVAL, "--episode", "3"), "eval has no option --episode (did you mean '--episodes'?); see asd-policy eval -"),
        ((*EVAL, "--max_step=3"), "eval has no option --max-step (did you mean '--max-steps'?)"),
        ((*EVAL, "--no-vdeo"), "eval has no option --no-vdeo (did you mean '--video'?)"),
        ((*EVAL, "--seed", "x"), "--seed 'x' is not a whole number; see asd-policy eval --help"),
        ((*EVAL, "--margin", "x"), "--margin 'x' is not a number"),
        ((*EVAL, "--episodes", "1.5"), "--episodes '1.5' is not a whole number"),
        ((*EVAL, "--hz", "fast"), "--hz 'fast' is not a number"),
        (
            (*EVAL, "--samplers", "ads"),
            "in 'ads'; there are ddpm, ddim, dpmsolver, euler, paradigms, parallel, asd, tokens (did you mean 'asd'?)",
        ),
        (
            (*EVAL, "--samplers", "asd:windows=3"),
            "'asd:windows=3'; asd has window, draft, verify (did you mean 'window'?)",
        ),
        (("--completion",), "--completion takes one of bash, zsh, fish; given none"),
        (("--completion", "ksh"), "--completion takes one of bash, zsh, fish; given ksh"),
        (("inspect",), "inspect PATH takes one checkpoint; given none"),
        (("inspect", "a", "--policy", "b"), "inspect PATH takes one checkpoint; given a and b"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in one_line(list(words), capsys)


@pytest.mark.parametrize("utf8", [False, True])
def test_the_parsers_boxes_are_folded(
    utf8: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws them of other characters where a terminal has no others."""
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", utf8)
    missing = "asd-policy: Missing from asd-policy eval: --policy --env --out; see asd-policy eval --help"
    assert one_line(["eval"], capsys) == missing
    assert one_line(["report", "a", "b"], capsys) == "asd-policy: not known: b; see asd-policy report --help"


def test_options_in_all_their_forms() -> None:
    command = parse([*EVAL, "--max_steps=3", "--no-video", "--until-ci", "0.1"])
    assert (command.max_steps, command.video, command.until_ci) == (3, False, 0.1)


def test_inspect_takes_a_path(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def inspect(path: str, *rest: object) -> dict[str, object]:
        asked.append(path)
        raise asd_policy.CheckpointError("seen")

    monkeypatch.setattr(inspection, "inspect", inspect)
    for words in (["inspect", str(small_checkpoint)], ["inspect", "--policy", str(small_checkpoint)]):
        assert cli.run(words) == 2
    assert asked == 2 * [str(small_checkpoint)]


def test_the_version_of_both_programs(tmp_path: Path) -> None:
    """At once: PyTorch, whose import takes seconds, is not looked at."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    for module in ("asd_policy", "asd_policy.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"asd-policy {asd_policy.__version__}\n", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_the_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["--completion", shell])
    assert stop.value.code == 0
    script = capsys.readouterr().out
    assert "asd-policy" in script and "--until-ci" in script and "inspect" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_words_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["--completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    script = """
        source completion
        COMP_WORDS=(asd-policy "$@"); COMP_CWORD=$#
        $(complete -p asd-policy | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${COMPREPLY[@]}"
    """

    def completed(*words: str) -> list[str]:
        told = subprocess.run(["bash", "-c", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True)
        return told.stdout.splitlines()

    assert completed("ev") == ["eval"]
    assert completed("eval", "--until") == ["--until-ci"]
    assert all(word.startswith("-") for word in completed("eval", "--"))
