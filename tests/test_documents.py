"""Links of the documents lead somewhere, their commands exist, and the worked example of CONTRIBUTING.md is true."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import markdown
import pytest
import torch

import site_hooks
from asd_policy.chain.gaussian import GaussianChain
from asd_policy.cli.parsing import parse
from asd_policy.evaluation.exactness.law import PathRecorder, step_checks
from asd_policy.evaluation.exactness.mutants import mutated
from asd_policy.networks.analytic import MixtureDenoiser
from asd_policy.samplers.asd import draft
from asd_policy.samplers.asd.sampler import Asd

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
            for at, word in enumerate(words if words[:1] != ["pip"] else []):
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_and_their_options_exist(document: Path) -> None:
    for program, *words in commands(document):
        if program.startswith("scripts/"):
            source = (ROOT / program).read_text()
            for option in (word for word in words if word.startswith("--")):
                field = option.removeprefix("--").removeprefix("no-").replace("-", "_")
                declared = rf'^    {field}: |"{option}"'  # of a dataclass, or of argparse
                assert re.search(declared, source, re.MULTILINE), f"{program} has no option {option}"
        else:
            try:
                assert parse(words) is not None
            except SystemExit as stop:  # --help and --completion, which are printed
                assert not stop.code


@pytest.mark.parametrize("page", RESULTS, ids=name)
def test_every_page_of_results_names_its_command(page: Path) -> None:
    assert list(commands(page)), "no shell block with a command of this repository"


def test_every_page_of_results_is_listed() -> None:
    index = (ROOT / "docs/results/README.md").read_text()
    assert [page.name for page in RESULTS if f"({page.name})" not in index] == []


def test_the_draft_of_the_worked_example_is_exact(gaussian: MixtureDenoiser, chain: GaussianChain) -> None:
    """As CONTRIBUTING.md has it, registered for as long as the test lasts; and it fails with the mutant named there."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    count, event = 20_000, (2, 2)

    def p_value() -> float:
        recorder = PathRecorder(gaussian, chain, count, 4)
        cond = recorder.tag(torch.zeros((count, 0)))
        generator = torch.Generator().manual_seed(0)
        result = Asd(5, "lazy", "reflection").sample(recorder, chain, (count, *event), cond, generator)
        checks = step_checks(chain, [(recorder, result.sample.flatten(1).numpy())])
        return len(checks) * min(check.p_value for check in checks)

    with mock.patch.dict(draft.DRAFTS):
        exec("\n".join(block for block in blocks if "LazyDraft" in block), vars(draft) | {"DRAFTS": draft.DRAFTS})
        assert p_value() > 1e-6
        with mutated("peek"):
            assert p_value() < 1e-6


def test_formulas_keep_their_indices_on_the_site() -> None:
    """Markdown alone takes the underscores of x̃_k for emphasis, and the braces after it for attributes."""
    formula = "x̃_k = x_k, x̃_{k+1}, …, x̃_{k+θ−1} from *guesses*, d_{k+1} = d_k + J_{k+1} ξ_k"
    shown = formula.replace("*guesses*", "<em>guesses</em>")
    assert markdown.markdown(formula, extensions=["attr_list", site_hooks.PlainUnderscores()]) == f"<p>{shown}</p>"
    assert markdown.markdown(formula, extensions=["attr_list"]) != f"<p>{shown}</p>"
    assert "site_hooks.py" in (ROOT / "mkdocs.yml").read_text()
