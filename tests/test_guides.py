"""The guides' pages on other chains: what they tell people to run in Python works, from the repository's root."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("without_noise", "langevin")


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/guide/{page}.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {"__name__": "guide"}
    exec(blocks[0], names)
    printed = capsys.readouterr().out
    assert ("rounds" if page == "langevin" else "off by at most") in printed
    if page == "langevin":
        assert max(names["result"].stats.rounds) < 40  # pyright: ignore[reportAttributeAccessIssue]  # a SampleResult
    else:
        calls = re.search(r"calls: (\d+) (\d+)", printed)
        assert calls is not None and int(calls[1]) == 16 > int(calls[2])
