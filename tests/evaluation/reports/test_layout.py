"""Tables in terminals of any width: no line is too long and no number is cut, whatever has to go."""

import io
import re

import pytest
from rich.console import Console

from asd_policy.evaluation.reports.layout import NOTHING, Column, Sheet

NAMES = Column("sampler", ("asd", "paper's asd θ=16"))
TIMES = Column("mean ms", ("101.63", "2"))
SHARES = Column("overhead", ("10.3 %", "9.1 %"), leaves=1)
RETURNS = Column("return [95 %]", ("0.95 [0.845, 1]", NOTHING), leaves=2)
UNKNOWN = Column("mode entropy", (NOTHING, NOTHING))
WORDS = Column("found", ("largest in sd 0.0123, energy 1.5", "nothing"), text=True)


def shown(sheet: Sheet, width: int, terminal: bool = False) -> str:
    """Print as to a pipe, or as to a terminal with colours."""
    written = io.StringIO()
    Console(file=written, width=width, force_terminal=terminal, color_system="standard" if terminal else None).print(
        sheet
    )
    return written.getvalue()


def test_a_table_to_the_letter() -> None:
    sheet = Sheet("a title", [NAMES, TIMES, SHARES, UNKNOWN], "a caption", headings=("on a", "on b"))
    assert shown(sheet, 60).splitlines() == [
        "a title",
        "                    mean",
        "sampler               ms  overhead",
        "──────────────────────────────────",
        "on a",
        "asd               101.63    10.3 %",
        "on b",
        "paper's asd θ=16       2     9.1 %",
        "a caption",
        "",
    ]


def test_columns_leave_in_their_order_and_are_named() -> None:
    sheet = Sheet("", [NAMES, SHARES, TIMES, RETURNS])
    full = 16 + 2 + 8 + 2 + 6 + 2 + 15
    assert "no room" not in shown(sheet, full)
    assert "no room here for: overhead\n" in shown(sheet, full - 1)
    assert "0.95 [0.845, 1]" in shown(sheet, full - 1)
    narrow = shown(sheet, 30)
    assert "no room here for: overhead," in narrow and "0.95" not in narrow and "101.63" in narrow


def test_where_nothing_can_leave_rows_become_lines_with_everything() -> None:
    text = shown(Sheet("", [NAMES, TIMES, SHARES, UNKNOWN], headings=("on a", "on a")), 20)
    assert text.split("\n")[1:] == [
        "on a",
        "asd",
        "  mean ms   101.63",
        "  overhead  10.3 %",
        "paper's asd θ=16",
        "  mean ms   2",
        "  overhead  9.1 %",
        "",
        "",
    ]


@pytest.mark.parametrize("width", [24, 30, 40, 60, 80, 100, 160])
def test_no_line_is_too_long_and_no_number_is_cut(width: int) -> None:
    sheet = Sheet("a title of some words", [NAMES, TIMES, SHARES, RETURNS, WORDS], "a caption of some words")
    text = shown(sheet, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    whole = {"101.63", "2", "10.3", "9.1", "0.95", "[0.845", "1]", "0.0123", "1.5", "θ=16", "[95"}
    numbers = {word for word in re.split(r"[\s,]+", text) if re.search(r"\d", word)}
    assert numbers <= whole
    assert {"101.63", "2", "0.0123", "1.5"} <= numbers


def test_words_wrap_between_words_beside_their_row() -> None:
    lines = shown(Sheet("", [NAMES, TIMES, WORDS]), 42).splitlines()
    assert [line.rstrip() for line in lines[4:]] == [
        "asd               101.63  largest in sd",
        "                          0.0123, energy",
        "                          1.5",
        "paper's asd θ=16       2  nothing",
        "",
    ]


def test_colours_are_for_terminals_alone() -> None:
    sheet = Sheet("a title", [NAMES, TIMES], styles=("bold red", ""))
    assert "\x1b[" in shown(sheet, 80, terminal=True)
    assert "\x1b[" not in shown(sheet, 80)
