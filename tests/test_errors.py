"""Errors: one line of bounded length, whatever a file or a library has put into them."""

import pytest

from asd_policy import errors
from asd_policy.errors import LONGEST, AsdError, one_line

ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, AsdError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_one_line_of_bounded_length(kind: type[AsdError]) -> None:
    said = str(kind("first\n\x1b[31m" + "x" * 10**6 + "\u202elast"))
    assert len(said) == LONGEST
    assert said.isprintable()
    assert said.startswith("first \\x1b[31mxx")
    assert said.endswith("xx\\u202elast")
    assert str(kind("as it is: [a, b]")) == "as it is: [a, b]"


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1])
def test_what_is_left_out_is_marked(length: int) -> None:
    line = one_line("x" * length)
    assert len(line) == min(length, LONGEST)
    assert (" … " in line) == (length > LONGEST)
