"""Errors: one line of bounded length, whatever a file or a library has put into them."""

import pytest

from asd_policy import errors
from asd_policy.errors import MAX_MESSAGE, AsdError, one_line

ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, AsdError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_one_line_of_bounded_length(kind: type[AsdError]) -> None:
    said = str(kind("first\n\x1b[31m" + "x" * 10**6 + "\u202elast"))
    assert len(said) == MAX_MESSAGE
    assert said.isprintable()
    assert said.startswith("first \\x1b[31mxx")
    assert said.endswith("xx\\u202elast")
    assert str(kind("as it is: [a, b]")) == "as it is: [a, b]"


@pytest.mark.parametrize("length", [MAX_MESSAGE - 1, MAX_MESSAGE, MAX_MESSAGE + 1])
def test_what_is_left_out_is_marked(length: int) -> None:
    line = one_line("x" * length)
    assert len(line) == min(length, MAX_MESSAGE)
    assert ("…" in line) == (length > MAX_MESSAGE)
