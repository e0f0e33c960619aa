"""Links of the documents lead somewhere, and every page of results names a command that this repository has."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from asd_policy.cli import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "plugins", "checkpoints", "envs", "scripts", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
RESULTS = sorted(path for path in (ROOT / "docs/results").glob("*.md") if path.name != "README.md")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """Return the fragments of a document's headings, spelt as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", document.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def commands(document: Path) -> Iterator[list[str]]:
    """Yield the words of each command in the document's shell blocks that runs what is in this repository."""
    for block in re.findall(r"^```sh\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            for at, word in enumerate(words):
                if word.startswith("scripts/") or word.endswith("asd-policy"):
                    yield words[at:]
                    break


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = FENCED.sub("", document.read_text())
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link}: there is no {path}"
        if fragment:
            assert fragment in anchors(target), f"{link}: no heading of {name(target)} is #{fragment}"


@pytest.mark.parametrize("page", RESULTS, ids=name)
def test_results_name_a_command_that_exists(page: Path) -> None:
    found = list(commands(page))
    assert found, "no shell block with a command of this repository"
    for program, *words in found:
        if program.startswith("scripts/"):
            source = (ROOT / program).read_text()
            for word in words:
                if word.startswith("--"):
                    option = word.removeprefix("--").removeprefix("no-").replace("-", "_")
                    assert re.search(rf"^    {option}: ", source, re.MULTILINE), f"{program} has no option {word}"
        else:
            assert app._parse(words) is not None


def test_every_page_of_results_is_listed() -> None:
    index = (ROOT / "docs/results/README.md").read_text()
    assert [page.name for page in RESULTS if f"({page.name})" not in index] == []
