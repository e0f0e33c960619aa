"""README.md says what the pages of results say, and no more words than it may."""

import re

import pytest

import front_page


def test_readme_has_the_numbers_that_were_measured() -> None:
    text = front_page.README.read_text()
    assert front_page.rendered(text) == text, "run scripts/maintenance/front_page.py"


def test_a_place_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no place for verify"):
        front_page.rendered(re.sub(r"<!-- /?verify[^>]*-->", "", front_page.README.read_text()))


def test_readme_is_short() -> None:
    assert len(front_page.README.read_text().split()) <= 900
