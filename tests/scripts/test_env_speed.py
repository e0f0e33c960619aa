"""The script that measures environments: one row each, into the document's table and nowhere else."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts/benchmarks"


def test_the_table_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import env_speed

    document = tmp_path / "environment_speed.md"
    document.write_text(f"before\n{env_speed.BEGIN}\nold\n{env_speed.END}\nafter\n")
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    envs = ("asd/Avoid-v0", "asd/MetaWorld-reach-v0", "asd/PointMaze-UMaze-v0")
    env_speed.main(env_speed.Options(envs, blocks=3, resets=1, write=document))
    text = document.read_text()
    assert text.startswith(f"before\n{env_speed.BEGIN}\n| environment ")
    assert text.endswith(f"\n{env_speed.END}\nafter\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `asd/")]
    assert [row[0] for row in rows] == ["| `asd/Avoid-v0`", "| `asd/PointMaze-UMaze-v0`"]
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert "asd/MetaWorld-reach-v0 left out: " in capsys.readouterr().err
